"""A guardrail that is slower than it declares: measured, moved to later in MONITOR, reported in BLOCK, and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import User

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass, class_of
from guardrails.policy import Guardrail, Policy, compile_policy
from streaming import demotion, trials
from streaming.checks import check_text, immediate_state, run_check, status_after
from streaming.core.gate import Gate
from streaming.demotion import READ_EVERY_S, lift, scheduled
from streaming.models import Demotion
from streaming.trials import TRIAL_S
from streaming.verdicts import ENOUGH_TIMES, MAX_TIMES, TIMES_S, book
from tests.streaming.pumping import Time, trial

pytestmark = pytest.mark.django_db


class Sluggish(Kind[Config]):
    """Takes ``takes_ms`` of the clock for a verdict."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = Config
    clock: ClassVar[Time]
    takes_ms: ClassVar[float]
    asked: ClassVar[list[str]]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        cls = type(self)
        cls.asked.append(request.text)
        cls.clock.now += cls.takes_ms / 1000
        return Verdict(hit="bad" in request.text, score=0.9, category="bad")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    base.all_kinds()
    monkeypatch.setattr(Sluggish, "name", "trial_sluggish", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_sluggish", Sluggish)  # type: ignore[arg-type]
    Sluggish.clock, Sluggish.takes_ms, Sluggish.asked = Time(), 10.0, []
    demotion.forget()
    yield Sluggish.clock
    demotion.forget()


def policy(*, digest: str = "sha256:one", version: int = 1, kind: str = "trial_sluggish", **entry: object) -> Policy:
    entries = [{"name": "g", "kind": kind, "mode": "MONITOR", **entry}]
    return compile_policy({"policy": "t", "guardrails": entries}, version=version, digest=digest)


def words(**entry: object) -> Policy:
    return policy(kind="keywords", config={"keywords": ["heron"]}, **entry)


def slow(guardrail: Guardrail, ms: float, times: int = ENOUGH_TIMES) -> None:
    for _ in range(times):
        book(guardrail.impl).measured(ms, Sluggish.clock)


def where(found: Policy, name: str = "g") -> Checkpoint:
    return found.guardrail(name).checkpoint


async def ask(tried: Policy, times: int, text: str = "text") -> None:
    for _ in range(times):
        checked = await run_check(tried.guardrail("g"), CheckRequest(text, AppliesTo.RESPONSE), Sluggish.clock)
        assert checked.verdict.error is None


def seen(tried: Policy, clock: Time) -> Policy:
    """As a session that begins now would run it."""
    return scheduled(tried, clock)


@pytest.mark.django_db(transaction=True)
async def test_it_works(clock: Time) -> None:
    """A session that began before goes on as it was; one that begins afterwards runs it after the answer."""
    tried = policy()
    running = await database_sync_to_async(seen)(tried, clock)
    assert where(running) is Checkpoint.BATCHED
    Sluggish.takes_ms = 1_500.0
    await ask(running, ENOUGH_TIMES)
    after = await database_sync_to_async(seen)(tried, clock)
    assert (where(after), where(running), where(tried)) == (
        Checkpoint.DEFERRED,
        Checkpoint.BATCHED,
        Checkpoint.BATCHED,
    )
    assert (after.digest, after.demotions) == (tried.digest, (("g", Checkpoint.DEFERRED),))
    row = await Demotion.objects.aget()
    assert (row.guardrail, row.declared, row.checkpoint, row.p95_ms) == ("g", "BATCHED", "DEFERRED", 1_500.0)
    assert (row.measurements, row.policy_name, row.policy_version) == (ENOUGH_TIMES, "t", 1)
    done = await check_text(after, "One bad sentence.", applies_to=AppliesTo.RESPONSE, clock=clock)
    assert (done.visible, len(Sluggish.asked)) == ("One bad sentence.", ENOUGH_TIMES)  # nobody was asked at its end


@pytest.mark.parametrize(
    ("p95_ms", "runs"),
    [(9.9, "BATCHED"), (99.9, "BATCHED"), (999.9, "BATCHED"), (1_000.0, "DEFERRED"), (60_000.0, "DEFERRED")],
)
def test_a_checkpoint_is_that_of_the_class_that_was_measured(p95_ms: float, runs: str, clock: Time) -> None:
    tried = policy()
    slow(tried.guardrail("g"), p95_ms)
    assert where(scheduled(tried, clock)).value == runs


def test_classes_meet_at_their_limits() -> None:
    assert [class_of(ms).value for ms in (0.0, 9.9, 10.0, 99.9, 100.0, 999.9, 1_000.0, 4_999.0, 5_000.0, 1e9)] == [
        "INSTANT", "INSTANT", "FAST", "FAST", "MODERATE", "MODERATE", "SLOW", "SLOW", "VERY_SLOW", "VERY_SLOW",
    ]  # fmt: skip


def test_few_measurements_say_nothing_and_one_in_a_hundred_is_no_p95(clock: Time) -> None:
    tried = policy()
    slow(tried.guardrail("g"), 5_000.0, ENOUGH_TIMES - 1)
    assert scheduled(tried, clock) is tried
    book(tried.guardrail("g").impl).times.clear()
    slow(tried.guardrail("g"), 5.0, 99)
    slow(tried.guardrail("g"), 5_000.0, 1)
    assert scheduled(tried, clock) is tried


def test_the_window_rolls(clock: Time) -> None:
    """A bad hour long ago, and a bad start that much has come after, are not held against anybody."""
    tried = policy()
    slow(tried.guardrail("g"), 5_000.0, MAX_TIMES)
    clock.now += TIMES_S + 1
    assert scheduled(tried, clock) is tried
    slow(tried.guardrail("g"), 5_000.0)
    slow(tried.guardrail("g"), 5.0, MAX_TIMES)
    assert scheduled(tried, clock) is tried
    assert not Demotion.objects.exists()


def test_what_decides_is_reported_and_stays(clock: Time) -> None:
    tried = policy(mode="BLOCK", action="block")
    slow(tried.guardrail("g"), 5_000.0)
    assert scheduled(tried, clock) is tried
    assert book(tried.guardrail("g").impl).slower_than_declared
    assert not Demotion.objects.exists()


@pytest.mark.django_db(transaction=True)
async def test_what_decides_says_on_the_panel_that_it_is_slow(clock: Time) -> None:
    tried = policy(mode="BLOCK", action="block").guardrail("g")
    slow(tried, 5_000.0)
    checked = await run_check(tried, CheckRequest("text", AppliesTo.RESPONSE), clock)
    assert status_after(tried, checked).state == "slower_than_declared"
    at_once = words(mode="BLOCK").guardrail("g")
    assert immediate_state(at_once, []) == "passed"
    slow(at_once, 150.0)
    assert immediate_state(at_once, []) == "slower_than_declared"


def test_another_process_hears_of_it_within_seconds(clock: Time) -> None:
    """The policy compiled again has nothing measured, like that of another process; only the database is shared."""
    here, there = policy(), policy()
    assert scheduled(there, clock) is there  # it has read that there is nothing
    known = dict(demotion._versions)
    slow(here.guardrail("g"), 5_000.0)
    demotion.forget()
    assert where(scheduled(here, clock)) is Checkpoint.DEFERRED
    demotion._versions.clear()
    demotion._versions.update(known)
    clock.now += READ_EVERY_S - 0.1
    assert scheduled(there, clock) is there
    clock.now += 0.1
    assert where(scheduled(there, clock)) is Checkpoint.DEFERRED
    assert Demotion.objects.count() == 1


def test_a_restart_does_not_forget_it_and_another_version_starts_without(clock: Time) -> None:
    tried = policy()
    slow(tried.guardrail("g"), 5_000.0)
    scheduled(tried, clock)
    demotion.forget()
    assert where(scheduled(policy(), clock)) is Checkpoint.DEFERRED
    assert where(scheduled(policy(digest="sha256:two", version=2), clock)) is Checkpoint.BATCHED


def test_lifted_it_starts_anew_in_every_process(clock: Time, django_user_model: type[User]) -> None:
    signer = django_user_model.objects.create_user("signer")
    here, there = policy(), policy()
    slow(here.guardrail("g"), 5_000.0)
    slow(there.guardrail("g"), 5_000.0)  # it had measured the same and begun no session since
    assert where(scheduled(here, clock)) is Checkpoint.DEFERRED
    row = Demotion.objects.get()
    assert lift(demotion=row, by=signer)
    assert not lift(demotion=row, by=signer)
    row.refresh_from_db()
    assert (row.lifted_by, row.lifted_at is not None) == (signer, True)
    assert scheduled(here, clock) is here
    demotion.forget()
    assert scheduled(there, clock) is there, "what was measured before it was lifted counts no more"
    slow(there.guardrail("g"), 5_000.0)
    assert where(scheduled(there, clock)) is Checkpoint.DEFERRED, "what is measured afterwards does"
    assert Demotion.objects.count() == 2


def test_a_policy_that_was_never_published_is_left_alone(clock: Time) -> None:
    tried = policy(digest="")
    slow(tried.guardrail("g"), 5_000.0)
    assert scheduled(tried, clock) is tried


def test_where_only_the_gate_looks_nothing_goes_past_the_sentence(clock: Time) -> None:
    """Nobody checks a tool's result after the answer: there it would not be looked at any more."""
    tried = policy(applies_to=["response", "tool_result"])
    slow(tried.guardrail("g"), 5_000.0)
    assert scheduled(tried, clock) is tried
    at_once = words(applies_to=["response", "tool_result"])
    slow(at_once.guardrail("g"), 5_000.0)
    assert where(scheduled(at_once, clock)) is Checkpoint.BATCHED


def test_only_what_is_in_monitor_is_ever_moved_and_never_to_earlier() -> None:
    tried = policy()
    assert tried.demoted({"g": Checkpoint.IMMEDIATE}) is tried
    assert tried.demoted({"g": Checkpoint.BATCHED}) is tried
    assert tried.demoted({"nobody": Checkpoint.DEFERRED}) is tried
    assert tried.demoted({"g": Checkpoint.DEFERRED}) is tried.demoted({"g": Checkpoint.DEFERRED})
    deciding = policy(mode="BLOCK")
    assert deciding.demoted({"g": Checkpoint.DEFERRED}) is deciding


def test_calls_that_begin_beside_each_other_ask_the_database_once(
    clock: Time, django_assert_num_queries: object
) -> None:
    tried = policy()
    with django_assert_num_queries(1):  # type: ignore[operator]
        for _ in range(10):
            scheduled(tried, clock)
    with django_assert_num_queries(0):  # type: ignore[operator]
        assert scheduled(policy(mode="BLOCK"), clock)  # nothing in it could be demoted


# -- guardrails with rules ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("checkpoint", [Checkpoint.BATCHED, Checkpoint.DEFERRED])
async def test_rules_that_run_later_find_the_same_and_say_which_sentence(checkpoint: Checkpoint) -> None:
    text = "A calm start. Then a heron came by. The end."
    tried = words()
    at_once = await check_text(tried, text, applies_to=AppliesTo.RESPONSE)
    moved = tried.demoted({"g": checkpoint})
    later = await check_text(moved, text, applies_to=AppliesTo.RESPONSE)
    assert later.visible == at_once.visible == text
    assert [f.would_have for f in at_once.findings] == ["blocked"]
    if checkpoint is Checkpoint.BATCHED:
        (found,) = later.findings
        assert (found.would_have, text[found.start : found.end].strip()) == ("blocked", "Then a heron came by.")
        assert found.start <= at_once.findings[0].start < at_once.findings[0].end <= found.end
    else:
        assert (later.findings, later.statuses) == ([], [])
        checked = await run_check(moved.guardrail("g"), CheckRequest(text, AppliesTo.RESPONSE))
        assert checked.verdict.hit
    calm = await run_check(moved.guardrail("g"), CheckRequest("A calm text.", AppliesTo.RESPONSE))
    assert (calm.verdict.hit, calm.verdict.error) == (False, None)


@pytest.mark.django_db(transaction=True)
async def test_a_length_that_runs_later_counts_the_same() -> None:
    moved = policy(kind="length", config={"max_chars": 5}).demoted({"g": Checkpoint.BATCHED})
    for text, hit in (("12345", False), ("123456", True)):
        checked = await run_check(moved.guardrail("g"), CheckRequest(text, AppliesTo.RESPONSE))
        assert (checked.verdict.hit, checked.verdict.error) == (hit, None)


@pytest.mark.django_db(transaction=True)
async def test_rules_that_run_later_leave_the_event_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    feed = Gate.feed
    monkeypatch.setattr(Gate, "feed", lambda gate, text: threads.append(threading.get_ident()) or feed(gate, text))
    moved = words().demoted({"g": Checkpoint.BATCHED})
    await run_check(moved.guardrail("g"), CheckRequest("A heron.", AppliesTo.RESPONSE))
    assert threads
    assert threading.get_ident() not in threads


def test_a_later_checkpoint_brings_its_own_time_limit() -> None:
    tried = words()
    assert [tried.demoted({"g": c}).guardrail("g").time_limit_s for c in Checkpoint] == [0.05, 1.0, 30.0]
    patient = words(time_limit_s=5.0)
    assert [patient.demoted({"g": c}).guardrail("g").time_limit_s for c in Checkpoint] == [5.0, 5.0, 30.0]


# -- what is slow in the gate ---------------------------------------------------------------------------------------


@pytest.fixture
def slow_gate(monkeypatch: pytest.MonkeyPatch, clock: Time) -> dict[str, float]:
    """Gates take so many ms of the clock for a piece, by the guardrails in them."""
    takes: dict[str, float] = {}
    feed = Gate.feed

    def slowly(gate: Gate, text: str) -> object:
        clock.now += sum(takes.get(guardrail.name, 0.0) for guardrail in gate.policy.guardrails) / 1000
        return feed(gate, text)

    monkeypatch.setattr(Gate, "feed", slowly)
    return takes


@pytest.mark.django_db(transaction=True)
async def test_of_several_in_a_slow_gate_the_slow_one_is_found(slow_gate: dict[str, float], clock: Time) -> None:
    entries = [
        {"name": name, "kind": "keywords", "mode": "MONITOR", "config": {"keywords": [name]}} for name in ("a", "b")
    ]
    tried = compile_policy({"policy": "t", "guardrails": entries}, version=1, digest="sha256:one")
    slow_gate["b"] = 150.0
    text, feeds = "some words " * ENOUGH_TIMES, [150.0] * ENOUGH_TIMES
    while len(book(tried.guardrail("b").impl).times) < ENOUGH_TIMES:  # a trial takes TRIAL_S at most
        measured = await trials.after_answer(tried, text, feeds, clock)
        assert [guardrail.name for guardrail in measured] == ["a", "b"]
    found = await database_sync_to_async(seen)(tried, clock)
    assert [where(found, name) for name in ("a", "b")] == [Checkpoint.IMMEDIATE, Checkpoint.BATCHED]
    slow_gate["b"] = 2_000.0  # and over whole sentences it is slower still
    for n in range(ENOUGH_TIMES):
        await run_check(found.guardrail("b"), CheckRequest(f"Sentence {n}.", AppliesTo.RESPONSE), clock)
    found = await database_sync_to_async(seen)(tried, clock)
    assert [where(found, name) for name in ("a", "b")] == [Checkpoint.IMMEDIATE, Checkpoint.DEFERRED]


@pytest.mark.django_db(transaction=True)
async def test_answers_that_stream_are_what_measures(slow_gate: dict[str, float], clock: Time) -> None:
    tried = words()
    slow_gate["g"] = 150.0
    for _ in range(2):  # of each answer TRIAL_S are enough for more than half
        case = await trial([f"piece {n} " for n in range(ENOUGH_TIMES)], policy=tried, clock=clock)
        await case.pump.run()
        assert (await case.of("done"))[-1]["outcome"] == "allowed"
    assert where(await database_sync_to_async(seen)(tried, clock)) is Checkpoint.BATCHED
    case = await trial(["A heron came by. ", "The end."], policy=tried.demoted({"g": Checkpoint.BATCHED}), clock=clock)
    await case.pump.run()
    assert {(s["checkpoint"], s["state"]) for s in await case.of("guardrail_status")} == {
        ("BATCHED", "idle"), ("BATCHED", "checking"), ("BATCHED", "would_block"), ("BATCHED", "passed"),
    }  # fmt: skip
    assert [f["would_have"] for f in await case.of("finding")] == ["blocked"]
    assert await case.shown() == "A heron came by. The end."
    case = await trial(["A heron."], policy=tried.demoted({"g": Checkpoint.DEFERRED}), clock=clock)
    await case.pump.run()
    assert ((await case.of("state"))[-1]["state"], case.queued) == ("MONITORING", [case.session_id])


@pytest.mark.django_db(transaction=True)
async def test_a_gate_within_the_classes_is_not_tried_again(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_measure", lambda *args: pytest.fail("nothing was slow"))
    for feeds in ([], [99.0] * 50, [0.1] * 99 + [500.0]):
        assert await trials.after_answer(words(), "text", feeds, clock) == ()


@pytest.mark.django_db(transaction=True)
async def test_a_trial_has_an_end(slow_gate: dict[str, float], clock: Time) -> None:
    tried = words()
    slow_gate["g"] = 500.0
    began = clock.now
    await trials.after_answer(tried, "x" * 10_000, [500.0] * 5_000, clock)
    assert clock.now - began == pytest.approx(TRIAL_S)
    assert len(book(tried.guardrail("g").impl).times) == 4


@pytest.mark.django_db(transaction=True)
async def test_a_trial_that_fails_ends_nothing(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "feed", lambda gate, text: 1 / 0)
    assert await trials.after_answer(words(), "text", [500.0], clock) == ()
