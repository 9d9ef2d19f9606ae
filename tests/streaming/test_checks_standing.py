"""What readers are told of checks whose worker stored a result and told nobody, or never came to one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from guardrails.findings import Outcome, Verdict
from guardrails.policy import Policy
from streaming import deferred, sessions, sweep
from streaming.checks import Checked
from streaming.conf import Conf, conf
from streaming.log import LogUnavailable, MemoryLog
from streaming.models import AuditSession, DeferredCheck, Message
from streaming.reader import follow
from streaming.sessions import DeferredText, Ending, NewSession, Visitor
from tests.streaming.pumping import policy_of

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "First you mix the poison."
FAST = Conf(log_poll_s=0.01, idle_check_s=0.02)
HIT = Checked(Verdict(True, score=0.9, category="violence"), 3.0)
SECOND = {"name": "second", "kind": "ai_judge", "config": {"rubric": "harm"}}


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> Policy:
    found = policy_of(SECOND)
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: found)
    return found


@database_sync_to_async
def monitoring(*guardrails: str) -> tuple[str, list[int]]:
    new = NewSession(Visitor(session_key="b"), "p", {"name": "t", "version": 3, "digest": "d"}, "scripted", "m")
    started = sessions.start_session(new)
    texts = [DeferredText(name, "response", TEXT) for name in guardrails]
    ending = Ending(Outcome.ALLOWED, Message.Status.COMPLETE, content=TEXT, deferred=texts, released=len(TEXT))
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    rows = DeferredCheck.objects.filter(session_id=started.session_id).order_by("id")
    return started.session_id, [row.pk for row in rows]


@database_sync_to_async
def recorded(policy: Policy, pk: int) -> None:
    """A worker stores a hit and dies before it can say so."""
    lease = deferred.take_lease(check_id=pk)
    assert isinstance(lease, deferred.Lease)
    guardrail = policy.guardrail(lease.guardrail)
    assert deferred.record_result(lease=lease, guardrail=guardrail, checked=HIT, judged_chars=len(TEXT)) is not None


def brief(events: Sequence[dict[str, object]]) -> list[tuple[object, object]]:
    return [(e["type"], e.get("guardrail") or e.get("state")) for e in events]


async def read(log: MemoryLog, session_id: str) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    async with asyncio.timeout(30):
        async for batch in follow(log, session_id, 0, FAST, correlation_id="c"):
            out += batch
    return out


async def test_it_works(policy: Policy) -> None:
    """The only check is stored, the session COMPLETE, and the log ends with the answer: the database says the rest."""
    session_id, (pk,) = await monitoring("harm")
    log = MemoryLog()
    await log.append(session_id, [{"type": "done", "final": TEXT, "outcome": "allowed"}], ms=1)
    await recorded(policy, pk)
    events = await read(log, session_id)
    told = brief(events)
    assert told[-3:] == [("finding", "harm"), ("guardrail_status", "harm"), ("state", "COMPLETE")]
    assert (events[-2]["state"], events[-2]["last_ms"], events[-3]["would_have"]) == ("would_block", 3.0, "blocked")


async def test_whoever_completes_the_session_tells_what_a_dead_worker_did_not(policy: Policy) -> None:
    session_id, (first, second) = await monitoring("harm", "second")
    log = MemoryLog()
    await recorded(policy, first)
    assert await deferred.run_deferred(second, log)
    told = brief(await log.read(session_id, 0))
    assert told[-1] == ("state", "COMPLETE")
    assert {("finding", "harm"), ("guardrail_status", "harm")} <= set(told)
    assert told.count(("finding", "second")) == 1


async def test_what_was_told_is_not_told_again() -> None:
    session_id, checks = await monitoring("harm", "second")
    log = MemoryLog()
    for pk in checks:
        assert await deferred.run_deferred(pk, log)
    told = brief(await log.read(session_id, 0))
    assert [told.count(("finding", name)) for name in ("harm", "second")] == [1, 1]
    assert [told.count(("guardrail_status", name)) for name in ("harm", "second")] == [2, 2], "checking, and its end"


async def test_sweep_that_lets_checks_expire_tells_the_others_too(policy: Policy) -> None:
    session_id, (first, _) = await monitoring("harm", "second")
    log = MemoryLog()
    await recorded(policy, first)
    later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
    assert (await sweep.sweep(later, log, lambda _: None)).expired == [session_id]
    events = await log.read(session_id, 0)
    states = {e["guardrail"]: e["state"] for e in events if e["type"] == "guardrail_status"}
    assert states == {"harm": "would_block", "second": "expired"}
    assert brief(events)[-1] == ("state", "COMPLETE")


async def test_sweep_that_completes_a_session_tells_its_checks(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id, (pk,) = await monitoring("harm")
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "complete_if_done", lambda session_id: False)
        await recorded(policy, pk)
    log = MemoryLog()
    assert (await sweep.sweep(timezone.now(), log, lambda _: None)).completed == [session_id]
    assert brief(await log.read(session_id, 0)) == [
        ("finding", "harm"), ("guardrail_status", "harm"), ("state", "COMPLETE")
    ]  # fmt: skip


async def test_a_log_that_is_away_while_the_sweep_tells_stops_no_sweep(policy: Policy) -> None:
    class Away(MemoryLog):
        async def read(self, session_id: str, after: int, limit: int = 1_000) -> list[dict[str, object]]:
            raise LogUnavailable("away")

        async def append(self, *args: object, **kwargs: object) -> int:
            raise LogUnavailable("away")

    session_id, _ = await monitoring("harm")
    later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
    assert (await sweep.sweep(later, Away(), lambda _: None)).expired == [session_id]
    assert await database_sync_to_async(AuditSession.objects.filter(state="COMPLETE").count)() == 1
