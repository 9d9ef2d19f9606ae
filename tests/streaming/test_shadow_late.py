"""What a shadow's own DEFERRED guardrails say counts in the comparison, and is no part of the session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from guardrails.findings import Verdict
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from guardrails.selectors import ShadowPolicy
from streaming import tasks
from streaming.audit.verify import log_faults
from streaming.checks import Checked
from streaming.conf import conf
from streaming.deferred import run_deferred
from streaming.log import MemoryLog
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, ShadowCheck
from streaming.shadow import running, worker
from streaming.shadow.worker import run_shadow_check
from streaming.sweep import sweep
from tests.streaming.pumping import Trial, trial
from tests.streaming.test_shadow import policy, words
from tests.streaming.test_shadow_judges import CONFIG, HARM, judge

pytestmark = pytest.mark.django_db(transaction=True)
ACTIVE = policy(words("w", "redact", "heron"))
AWAY = {**CONFIG, "provider": "nobody of this name"}


async def ended(
    second: Policy, monkeypatch: pytest.MonkeyPatch, text: str = HARM, *, active: Policy = ACTIVE,
    prompt: str = "Hello", paid: bool = True,
) -> tuple[Trial, AuditSession]:  # fmt: skip
    """A session with that shadow whose answer is over."""
    known = {active.digest: active, second.digest: second}
    for where in ("deferred", "shadow.late", "shadow.worker"):
        monkeypatch.setattr(f"streaming.{where}.policy_by_digest", known.__getitem__)
    monkeypatch.setattr("streaming.shadow.worker.shadow_pays", known.__contains__)
    which = ShadowPolicy(4, second.digest, second, paid=paid)
    case = await trial([text], policy=active, shadow=which, prompt=prompt)
    await case.pump.run()
    return case, await AuditSession.objects.aget(pk=case.session_id)


async def asked(row: AuditSession) -> AuditSession:
    """The same when workers have made the shadow's checks."""
    async for pk in ShadowCheck.objects.filter(session=row).values_list("pk", flat=True):
        assert await run_shadow_check(pk)
    assert not await ShadowCheck.objects.aexists(), "no text outlives its check"
    await row.arefresh_from_db()
    assert await faults() == []
    return row


@database_sync_to_async
def faults() -> list[str]:
    return [fault.code for fault in log_faults()]


def told(row: AuditSession) -> tuple[object, ...]:
    return row.shadow_comparison, row.shadow_would_have, row.shadow["not_run"]


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that only the next version has: what would it have stopped?"""
    case, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    assert (row.state, row.outcome) == ("COMPLETE", "allowed"), "nobody waits for it"
    assert told(row) == ("unknown", "", ["judge"])
    assert case.queued == [case.session_id]
    kept = await ShadowCheck.objects.aget()
    assert HARM.encode() not in bytes(kept.sealed)
    before = await case.events()
    row = await asked(row)
    assert told(row) == ("only_shadow", "blocked", [])
    (found,) = row.shadow["findings"]
    assert (found["guardrail"], found["version"], found["n"], found["would_have"]) == ("judge", 4, 1, "blocked")
    assert (found["channel"], found["start"], found["end"], found["exposed"]) == ("text", 0, len(HARM), len(HARM))
    assert (row.would_have, await Finding.objects.acount(), await DeferredCheck.objects.acount()) == ("", 0, 0)
    assert await case.events() == before
    assert not [event for event in before if event.get("guardrail") == "judge"]


async def test_what_passes_makes_the_session_clean_and_what_fails_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch, "All is well.")
    assert told(await asked(row)) == ("both_clean", "", [])
    _, row = await ended(policy(judge("BLOCK", config=AWAY), version=4), monkeypatch, "All is well.")
    row = await asked(row)
    assert (row.shadow_comparison, row.shadow["failures"]) == ("unknown", {"judge": 1})


async def test_only_what_decides_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    second = policy(judge("MONITOR"), judge("BLOCK", name="warns", action="warn"), version=4)
    case, row = await ended(second, monkeypatch)
    assert told(row) == ("both_clean", "", ["judge", "warns"])
    assert (await ShadowCheck.objects.acount(), case.queued) == (0, [])


async def test_who_does_not_want_to_pay_is_told_that_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch, paid=False)
    assert told(row) == ("unknown", "", ["judge"])
    assert not await ShadowCheck.objects.aexists()


async def test_a_prompt_that_was_blocked_is_told_to_nobody_and_an_answer_up_to_where_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops, both = policy(words("w", "block", "heron")), ["prompt", "response"]
    second = policy(judge("BLOCK", applies_to=both), version=4)
    _, row = await ended(second, monkeypatch, active=stops, prompt=f"heron. {HARM}")
    assert (row.outcome, told(row)) == ("blocked", ("unknown", "", ["judge"]))
    assert not await ShadowCheck.objects.aexists()
    acting = policy(judge("BLOCK", applies_to=both), words("w", "block", "heron"), version=4)
    _, row = await ended(acting, monkeypatch, active=stops, prompt=f"heron. {HARM}")
    assert told(row) == ("both_acted", "blocked", ["judge"])
    _, row = await ended(second, monkeypatch, f"A heron. {HARM}", active=stops)
    assert (row.outcome, told(await asked(row))) == ("blocked", ("only_active", "", [])), "what came behind is nobody's"


async def test_the_sessions_own_checks_are_waited_for_and_these_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    active = policy(judge("MONITOR", config={**CONFIG, "threshold": 0.9}))
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch, active=active)
    assert row.state == "MONITORING"
    own = await DeferredCheck.objects.aget()
    assert await run_deferred(own.pk, MemoryLog())
    await row.arefresh_from_db()
    assert (row.state, told(row)) == ("COMPLETE", ("unknown", "", ["judge"]))
    assert told(await asked(row)) == ("only_shadow", "blocked", [])
    assert row.would_have == "blocked", "by the active version's own"


@pytest.mark.parametrize("paid", [True, False], ids=["asked for itself", "asked by nobody"])
async def test_a_verdict_on_a_whole_text_is_none_on_its_sentences(paid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*asked: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("streaming.shadow.running.run_check", never)
    monkeypatch.setattr(running, "GRACE_S", 0.0)
    toxic = {"name": "toxic", "kind": "toxicity", "action": "block", "applies_to": ["response"]}
    active = policy({**toxic, "mode": "MONITOR"}).demoted({"toxic": Checkpoint.DEFERRED})
    second = policy(toxic, version=4)
    if not paid:
        monkeypatch.setattr("streaming.shadow.asked.Late.asks", lambda late, one: late.not_run.append(one.name))
    _, row = await ended(second, monkeypatch, "You are a worthless stupid idiot.", active=active)
    assert told(row) == ("unknown", "", ["toxic"])
    assert await run_deferred((await DeferredCheck.objects.aget()).pk, MemoryLog())
    await row.arefresh_from_db()
    assert row.would_have == "blocked", "the active version's own verdict"
    assert told(row) == ("unknown", "", ["toxic"])


async def test_what_comes_before_the_session_is_sealed_is_sealed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    active = policy(judge("MONITOR", config={**CONFIG, "threshold": 0.9}))
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch, active=active)
    row = await asked(row)
    assert (row.state, row.shadow_comparison) == ("MONITORING", "only_shadow")
    assert await run_deferred((await DeferredCheck.objects.aget()).pk, MemoryLog())
    kinds = [kind async for kind in AuditEntry.objects.values_list("kind", flat=True)]
    assert (kinds, await faults()) == (["opened", "sealed"], [])


@pytest.mark.parametrize("settled", [False, True], ids=["while it is out", "since it is there"])
async def test_a_comparison_that_was_altered_is_found(settled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    if settled:
        await asked(row)
    await AuditSession.objects.filter(pk=row.pk).aupdate(shadow_comparison="both_clean")
    assert await faults() == ["session_altered"]
    await AuditSession.objects.filter(pk=row.pk).aupdate(shadow_comparison=row.shadow_comparison, outcome="redacted")
    assert await faults() == ["session_altered"], "and the rest of the row as always"


async def test_a_session_that_an_older_process_sealed_stays_as_it_was_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.audit.services.shadow_is_over", lambda session: True)
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    assert told(await asked(row)) == ("unknown", "", ["judge"])


# -- workers that die, endpoints that are away ------------------------------------------------------------------


async def later(seconds: float, queued: list[int]) -> None:
    now: datetime = timezone.now() + timedelta(seconds=seconds)
    done = await sweep(now, MemoryLog(), lambda pk: None, shadows=queued.append)
    assert not done.failures.number


async def test_what_a_dead_worker_held_is_made_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    pk = (await ShadowCheck.objects.aget()).pk
    queued: list[int] = []
    dead = await database_sync_to_async(worker._take)(pk)
    assert await database_sync_to_async(worker._take)(pk) is None, "one at a time"
    await later(1, queued)
    assert queued == []
    await later(conf().check_lease_s + 1, queued)
    assert queued == [pk]
    alive = await database_sync_to_async(worker._take)(pk)
    assert not await database_sync_to_async(worker._end)(dead, (), worker.Came.VERDICT), (
        "who comes back changes nothing"
    )
    assert await worker._make(alive, time.monotonic, None)
    assert told(await asked(row)) == ("only_shadow", "blocked", [])


@pytest.mark.parametrize("attempts", [0, 3], ids=["nobody made it", "each worker died"])
async def test_what_nobody_makes_leaves_the_session_unknown(attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    limit_s = conf().monitoring_limit_s
    if attempts:
        limit_s = conf().check_lease_s
        held = {"state": "checking", "attempts": attempts, "started_at": timezone.now()}
        await ShadowCheck.objects.aupdate(**held)
    await later(limit_s - 5, [])
    assert await ShadowCheck.objects.aexists()
    await later(limit_s + 5, [])
    row = await asked(row)
    assert row.shadow_comparison == "unknown"
    assert (row.shadow["unanswered"], row.shadow["failures"]) == ((0, {"judge": 1}) if attempts else (1, {}))


async def test_what_a_worker_takes_while_it_is_given_up_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    now = timezone.now()
    await ShadowCheck.objects.aupdate(stored_at=now - timedelta(seconds=conf().monitoring_limit_s + 5))
    ((pk, came),) = await database_sync_to_async(worker.overdue)(now=now)
    lease = await database_sync_to_async(worker._take)(pk)
    assert not await database_sync_to_async(worker.give_up)(pk, came, now=now)
    assert await worker._make(lease, time.monotonic, None)
    assert told(await asked(row)) == ("only_shadow", "blocked", [])


@pytest.mark.parametrize("circuit_open", [True, False])
async def test_a_judge_that_is_away_is_asked_again(circuit_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(guardrail: object, requests: Sequence[object], **more: object) -> list[Checked]:
        return [Checked(Verdict(hit=False, error="away"), 0.0, circuit_open=circuit_open) for _ in requests]

    _, row = await ended(policy(judge("BLOCK"), version=4), monkeypatch)
    pk, queued = (await ShadowCheck.objects.aget()).pk, list[int]()
    with monkeypatch.context() as patched:
        patched.setattr(worker, "ask_each", away)
        assert not await run_shadow_check(pk, again=lambda pk, seconds: queued.append(pk))
    kept = await ShadowCheck.objects.aget()
    assert (queued, kept.state, kept.attempts) == ([pk], "waiting", 0 if circuit_open else 1)
    assert told(await asked(row)) == ("only_shadow", "blocked", [])


async def test_few_of_one_guardrail_run_at_once_and_who_ends_queues_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AT_ONCE", 1)
    second = policy(judge("BLOCK", applies_to=["prompt", "response"]), version=4)
    for _ in range(2):
        await ended(second, monkeypatch)
    rows = ShadowCheck.objects.order_by("pk")
    first, other, third, fourth = [pk async for pk in rows.values_list("pk", flat=True)]
    queued: list[tuple[int, float]] = []

    def again(pk: int, seconds: float) -> None:
        queued.append((pk, seconds))

    await database_sync_to_async(worker._take)(first)
    assert not await run_shadow_check(other, again=again)
    assert queued == [], "it is nobody's turn"
    await rows.filter(pk=first).aupdate(state="waiting")
    assert await run_shadow_check(first, again=again)
    await database_sync_to_async(worker._take)(third)
    assert not await run_shadow_check(other, again=again)
    await rows.filter(pk=third).aupdate(state="waiting")
    assert await run_shadow_check(third, again=again)
    assert queued == [(other, 0.0), (other, 0.0)], "also who was queued and found no place"
    assert await run_shadow_check(fourth, again=again)
    assert len(queued) == 2, "nobody is queued twice for two places"


async def test_what_was_forgotten_is_queued_as_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    second = policy(judge("BLOCK", applies_to=["prompt", "response"]), version=4)
    for _ in range(2):
        await ended(second, monkeypatch)
    queued: list[int] = []
    await later(conf().stale_s + 1, queued)
    oldest = [pk async for pk in ShadowCheck.objects.order_by("pk").values_list("pk", flat=True)]
    assert queued == oldest[: worker.AT_ONCE]


def test_they_stand_behind_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    urgent: list[int] = []
    for task in (tasks.check, tasks.shadow_check):
        monkeypatch.setattr(task, "apply_async", lambda *args, priority, **more: urgent.append(priority))
    for queue in (tasks.queue_watched, tasks.queue_check, tasks.queue_shadow_check):
        assert queue(1)
    assert urgent == sorted(set(urgent)), "the first one is made first"
