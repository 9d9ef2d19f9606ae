"""What guardrails say behind the end of a stopped answer: every verdict that comes in time is kept.

That a stop waits for none of them, and a server that stops leaves no session open: ``test_monitor_delays_nothing``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from typing import Any, ClassVar

import pytest
from django.db import OperationalError

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from streaming import overheard
from streaming.database import AWAY
from streaming.models import AuditSession, DeferredCheck, Finding

from .pumping import Trial, trial

pytestmark = pytest.mark.django_db(transaction=True)
LIMIT_S = 30
A, B, C = "First there was one.", "Then there was another.", "And at last a third."


class ToldConfig(Config):
    """``at``: what it is told by, in place of the text."""

    at: str = ""


class Told(Kind[ToldConfig]):
    """Has something against every text, and says so when it is told to, text by text."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = ToldConfig
    go: ClassVar[defaultdict[str, asyncio.Event]]
    asked: ClassVar[int]
    left: ClassVar[int]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        cls = type(self)
        cls.asked += 1
        try:
            await cls.go[self.config.at or request.text.strip()].wait()
        finally:
            cls.left += 1
        return Verdict(hit=True, score=0.9, category="told")


@pytest.fixture(autouse=True)
def told_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    base.all_kinds()
    monkeypatch.setattr(Told, "name", "trial_told", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_told", Told)  # type: ignore[arg-type]
    Told.go, Told.asked, Told.left = defaultdict(asyncio.Event), 0, 0


def policy(*names: str) -> Policy:
    entry = {"kind": "trial_told", "mode": "MONITOR", "action": "block", "time_limit_s": 60, "applies_to": ["prompt"]}
    entries = [{"name": name, "config": {"at": name}, **entry} for name in names] or [{"name": "told", **entry}]
    return compile_policy({"policy": "t", "guardrails": entries}, version=1, digest="sha256:t")


async def stopped(prompt: str, questions: int, given: Policy | None = None) -> tuple[Trial, asyncio.Task[None]]:
    """An answer that its reader has stopped while the checks of its prompt are out."""
    case = await trial(["Hello.", asyncio.Event()], prompt=prompt, policy=given or policy())
    pump = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    while Told.asked < questions:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await case.log.interrupt(case.session_id)
    await case.until("done")
    await case.until("state", 2)
    return case, pump


def waited_for(case: Trial) -> bool:
    """Whether the session waits for its checks by now: each has a callback then beside the one that it begins with."""
    return all(len(task._callbacks) > 1 for task in case.pump._asking._later)  # type: ignore[attr-defined]


async def ended() -> tuple[str, str, int]:
    """How the session and its one check stand, and how many findings there are."""
    check, session = await DeferredCheck.objects.aget(), await AuditSession.objects.aget()
    return session.state, check.state, await Finding.objects.acount()


@pytest.mark.parametrize("turns", range(5))
async def test_it_works(turns: int) -> None:
    """Two that end right after each other wake it twice, and the second time may bring nothing; a third comes later."""
    async with asyncio.timeout(LIMIT_S):
        case, pump = await stopped(f"{A} {B} {C}", 3)
        while not waited_for(case):  # noqa: ASYNC110
            await asyncio.sleep(0)
        Told.go[A].set()
        for _ in range(turns):
            await asyncio.sleep(0)
        Told.go[B].set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not pump.done(), "one of them is still out"
        Told.go[C].set()
        await pump
    assert await ended() == ("COMPLETE", "would_block", 3)


@pytest.mark.parametrize("away_in", ["held", "record_result"])
@pytest.mark.parametrize("error", AWAY)
async def test_a_database_that_is_away_for_a_moment_costs_no_verdict(
    monkeypatch: pytest.MonkeyPatch, away_in: str, error: type[Exception]
) -> None:
    does, tries = getattr(overheard, away_in), []

    def away_twice(**said: object) -> object:
        tries.append(said)
        if len(tries) <= 2:
            raise error("server closed the connection unexpectedly")
        return does(**said)

    async with asyncio.timeout(LIMIT_S):
        case, pump = await stopped(f"{A} {B}", 2)
        monkeypatch.setattr(overheard, away_in, away_twice)
        monkeypatch.setattr(overheard, "AGAIN_S", 0.01)
        Told.go[A].set()
        Told.go[B].set()
        await pump
    assert len(tries) == 3
    assert await ended() == ("COMPLETE", "would_block", 2)
    late = [event["type"] for event in await case.events()][-4:]
    assert late == ["finding", "finding", "guardrail_status", "state"]


@pytest.mark.parametrize("how", ["stays away", "breaks otherwise"])
async def test_what_cannot_be_stored_is_left_to_the_sweep_and_nobody_is_asked_any_more(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One of two has said it; the other is still out."""

    def fails(**said: object) -> None:
        raise OperationalError("away") if how == "stays away" else ValueError("a bug")

    monkeypatch.setattr(overheard, "SHARE_OF_LEASE", 0.0005)
    async with asyncio.timeout(LIMIT_S):
        _, pump = await stopped(A, 2, policy("told", "other"))
        monkeypatch.setattr(overheard, "record_result", fails)
        monkeypatch.setattr(overheard, "AGAIN_S", 0.01)
        Told.go["told"].set()
        await pump
        while Told.left < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    states = [row.state async for row in DeferredCheck.objects.all()]
    assert states == ["checking", "checking"], "on lease, until the sweep finds that it is over"
    assert (await AuditSession.objects.aget()).state == "MONITORING"


async def test_a_server_that_stops_while_the_database_is_away_stores_what_was_said_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    does, tried, here = overheard.record_result, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def away_until(**said: Any) -> object:
        loop.call_soon_threadsafe(tried.set)
        if not here.is_set():
            raise OperationalError("away")
        return does(**said)

    async with asyncio.timeout(LIMIT_S):
        _, pump = await stopped(A, 1)
        monkeypatch.setattr(overheard, "record_result", away_until)
        monkeypatch.setattr(overheard, "AGAIN_S", 0.01)
        Told.go[A].set()
        await tried.wait()
        pump.cancel()
        tried.clear()
        await tried.wait()
        here.set()
        with pytest.raises(asyncio.CancelledError):
            await pump
    assert await ended() == ("COMPLETE", "would_block", 1)
