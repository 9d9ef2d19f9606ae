"""Checks at a sentence's end: beside each other, each with its own failure, and never in the event loop's way."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from typing import ClassVar, Literal

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckFailed, CheckRequest, Config, Kind, Services
from guardrails.ml import model
from guardrails.ml.features import windows
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, Policy, compile_policy
from streaming.checks import run_check
from streaming.verdicts import ENOUGH_TIMES, book
from tests.streaming.pumping import trial

pytestmark = pytest.mark.django_db(transaction=True)


class PartConfig(Config):
    """What the check does once all checks of its sentence are under way."""

    does: Literal["hits", "fails", "hangs"]


class Part(Kind[PartConfig]):
    """Keeps a diary. Whoever does not hang waits for the others to begin, and for the one that hangs to be given up."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = PartConfig
    diary: ClassVar[list[str]]
    begun: ClassVar[asyncio.Event]
    given_up: ClassVar[asyncio.Event]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        cls, does = type(self), self.config.does
        cls.diary.append(f"{does} begins")
        if len(cls.diary) == 3:
            cls.begun.set()
        try:
            await cls.begun.wait()
            if does == "hangs":
                await asyncio.Event().wait()
            await cls.given_up.wait()
        finally:
            cls.diary.append(f"{does} ends")
            cls.given_up.set()
        if does == "fails":
            raise CheckFailed("the other side is gone")
        return Verdict(hit=True, score=0.9, category="third")


@pytest.fixture(autouse=True)
def trial_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    base.all_kinds()
    monkeypatch.setattr(Part, "name", "trial_part", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_part", Part)  # type: ignore[arg-type]
    Part.diary, Part.begun, Part.given_up = [], asyncio.Event(), asyncio.Event()


def three(fails: str, hangs: str, mode: str = "BLOCK") -> Policy:
    """``fails``, ``hangs``: what these two do on an error. The one that hangs has a tenth of a second."""
    own: dict[str, dict[str, object]] = {
        "fails": {"on_error": fails, "time_limit_s": 60, "action": "block"},
        "hangs": {"on_error": hangs, "time_limit_s": 0.1, "action": "block"},
        "hits": {"on_error": "block", "time_limit_s": 60, "action": "redact"},
    }
    common = {"kind": "trial_part", "mode": mode, "applies_to": ["response"]}
    entries = [{**common, "name": name, "config": {"does": name}, **entry} for name, entry in own.items()]
    return compile_policy({"policy": "t", "guardrails": entries}, version=1, digest="sha256:t")


def overlapped() -> bool:
    """Had all of them begun before the first ended? By the diary, whatever a clock says."""
    return {line.partition(" ")[2] for line in Part.diary[:3]} == {"begins"} and len(Part.diary) == 6


@pytest.mark.parametrize("hangs", ["allow", "warn"])
@pytest.mark.parametrize("fails", ["allow", "warn"])
async def test_it_works(fails: str, hangs: str) -> None:
    """One fails, one hangs beyond its limit, the third's verdict counts; each says and does what its own row says."""
    case = await trial(["One sentence."], policy=three(fails, hangs))
    await asyncio.wait_for(case.pump.run(), 60)
    assert overlapped(), Part.diary
    last = {event["guardrail"]: event for event in await case.of("guardrail_status")}
    assert {name: event["state"] for name, event in last.items()} == {
        "fails": "error", "hangs": "timeout", "hits": "hit",
    }  # fmt: skip
    assert (last["fails"]["error"], last["hangs"]["error"]) == ("the other side is gone", "no verdict within 0.1 s")
    warned = {name for name, on_error in (("fails", fails), ("hangs", hangs)) if on_error == "warn"}
    found = {event["guardrail"]: (event["rule"], event["action"]) for event in await case.of("finding")}
    assert found == {"hits": ("third", "redact"), **{name: ("error", "warn") for name in warned}}
    assert await case.shown() == "[HITS]"
    assert (await case.of("done"))[-1]["outcome"] == "redacted"


@pytest.mark.parametrize("who", ["fails", "hangs"])
async def test_one_that_blocks_on_error_blocks_and_the_other_does_not(who: str) -> None:
    on_error = {"fails": "allow", "hangs": "allow", who: "block"}
    case = await trial(["One sentence."], policy=three(**on_error))
    await asyncio.wait_for(case.pump.run(), 60)
    assert overlapped(), Part.diary
    ((blocked,),) = (await case.of("blocked"),)
    assert blocked["guardrail"] == who
    assert await case.shown() == ""
    assert (await case.of("done"))[-1]["outcome"] == "blocked"


async def test_in_monitor_none_of_them_holds_a_character_and_the_verdict_is_on_record() -> None:
    case = await trial(["One sentence."], policy=three("block", "block", "MONITOR"))
    await asyncio.wait_for(case.pump.run(), 60)
    assert overlapped(), Part.diary
    assert await case.shown() == "One sentence."
    assert [(e["guardrail"], e["would_have"]) for e in await case.of("finding")] == [("hits", "redacted")]
    states = {event["guardrail"]: event["state"] for event in await case.of("guardrail_status")}
    assert states == {"fails": "error", "hangs": "timeout", "hits": "would_block"}


# -- what computes ----------------------------------------------------------------------------------------------------

LONG = "You are a very nice person and I hope that your day goes well. " * 1_600


def classifier(kind: str) -> Guardrail:
    return compile_policy(
        {"policy": "t", "guardrails": [{"name": kind, "kind": kind, "time_limit_s": 300}]}
    ).guardrail(kind)  # fmt: skip


async def test_the_heart_beats_on_while_classifiers_check_long_texts() -> None:
    """Eight texts of 100,000 characters. On the loop each would be a gap; the limits are for a machine that is busy."""
    beats: list[float] = []

    async def heart() -> None:
        while True:
            beats.append(time.perf_counter())
            await asyncio.sleep(0.001)

    model.load("toxicity"), model.load("prompt_injection")
    heartbeat = asyncio.create_task(heart())
    jobs = [
        run_check(classifier(kind), CheckRequest(f"{LONG}{n}", AppliesTo.RESPONSE))
        for kind in ("toxicity", "prompt_injection") for n in range(4)
    ]  # fmt: skip
    began = time.perf_counter()
    done = await asyncio.gather(*jobs)
    took = time.perf_counter() - began
    heartbeat.cancel()
    assert all(checked.verdict.error is None for checked in done)
    gaps = [after - before for before, after in pairwise(beats)]
    assert len(gaps) >= 50
    assert max(gaps) < took / 2, f"{max(gaps) * 1000:.0f} ms of {took:.1f} s"


def test_between_two_windows_of_a_long_text_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    monkeypatch.setattr(model.time, "sleep", turns.append)
    model.load("toxicity").score("A short text.")
    assert turns == []
    model.load("toxicity").score(LONG)
    assert turns == [0] * (len(windows(LONG)) - 1)
    assert max(map(len, windows(LONG))) <= 1_200


class Computes(Kind[Config]):
    """Notes how many compute at the same time."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    computes = True
    Config = Config
    lock: ClassVar[threading.Lock]
    under_way: ClassVar[int] = 0
    most: ClassVar[int] = 0
    now: ClassVar[float] = 0.0

    def judge(self, request: CheckRequest) -> Verdict:
        cls = type(self)
        with cls.lock:
            cls.under_way += 1
            cls.most = max(cls.most, cls.under_way)
        sum(range(20_000))
        with cls.lock:
            cls.now += 1.0
            cls.under_way -= 1
        return Verdict(hit=False)


async def test_what_computes_takes_turns_and_the_queue_is_nobodys_slowness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads would share one interpreter lock, and the event loop would wait for each of them."""
    monkeypatch.setattr(Computes, "name", "trial_computes", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_computes", Computes)  # type: ignore[arg-type]
    Computes.lock, Computes.under_way, Computes.most = threading.Lock(), 0, 0
    entries = [{"name": name, "kind": "trial_computes", "time_limit_s": 300} for name in "abcd"]
    policy = compile_policy({"policy": "t", "guardrails": entries})
    jobs = [
        run_check(policy.guardrail(name), CheckRequest(f"{n}", AppliesTo.RESPONSE), lambda: Computes.now)
        for name in "abcd" for n in range(ENOUGH_TIMES)
    ]  # fmt: skip
    assert all(checked.verdict.error is None for checked in await asyncio.gather(*jobs))
    assert Computes.most == 1
    for name in "abcd":
        assert [ms for _, ms in book(policy.guardrail(name).impl).times] == [1_000.0] * ENOUGH_TIMES
