"""Arguments and results of tools that wait for guardrails: readers are told, nothing is lost when the answer ends."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from streaming.agent import NOT_OVER, NOT_RUN, PROGRESS_EVERY_S, WITHHELD
from streaming.core.events import ProviderToolResult, ToolCallDelta
from streaming.models import Message
from streaming.tools.base import Context
from tests.streaming.pumping import Trial, grown, trial
from tests.streaming.test_agent import Tools, answer, asks, tools

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["tools"]  # the fixture
RESULT = "The first half. The other half."


class Waits(Kind[Config]):
    """Answers about a text when the test says so; a text with "bad" in it is a hit."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = Config
    asked: ClassVar[asyncio.Event]
    go: ClassVar[asyncio.Event]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).asked.set()
        await type(self).go.wait()
        return Verdict(hit="bad" in request.text)


@pytest.fixture(autouse=True)
def trial_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    base.all_kinds()
    monkeypatch.setattr(Waits, "name", "trial_waits", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_waits", Waits)  # type: ignore[arg-type]
    Waits.asked, Waits.go = asyncio.Event(), asyncio.Event()


def policy(applies_to: str = "tool_result", mode: str = "BLOCK") -> Policy:
    entry = {"name": "g", "kind": "trial_waits", "mode": mode, "action": "block", "applies_to": [applies_to],
             "time_limit_s": 30}  # fmt: skip
    return compile_policy({"policy": "t", "guardrails": [entry]}, version=1, digest="sha256:t")


async def ours(tools: Tools, applies_to: str = "tool_result", result: str = RESULT) -> Trial:
    """A tool of ours returns the text."""

    async def find(text: str, context: Context) -> object:
        return result

    tools.add("find", find)
    return await answer([["Let me see. ", *asks(("find", {}))], ["It says so."]], tools, policy=policy(applies_to))


async def theirs(result: str = RESULT) -> Trial:
    """A tool that the provider runs returns it."""
    call = ToolCallDelta(0, "id0", "find", "{}", ran_by_provider=True)
    return await trial(["Let me see. ", call, ProviderToolResult("id0", result, "")], policy=policy())


async def case_of(whose: str, tools: Tools, result: str = RESULT) -> Trial:
    return await ours(tools, result=result) if whose == "ours" else await theirs(result)


async def holds(case: Trial, channel: str = "tool_result") -> list[tuple[object, object, object]]:
    return [(e["chars"], e["guardrail"], e["rule"]) for e in await case.of("hold") if e["channel"] == channel]


async def on_record(case: Trial) -> list[dict[str, object]]:
    found: list[dict[str, object]] = (await Message.objects.aget(pk=case.answer_id)).metadata.get("tools", [])
    return found


async def running(case: Trial, until: str = "hold") -> asyncio.Task[None]:
    task = asyncio.create_task(case.pump.run())
    await case.until(until)
    return task


@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_it_works(whose: str, tools: Tools) -> None:
    case = await case_of(whose, tools)
    task = await running(case)
    assert await holds(case) == [(len(RESULT), "g", "sentence")]
    assert await case.of("tool_result") == []
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert [e["result"] for e in await case.of("tool_result")] == [RESULT]
    assert (await holds(case))[-1] == (0, "", "")
    ((call,),) = (await on_record(case),)
    assert (call["result"], "error" in call) == (RESULT, False)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_a_result_that_is_held_when_the_answer_is_interrupted_is_withheld_and_said_to_be(
    whose: str, tools: Tools
) -> None:
    case = await case_of(whose, tools)
    task = await running(case)
    await Waits.asked.wait()
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(task, 30)
    assert (await case.of("done"))[-1]["outcome"] == "interrupted"
    ((told,),) = (await case.of("tool_result"),)
    assert (told["id"], told["error"]) == ("call_1", WITHHELD)
    assert (await holds(case))[-1] == (0, "", "")
    assert "half" not in str(await case.events())
    ((call,),) = (await on_record(case),)
    assert (call["id"], call["name"], call["error"]) == ("call_1", "find", WITHHELD)
    types = [e["type"] for e in await case.events()]
    assert types.index("tool_result") < types.index("done")


async def test_a_tool_that_still_runs_when_the_answer_is_interrupted_has_an_end(tools: Tools) -> None:
    async def hangs(text: str, context: Context) -> object:
        await asyncio.Event().wait()
        return ""

    tools.add("hangs", hangs)
    case = await answer([asks(("hangs", {}))], tools, policy=policy())
    task = await running(case, "tool_call")
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(task, 30)
    assert [(e["id"], e["error"]) for e in await case.of("tool_result")] == [("call_1", NOT_OVER)]
    assert [call["error"] for call in await on_record(case)] == [NOT_OVER]


async def test_arguments_are_held_too_and_a_call_that_was_not_made_is_no_event(tools: Tools) -> None:
    case = await ours(tools, "tool_arguments")
    task = await running(case)
    assert await holds(case, "tool_arguments") == [(2, "g", "sentence")]
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(task, 30)
    assert (await case.of("tool_call"), await case.of("tool_result"), tools.saw) == ([], [], [])
    ((call,),) = (await on_record(case),)
    assert (call["arguments"], call["error"]) == ("", NOT_RUN)


async def test_arguments_that_pass_are_held_no_longer(tools: Tools) -> None:
    case = await ours(tools, "tool_arguments")
    task = await running(case)
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert (await holds(case, "tool_arguments"))[-1] == (0, "", "")
    assert [e["result"] for e in await case.of("tool_result")] == [RESULT]


@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_a_result_that_is_a_hit_stays_unseen_and_is_on_record_without_its_text(whose: str, tools: Tools) -> None:
    case = await case_of(whose, tools, "A bad half. The other half.")
    task = await running(case)
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert (await case.of("done"))[-1]["outcome"] == "blocked"
    assert "half" not in str(await case.events())
    assert "half" not in str(await on_record(case))
    assert (await holds(case))[-1] == (0, "", "")


async def test_two_results_that_are_held_are_one_hold(tools: Tools) -> None:
    async def find(text: str, context: Context) -> object:
        return text

    tools.add("find", find)
    case = await answer([asks(("find", {"text": "four"}), ("find", {"text": "sixsix"}))], tools, policy=policy())
    task = asyncio.create_task(case.pump.run())

    async def held() -> bool:
        return (10, "g", "sentence") in await holds(case)

    await grown(case.log, case.session_id, held, 30)
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert [e["result"] for e in await case.of("tool_result")] == ["four", "sixsix"]
    assert (await holds(case))[-1] == (0, "", "")


async def test_in_monitor_nothing_is_said_to_be_held(tools: Tools) -> None:
    Waits.go.set()
    case = await answer([asks(("echo", {"text": "bad"}))], tools, policy=policy(mode="MONITOR"))
    await case.pump.run()
    assert await case.of("hold") == []
    assert [e["result"] for e in await case.of("tool_result")] == ["echo of bad"]
    assert [e["would_have"] for e in await case.of("finding")] == ["blocked"]


# -- progress -------------------------------------------------------------------------------------------------------


async def reports(tools: Tools, of: Policy, *messages: str, until: asyncio.Event | None = None) -> Trial:
    """A tool that says these words on its way, each half a step further."""

    async def count(text: str, context: Context) -> object:
        for number, message in enumerate(messages, 1):
            await context.progress(number / len(messages), message)
            await asyncio.sleep(PROGRESS_EVERY_S * 1.5)
        if until is not None:
            until.set()
        return "counted"

    tools.add("count", count)
    return await answer([["Let me see. ", *asks(("count", {}))], ["Done."]], tools, policy=of)


def by_rule(action: str) -> Policy:
    entry = {"name": "h", "kind": "regex", "action": action, "applies_to": ["tool_result"],
             "config": {"rules": [{"id": "h", "pattern": "blue heron", "placeholder": "[BIRD]"}]}}  # fmt: skip
    return compile_policy({"policy": "t", "guardrails": [entry]}, version=1, digest="sha256:t")


async def test_a_rule_that_blocks_words_of_progress_stops_the_answer(tools: Tools) -> None:
    case = await reports(tools, by_rule("block"), "first", "a blue heron", "last")
    await asyncio.wait_for(case.pump.run(), 30)
    assert [e["message"] for e in await case.of("tool_progress")] == ["first"]
    ((found,),) = (await case.of("finding"),)
    assert (found["guardrail"], found["channel"], found["action"]) == ("h", "tool_result", "block")
    (done,) = await case.of("done")
    assert (done["outcome"], len(case.provider.asked)) == ("blocked", 1)
    assert "blue heron" not in str([e for e in await case.events() if e["type"] != "finding"])
    assert await case.of("tool_result") == []


async def test_what_is_redacted_in_words_of_progress_is_on_record(tools: Tools) -> None:
    case = await reports(tools, by_rule("redact"), "a blue heron flew")
    await asyncio.wait_for(case.pump.run(), 30)
    assert [e["message"] for e in await case.of("tool_progress")] == ["a [BIRD] flew"]
    assert [e["guardrail"] for e in await case.of("finding")] == ["h"]
    assert (await case.of("done"))[-1]["outcome"] == "redacted"
    assert [e["result"] for e in await case.of("tool_result")] == ["counted"]


async def test_a_verdict_about_words_of_progress_stops_the_answer(tools: Tools) -> None:
    case = await reports(tools, policy(), "something bad")
    task = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(Waits.asked.wait(), 30)
    assert await case.of("tool_progress") == []
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert (await case.of("done"))[-1]["outcome"] == "blocked"
    assert [e["guardrail"] for e in await case.of("finding")] == ["g"]
    assert (await case.of("tool_progress"), await case.of("tool_result")) == ([], [])
    assert "something" not in str([e for e in await case.events() if e["type"] != "finding"])


async def test_a_tool_waits_for_no_verdict_about_its_progress_and_the_newest_words_are_told(tools: Tools) -> None:
    over = asyncio.Event()
    case = await reports(tools, policy(), "one", "two", "three", until=over)
    task = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(over.wait(), 30)  # nobody has answered yet
    assert await case.of("tool_progress") == []
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert [(e["message"], e["progress"]) for e in await case.of("tool_progress")] == [("one", 1 / 3), ("three", 1.0)]
    types = [e["type"] for e in await case.events() if str(e["type"]).startswith("tool_")]
    assert types == ["tool_call", "tool_progress", "tool_progress", "tool_result"]


async def test_a_guardrail_that_does_not_decide_holds_no_words_of_progress_and_is_asked(tools: Tools) -> None:
    case = await reports(tools, policy(mode="MONITOR"), "something bad")
    task = await running(case, until="tool_result")
    assert [e["message"] for e in await case.of("tool_progress")] == ["something bad"]
    Waits.go.set()
    await asyncio.wait_for(task, 30)
    assert [(e["guardrail"], e["would_have"]) for e in await case.of("finding")] == [("g", "blocked")]


async def test_an_interrupt_while_words_of_progress_are_held_shows_none_of_them(tools: Tools) -> None:
    case = await reports(tools, policy(), "something else")
    task = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(Waits.asked.wait(), 30)
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(task, 30)
    assert (await case.of("done"))[-1]["outcome"] == "interrupted"
    assert "something" not in str(await case.events())
    assert [e["error"] for e in await case.of("tool_result")] == [NOT_OVER]
