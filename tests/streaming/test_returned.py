"""What a tool that the provider ran returned, while guardrails that answer later are asked about it."""

from __future__ import annotations

import pytest

from guardrails.findings import Verdict
from guardrails.policy import Policy, compile_policy
from streaming.answer import Answer
from streaming.core.events import ProviderToolResult, ServerEvent, TextDelta, ToolCallDelta
from tests.streaming.pumping import trial


def policy(mode: str, action: str = "block") -> Policy:
    entry = {"name": "g", "kind": "prompt_injection", "mode": mode, "action": action,
             "applies_to": ["response", "tool_result"]}  # fmt: skip
    return compile_policy({"policy": "t", "guardrails": [entry]})


def answer(mode: str = "BLOCK", action: str = "block") -> Answer:
    return Answer(policy(mode, action), "m1", monitor=False, now_ms=lambda: 0)


def kinds(events: list[ServerEvent]) -> list[str]:
    return [event.type for event in events]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("mode", ["MONITOR", "BLOCK"])
async def test_it_works(mode: str) -> None:
    script = [
        "hello. ",
        ToolCallDelta(0, "c1", "find", "{}", ran_by_provider=True),
        ProviderToolResult("c1", "It is sunny.", ""),
    ]
    case = await trial(script, policy=policy(mode))
    await case.pump.run()
    (done,) = await case.of("done")
    assert (done["outcome"], await case.of("error")) == ("allowed", [])
    assert [event["result"] for event in await case.of("tool_result")] == ["It is sunny."]


def test_a_result_is_told_once_and_only_when_every_deciding_verdict_is_there() -> None:
    held = answer()
    assert kinds(held.take(ProviderToolResult("c1", "First. Second."))) == []
    first, *others = held.questions
    assert others
    assert held.waiting
    assert kinds(held.verdict(first, "g", Verdict(hit=False))) == []
    told = [event for other in others for event in held.verdict(other, "g", Verdict(hit=False))]
    assert [event.payload()["result"] for event in told if event.type == "tool_result"] == ["First. Second."]
    assert (held.waiting, held.unanswered, held.tools_ok) == (False, 0, 1)
    assert held.verdict(first, "g", Verdict(hit=False)) == []


def test_a_hit_stops_the_answer_and_shows_nothing_of_the_result() -> None:
    held = answer()
    held.take(ProviderToolResult("c1", "Hidden words."))
    events = held.verdict(held.questions[0], "g", Verdict(hit=True))
    assert "blocked" in kinds(events)
    assert "Hidden" not in str([event.payload() for event in events])


def test_a_result_that_waits_when_another_channel_is_blocked_is_not_shown() -> None:
    held = answer()
    held.take(TextDelta("A sentence. More"))
    (said,) = held.questions
    held.take(ProviderToolResult("c1", "Hidden words."))
    returned = held.questions[1]
    held.verdict(said, "g", Verdict(hit=True))
    later = held.verdict(returned, "g", Verdict(hit=False)) + held.finish()
    assert "tool_result" not in kinds(later)
    assert held.unanswered == 0


def test_in_monitor_the_result_is_told_at_once_and_the_finding_follows() -> None:
    shown = answer("MONITOR")
    assert kinds(shown.take(ProviderToolResult("c1", error="It failed."))) == ["tool_result"]
    assert kinds(shown.verdict(shown.questions[0], "g", Verdict(hit=True))) == ["finding"]
    assert (shown.tools_failed, shown.blocked) == (1, None)
