"""A check in MONITOR delays neither a prompt, nor a tool, nor the model; what it finds is on record all the same.

Of calls that answer only once see ``test_aside``.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from streaming import prompting, registry
from streaming.chat import Asked, Own, start_chat
from streaming.checks import check_text
from streaming.deferred import run_deferred
from streaming.frames import StartFrame
from streaming.log import LogUnavailable, MemoryLog, Payload
from streaming.metrics import REGISTRY
from streaming.models import AuditSession, DeferredCheck, Finding
from streaming.sessions import Started, Visitor

from .pumping import QUICK, Controlled, Time, Trial, trial
from .test_agent import Step, Tools, answer, asks, tools  # noqa: F401 -- ``tools`` is a fixture

pytestmark = pytest.mark.django_db(transaction=True)
LIMIT_S = 30
Event = dict[str, object]


class SlowConfig(Config):
    """Nothing to set."""


class Slow(Kind[SlowConfig]):
    """Has something against every sentence, and says so when it is let go."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = SlowConfig
    go: ClassVar[asyncio.Event]
    asked: ClassVar[list[tuple[str, str]]]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).asked.append((request.applies_to.value, request.text))
        await type(self).go.wait()
        return Verdict(hit=True, score=0.9, category="slow")


@pytest.fixture(autouse=True)
def slow_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    base.all_kinds()
    monkeypatch.setattr(Slow, "name", "trial_slow", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_slow", Slow)  # type: ignore[arg-type]
    Slow.go, Slow.asked = asyncio.Event(), []


def policy(mode: str = "MONITOR", action: str = "block", time_limit_s: float = 60, *applies_to: str) -> Policy:
    """Rules that decide, and the slow check beside them."""
    slow: dict[str, object] = {"name": "slow", "kind": "trial_slow", "mode": mode, "action": action}
    slow |= {
        "time_limit_s": time_limit_s,
        "applies_to": list(applies_to) or ["prompt", "tool_arguments", "tool_result"],
    }
    heron = {"name": "heron", "kind": "regex", "action": "block", "applies_to": ["prompt", "response"],
             "config": {"rules": [{"id": "h", "pattern": "blue heron"}]}}  # fmt: skip
    return compile_policy({"policy": "t", "guardrails": [slow, heron]}, version=1, digest="sha256:t")


def states(events: list[Event]) -> list[object]:
    """What the panel was told of the slow check."""
    return [e["state"] for e in events if e["type"] == "guardrail_status" and e["guardrail"] == "slow"]


async def findings() -> list[tuple[str, str, str]]:
    return [(row.guardrail, row.channel, row.would_have) async for row in Finding.objects.order_by("n")]


async def settled(case: Trial) -> AuditSession:
    """The session once it is over: its record, its findings told before its end, and nothing after it."""
    events = await case.events()
    kinds = [event["type"] for event in events]
    assert kinds[-2:] == ["done", "state"]
    assert kinds.count("finding") == len(await findings())
    return await AuditSession.objects.aget(pk=case.session_id)


async def test_it_works() -> None:
    case = await trial(["Hello."], prompt="One sentence.", policy=policy())
    async with asyncio.timeout(LIMIT_S):
        pump = asyncio.create_task(case.pump.run())
        await case.until_shown("Hello.")
        assert case.provider.asked, "the provider answers while the check is out"
        assert await case.of("done") == await case.of("finding") == []
        assert Slow.asked == [("prompt", "One sentence.")]
        assert states(await case.events()) == ["checking"]
        Slow.go.set()
        await pump
    session = await settled(case)
    assert states(await case.events()) == ["checking", "would_block"]
    assert await findings() == [("slow", "prompt", "blocked")]
    assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "allowed", "blocked")
    assert session.timing["guardrails"]["slow"]["checks"] == 1


async def begun(given: Policy, monitor: bool = False, **frame: object) -> tuple[Started, Controlled]:
    """A session by the way that all of them take, up to where its pump runs."""
    provider = Controlled(["Hello."])

    async def queue(session_id: str) -> None:
        """Nobody waits for workers here."""

    asked = Asked(Visitor(session_key="b"), "t", monitor, own=Own(provider, given, queue, flagged=False))
    started = await start_chat(StartFrame.model_validate({"type": "start", **frame}), asked, MemoryLog(), QUICK)
    return started, provider


HANDED = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "f", "arguments": '{"a": "One."}'}]},
    {"role": "tool", "content": "Two.", "tool_call_id": "c"},
    {"role": "user", "content": "And now?"},
]


@pytest.mark.parametrize(
    ("mode", "action", "monitor"),
    [("MONITOR", "block", False), ("BLOCK", "block", True), ("BLOCK", "warn", False)],
    ids=["guardrail in monitor", "all in monitor", "warns only"],
)
@pytest.mark.parametrize("handed", [False, True], ids=["prompt", "messages"])
async def test_a_session_begins_while_a_check_that_does_not_decide_is_out(
    mode: str, action: str, monitor: bool, handed: bool
) -> None:
    frame: dict[str, object] = {"messages": HANDED} if handed else {"prompt": "One sentence."}
    async with asyncio.timeout(LIMIT_S):
        started, provider = await begun(policy(mode, action), monitor, **frame)
        (pump,) = [task for task in asyncio.all_tasks() if task.get_name() == f"pump-{started.session_id}"]
        while not provider.closed:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not await Finding.objects.aexists()
        Slow.go.set()
        await pump
    expected = {"messages[0]", "messages[1]", "messages[2]", "prompt"} if handed else {"prompt"}
    assert {channel for _, channel, _ in await findings()} == expected
    assert (await AuditSession.objects.aget()).state == "COMPLETE"


async def test_a_check_that_decides_is_waited_for_beside_one_that_does_not() -> None:
    deciding = policy("BLOCK", "block")
    async with asyncio.timeout(LIMIT_S):
        asking = asyncio.create_task(prompting.with_history(deciding, "One sentence.", (), monitor=False))
        while not Slow.asked:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not asking.done()
        Slow.go.set()
        prompted = await asking
    assert prompted.checked.blocked is not None
    assert prompted.checked.later == []


async def test_what_a_block_makes_moot_is_not_asked() -> None:
    text = "One sentence here. Then a blue heron came. And a third one."
    checked = await check_text(policy(), text, applies_to=AppliesTo.PROMPT, later=True)
    assert checked.blocked is not None
    assert [question.check.text.strip() for question in checked.later] == [
        "One sentence here.",
        "Then a blue heron came.",
    ]
    assert Slow.asked == []


async def test_a_blocked_prompt_keeps_what_is_found_before_the_block() -> None:
    case = await trial([], prompt="One sentence here. Then a blue heron came.", policy=policy())
    async with asyncio.timeout(LIMIT_S):
        pump = asyncio.create_task(case.pump.run())
        await case.until("blocked")
        Slow.go.set()
        await pump
    session = await settled(case)
    assert set(await findings()) == {("heron", "prompt", ""), ("slow", "prompt", "blocked")}
    assert (session.outcome, case.provider.asked) == ("blocked", [])


@pytest.mark.parametrize("how", ["blocked", "failed"])
async def test_nothing_is_lost_when_the_answer_ends_otherwise_first(how: str) -> None:
    endings: dict[str, list[str | Exception | asyncio.Event]] = {
        "blocked": ["Hello. A blue heron.", asyncio.Event()],
        "failed": ["Hello.", RuntimeError("the adapter broke")],
    }
    case = await trial(endings[how], prompt="One sentence.", policy=policy())
    async with asyncio.timeout(LIMIT_S):
        pump = asyncio.create_task(case.pump.run())
        await case.until("message_stream")
        while not case.provider.closed:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not pump.done(), "the end waits for the check, the provider is gone"
        assert await case.of("done") == []
        Slow.go.set()
        await pump
    session = await settled(case)
    assert ("slow", "prompt", "blocked") in await findings()
    assert session.outcome == {"blocked": "blocked", "failed": "error"}[how]


async def stopped(given: Policy) -> tuple[Trial, asyncio.Task[None]]:
    """An answer that its reader has stopped while the check of its prompt is out."""
    case = await trial(["Hello.", asyncio.Event()], prompt="One sentence.", policy=given)
    pump = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    await case.log.interrupt(case.session_id)
    await case.until("done")
    await case.until("state", 2)
    return case, pump


async def test_a_stop_waits_for_no_check_and_what_it_finds_comes_behind_the_end() -> None:
    async with asyncio.timeout(LIMIT_S):
        case, pump = await stopped(policy())
        told = await case.events()
        assert states(told) == ["checking", "checking"]
        assert (told[-2]["outcome"], told[-1]["state"]) == ("interrupted", "MONITORING")
        assert await case.of("finding") == []
        session = await AuditSession.objects.aget(pk=case.session_id)
        assert (session.state, session.outcome) == ("MONITORING", "interrupted")
        check = await DeferredCheck.objects.aget()
        assert (check.state, check.sealed_text) == ("checking", None)
        Slow.go.set()
        await pump
    late = (await case.events())[len(told) :]
    assert [event["type"] for event in late] == ["finding", "guardrail_status", "state"]
    assert (late[0]["channel"], late[1]["state"], late[2]["state"]) == ("prompt", "would_block", "COMPLETE")
    assert await findings() == [("slow", "prompt", "blocked")]
    session = await AuditSession.objects.aget(pk=case.session_id)
    assert (session.state, session.would_have, session.timing["checks"]) == ("COMPLETE", "blocked", 1)
    await check.arefresh_from_db()
    assert check.state == "would_block"


async def test_a_check_that_never_answers_keeps_a_stopped_session_open_for_its_time_limit_alone() -> None:
    async with asyncio.timeout(LIMIT_S):
        case, pump = await stopped(policy("MONITOR", "block", 0.3))
        await pump
    session = await AuditSession.objects.aget(pk=case.session_id)
    assert (session.state, await findings(), states(await case.events())[-1]) == ("COMPLETE", [], "timeout")


async def test_a_server_that_stops_behind_a_stopped_answer_leaves_an_error_and_no_open_session() -> None:
    async with asyncio.timeout(LIMIT_S):
        case, pump = await stopped(policy())
        pump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pump
    check = await DeferredCheck.objects.aget()
    session = await AuditSession.objects.aget(pk=case.session_id)
    assert (session.state, check.state, "stopped" in check.error) == ("COMPLETE", "error", True)


async def test_a_process_that_dies_behind_a_stopped_answer_leaves_a_check_that_ends() -> None:
    async with asyncio.timeout(LIMIT_S):
        case, pump = await stopped(policy())
        row = await DeferredCheck.objects.aget()
        # Its lease is over, and the sweep hands the row to a worker.
        await DeferredCheck.objects.aupdate(state="waiting")
        assert await run_deferred(row.pk, case.log)
        await row.arefresh_from_db()
        assert row.state == "error"
        assert (await AuditSession.objects.aget(pk=case.session_id)).state == "COMPLETE"
        Slow.go.set()
        await pump
    await row.arefresh_from_db()
    assert (row.state, await findings()) == ("error", []), "who was taken for dead changes nothing"


async def test_the_seconds_of_a_judge_are_not_booked_as_the_providers() -> None:
    def took_s() -> float:
        return sum(s.value for m in REGISTRY.collect() for s in m.samples
                   if s.name == "sluicegate_time_to_completion_seconds_sum")  # fmt: skip

    before, clock = took_s(), Time()
    case = await trial(["Hello."], prompt="One sentence.", policy=policy(), clock=clock)
    async with asyncio.timeout(LIMIT_S):
        pump = asyncio.create_task(case.pump.run())
        while case.pump._marks.said_ms is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        clock.now += 20
        Slow.go.set()
        await pump
    assert took_s() - before < 1


async def test_a_check_that_never_answers_costs_its_time_limit_and_says_so() -> None:
    case = await trial(["Hello."], prompt="One sentence.", policy=policy("MONITOR", "block", 0.05))
    async with asyncio.timeout(LIMIT_S):
        await case.pump.run()
    session = await settled(case)
    assert states(await case.events()) == ["checking", "timeout"]
    assert (session.outcome, session.would_have, await findings()) == ("allowed", "", [])
    assert session.timing["guardrails"]["slow"]["errors"] == 1


async def test_the_finding_is_stored_when_the_log_is_away_while_the_end_waits() -> None:
    class Leaving(MemoryLog):
        away = False

        async def append(
            self, session_id: str, payloads: list[Payload], *, ms: int, floor: int = 0, known: int = 1
        ) -> int:  # type: ignore[override]
            if self.away:
                raise LogUnavailable("away")
            return await super().append(session_id, payloads, ms=ms, floor=floor)

    log = Leaving()
    case = await trial(["Hello."], prompt="One sentence.", policy=policy(), log=log)
    async with asyncio.timeout(LIMIT_S):
        pump = asyncio.create_task(case.pump.run())
        await case.until_shown("Hello.")
        log.away = True
        Slow.go.set()
        await pump
    assert await findings() == [("slow", "prompt", "blocked")]
    assert (await AuditSession.objects.aget()).state == "COMPLETE"


async def test_a_server_that_stops_does_not_wait() -> None:
    async with asyncio.timeout(LIMIT_S):
        started, provider = await begun(policy(), prompt="One sentence.")
        while not provider.closed:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(20):  # until only the check is out
            await asyncio.sleep(0)
        await registry.shutdown(LIMIT_S)
    session = await AuditSession.objects.aget(pk=started.session_id)
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "allowed", "")


@pytest.mark.parametrize("applies_to", ["tool_arguments", "tool_result"])
async def test_neither_a_tool_nor_the_model_waits(tools: Tools, applies_to: str) -> None:  # noqa: F811
    rounds: list[list[Step]] = [asks(("echo", {"text": "One."})), ["So it is."]]
    given = policy("MONITOR", "block", 60, applies_to)
    case = await answer(rounds, tools, given)
    async with asyncio.timeout(LIMIT_S):
        pump = asyncio.create_task(case.pump.run())
        await case.until_shown("So it is.")
        assert tools.saw == ["One."], "the tool has run, and the model has gone on with what came of it"
        assert {kind for kind, _ in Slow.asked} == {applies_to}
        assert await case.of("finding") == await case.of("done") == []
        Slow.go.set()
        await pump
    session = await settled(case)
    assert await case.shown() == "So it is."
    assert set(await findings()) == {("slow", applies_to, "blocked")}
    assert (session.outcome, session.would_have) == ("allowed", "blocked")
