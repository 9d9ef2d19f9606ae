"""Machines whose clocks differ: a worker that is ahead, or a web process that is behind, ends no session early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync
from django.db.models import F
from django.utils import timezone

from streaming import sessions, tasks
from streaming.conf import conf
from streaming.core.events import StateChange
from streaming.database_clock import database_now
from streaming.deferred import tell
from streaming.guarded import service
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, GuardedStream
from streaming.sessions import DeferredText, Ending, NewSession, Visitor
from tests.streaming.test_stream_api import Client, forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
FAR = timedelta(hours=2)


@pytest.fixture(autouse=True)
def queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.check, "apply_async", lambda *args, **kwargs: None)


@contextmanager
def clock(ahead: timedelta) -> Iterator[None]:
    """This process's clock is so far ahead of the others'."""
    with pytest.MonkeyPatch.context() as patched:
        right: Callable[[], object] = timezone.now
        patched.setattr(timezone, "now", lambda: right() + ahead)  # type: ignore[operator]
        yield


def answering() -> str:
    """An answer that a pump of another process streams, and has just written through."""
    new = NewSession(
        visitor=Visitor(session_key="b"), prompt="p", provider="scripted", model="m",
        policy={"name": "demo", "version": 1, "digest": "sha256:t"},
    )  # fmt: skip
    session_id = sessions.start_session(new).session_id
    assert sessions.keep_partial(session_id=session_id, content="x", released=1, chars_in=1, last_seq=1)
    return session_id


def monitored() -> str:
    session_id = answering()
    ending = Ending(
        sessions.Outcome.ALLOWED, sessions.Message.Status.COMPLETE, content="x",
        deferred=[DeferredText("harm", "response", "x")],
    )  # fmt: skip
    sessions.finish_streaming(session_id=session_id, ending=ending)
    return session_id


def streamed(*, lost: bool = False) -> str:
    async def begin() -> str:
        client = Client(await new_key())
        session_id = str((await client.start(delta="One. "))["session_id"])
        await client.update(session_id, 2, "My number is 536-22-8145. ")  # a finding, so the database hears of it
        if lost:
            await forget_store()
        await close_shared_log()
        return session_id

    return async_to_sync(begin)()


WAYS: dict[str, tuple[Callable[[], str], float, str]] = {
    "answer": (answering, conf().stale_s, "ACTIVE"),
    "checks": (monitored, conf().monitoring_limit_s, "MONITORING"),
    "stream": (streamed, conf().stream_expiry_s, "ACTIVE"),
    "stream that the store has lost": (lambda: streamed(lost=True), conf().stream_expiry_s, "ACTIVE"),
}


def state(session_id: str) -> str:
    return AuditSession.objects.get(pk=session_id).state


@pytest.mark.parametrize("way", WAYS)
def test_it_works(way: str) -> None:
    """With clocks that agree: alive until its time is over, and over then."""
    begin, limit_s, open_state = WAYS[way]
    session_id = begin()
    tasks.sweep()
    assert state(session_id) == open_state
    AuditSession.objects.update(heartbeat_at=F("heartbeat_at") - timedelta(seconds=limit_s + 2))
    if way == "stream":
        async_to_sync(silent_for_long)(session_id)
    tasks.sweep()
    assert state(session_id) == "COMPLETE"


async def silent_for_long(session_id: str) -> None:
    await shared_log().evaluate("redis.call('HSET', KEYS[1], 'at', 1) return 1", [f"sg:guarded:{{{session_id}}}"], [])
    await close_shared_log()


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_whose_clock_is_ahead_ends_nothing_early(way: str) -> None:
    begin, _, open_state = WAYS[way]
    session_id = begin()
    with clock(FAR):
        tasks.sweep()
    assert state(session_id) == open_state


@pytest.mark.parametrize("way", WAYS)
def test_what_a_process_whose_clock_is_behind_began_is_not_ended_early(way: str) -> None:
    begin, _, open_state = WAYS[way]
    with clock(-FAR):
        session_id = begin()
    tasks.sweep()
    assert state(session_id) == open_state


def test_a_stream_of_which_the_store_alone_has_heard_is_as_old_as_the_store_says() -> None:
    """The sweep notes it by the database's clock, whatever the worker's own says."""
    session_id = streamed()
    AuditSession.objects.update(heartbeat_at=F("heartbeat_at") - timedelta(seconds=conf().stream_expiry_s + 2))
    with clock(FAR):
        tasks.sweep()
    row = AuditSession.objects.get(pk=session_id)
    assert row.state == "ACTIVE"
    assert abs(database_now() - row.heartbeat_at) < timedelta(seconds=conf().stream_expiry_s)


@pytest.mark.parametrize("ahead", [FAR, -FAR], ids=["ahead", "behind"])
def test_the_answers_of_a_stream_are_kept_as_long_as_the_database_says(ahead: timedelta) -> None:
    """Whatever the clock of the process that ended it says."""

    async def over() -> str:
        client = Client(await new_key())
        session_id = str((await client.start(delta="One. "))["session_id"])
        await client.finish(session_id)
        await close_shared_log()
        return session_id

    def kept() -> bool:
        return GuardedStream.objects.get(pk=session_id).sealed_state is not None

    with clock(ahead):
        session_id = async_to_sync(over)()
    tasks.sweep()
    assert kept()
    AuditSession.objects.update(heartbeat_at=F("heartbeat_at") - timedelta(seconds=conf().tombstone_s + 2))
    tasks.sweep()
    assert not kept()


def test_the_databases_clock_is_never_ahead_of_itself() -> None:
    before = database_now()
    assert before <= timezone.now()
    assert database_now() >= before


def test_no_event_is_from_before_its_session() -> None:
    """Whoever tells it may be behind the process that began the session."""

    async def told() -> list[dict[str, object]]:
        client = Client(await new_key())
        session_id = str((await client.start(delta="One. "))["session_id"])
        await client.finish(session_id)
        session = await AuditSession.objects.aget(pk=session_id)
        await tell(shared_log(), session_id, session.started_at, session.last_seq, [StateChange("COMPLETE")])
        events = await shared_log().read(session_id, 0)
        await close_shared_log()
        return events

    ahead = SimpleNamespace(now=lambda zone: datetime.now(zone) + FAR, fromtimestamp=datetime.fromtimestamp)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(service, "datetime", ahead)
        events = async_to_sync(told)()
    assert len(events) == 7
    assert {event["ms"] for event in events} == {0}
