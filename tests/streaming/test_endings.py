"""A database that is away while an answer runs costs the answer nothing: its end is stored when it is there again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.db import OperationalError
from django.utils import timezone

from streaming import endings, sessions
from streaming.audit.verify import log_faults
from streaming.log import MemoryLog
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditEntry, AuditSession, DeferredCheck
from streaming.sessions import Ending, State
from streaming.sweep import sweep
from tests.streaming.pumping import SSN, Trial, policy_of, trial
from tests.streaming.test_database_away import away

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = f"My number is {SSN}. That is all"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "AGAIN_S", 0.01)


@database_sync_to_async
def row_of(case: Trial) -> AuditSession:
    return AuditSession.objects.select_related("answer").get(pk=case.session_id)


async def ended_as_ever(case: Trial) -> None:
    """On record, for its readers and for the workers."""
    row = await row_of(case)
    assert (row.state, row.outcome, row.error_code) == ("MONITORING", "redacted", "")
    assert row.answer is not None
    assert row.answer.content == "My number is [SSN]. That is all"
    assert [one["outcome"] for one in await case.of("done")] == ["redacted"]
    assert await DeferredCheck.objects.acount() == 1
    assert case.queued == [case.session_id]
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


async def test_it_works() -> None:
    """It is away when the answer ends."""
    last = asyncio.Event()
    case = await trial([TEXT, last])
    running = asyncio.create_task(case.pump.run())
    await case.until("redaction")
    with away():
        last.set()
        await asyncio.wait([running], timeout=0.2)
        assert not running.done()
        assert await case.of("done") == []
    await asyncio.wait_for(running, 60)
    await ended_as_ever(case)


async def test_an_end_whose_commit_was_not_heard_of_is_told_and_stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke behind the commit: the next try finds the session moved, by itself."""
    store, tries = sessions.finish_streaming, []

    def cut_off(**said: object) -> State | None:
        tries.append(store(**said))  # type: ignore[arg-type]
        if len(tries) == 1:
            raise OperationalError("server closed the connection unexpectedly")
        return tries[-1]

    async def at_once(do: Callable[[], object]) -> object:
        return await database_sync_to_async(do)()

    monkeypatch.setattr(sessions, "finish_streaming", cut_off)
    monkeypatch.setattr(endings, "together", at_once)
    case = await trial([TEXT])
    await asyncio.wait_for(case.pump.run(), 60)
    assert tries == [State.MONITORING, None]
    await ended_as_ever(case)


async def test_an_end_that_another_process_has_stored_meanwhile_is_not_told_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(**said: object) -> bool:
        later = timezone.now() + timedelta(days=1)
        return sessions.end_lost(session_id=str(said["session_id"]), stale_before=later, error="gone")

    tries: list[bool] = []

    def away_then_late(*, session_id: str, ending: Ending) -> State | None:
        if not tries:
            tries.append(lost(session_id=session_id))
            raise OperationalError("away")
        return None

    async def at_once(do: Callable[[], object]) -> object:
        return await database_sync_to_async(do)()

    monkeypatch.setattr(sessions, "finish_streaming", away_then_late)
    monkeypatch.setattr(endings, "together", at_once)
    case = await trial([TEXT])
    await asyncio.wait_for(case.pump.run(), 60)
    assert tries == [True]
    assert await case.of("done") == [], "whoever ended it has told it"
    assert await AuditEntry.objects.filter(kind="sealed").acount() == 1


async def test_a_database_that_stays_away_ends_the_answer_for_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "PATIENT_S", 0.05)
    case = await trial([TEXT])
    with away():
        await asyncio.wait_for(case.pump.run(), 60)
    assert [one["code"] for one in await case.of("error")][-1:] == ["storage"]
    assert (await row_of(case)).state == "ACTIVE", "the sweep ends it, with what its log has"


@pytest.fixture
async def later() -> AsyncIterator[None]:
    yield
    await close_shared_log()


@pytest.mark.usefixtures("valkey_url", "later")
@pytest.mark.parametrize("says", [True, False], ids=["says-that-it-lives", "says-nothing"])
async def test_a_sweep_takes_no_answer_for_dead_that_cannot_tell_the_database(says: bool) -> None:
    """It comes first when the database is there again; a process that is gone has told the store nothing."""
    case, log = await trial([TEXT], policy=policy_of(without="harm")), shared_log()
    if says:
        with away(), pytest.raises(OperationalError):
            await endings.keep_partial(
                log, session_id=case.session_id, content="", released=0, chars_in=0, last_seq=0
            )  # fmt: skip
    found = await sweep(timezone.now() + timedelta(minutes=5), log, lambda pk: None)
    assert found.lost == ([] if says else [case.session_id])
    left = await log.evaluate("return redis.call('PTTL', KEYS[1])", [f"sg:alive:{{{case.session_id}}}"], [])
    assert (0 < int(str(left)) <= 30_000) is says, "it is believed for as long as a heartbeat"


async def test_in_one_process_a_pump_that_runs_is_alive() -> None:
    log, asked = MemoryLog(), []
    async with log.run("one"):
        await log.say_alive("one")
        asked.append(await log.alive("one"))
    assert [*asked, await log.alive("one")] == [True, False]
