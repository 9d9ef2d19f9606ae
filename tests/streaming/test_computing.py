"""What computes beside the event loop: one at a time, also after a time limit, and never so long that others starve."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import ClassVar

import pytest
from asgiref.sync import async_to_sync

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, Policy, compile_policy
from streaming import outbound
from streaming.aside import judge_sentences
from streaming.checks import Checked, check_text, run_check
from streaming.gateway.prompt import guarded
from streaming.slices import SLICE
from streaming.verdicts import AT_ONCE, AT_ONCE_COMPUTING, COMPUTING

LONG = 100_000
SENTENCE = "The well was dug in 1840, and a heron has stood beside it on most mornings since then. "
TEXT = ((SENTENCE * 8 + "Write to a.b@example.com, or call 555 0199. ") * (LONG // 700))[:LONG]
SHORTER = TEXT[: LONG // 5]


class Endless(Kind[Config]):
    """Computes until it is let go; counts how many do."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    computes = True
    Config = Config
    go: ClassVar[threading.Event]
    entered: ClassVar[threading.Event]
    began: ClassVar[list[str]]
    at_once: ClassVar[int]
    most: ClassVar[int]

    def judge(self, request: CheckRequest) -> Verdict:
        cls = type(self)
        cls.began.append(request.text)
        cls.entered.set()
        cls.at_once += 1
        cls.most = max(cls.most, cls.at_once)
        if request.text.startswith("long"):
            assert cls.go.wait(60)
        cls.at_once -= 1
        return Verdict(hit=False)


@pytest.fixture(autouse=True)
def kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    base.all_kinds()
    monkeypatch.setattr(Endless, "name", "trial_endless", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_endless", Endless)  # type: ignore[arg-type]
    Endless.go, Endless.entered = threading.Event(), threading.Event()
    Endless.began, Endless.at_once, Endless.most = [], 0, 0
    yield
    Endless.go.set()


def guardrail(limit_s: float) -> Guardrail:
    entry = {"name": "g", "kind": "trial_endless", "time_limit_s": limit_s}
    return compile_policy({"policy": "t", "guardrails": [entry]}).guardrail("g")


def asked(text: str) -> CheckRequest:
    return CheckRequest(text, AppliesTo.RESPONSE)


async def test_it_works() -> None:
    """A thread cannot be stopped: after the time limit of its check it still has the place, and others wait for it."""
    first = await run_check(guardrail(0.05), asked("long 1"))
    assert first.timed_out
    patient = [asyncio.create_task(run_check(guardrail(60), asked(f"short {n}"))) for n in range(3)]
    await asyncio.sleep(0)
    assert Endless.began == ["long 1"]
    Endless.go.set()
    assert all(checked.verdict.error is None for checked in await asyncio.gather(*patient))
    assert (Endless.most, len(Endless.began)) == (1, 4)


async def test_behind_a_thread_that_never_ends_checks_fail_in_their_time() -> None:
    await run_check(guardrail(0.05), asked("long 1"))
    done = await asyncio.gather(*(run_check(guardrail(0.05), asked(f"short {n}")) for n in range(3)))
    assert [checked.timed_out for checked in done] == [True] * 3
    assert Endless.began == ["long 1"], "they were never begun"
    assert all("no verdict within" in str(checked.verdict.error) for checked in done)
    Endless.go.set()


async def test_those_who_wait_already_are_timed_as_well_when_a_thread_is_left_behind() -> None:
    first = asyncio.create_task(run_check(guardrail(0.05), asked("long 1")))
    await asyncio.to_thread(Endless.entered.wait, 60)
    second = asyncio.create_task(run_check(guardrail(0.2), asked("short")))
    assert (await first).timed_out
    assert (await second).timed_out
    Endless.go.set()


async def test_a_check_that_is_cancelled_keeps_its_place_until_its_thread_is_done() -> None:
    task = asyncio.create_task(run_check(guardrail(60), asked("long 1")))
    await asyncio.to_thread(Endless.entered.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting = asyncio.create_task(run_check(guardrail(60), asked("short")))
    await asyncio.sleep(0)
    assert Endless.began == ["long 1"]
    Endless.go.set()
    assert (await waiting).verdict.error is None
    assert Endless.most == 1


def threads() -> int:
    return sum(thread.name.startswith("computing") for thread in threading.enumerate())


def test_tasks_with_loops_of_their_own_leave_one_thread_behind_and_no_loop() -> None:
    """A worker has a loop for each task. A place is free again when its thread is done, also after its loop."""
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def task(given: Guardrail, *texts: str) -> list[Checked]:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        return await asyncio.gather(*(run_check(given, asked(text)) for text in texts))

    before, short = threads(), guardrail(0.02)
    for n in range(8):
        done = async_to_sync(task)(short, *(f"long {n} {m}" for m in range(2 * AT_ONCE_COMPUTING)))
        assert all(checked.timed_out for checked in done)
    assert Endless.entered.wait(60)
    assert threads() <= max(before, COMPUTING)
    assert Endless.most == 1
    Endless.go.set()
    (last,) = async_to_sync(task)(guardrail(60), "short")
    assert (last.verdict.error, Endless.most) == (None, 1)
    gc.collect()
    assert [loop() for loop in loops] == [None] * len(loops)


def test_a_loop_waits_for_what_computes_beside_another() -> None:
    """Two loops in two threads: one place for both, and who waits in one is told by the other."""
    first = threading.Thread(target=async_to_sync(run_check), args=(guardrail(60), asked("long 1")))
    first.start()
    assert Endless.entered.wait(60)

    async def second() -> Checked:
        waiting = asyncio.create_task(run_check(guardrail(60), asked("short")))
        for _ in range(5):
            await asyncio.sleep(0)
        assert Endless.began == ["long 1"]
        Endless.go.set()
        return await waiting

    checked = asyncio.run(second())
    first.join(60)
    assert (checked.verdict.error, Endless.most, Endless.began) == (None, 1, ["long 1", "short"])


async def test_classifiers_do_not_stand_behind_names_that_nobody_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own threads are everybody's: forty calls that wait for a name server have all of them."""
    loop, answered, asked_for = asyncio.get_running_loop(), threading.Event(), asyncio.Event()
    waits = [loop.run_in_executor(None, answered.wait, 60) for _ in range(40)]

    def never(host: str, port: int, **_: object) -> list[object]:
        loop.call_soon_threadsafe(asked_for.set)
        answered.wait(60)
        return []

    monkeypatch.setattr(outbound.socket, "getaddrinfo", never)
    names = [asyncio.create_task(outbound._resolve(f"judge{n}.example", 443)) for n in range(40)]
    try:
        await asyncio.wait_for(asked_for.wait(), 60)
        checked = await run_check(guardrail(20), asked("short"))
        assert (checked.timed_out, checked.verdict.error) == (False, None)
        assert not any(one.done() for one in (*waits, *names))
    finally:
        answered.set()
        await asyncio.gather(*waits, *names)


class Held(Kind[Config]):
    """Asks somebody who answers when told to."""

    family = Family.AI
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.SLOW, 1_000, 2_000, 3_000)
    Config = Config
    answers: ClassVar[asyncio.Event]
    full: ClassVar[asyncio.Event]
    asked: ClassVar[int]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).asked += 1
        if self.asked == AT_ONCE:
            self.full.set()
        await self.answers.wait()
        return Verdict(hit=False)


async def test_the_time_limit_of_a_check_begins_when_it_is_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred at once: those that are asked first meet their limit, the others wait for them and do not."""
    monkeypatch.setattr(Held, "name", "trial_held", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_held", Held)  # type: ignore[arg-type]
    Held.answers, Held.full, Held.asked = asyncio.Event(), asyncio.Event(), 0
    entry = {"name": "g", "kind": "trial_held", "mode": "BLOCK", "time_limit_s": 0.4}
    one = compile_policy({"policy": "t", "guardrails": [entry]}).guardrail("g")
    checks = [asyncio.create_task(run_check(one, asked(f"text {n}"))) for n in range(200)]
    await asyncio.wait_for(Held.full.wait(), 60)
    first = await asyncio.gather(*checks[:AT_ONCE])
    assert [checked.timed_out for checked in first] == [True] * AT_ONCE
    Held.answers.set()
    waited = await asyncio.gather(*checks[2 * AT_ONCE :])
    assert [checked.verdict.error for checked in waited] == [None] * (200 - 2 * AT_ONCE)
    await asyncio.gather(*checks)


def rules() -> Policy:
    return compile_policy(
        {"policy": "t", "guardrails": [
            {"name": "pii", "kind": "pii", "mode": "BLOCK", "action": "redact", "applies_to": ["prompt", "response"]},
            {"name": "secrets", "kind": "secrets", "applies_to": ["prompt", "response"]},
            {"name": "words", "kind": "keywords", "action": "warn", "config": {"keywords": ["heron", "crane"]}},
            {"name": "tone", "kind": "trial_endless", "mode": "MONITOR"},
            {"name": "judge", "kind": "ai_judge", "mode": "MONITOR", "config": {"rubric": "harm"}},
        ]}
    )  # fmt: skip


async def whole(policy: Policy) -> None:
    await check_text(policy, TEXT, applies_to=AppliesTo.RESPONSE, later=True)


async def by_sentence(policy: Policy) -> None:
    tone = policy.guardrail("tone")
    await judge_sentences(policy, tone, SHORTER, AppliesTo.RESPONSE, limit_s=60)


async def of_the_gateway(policy: Policy) -> None:
    turns = [{"role": "user", "content": SHORTER}, {"role": "user", "content": "And now?"}]
    await guarded(policy, {"messages": turns}, media_allowed=True)


@pytest.mark.parametrize("work", [whole, by_sentence, of_the_gateway])
async def test_others_have_their_turn_while_a_long_text_is_checked(work: Callable[[Policy], Awaitable[None]]) -> None:
    """In CPU time of this thread, so that a loaded machine changes nothing; the collector of garbage takes its own."""
    policy, turns, longest = rules(), 0, 0.0
    await check_text(policy, TEXT[:2_000], applies_to=AppliesTo.RESPONSE, later=True)  # automata are built on the way
    await check_text(policy, TEXT[:2_000], applies_to=AppliesTo.PROMPT, later=True)
    gc.collect()
    gc.disable()
    task = asyncio.ensure_future(work(policy))
    last = time.thread_time()
    while not task.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        turns, longest, last = turns + 1, max(longest, now - last), now
    gc.enable()
    await task
    assert turns >= len(SHORTER) // SLICE
    assert longest < 0.1


async def test_slices_change_nothing() -> None:
    policy = rules()
    cut = 2 * SLICE
    text = "x" * (cut - 6) + " a.b@example.com and heron. " + "y" * SLICE
    done = await check_text(policy, text, applies_to=AppliesTo.RESPONSE, later=True)
    assert "a.b@example.com" not in done.visible
    assert [(f.guardrail, text[f.start : f.end]) for f in done.findings] == [
        ("pii", "a.b@example.com"),
        ("words", "heron"),
    ]
