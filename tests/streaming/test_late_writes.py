"""What was shown is in the record two seconds later, also when no call comes any more and whoever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.test import override_settings
from django.utils import timezone

from streaming.guarded import late, rows
from streaming.guarded.late import Late
from streaming.guarded.store import Store
from streaming.log import LogUnavailable
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, Finding, GuardedStream, Message
from streaming.sweep import sweep
from tests.streaming.test_stream_api import SSN, Client, closing, forget_store, new_key

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("demo_policy", "valkey_url", closing.__name__),
]
LONG_S = 600.0
LONG = override_settings(SLUICEGATE_WRITE_THROUGH_S=LONG_S, SLUICEGATE_STREAM_EXPIRY_S=10 * LONG_S)
"""Longer than this machine can stand still between two calls."""


@dataclass
class Timer:
    seconds: float
    do: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Clock:
    """Timers that are due when the test says so."""

    timers: list[Timer] = field(default_factory=list)

    def call_later(self, seconds: float, do: Callable[[], None], context: Context) -> Timer:
        self.timers.append(Timer(seconds, lambda: context.run(do)))
        return self.timers[-1]

    async def pass_by(self) -> None:
        due, self.timers = self.timers, []
        for timer in due:
            if not timer.cancelled:
                timer.do()
        await shared_log().companion(Late).settle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(late, "call_later", made.call_later)
    return made


async def burst() -> tuple[Client, str]:
    """A stream of three deltas that nothing was found in."""
    client = Client(await new_key())
    session_id = str((await client.start(delta="One. "))["session_id"])
    for seq, delta in ((2, "Two. "), (3, "Three. ")):
        assert (await client.update(session_id, seq, delta))[0] == 200
    return client, session_id


async def written() -> tuple[int, str]:
    return (await GuardedStream.objects.aget()).seq, (await Message.objects.aget()).content


@LONG
async def test_it_works(clock: Clock) -> None:
    client, session_id = await burst()
    assert await written() == (1, "One. "), "nothing was due while the calls came"
    (timer,) = clock.timers
    assert 0 < timer.seconds <= LONG_S, "when the first of them is due"
    await clock.pass_by()
    assert await written() == (3, "One. Two. Three. ")
    await forget_store()
    assert (await client.update(session_id, 4, "Four."))[0] == 200, "nothing has to be sent again"


@LONG
async def test_what_was_written_or_is_over_waits_for_no_timer(clock: Clock) -> None:
    client, session_id = await burst()
    await client.update(session_id, 4, f"{SSN}. ")
    assert (await written())[0] == 4, "a finding goes at once"
    assert clock.timers[0].cancelled
    await client.update(session_id, 5, "Five. ")
    assert (len(clock.timers), clock.timers[1].cancelled) == (2, False)
    await client.finish(session_id)
    assert clock.timers[1].cancelled
    before = await GuardedStream.objects.aget()
    for timer in clock.timers:
        timer.do()  # one that was too late to be stopped
    await shared_log().companion(Late).settle()
    after = await GuardedStream.objects.aget()
    assert (after.rev, after.sealed_state) == (before.rev, before.sealed_state)
    assert (await AuditSession.objects.aget()).state == "COMPLETE"


@LONG
async def test_a_write_that_is_late_goes_over_nothing_newer(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    client, session_id = await burst()
    plain = Store.read

    async def read(self: Store, name: str) -> object:
        found = await plain(self, name)
        monkeypatch.setattr(Store, "read", plain)
        await client.update(session_id, 4, f"{SSN}. ")  # another call, while this one waits for the database
        return found

    monkeypatch.setattr(Store, "read", read)
    await clock.pass_by()
    assert await written() == (4, "One. Two. Three. [SSN]. ")


@LONG
async def test_what_comes_while_another_state_is_written_has_its_own_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that did not wait for the answer to the call before."""
    client, session_id = await burst()
    plain = Store.kept

    async def kept(self: Store, name: str) -> None:
        monkeypatch.setattr(Store, "kept", plain)
        await client.update(session_id, 5, "Five. ")
        await plain(self, name)

    monkeypatch.setattr(Store, "kept", kept)
    await client.update(session_id, 4, f"{SSN}. ")
    assert (await written())[0] == 4
    await clock.pass_by()
    assert await written() == (5, "One. Two. Three. [SSN]. Five. ")


@LONG
async def test_a_write_that_was_called_off_is_made_again_in_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client went away in its middle."""
    client, session_id = await burst()

    async def gone(self: Store, name: str) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as away:
        away.setattr(Store, "kept", gone)
        with pytest.raises(asyncio.CancelledError):
            await client.update(session_id, 4, f"{SSN}. ")
    assert [timer.cancelled for timer in clock.timers] == [True, False]
    await clock.pass_by()
    assert await written() == (4, "One. Two. Three. [SSN]. ")


@contextmanager
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A call that is cut off once the store has what follows from it."""
    plain = Store.swap

    async def cut(self: Store, *args: object, **kwargs: object) -> None:
        await plain(self, *args, **kwargs)  # type: ignore[arg-type]
        raise asyncio.CancelledError

    with monkeypatch.context() as away:
        away.setattr(Store, "swap", cut)
        with pytest.raises(asyncio.CancelledError):
            yield


@LONG
@pytest.mark.parametrize("repeated", [False, True], ids=["where it was cut off", "where it is repeated"])
async def test_a_call_that_was_cut_off_when_the_store_had_it_is_written_in_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, repeated: bool
) -> None:
    """Its answer is kept, so a client that says it again is shown the text: the record is to have it, too."""
    client, session_id = await burst()
    await clock.pass_by()
    with cut_off(monkeypatch):
        await client.update(session_id, 4, f"{SSN}. ")
    if repeated:
        for timer in clock.timers:  # of a process that is dead now
            shared_log().companion(Late).written(session_id)
            assert timer.cancelled
        assert (await client.update(session_id, 4, f"{SSN}. "))[1]["findings"] != []
    assert (await written())[0] == 3
    await clock.pass_by()
    assert await written() == (4, "One. Two. Three. [SSN]. ")


@LONG
async def test_a_finish_that_was_cut_off_when_the_store_had_it_is_written_in_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, session_id = await burst()
    await clock.pass_by()
    with cut_off(monkeypatch):
        await client.finish(session_id, seq=4, delta=f"{SSN}. ")
    await clock.pass_by()
    assert await written() == (4, "One. Two. Three. [SSN]. ")
    assert await Finding.objects.acount() == 1


@LONG
async def test_a_finish_whose_end_is_not_stored_is_written_in_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before it was written because of a finding, so that nothing else waits for its time."""
    client, session_id = await burst()
    await client.update(session_id, 4, f"{SSN}. ")

    def away(**given: object) -> None:
        raise OperationalError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(rows, "end", away)
        assert (await client.finish(session_id, seq=5, delta="Five. "))[0] == 503
    assert (await written())[0] == 4
    await clock.pass_by()
    assert await written() == (5, "One. Two. Three. [SSN]. Five. ")


@LONG
async def test_a_process_that_died_leaves_it_to_the_sweep(clock: Clock) -> None:
    _, session_id = await burst()
    for _ in range(2):
        done = await sweep(timezone.now() + timedelta(seconds=3 * LONG_S), shared_log(), lambda pk: None)
        assert done.expired == []
        assert await written() == (3, "One. Two. Three. ")
    await forget_store()
    await sweep(timezone.now() + timedelta(seconds=3 * LONG_S), shared_log(), lambda pk: None)
    assert (await AuditSession.objects.aget(pk=session_id)).state == "ACTIVE"


@LONG
async def test_a_store_that_is_away_then_costs_no_more_than_the_time_until_the_sweep(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await burst()
    with monkeypatch.context() as patched:

        async def away(self: Store, name: str) -> object:
            raise LogUnavailable("away")

        patched.setattr(Store, "read", away)
        await clock.pass_by()
    assert await written() == (1, "One. ")
    await sweep(timezone.now() + timedelta(seconds=3 * LONG_S), shared_log(), lambda pk: None)
    assert (await written())[0] == 3


@LONG
async def test_no_timer_and_no_task_outlives_the_log() -> None:
    """With the loop's own timers."""
    _, session_id = await burst()
    kept = shared_log().companion(Late)
    assert kept.due == [session_id]
    await close_shared_log()
    assert kept.due == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("write-through")]


@override_settings(SLUICEGATE_WRITE_THROUGH_S=0.2)
async def test_the_loops_own_timer_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote, plain = asyncio.Event(), late.write

    async def write(store: Store, session_id: str) -> bool:
        await plain(store, session_id)
        wrote.set()
        return True

    monkeypatch.setattr(late, "write", write)
    client, session_id = await burst()
    seq = 3
    while not shared_log().companion(Late).due:  # a machine that stood still has written within the call
        seq += 1
        assert (await client.update(session_id, seq, "More. "))[0] == 200
    async with asyncio.timeout(60):
        await wrote.wait()
    assert (await written())[0] == seq
