"""One thing that a sweep cannot repair is seen, and keeps it from nothing else; what is due is ended in time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import OperationalError
from django.db.models import F
from django.test import Client as Pages
from django.utils import timezone

from streaming import sessions, tasks
from streaming import sweep as sweeping
from streaming.conf import conf
from streaming.database_clock import database_now
from streaming.guarded import late
from streaming.guarded.service import Streams
from streaming.guarded.store import Store
from streaming.log_redis import close_shared_log, own_log
from streaming.models import AuditSession, DeferredCheck, GuardedStream
from streaming.sweep import AHEAD_S, EVERY_S, Swept, sweep
from streaming.swept import PARTS, Failures
from tests.streaming.test_clocks import answering, monitored
from tests.streaming.test_stream_api import Client, forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
LONG = timedelta(hours=1)


def repair(after: timedelta = timedelta(0)) -> tuple[Swept, list[int]]:
    """A round by the database's clock, and the checks that it queued."""
    queued: list[int] = []

    now = database_now() + after

    async def once() -> Swept:
        async with own_log() as log:
            return await sweep(now, log, queued.append)

    return async_to_sync(once)(), queued


def silent() -> str:
    """A stream that nobody has called for long."""

    async def begin() -> str:
        client = Client(await new_key(f"key {timezone.now()}"))
        session_id = str((await client.start(delta="One. "))["session_id"])
        await forget_store()
        await close_shared_log()
        return session_id

    session_id = async_to_sync(begin)()
    AuditSession.objects.filter(pk=session_id).update(heartbeat_at=F("heartbeat_at") - LONG)
    return session_id


def overdue() -> str:
    session_id = monitored()
    AuditSession.objects.filter(pk=session_id).update(heartbeat_at=F("heartbeat_at") - LONG)
    return session_id


def stale() -> str:
    session_id = answering()
    AuditSession.objects.filter(pk=session_id).update(heartbeat_at=F("heartbeat_at") - LONG)
    return session_id


def almost_complete() -> str:
    """Its last check has ended, and nobody has taken the last step."""
    session_id = monitored()
    DeferredCheck.objects.filter(session__pk=session_id).update(state=DeferredCheck.State.PASSED)
    return session_id


def forgotten() -> int:
    """A check that the queue has lost."""
    session_id = monitored()
    DeferredCheck.objects.filter(session__pk=session_id).update(queued_at=timezone.now() - LONG)
    return DeferredCheck.objects.get(session__pk=session_id).pk


def states(*session_ids: str) -> list[str]:
    return [AuditSession.objects.get(pk=session_id).state for session_id in session_ids]


def metric() -> dict[str, float]:
    """What the page of a web process says of the last round."""
    lines = Pages().get("/metrics").content.decode().splitlines()
    found = [line.split() for line in lines if line.startswith("sluicegate_not_repaired{")]
    return {name.split('"')[1]: float(number) for name, number in found}


class Poison:
    """Fails for one session, in whatever way it is named."""

    def __init__(self, session_id: str, plain: Callable[..., object]) -> None:
        self._session_id, self._plain = session_id, plain

    def __call__(self, *args: object, **named: object) -> object:
        if self._session_id in map(str, [*args, *named.values()]):
            raise ValueError("nothing can be done about it")
        return self._plain(*args, **named)


Case = tuple[Callable[[], str], object, str, str]
CASES: dict[str, Case] = {
    "an answer whose process died": (stale, sessions, "end_lost", "answers"),
    "checks that are overdue": (overdue, sweeping, "expire", "checks"),
    "a last step": (almost_complete, sessions, "complete_if_done", "checks"),
    "a silent stream": (silent, Streams, "expire", "streams"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_works(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of all fails: the others are ended, forgotten checks are queued, and the page says what failed."""
    make, where, name, part = CASES[case]
    bad, check = make(), forgotten()
    others = [stale(), overdue(), almost_complete(), silent(), make()]
    AuditSession.objects.filter(pk=bad).update(heartbeat_at=F("heartbeat_at") - LONG)
    plain = getattr(where, name)
    with monkeypatch.context() as patched:
        if where is Streams:

            async def fails(self: Streams, session_id: str) -> object:
                if session_id == bad:
                    raise ValueError("nothing can be done about it")
                return await plain(self, session_id)

            patched.setattr(Streams, "expire", fails)
        else:
            patched.setattr(where, name, Poison(bad, plain))
        done, queued = repair()
    before = "MONITORING" if part == "checks" else "ACTIVE"
    assert states(bad, *others) == [before] + ["COMPLETE"] * 5
    assert queued == [check]
    assert set(done.failures.number) == {part}
    assert metric() == {name: done.failures.number[name] for name in PARTS}
    done, _ = repair()
    assert states(bad) == ["COMPLETE"], "it is tried again"
    assert metric() == dict.fromkeys(PARTS, 0)


def test_a_queue_or_a_clean_up_that_fails_keeps_nothing_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    checks, others = [forgotten(), forgotten()], [silent(), overdue()]
    queued: list[int] = []

    def queue(pk: int) -> None:
        queued.append(pk)
        if len(queued) == 1:
            raise ValueError("not this one")

    def broken(*args: object) -> None:
        raise ValueError("it does not work")

    monkeypatch.setattr(sweeping, "forget", broken)
    now = database_now()

    async def once() -> Swept:
        async with own_log() as log:
            return await sweep(now, log, queue)

    done = async_to_sync(once)()
    assert sorted(queued) == checks
    assert states(*others) == ["COMPLETE", "COMPLETE"]
    assert dict(done.failures.number) == {"tombstones": 1, "checks": 1}


def test_a_database_that_is_away_ends_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to go on with, and the worker's log shall say it."""
    silent()

    async def away(self: Streams, session_id: str) -> str:
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(Streams, "expire", away)
    with pytest.raises(OperationalError):
        repair()


def locked(tmp_path: Path) -> Exception:
    """What a SQLite file says of itself while another one writes."""
    with closing(sqlite3.connect(tmp_path / "db")) as one, closing(sqlite3.connect(tmp_path / "db", timeout=0)) as two:
        one.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as raised:
            two.execute("BEGIN IMMEDIATE")
    return raised.value


def unopened(tmp_path: Path) -> Exception:
    with pytest.raises(sqlite3.OperationalError) as raised, closing(sqlite3.connect(tmp_path / "none" / "db")):
        pass
    return raised.value


def said(sqlstate: str) -> Callable[[Path], Exception]:
    return lambda _: psycopg.errors.lookup(sqlstate)("said by the server")


ONE_ROW = {
    "deadlock": said("40P01"),
    "lock timeout": said("55P03"),
    "statement timeout": said("57014"),
    "locked file": locked,
}
ALL = {
    "connection lost": said("08006"),
    "shut down": said("57P01"),
    "starting up": said("57P03"),
    "too many connections": said("53300"),
    "refused": lambda _: psycopg.OperationalError("connection refused"),
    "no file": unopened,
}


def failing_oldest(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two silent streams, the first of which the database says this of, as Django tells it."""
    bad, good = silent(), silent()
    AuditSession.objects.filter(pk=bad).update(heartbeat_at=F("heartbeat_at") - LONG)
    plain = Streams.expire

    async def fails(self: Streams, session_id: str) -> str:
        if session_id == bad:
            raise OperationalError(str(cause)) from cause
        return await plain(self, session_id)

    monkeypatch.setattr(Streams, "expire", fails)
    return bad, good


@pytest.mark.parametrize("what", ["deadlock", "locked file"])
def test_what_the_database_says_of_one_row_ends_no_round(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = failing_oldest(ONE_ROW[what](tmp_path), monkeypatch)
    done, _ = repair()
    assert states(*names) == ["ACTIVE", "COMPLETE"]
    assert dict(done.failures.number) == {"streams": 1}


def test_a_connection_that_is_lost_ends_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = failing_oldest(ALL["connection lost"](tmp_path), monkeypatch)
    with pytest.raises(OperationalError):
        repair()
    assert states(*names) == ["ACTIVE", "ACTIVE"]


def test_what_is_said_of_the_connection_is_told_from_what_is_said_of_a_row(tmp_path: Path) -> None:
    failures = Failures()
    passed_on: list[str] = []
    for what, make in (ONE_ROW | ALL).items():
        try:
            with failures.alone("streams"):
                raise OperationalError(what) from make(tmp_path)
        except OperationalError as error:
            passed_on.append(str(error))
    assert passed_on == list(ALL)
    assert failures.number["streams"] == len(ONE_ROW)


def unwritten(number: int) -> list[str]:
    """Streams of two deltas, the second of which the store alone has."""

    async def begin() -> list[str]:
        client, made = Client(await new_key()), []
        for _ in range(number):
            session_id = str((await client.start(delta="One. "))["session_id"])
            assert (await client.update(session_id, 2, "Two. "))[0] == 200
            made.append(session_id)
        await close_shared_log()
        return made

    return async_to_sync(begin)()


def seqs(names: list[str]) -> list[int]:
    return [GuardedStream.objects.get(pk=name).seq for name in names]


def test_every_stream_is_looked_at_however_many_have_nothing_to_write(
    monkeypatch: pytest.MonkeyPatch, settings: object
) -> None:
    settings.SLUICEGATE_WRITE_THROUGH_S = 600.0  # type: ignore[attr-defined]
    settings.SLUICEGATE_STREAM_EXPIRY_S = 36_000.0  # type: ignore[attr-defined]
    monkeypatch.setattr(late, "AT_ONCE", 2)
    asked: list[int] = []
    plain = Store.revs

    async def revs(self: Store, session_ids: list[str]) -> list[int | None]:
        asked.append(len(session_ids))
        return await plain(self, session_ids)

    monkeypatch.setattr(Store, "revs", revs)
    names = unwritten(7)
    repair(LONG)
    assert seqs(names) == [2] * 7
    assert asked == [2, 2, 2, 1]
    asked.clear()
    oldest = GuardedStream.objects.order_by("-pk").values_list("pk", flat=True)[0]
    GuardedStream.objects.filter(pk=oldest).update(seq=1, rev=1)  # the last in the order, and the longest unheard of
    AuditSession.objects.filter(pk=oldest).update(heartbeat_at=F("heartbeat_at") - timedelta(minutes=1))
    repair(LONG)
    assert seqs(names) == [2] * 7
    assert sum(asked) == 7


def test_one_that_cannot_be_written_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    settings.SLUICEGATE_WRITE_THROUGH_S = 600.0  # type: ignore[attr-defined]
    settings.SLUICEGATE_STREAM_EXPIRY_S = 36_000.0  # type: ignore[attr-defined]
    names = unwritten(3)
    bad, plain = min(names), late.write

    async def write(store: Store, session_id: str) -> bool:
        if session_id == bad:
            raise ValueError("nothing can be done about it")
        return await plain(store, session_id)

    monkeypatch.setattr(late, "write", write)
    done, _ = repair(LONG)
    assert dict(zip(names, seqs(names), strict=True)) == {name: 1 if name == bad else 2 for name in names}
    assert dict(done.failures.number) == {"unwritten": 1}


@pytest.mark.parametrize("phase_s", [0.0, 3.0, 9.9])
def test_monitoring_is_over_within_its_limit_whenever_the_sweep_comes(phase_s: float) -> None:
    """Rounds follow each other every ten seconds; the last one before the limit ends what would be due after it."""
    assert settings.CELERY_BEAT_SCHEDULE["sweep"]["schedule"] == EVERY_S
    session_id, limit_s = monitored(), conf().monitoring_limit_s
    DeferredCheck.objects.update(queued_at=timezone.now() + LONG)
    rounds = [phase_s + EVERY_S * number for number in range(200)]
    last = max(at for at in rounds if at <= limit_s)
    early = max(at for at in rounds if at < limit_s - AHEAD_S)
    repair(timedelta(seconds=early - 1))
    assert states(session_id) == ["MONITORING"]
    repair(timedelta(seconds=last))
    assert states(session_id) == ["COMPLETE"]
    assert DeferredCheck.objects.get().state == "expired"


def test_the_task_says_that_something_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, object]] = []
    bad = stale()
    monkeypatch.setattr(sessions, "end_lost", Poison(bad, sessions.end_lost))
    monkeypatch.setattr(tasks.logger, "info", lambda event, **more: said.append(more))
    tasks.sweep()
    assert [one.get("failed") for one in said] == [1]
