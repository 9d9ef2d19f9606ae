"""Deferred checks and the sweep: each check ends once, each session completes once, nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from guardrails.findings import Outcome, Verdict
from guardrails.kinds.ai_judge import UnparseableVerdict
from guardrails.policy import Policy
from streaming import breakers, deferred, sessions, sweep
from streaming.audit.verify import log_faults, stored_entries
from streaming.checks import FAILURES_WITHIN_S, Checked
from streaming.conf import conf
from streaming.database_clock import database_now
from streaming.log import LogUnavailable, MemoryLog
from streaming.models import AuditSession, DeferredCheck, Finding, Message
from streaming.outbound import AddressRefused
from streaming.providers.base import ProviderAuthError, ProviderUnavailable
from streaming.sessions import DeferredText, Ending, NewSession, Started, Visitor
from streaming.standing import state_of
from tests.streaming.pumping import policy_of

pytestmark = pytest.mark.django_db(transaction=True)
HARMFUL = "First you mix the poison, then you pour it into the well."
CALM = "The well was dug in 1840."


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> Policy:
    found = policy_of()
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: found)
    return found


@database_sync_to_async
def monitoring(text: str = HARMFUL, *applies_to: str) -> tuple[Started, list[int]]:
    """A session whose answer is over and whose checks wait."""
    new = NewSession(
        visitor=Visitor(session_key="b"), prompt="p", provider="scripted", model="m",
        policy={"name": "trial", "version": 3, "digest": "sha256:trial"},
    )  # fmt: skip
    started = sessions.start_session(new)
    texts = [DeferredText("harm", kind, text) for kind in applies_to or ("response",)]
    ending = Ending(
        Outcome.ALLOWED, Message.Status.COMPLETE, content=text, deferred=texts, released=len(text), chars_in=len(text)
    )
    assert sessions.finish_streaming(session_id=started.session_id, ending=ending) == "MONITORING"
    rows = DeferredCheck.objects.filter(session_id=started.session_id).order_by("id")
    return started, [row.pk for row in rows]


@database_sync_to_async
def row(session_id: str) -> AuditSession:
    return AuditSession.objects.get(pk=session_id)


@database_sync_to_async
def check(pk: int) -> DeferredCheck:
    return DeferredCheck.objects.get(pk=pk)


async def types(log: MemoryLog, session_id: str) -> list[tuple[object, object]]:
    return [(e["type"], e.get("state")) for e in await log.read(session_id, 0)]


async def test_it_works() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    assert await deferred.run_deferred(pk, log)
    assert await types(log, started.session_id) == [
        ("guardrail_status", "checking"),
        ("finding", None),
        ("guardrail_status", "would_block"),
        ("state", "COMPLETE"),
    ]
    session = await row(started.session_id)
    assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "allowed", "blocked")
    done = await check(pk)
    assert (done.state, done.attempts, done.sealed_text) == ("would_block", 1, None)
    assert done.result["hit"] is True
    found = await database_sync_to_async(Finding.objects.get)(session_id=started.session_id)
    assert (found.guardrail, found.would_have, found.exposed, found.mode) == (
        "harm",
        "blocked",
        len(HARMFUL),
        "MONITOR",
    )


async def test_harmless_answer_passes_without_a_finding() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring(CALM)
    await deferred.run_deferred(pk, log)
    assert (await check(pk)).state == "passed"
    assert (await row(started.session_id)).would_have == ""
    assert await database_sync_to_async(Finding.objects.count)() == 0


async def test_a_task_that_runs_twice_stores_one_result_and_tells_once() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    assert await deferred.run_deferred(pk, log)
    before = await types(log, started.session_id)
    assert not await deferred.run_deferred(pk, log)
    assert await types(log, started.session_id) == before
    assert await database_sync_to_async(Finding.objects.count)() == 1


async def test_a_worker_that_was_taken_for_dead_comes_back_too_late() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    slow = await database_sync_to_async(deferred.take_lease)(check_id=pk)
    assert slow is not None
    later = timezone.now() + timedelta(seconds=conf().check_lease_s + 1)
    done = await sweep.sweep(later, log, lambda _: None)
    assert done.requeued == [pk]
    assert await deferred.run_deferred(pk, log)
    late = await database_sync_to_async(deferred.record_result)(
        lease=slow, guardrail=policy_of().guardrail("harm"), checked=Checked(Verdict(False), 1.0), judged_chars=1
    )
    assert late is None
    assert (await check(pk)).state == "would_block"
    assert await database_sync_to_async(Finding.objects.count)() == 1
    assert (await row(started.session_id)).state == "COMPLETE"


async def test_a_hit_that_comes_after_its_check_expired_is_on_record_once_and_the_log_stays_whole() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    slow = await database_sync_to_async(deferred.take_lease)(check_id=pk)
    assert isinstance(slow, deferred.Lease)
    later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
    assert (await sweep.sweep(later, log, lambda _: None)).expired == [started.session_id]
    before, hit = await row(started.session_id), Checked(Verdict(True, score=0.9, category="violence"), 1.0)
    for _ in range(2):
        late = await database_sync_to_async(deferred.record_result)(
            lease=slow, guardrail=policy_of().guardrail("harm"), checked=hit, judged_chars=len(HARMFUL)
        )
        assert late is None
    found = await database_sync_to_async(Finding.objects.get)(session_id=started.session_id)
    assert (found.guardrail, found.n, found.would_have) == ("harm", 1, "blocked")
    stored = await check(pk)
    assert (stored.state, stored.result["hit"]) == ("expired", True)
    assert (await row(started.session_id)).would_have == before.would_have == "", "what is sealed is not changed"
    entries = await database_sync_to_async(lambda: [e.kind for e in stored_entries()])()
    assert entries == ["opened", "sealed", "finding"]
    assert await database_sync_to_async(lambda: list(log_faults()))() == []
    await Finding.objects.filter(pk=found.pk).aupdate(would_have="")
    assert [f.code for f in await database_sync_to_async(lambda: list(log_faults()))()] == ["findings_altered"]


@pytest.mark.parametrize("verdict", [Verdict(False), Verdict(False, error="away")])
async def test_what_is_no_hit_changes_nothing_after_its_check_expired(verdict: Verdict) -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    slow = await database_sync_to_async(deferred.take_lease)(check_id=pk)
    later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
    await sweep.sweep(later, log, lambda _: None)
    await database_sync_to_async(deferred.record_result)(
        lease=slow, guardrail=policy_of().guardrail("harm"), checked=Checked(verdict, 1.0), judged_chars=1
    )
    stored = await check(pk)
    assert (stored.state, stored.result) == ("expired", None)
    assert await database_sync_to_async(Finding.objects.filter(session_id=started.session_id).exists)() is False


async def test_session_completes_only_with_its_last_check_and_only_once() -> None:
    log, (started, (first, second)) = MemoryLog(), await monitoring(CALM, "prompt", "response")
    await deferred.run_deferred(first, log)
    assert (await row(started.session_id)).state == "MONITORING"
    await deferred.run_deferred(second, log)
    assert (await row(started.session_id)).state == "COMPLETE"
    assert [t for t in await types(log, started.session_id) if t[0] == "state"] == [("state", "COMPLETE")]
    assert not await database_sync_to_async(sessions.complete_if_done)(started.session_id)


async def test_log_that_is_away_loses_no_result() -> None:
    class Away(MemoryLog):
        async def append(self, *args: object, **kwargs: object) -> int:
            raise LogUnavailable("away")

    started, (pk,) = await monitoring()
    assert await deferred.run_deferred(pk, Away())
    assert (await row(started.session_id)).state == "COMPLETE"


async def test_text_sealed_under_another_key_is_an_error_that_ends_the_check(settings: object) -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    settings.SECRET_KEY = "another key " * 5  # type: ignore[attr-defined]
    await deferred.run_deferred(pk, log)
    done = await check(pk)
    assert (done.state, done.sealed_text) == ("error", None)
    assert (await row(started.session_id)).state == "COMPLETE"


async def test_checks_nobody_makes_expire_visibly() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
    done = await sweep.sweep(later, log, lambda _: None)
    assert done.expired == [started.session_id]
    assert await types(log, started.session_id) == [("guardrail_status", "expired"), ("state", "COMPLETE")]
    stored = await check(pk)
    assert (stored.state, stored.sealed_text) == ("expired", None)
    again = await sweep.sweep(later, log, lambda _: None)
    assert (again.expired, again.completed, again.requeued) == ([], [], [])


async def test_check_that_was_never_picked_up_is_queued_again() -> None:
    log, (_, (pk,)) = MemoryLog(), await monitoring()
    queued: list[int] = []
    assert (await sweep.sweep(timezone.now(), log, queued.append)).requeued == []
    await sweep.sweep(timezone.now() + timedelta(seconds=conf().stale_s + 1), log, queued.append)
    assert queued == [pk]


async def test_check_that_kills_its_workers_is_given_up() -> None:
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    now = timezone.now()
    for _ in range(conf().check_attempts):
        assert await database_sync_to_async(deferred.take_lease)(check_id=pk) is not None
        now += timedelta(seconds=conf().check_lease_s + 1)
        await sweep.sweep(now, log, lambda _: None)
    stored = await check(pk)
    assert (stored.state, stored.attempts) == ("error", conf().check_attempts)
    await sweep.sweep(now, log, lambda _: None)
    assert (await row(started.session_id)).state == "COMPLETE"
    assert await types(log, started.session_id) == [("guardrail_status", "error"), ("state", "COMPLETE")]
    told = (await log.read(started.session_id, 0))[0]
    assert told["error"] == stored.error
    assert "Given up" in stored.error


async def test_killed_pump_ends_as_error_with_what_was_written_through() -> None:
    new = NewSession(
        visitor=Visitor(session_key="b"), prompt="p", provider="scripted", model="m",
        policy={"name": "trial", "version": 3, "digest": "sha256:trial"},
    )  # fmt: skip
    started = await database_sync_to_async(sessions.start_session)(new)
    kept = await database_sync_to_async(sessions.keep_partial)(
        session_id=started.session_id, content="so far", released=6, chars_in=9, last_seq=40
    )
    assert kept
    log = MemoryLog()
    assert (await sweep.sweep(timezone.now(), log, lambda _: None)).lost == []
    done = await sweep.sweep(timezone.now() + timedelta(seconds=conf().stale_s + 1), log, lambda _: None)
    assert done.lost == [started.session_id]
    session = await row(started.session_id)
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "error", "pump_lost")
    events = await log.read(started.session_id, 0)
    assert [e["type"] for e in events] == ["error", "message_update", "done", "state"]
    assert events[2]["final"] == "so far"
    assert int(str(events[0]["seq"])) > 40, "seqs go on above those that readers have seen"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("ACTIVE", "ACTIVE"), ("MONITORING", "ACTIVE"), ("MONITORING", "MONITORING"),
        ("COMPLETE", "ACTIVE"), ("COMPLETE", "MONITORING"), ("COMPLETE", "COMPLETE"),
    ],
)  # fmt: skip
async def test_state_goes_only_where_the_table_says(source: str, target: str) -> None:
    started, _ = await monitoring()
    here = AuditSession.objects.filter(pk=started.session_id)
    await here.aupdate(state=source)
    with pytest.raises(ValueError, match="cannot go"):
        await database_sync_to_async(sessions._move)(
            started.session_id, sessions.State(source), sessions.State(target), error_code="moved"
        )
    assert (await here.aget()).error_code == ""


class Failing:
    """A policy's judge that fails in a given way until it is told not to."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
        self.error = error
        self.queued: list[tuple[int, float]] = []
        impl = policy.guardrail("harm").impl

        async def check(request: object, services: object) -> Verdict:
            if self.error is not None:
                raise self.error
            return Verdict(hit=False)

        monkeypatch.setattr(impl, "check", check)

    def again(self, check_id: int, delay_s: float) -> None:
        self.queued.append((check_id, delay_s))


async def test_a_network_failure_is_tried_again_and_each_attempt_waits_longer(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(policy, monkeypatch, ProviderUnavailable("away"))
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    for _ in range(2):
        assert not await deferred.run_deferred(pk, log, again=failing.again)
    (first, first_s), (second, second_s) = failing.queued
    assert (first, second) == (pk, pk)
    assert 1.0 <= first_s <= 2.0 <= second_s <= 3.0
    waiting = await check(pk)
    assert (waiting.state, waiting.attempts) == ("waiting", 2)
    assert waiting.sealed_text, "the text is needed for the next attempt"
    assert ("guardrail_status", "waiting") in await types(log, started.session_id)
    failing.error = None
    assert await deferred.run_deferred(pk, log, again=failing.again)
    assert (await check(pk)).state == "passed"
    assert (await row(started.session_id)).state == "COMPLETE"


@pytest.mark.parametrize(("attempt", "least"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (50, 10.0)])
def test_attempts_wait_twice_as_long_each_time_ten_seconds_at_most_and_not_all_alike(
    attempt: int, least: float
) -> None:
    assert deferred.wait_s(attempt, lambda: 0.0) == least
    assert deferred.wait_s(attempt, lambda: 1.0) == min(least + 1.0, 10.0)
    assert least <= deferred.wait_s(attempt) <= min(least + 1.0, 10.0)
    assert least == 10.0 or len({deferred.wait_s(attempt) for _ in range(20)}) > 1


@pytest.fixture
def now(settings: object) -> Iterator[list[float]]:
    """The clock of the breakers, which stand in memory here."""
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    now = [1_000.0]
    breakers.forget(lambda: now[0])
    yield now
    breakers.forget()


async def open_circuit(policy: Policy) -> None:
    for _ in range(breakers.THRESHOLD):
        tried = await breakers.breaker(
            breakers.GUARDRAIL + policy.guardrail("harm").circuit, within_s=FAILURES_WITHIN_S
        )
        await tried.enter()
        await tried.failed(ProviderUnavailable("away"))


async def test_while_the_breaker_is_open_a_check_waits_and_spends_no_attempt(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    failing = Failing(policy, monkeypatch, None)
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    await open_circuit(policy)
    for _ in range(conf().check_attempts + 2):
        assert not await deferred.run_deferred(pk, log, again=failing.again)
        waiting = await check(pk)
        assert (waiting.state, waiting.attempts) == ("waiting", 0)
        assert "circuit is open" in waiting.error
        assert waiting.sealed_text, "the text is needed when the breaker lets it through"
    assert failing.queued == [(pk, 10.0)] * 5
    last = (await log.read(started.session_id, 0))[-1]
    assert (last["type"], last["state"]) == ("guardrail_status", "circuit_open")
    assert "circuit is open" in str(last["error"]), "the page says so"
    told = {state for kind, state in await types(log, started.session_id) if kind == "guardrail_status"}
    assert told == {"circuit_open"}, "nobody is asked, so nobody is told that it is being checked"
    assert await database_sync_to_async(state_of)(waiting) == "circuit_open", "a reload says the same"
    now[0] += breakers.OPEN_S
    assert await deferred.run_deferred(pk, log, again=failing.again)
    done = await check(pk)
    assert (done.state, done.attempts, done.error) == ("passed", 1, "")
    assert (await row(started.session_id)).state == "COMPLETE"
    assert [state for _, state in await types(log, started.session_id)][-3:] == ["checking", "passed", "COMPLETE"]


async def test_a_breaker_that_stays_open_lets_the_check_expire_and_says_why(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    failing = Failing(policy, monkeypatch, None)
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    await open_circuit(policy)
    assert not await deferred.run_deferred(pk, log, again=failing.again)
    later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
    assert (await sweep.sweep(later, log, lambda _: None)).expired == [started.session_id]
    ended = await check(pk)
    assert (ended.state, ended.sealed_text) == ("expired", None)
    assert "circuit is open" in ended.error
    (told,) = [e for e in await log.read(started.session_id, 0) if e.get("state") == "expired"]
    assert told["error"] == ended.error
    now[0] += breakers.OPEN_S
    assert not await deferred.run_deferred(pk, log, again=failing.again), "what has ended stays as it is"


async def test_where_nothing_can_be_queued_an_open_breaker_ends_the_check(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    """The command that chats in a terminal makes its checks itself; nobody would come back to one."""
    Failing(policy, monkeypatch, None)
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    await open_circuit(policy)
    assert await deferred.run_deferred(pk, log)
    ended = await check(pk)
    assert (ended.state, ended.sealed_text) == ("error", None)
    assert (await row(started.session_id)).state == "COMPLETE"


async def test_the_last_attempt_ends_as_an_error(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(policy, monkeypatch, ProviderUnavailable("away"))
    log, (started, (pk,)) = MemoryLog(), await monitoring()
    done = [await deferred.run_deferred(pk, log, again=failing.again) for _ in range(3)]
    assert done == [False, False, True]
    ended = await check(pk)
    assert (ended.state, ended.attempts, ended.error, ended.sealed_text) == ("error", 3, "away", None)
    assert (await row(started.session_id)).state == "COMPLETE"


async def test_an_answer_out_of_form_is_final(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where the verdict is waited for: a text could have itself judged three times."""
    failing = Failing(policy, monkeypatch, UnparseableVerdict("the judge's answer is not JSON"))
    log, (_, (pk,)) = MemoryLog(), await monitoring()
    assert await deferred.run_deferred(pk, log, again=failing.again)
    ended = await check(pk)
    assert (ended.state, ended.attempts, ended.error) == ("error", 1, "the judge's answer is not JSON")
    assert failing.queued == []


@pytest.mark.parametrize("off", [timedelta(hours=2), timedelta(hours=-2)], ids=["ahead", "behind"])
async def test_a_worker_whose_clock_is_wrong_neither_keeps_nor_loses_a_check(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, settings: object, off: timedelta
) -> None:
    """Leases are written and judged by one clock, the database's: also while others wait for their turn."""
    settings.SLUICEGATE_CHECKS_AT_ONCE = 1  # type: ignore[attr-defined]
    failing = Failing(policy, monkeypatch, ProviderUnavailable("away"))
    right = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: right() + off)
    _, (first, second) = await monitoring(HARMFUL, "response", "prompt")
    near = timedelta(minutes=1)
    assert abs((await check(first)).queued_at - right()) < near
    lease = await database_sync_to_async(deferred.take_lease)(check_id=first)
    assert isinstance(lease, deferred.Lease)
    started_at = (await check(first)).started_at
    assert started_at is not None
    assert abs(started_at - right()) < near
    busy = await database_sync_to_async(deferred.take_lease)(check_id=second)
    assert isinstance(busy, deferred.Busy), "the first one counts as under way"
    assert abs((await check(second)).queued_at - right()) < near

    swept = await database_sync_to_async(lambda: sweep.requeue(now=database_now()))()
    assert swept == ([], []), "the first is being made"
    lapsed = timedelta(seconds=conf().check_lease_s + 2)
    requeued, _ = await database_sync_to_async(lambda: sweep.requeue(now=database_now() + lapsed))()
    assert first in requeued, "its worker has died"
    assert not await deferred.run_deferred(first, MemoryLog(), again=failing.again)
    assert abs((await check(first)).queued_at - right()) < near, "it waits again since now"


@pytest.mark.parametrize("error", [ProviderAuthError("no key"), AddressRefused("private"), KeyError("a bug")])
async def test_what_would_fail_again_is_not_tried_again(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing = Failing(policy, monkeypatch, error)
    log, (_, (pk,)) = MemoryLog(), await monitoring()
    assert await deferred.run_deferred(pk, log, again=failing.again)
    assert (failing.queued, (await check(pk)).state) == ([], "error")


async def test_a_guardrail_has_only_so_many_checks_under_way(settings: object) -> None:
    settings.SLUICEGATE_CHECKS_AT_ONCE = 2  # type: ignore[attr-defined]
    queued: list[tuple[int, float]] = []
    pks = [(await monitoring())[1][0] for _ in range(3)]
    for pk in pks[:2]:
        assert isinstance(await database_sync_to_async(deferred.take_lease)(check_id=pk), deferred.Lease)
    again = queued.append
    assert not await deferred.run_deferred(pks[2], MemoryLog(), again=lambda *wanted: again(wanted))
    assert queued == [(pks[2], 2.0)]
    third = await check(pks[2])
    assert (third.state, third.attempts) == ("waiting", 0)
    late = timezone.now() - timedelta(seconds=conf().check_lease_s + 1)
    await DeferredCheck.objects.filter(pk=pks[0]).aupdate(started_at=late)
    assert await deferred.run_deferred(pks[2], MemoryLog()), "a lease that has run out is not under way"
