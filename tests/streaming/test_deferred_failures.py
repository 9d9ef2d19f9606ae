"""Deferred checks that come to nothing: counted where the pages say so, logged as asked for, and believed when late."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import structlog
from channels.db import database_sync_to_async
from django.utils import timezone
from prometheus_client import generate_latest

from guardrails.findings import Verdict
from guardrails.policy import Policy
from streaming import breakers, deferred, metrics, sweep
from streaming.audit.verify import log_faults, stored_entries
from streaming.checks import Checked
from streaming.conf import conf
from streaming.log import MemoryLog
from streaming.models import AuditSession, DeferredCheck, Finding
from streaming.outbound import AddressRefused
from tests.streaming.pumping import policy_of
from tests.streaming.test_checks_standing import TEXT, brief, monitoring

pytestmark = pytest.mark.django_db(transaction=True)
HIT = Checked(Verdict(True, score=0.9, category="violence"), 3.0)


@pytest.fixture(autouse=True)
def in_memory(settings: object) -> Iterator[None]:
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    breakers.forget()
    yield
    breakers.forget()


def failing(monkeypatch: pytest.MonkeyPatch, on_error: str = "allow") -> Policy:
    """The trial policy, whose judge refuses for good."""
    found = policy_of(
        {"name": "harm", "kind": "ai_judge", "on_error": on_error, "config": {"rubric": "harm"}}, without="harm"
    )

    async def check(request: object, services: object) -> Verdict:
        raise AddressRefused("no way there")

    monkeypatch.setattr(found.guardrail("harm").impl, "check", check)
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: found)
    return found


async def session_of(session_id: str) -> AuditSession:
    return await AuditSession.objects.aget(pk=session_id)


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a whole text that fails is one check and one error of its guardrail in the session's record."""
    failing(monkeypatch)
    session_id, (pk,) = await monitoring("harm")
    assert await deferred.run_deferred(pk, MemoryLog())
    session = await session_of(session_id)
    counted = session.timing["guardrails"]["harm"]
    assert (counted["checks"], counted["errors"], counted["hits"], session.timing["checks"]) == (1, 1, 0, 1)


async def test_a_check_that_hits_is_counted_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: policy_of())
    session_id, (pk,) = await monitoring("harm")
    assert await deferred.run_deferred(pk, MemoryLog())
    session = await session_of(session_id)
    counted = session.timing["guardrails"]["harm"]
    assert (counted["checks"], counted["errors"], counted["hits"]) == (1, 0, 1)
    assert (session.timing["checks"], session.timing["audit_rows"], session.exposed) == (1, 1, 0)


@pytest.mark.parametrize(("on_error", "logged"), [("block", 0), ("allow", 0), ("warn", 1)])
async def test_on_error_of_a_check_after_the_answer(
    monkeypatch: pytest.MonkeyPatch, on_error: str, logged: int
) -> None:
    """The text has been read: nothing can be blocked. Every row says what failed; ``warn`` says it in the log too."""
    failing(monkeypatch, on_error)
    session_id, (pk,) = await monitoring("harm")
    with structlog.testing.capture_logs() as lines:
        assert await deferred.run_deferred(pk, log := MemoryLog())
    said = [line for line in lines if line["event"] == "check_error"]
    assert [(line["guardrail"], line["error"]) for line in said] == [("harm", "no way there")] * logged
    stored, session = await DeferredCheck.objects.aget(pk=pk), await session_of(session_id)
    assert (stored.state, stored.error) == ("error", "no way there")
    assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "allowed", "")
    assert not await Finding.objects.filter(session_id=session_id).aexists()
    assert brief(await log.read(session_id, 0))[-2:] == [("guardrail_status", "harm"), ("state", "COMPLETE")]


async def given_up(session_id: str, pk: int, log: MemoryLog, *, sealed: bool) -> deferred.Lease:
    """The last worker's lease on a check that the sweep took for one that kills workers."""
    await DeferredCheck.objects.filter(pk=pk).aupdate(attempts=conf().check_attempts - 1)
    lease = await database_sync_to_async(deferred.take_lease)(check_id=pk)
    assert isinstance(lease, deferred.Lease)
    later = timezone.now() + timedelta(seconds=conf().check_lease_s + 1)
    for _ in range(2 if sealed else 1):
        await sweep.sweep(later, log, lambda _: None)
    assert (await DeferredCheck.objects.aget(pk=pk)).state == "error"
    assert (await session_of(session_id)).state == ("COMPLETE" if sealed else "MONITORING")
    return lease


async def test_a_hit_of_a_worker_that_was_merely_slow_counts_as_long_as_the_session_is_open() -> None:
    session_id, (pk,) = await monitoring("harm")
    lease = await given_up(session_id, pk, MemoryLog(), sealed=False)
    record = database_sync_to_async(deferred.record_result)
    harm = policy_of().guardrail("harm")
    done = await record(lease=lease, guardrail=harm, checked=HIT, judged_chars=len(TEXT))
    assert done is not None
    assert (done.status.state, done.completed) == ("would_block", True)
    stored, session = await DeferredCheck.objects.aget(pk=pk), await session_of(session_id)
    assert (stored.state, stored.error, session.would_have) == ("would_block", "", "blocked")
    assert await record(lease=lease, guardrail=harm, checked=HIT, judged_chars=len(TEXT)) is None
    assert await Finding.objects.filter(session_id=session_id).acount() == 1
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


async def test_a_hit_of_a_worker_that_was_merely_slow_is_kept_after_the_session_was_sealed() -> None:
    session_id, (pk,) = await monitoring("harm")
    lease = await given_up(session_id, pk, MemoryLog(), sealed=True)
    harm = policy_of().guardrail("harm")
    for _ in range(2):
        late = await database_sync_to_async(deferred.record_result)(
            lease=lease, guardrail=harm, checked=HIT, judged_chars=len(TEXT)
        )
        assert late is None
    stored = await DeferredCheck.objects.aget(pk=pk)
    assert (stored.state, stored.result["hit"]) == ("error", True)
    assert await Finding.objects.filter(session_id=session_id).acount() == 1
    kinds = await database_sync_to_async(lambda: [entry.kind for entry in stored_entries()])()
    assert kinds == ["opened", "sealed", "finding"]
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


async def test_metrics_say_how_deferred_checks_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    log = MemoryLog()
    _, (failed,) = await monitoring("harm")
    await deferred.run_deferred(failed, log)
    over, (dead,) = await monitoring("harm")
    await given_up(over, dead, log, sealed=True)
    _, (_, old) = await monitoring("harm", "second")
    await sweep.sweep(timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1), log, lambda _: None)
    await DeferredCheck.objects.filter(pk=old).aupdate(queued_at=timezone.now() - timedelta(hours=2))
    await monitoring("harm")
    await metrics.read_checks()
    page = [line for line in generate_latest(metrics.REGISTRY).decode().splitlines() if "_deferred_checks{" in line]
    assert sorted(page) == [
        'sluicegate_deferred_checks{guardrail="harm",state="error"} 2.0',
        'sluicegate_deferred_checks{guardrail="harm",state="expired"} 1.0',
        'sluicegate_deferred_checks{guardrail="harm",state="waiting"} 1.0',
    ]
