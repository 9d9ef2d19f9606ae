"""Checks as they are run: remembered, bounded, measured, and off the event loop where they only compute."""

from __future__ import annotations

import asyncio
import threading
from typing import ClassVar

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services, Turn
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, compile_policy
from streaming.checks import Checked, run_check, status_after
from streaming.verdicts import AT_ONCE, AT_ONCE_COMPUTING, ENOUGH_TIMES, book


class Slow(Kind[Config]):
    """Answers when it is told to; remembers who asked."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(
        PerformanceClass.MODERATE, 1, 2, 3, cacheable=True, cache_seconds=60, earliest_checkpoint=Checkpoint.BATCHED
    )
    Config = Config
    go: ClassVar[asyncio.Event]
    asked: ClassVar[list[str]]
    under_way: ClassVar[int]
    most: ClassVar[int]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        cls = type(self)
        cls.asked.append(request.text)
        cls.under_way += 1
        cls.most = max(cls.most, cls.under_way)
        try:
            await cls.go.wait()
        finally:
            cls.under_way -= 1
        if request.text == "fails":
            raise ValueError("no")
        return Verdict(hit=request.text == "bad", score=0.5)


class Computing(Kind[Config]):
    """Says in which thread it ran."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    computes = True
    Config = Config

    def judge(self, request: CheckRequest) -> Verdict:
        return Verdict(hit=False, reason=str(threading.get_ident()))


@pytest.fixture(autouse=True)
def trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two kinds are known while a test of this file runs, and never to any other test."""
    base.all_kinds()
    for name, kind in (("trial_slow", Slow), ("trial_computing", Computing)):
        monkeypatch.setattr(kind, "name", name)
        monkeypatch.setitem(base._REGISTRY, name, kind)  # type: ignore[arg-type]
    Slow.asked, Slow.under_way, Slow.most, Slow.go = [], 0, 0, asyncio.Event()


def guardrail(kind: str = "trial_slow", **entry: object) -> Guardrail:
    policy = compile_policy({"policy": "t", "guardrails": [{"name": "g", "kind": kind, **entry}]})
    return policy.guardrail("g")


def request(text: str, *turns: Turn) -> CheckRequest:
    return CheckRequest(text, AppliesTo.RESPONSE, turns)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_it_works() -> None:
    Slow.go.set()
    tried = guardrail()
    first = await run_check(tried, request("bad"))
    assert (first.verdict.hit, first.remembered) == (True, False)
    again = await run_check(tried, request("bad"))
    assert (again.verdict, again.remembered) == (first.verdict, True)
    assert Slow.asked == ["bad"]


async def test_a_verdict_is_remembered_only_for_the_same_question() -> None:
    Slow.go.set()
    tried = guardrail()
    await run_check(tried, request("a"))
    await run_check(tried, CheckRequest("a", AppliesTo.PROMPT))
    await run_check(tried, request("a", Turn("user", "b")))
    await run_check(tried, request("a", Turn("user", ""), Turn("", "b")))
    await run_check(guardrail(), request("a"))  # another compiled version remembers nothing of this one
    assert Slow.asked == ["a"] * 5


async def test_a_verdict_is_forgotten_in_time_and_a_failure_at_once() -> None:
    Slow.go.set()
    tried, clock = guardrail(), Time()
    await run_check(tried, request("a"), clock)
    clock.now = 59.9
    assert (await run_check(tried, request("a"), clock)).remembered
    clock.now = 60.0
    assert not (await run_check(tried, request("a"), clock)).remembered
    for _ in range(2):
        failed = await run_check(tried, request("fails"), clock)
        assert failed.verdict.error == "the check failed (ValueError)"
    assert Slow.asked.count("fails") == 2


async def test_no_text_is_kept() -> None:
    Slow.go.set()
    tried = guardrail()
    await run_check(tried, request("a secret text"))
    assert "secret" not in repr(book(tried.impl).verdicts)


async def test_checks_of_one_guardrail_wait_for_a_slot_and_those_of_another_do_not() -> None:
    tried, other = guardrail(), guardrail()
    jobs = [asyncio.create_task(run_check(tried, request(f"{n}"))) for n in range(AT_ONCE + 5)]
    jobs.append(asyncio.create_task(run_check(other, request("other"))))
    for _ in range(5):
        await asyncio.sleep(0)
    assert Slow.under_way == AT_ONCE + 1
    Slow.go.set()
    done = await asyncio.gather(*jobs)
    assert all(checked.verdict.error is None for checked in done)
    assert Slow.most == AT_ONCE + 1


async def test_the_time_limit_begins_with_the_slot_and_who_waited_for_it_is_asked_all_the_same() -> None:
    tried = guardrail(time_limit_s=0.05)
    done = await asyncio.gather(*(run_check(tried, request(f"{n}")) for n in range(AT_ONCE + 1)))
    assert all(checked.timed_out for checked in done)
    assert len(Slow.asked) == AT_ONCE + 1


async def test_what_only_computes_leaves_the_event_loop_free() -> None:
    assert 0 < AT_ONCE_COMPUTING < AT_ONCE
    checked = await run_check(guardrail("trial_computing"), request("a"))
    assert checked.verdict.reason != str(threading.get_ident())


async def test_a_guardrail_that_breaks_its_class_is_seen_to() -> None:
    Slow.go.set()
    tried, clock = guardrail(), Time()
    kept = book(tried.impl)
    for _ in range(ENOUGH_TIMES - 1):
        kept.measured(1_500.0, clock)
    assert not kept.slower_than_declared  # too few to say so
    checked = await run_check(tried, request("a"), clock)
    assert (checked.slow, checked.p95_ms) == (True, 1_500.0)
    status = status_after(tried, checked)
    assert (status.state, status.p95_ms) == ("slower_than_declared", 1_500.0)
    hit = Checked(Verdict(hit=True), 1.0, slow=True)
    assert status_after(tried, hit).state == "hit"
