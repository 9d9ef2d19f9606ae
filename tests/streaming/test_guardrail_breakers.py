"""A guardrail that fails again and again is not asked for a while; readers are told, and on_error holds."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckFailed, CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, Policy, compile_policy
from streaming import breakers
from streaming.breakers import OPEN_S, THRESHOLD
from streaming.checks import check_text, run_check, status_after


class Away(Kind[Config]):
    """Leaves the process, and fails while it is told to. "wait" waits until all who wait are there."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(
        PerformanceClass.MODERATE, 1, 2, 3, network=True, earliest_checkpoint=Checkpoint.BATCHED
    )
    Config = Config
    fails: ClassVar[bool]
    asked: ClassVar[int]
    together: ClassVar[asyncio.Barrier]
    entered: ClassVar[asyncio.Event]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).asked += 1
        if "wait" in request.text:
            type(self).entered.set()
            await type(self).together.wait()
        if type(self).fails:
            raise CheckFailed("gone")
        return Verdict(hit=False)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch, settings: object) -> list[float]:
    """The clock of the breakers, which stand in memory here."""
    base.all_kinds()
    monkeypatch.setattr(Away, "name", "trial_away", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_away", Away)  # type: ignore[arg-type]
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    Away.fails, Away.asked, Away.together, Away.entered = True, 0, asyncio.Barrier(3), asyncio.Event()
    now = [1_000.0]
    breakers.forget(lambda: now[0])
    return now


def policy(*names: str, name: str = "t", **entry: object) -> Policy:
    entries = [{"name": each, "kind": "trial_away", **entry} for each in names or ("g",)]
    return compile_policy({"policy": name, "guardrails": entries})


def asked(text: str = "a") -> CheckRequest:
    return CheckRequest(text, AppliesTo.RESPONSE)


async def trip(guardrail: Guardrail) -> None:
    for _ in range(THRESHOLD):
        assert (await run_check(guardrail, asked(), tries=1)).verdict.error == "gone"


async def state(guardrail: Guardrail) -> str:
    name = breakers.GUARDRAIL + guardrail.circuit
    return (await breakers.states([name]))[name]


async def test_it_works(now: list[float]) -> None:
    tried = policy().guardrail("g")
    await trip(tried)
    refused = await run_check(tried, asked())
    assert (refused.circuit_open, refused.permanent, Away.asked) == (True, True, THRESHOLD)
    assert status_after(tried, refused).state == "circuit_open"
    now[0] += OPEN_S
    assert (await run_check(tried, asked())).verdict.error == "gone"  # the probe fails: open again
    assert (await run_check(tried, asked())).circuit_open
    now[0] += OPEN_S
    Away.fails = False
    assert (await run_check(tried, asked())).verdict.error is None
    assert await state(tried) == "closed"


async def test_while_one_tries_the_breaker_is_half_open_and_nobody_else_is_asked(now: list[float]) -> None:
    tried = policy().guardrail("g")
    await trip(tried)
    assert await state(tried) == "open"
    now[0] += OPEN_S
    Away.fails, Away.together = False, asyncio.Barrier(2)
    probe = asyncio.create_task(run_check(tried, asked("wait")))
    await asyncio.wait_for(Away.entered.wait(), 60)
    assert await state(tried) == "half_open"
    assert (await run_check(tried, asked())).circuit_open
    assert Away.asked == THRESHOLD + 1
    await Away.together.wait()
    assert (await probe).verdict.error is None
    assert await state(tried) == "closed"


async def test_failures_that_lie_far_apart_open_nothing(now: list[float]) -> None:
    tried = policy().guardrail("g")
    for _ in range(THRESHOLD * 2):
        assert not (await run_check(tried, asked())).circuit_open
        now[0] += 30.0


async def test_a_guardrail_of_the_same_name_elsewhere_is_not_tripped() -> None:
    await trip(policy().guardrail("g"))
    for other in (policy(name="other").guardrail("g"), policy("h").guardrail("h")):
        assert not (await run_check(other, asked())).circuit_open
    assert (await run_check(policy().guardrail("g"), asked())).circuit_open  # compiled again: the same one


@pytest.mark.parametrize(("on_error", "visible"), [("block", ""), ("allow", "One."), ("warn", "One.")])
async def test_an_open_breaker_obeys_on_error(on_error: str, visible: str) -> None:
    tried = policy(action="block", on_error=on_error)
    await trip(tried.guardrail("g"))
    done = await check_text(tried, "One.", applies_to=AppliesTo.RESPONSE)
    assert (done.visible, done.failed, Away.asked) == (visible, ["g"], THRESHOLD)
    assert [s.state for s in done.statuses] == ["circuit_open"]
    assert done.action == on_error


async def test_guardrails_of_one_sentence_are_asked_at_the_same_time() -> None:
    Away.fails = False
    done = await check_text(policy("a", "b", "c"), "wait", applies_to=AppliesTo.RESPONSE)
    assert [s.state for s in done.statuses] == ["passed"] * 3  # one after the other, none would pass the barrier
