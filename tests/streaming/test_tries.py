"""A guardrail that asks somebody else is asked again where its verdict is waited for, within its one time limit."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckFailed, CheckRequest, Config, Kind, NoVerdict, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, compile_policy
from streaming import breakers, checks
from streaming.checks import FAILURES, check_text, run_check
from streaming.tries import SHARE, TRIES, wait_within_s

LIMIT_S = 8.0


class Refused(CheckFailed):
    permanent = True


class Asked(Kind[Config]):
    """Leaves the process; answers what ``answers`` says, one after the other."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(
        PerformanceClass.MODERATE, 1, 2, 3, network=True, earliest_checkpoint=Checkpoint.BATCHED
    )
    Config = Config
    answers: ClassVar[list[Exception | None]]
    asked: ClassVar[int]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).asked += 1
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return Verdict(hit=False)


class Near(Asked):
    """The same in this process."""

    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, settings: object) -> list[float]:
    """What was waited between tries; nobody waits really, and the breakers stand in memory."""
    base.all_kinds()
    for name, kind in (("trial_asked", Asked), ("trial_near", Near)):
        monkeypatch.setattr(kind, "name", name, raising=False)
        monkeypatch.setitem(base._REGISTRY, name, kind)  # type: ignore[arg-type]
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    breakers.forget(lambda: 1_000.0)
    waited: list[float] = []

    async def rest(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(checks, "rest", rest)
    return waited


def guardrail(*answers: Exception | None, kind: type[Asked] = Asked, name: str = "g") -> Guardrail:
    kind.answers, kind.asked = list(answers), 0
    entry = {"name": name, "kind": kind.name, "time_limit_s": LIMIT_S, "action": "block", "on_error": "block"}
    return compile_policy({"policy": "t", "guardrails": [entry]}).guardrail(name)


REQUEST = CheckRequest("a", AppliesTo.RESPONSE)


async def test_it_works(waits: list[float]) -> None:
    checked = await run_check(guardrail(CheckFailed("503"), None), REQUEST)
    assert (checked.verdict.error, Asked.asked) == (None, 2)
    assert 0 < waits[0] <= LIMIT_S * SHARE


async def test_one_answer_of_a_busy_endpoint_blocks_no_text() -> None:
    one = guardrail(CheckFailed("503"), None)
    policy = compile_policy({"policy": "t", "guardrails": [{"name": "g", "kind": one.kind, "on_error": "block"}]})
    done = await check_text(policy, "One.", applies_to=AppliesTo.RESPONSE)
    assert (done.visible, done.failed) == ("One.", [])


async def test_it_gives_up_after_three_tries_that_the_breaker_has_counted_each(waits: list[float]) -> None:
    before = FAILURES.labels("three", "error")._value.get()
    tried = guardrail(*[CheckFailed("503")] * 5, name="three")
    assert (await run_check(tried, REQUEST)).verdict.error == "503"
    assert (Asked.asked, len(waits)) == (TRIES, TRIES - 1)
    assert FAILURES.labels("three", "error")._value.get() == before + 1, "one check without a verdict"
    assert (await run_check(tried, REQUEST)).verdict.error == "503"  # the fifth failure opens the breaker
    assert Asked.asked == breakers.THRESHOLD
    assert (await run_check(tried, REQUEST)).circuit_open


@pytest.mark.parametrize("failure", [Refused("no key"), KeyError("a bug"), NoVerdict("prose"), TimeoutError()])
async def test_what_would_fail_again_is_asked_once(waits: list[float], failure: Exception) -> None:
    assert (await run_check(guardrail(failure, None), REQUEST)).verdict.error
    assert (Asked.asked, waits) == (1, [])


async def test_what_does_not_leave_the_process_is_asked_once(waits: list[float]) -> None:
    assert (await run_check(guardrail(CheckFailed("x"), None, kind=Near), REQUEST)).verdict.error == "x"
    assert (Near.asked, waits) == (1, [])


async def test_workers_ask_once(waits: list[float]) -> None:
    assert (await run_check(guardrail(CheckFailed("x"), None), REQUEST, tries=1)).verdict.error == "x"
    assert (Asked.asked, waits) == (1, [])


async def test_the_time_limit_is_one_for_all_tries(waits: list[float]) -> None:
    now = [0.0]

    class Slow(CheckFailed):
        """Takes five seconds to say no."""

        def __str__(self) -> str:
            return "slow"

    async def check(request: CheckRequest, services: Services) -> Verdict:
        Asked.asked += 1
        now[0] += 5.0
        raise Slow

    tried = guardrail(None)
    tried.impl.check = check  # type: ignore[method-assign]
    checked = await run_check(tried, REQUEST, lambda: now[0])
    assert (checked.verdict.error, Asked.asked, len(waits)) == ("slow", 2, 1), "eight seconds are two tries"
    assert waits[0] <= 3.0 * SHARE


async def test_a_cancelled_check_between_two_tries_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = asyncio.Event()

    async def rest(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(checks, "rest", rest)
    task = asyncio.create_task(run_check(guardrail(CheckFailed("x"), None), REQUEST))
    await asyncio.wait_for(waiting.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Asked.asked == 1


@pytest.mark.parametrize("left_s", [0.01, 0.3, 1.0, 30.0])
def test_a_wait_leaves_most_of_the_time_for_the_try(left_s: float) -> None:
    for attempt in (1, 2, 3):
        for chance in (0.0, 0.5, 1.0):
            assert 0 < wait_within_s(attempt, left_s, lambda chance=chance: chance) <= left_s * SHARE  # type: ignore[misc]
