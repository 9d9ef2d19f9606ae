"""What a tool that the provider ran returned: after its call, and not before guardrails have decided about both."""

from __future__ import annotations

import json
import re

import pytest

from guardrails.findings import Verdict
from guardrails.policy import Policy, compile_policy
from streaming.agent import NOT_OVER, WITHHELD
from streaming.answer import Answer
from streaming.callbacks import Input, StreamCallbacks, _read
from streaming.calls import MAX_CALLS
from streaming.core.events import ProviderToolResult, ServerEvent, Stopped, TextDelta, ToolCallDelta
from streaming.fragments import FragmentContext, render
from streaming.models import Message
from streaming.terminal.telling import Telling
from tests.streaming.pumping import QUICK, Trial, policy_of, trial


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
    assert kinds(held.take(ProviderToolResult("c1", "First. Second."))) == ["tool_call"]
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
    assert kinds(shown.take(ProviderToolResult("c1", error="It failed."))) == ["tool_call", "tool_result"]
    assert kinds(shown.verdict(shown.questions[0], "g", Verdict(hit=True))) == ["finding"]
    assert (shown.tools_failed, shown.blocked) == (1, None)


# -- the call before its result --------------------------------------------------------------------------------------

SEARCH = [
    ToolCallDelta(0, "c1", "web_search", ran_by_provider=True),
    ToolCallDelta(0, arguments='{"query": "'),
    ToolCallDelta(0, arguments='536-22-8145"}'),
]
FOUND = ProviderToolResult("c1", "A page about 536-22-8145.")
GATED = policy_of(
    {"name": "in", "kind": "pii", "action": "redact", "applies_to": ["tool_arguments", "tool_result"],
     "config": {"entities": {"ssn": True}}},
    {"name": "no", "kind": "regex", "action": "block", "applies_to": ["tool_arguments", "tool_result"],
     "config": {"rules": [{"id": "n", "pattern": "green heron"}]}},
    without="harm",
)  # fmt: skip
CALL = {"id": "call_1", "name": "web_search", "arguments": '{"query": "[SSN]"}'}


async def tools_of(case: Trial) -> list[dict[str, object]]:
    """The events of tools in their order, without the envelope."""
    kept = ("type", "id", "name", "arguments", "result", "error")
    told = [event for event in await case.events() if str(event["type"]).startswith("tool_")]
    return [{key: event[key] for key in kept if key in event} for event in told]


async def kept_of(case: Trial) -> list[dict[str, object]]:
    message = await Message.objects.aget(pk=case.answer_id)
    return list(message.metadata["tools"])


@pytest.mark.django_db(transaction=True)
async def test_the_call_is_told_before_its_result_and_both_pass_the_guardrails() -> None:
    case = await trial([*SEARCH, FOUND, "That is all."], policy=GATED)
    await case.pump.run()
    result = "A page about [SSN]."
    assert await tools_of(case) == [
        {"type": "tool_call", **CALL},
        {"type": "tool_result", "id": "call_1", "result": result},
    ]
    assert await kept_of(case) == [{**CALL, "result": result}]
    assert [event["channel"] for event in await case.of("finding")] == ["tool_arguments", "tool_result"]
    assert "536-22-8145" not in str(await case.events())
    assert (await case.of("done"))[0]["outcome"] == "redacted"
    kinds_ = [event["type"] for event in await case.events()]
    first = next(n for n, e in enumerate(await case.events()) if e["type"] == "message_stream")
    assert kinds_.index("tool_result") < first, "it is told when it came, and not at the end of the round"


@pytest.mark.django_db(transaction=True)
async def test_callbacks_page_and_terminal_know_what_the_result_is_of() -> None:
    case = await trial([*SEARCH, FOUND, "That is all."], policy=GATED)
    await case.pump.run()
    heard: list[tuple[object, ...]] = []

    class Heard(StreamCallbacks):
        def on_tool_use(self, name: str, input: Input) -> None:
            heard.append(("use", name, input))

        def on_tool_result(self, name: str, input: Input, result: str) -> None:
            heard.append(("result", name, input, result))

    await _read(case.session_id, "", Heard(), case.log, QUICK)
    given = {"query": "[SSN]"}
    assert heard == [("use", "web_search", given), ("result", "web_search", given, "A page about [SSN].")]

    telling, lines, cards = Telling(), list[str](), set[str]()
    for event in await case.events():
        telling.take(event)
        if event["type"] == "tool_result":
            lines.append(telling.tool_result(event))
        html = render(event, context=FragmentContext())
        target = re.search(r'id="cursor"[^>]*data-target="([^"]*)"', html)
        assert target is not None
        if event["type"] == "tool_result":  # the page drops what has no card to go to
            assert target[1] in cards
        cards.update(re.findall(r'<section class="tool" id="([^"]+)"', html))
    assert (lines, telling.tools) == (["web_search: A page about [SSN]."], {})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("where", ["name", "arguments", "result"])
async def test_a_block_stops_the_answer_and_shows_nothing_of_what_comes_after_it(where: str) -> None:
    name, given, said = ("green heron" if where == place else "fine" for place in ("name", "arguments", "result"))
    script = [
        ToolCallDelta(0, "c1", name, json.dumps({"q": given}), ran_by_provider=True),
        ProviderToolResult("c1", f"It said {said} then."),
        "more",
    ]
    case = await trial(script, policy=GATED)
    await case.pump.run()
    assert (await case.of("done"))[0]["outcome"] == "blocked"
    assert [event["type"] for event in await tools_of(case)][:1] == (["tool_call"] if where == "result" else [])
    assert "heron" not in str(await tools_of(case))
    assert "heron" not in str(await kept_of(case))
    assert await case.shown() == ""


@pytest.mark.django_db(transaction=True)
async def test_a_call_whose_result_never_comes_has_an_end() -> None:
    case = await trial([*SEARCH, "That is all.", Stopped("pause_turn")], policy=GATED)
    await case.pump.run()
    assert await tools_of(case) == [
        {"type": "tool_call", **CALL},
        {"type": "tool_result", "id": "call_1", "error": NOT_OVER},
    ]
    assert await kept_of(case) == [{**CALL, "error": NOT_OVER}]


def judged(where: str) -> Answer:
    """An answer whose tools' arguments, or results, are judged."""
    entry = {"name": "g", "kind": "prompt_injection", "mode": "BLOCK", "action": "block", "applies_to": [where]}
    made = Answer(compile_policy({"policy": "t", "guardrails": [entry]}), "m1", monitor=False, now_ms=lambda: 0)
    for piece in SEARCH:
        assert made.take(piece) == []
    return made


def test_a_result_waits_for_the_arguments_of_its_call() -> None:
    held = judged("tool_arguments")
    assert kinds(held.take(FOUND)) == []
    assert [event.payload()["channel"] for event in held.holds()[0]] == ["tool_arguments"]
    (question,) = held.questions
    assert kinds(held.verdict(question, "g", Verdict(hit=False))) == ["tool_call", "tool_result"]
    assert (held.unanswered, held.tools_ok) == (0, 1)


def test_arguments_do_not_wait_for_the_result() -> None:
    held = judged("tool_result")
    assert kinds(held.take(FOUND)) == ["tool_call"]
    (question,) = held.questions
    assert kinds(held.verdict(question, "g", Verdict(hit=False))) == ["tool_result"]


@pytest.mark.parametrize(("where", "told"), [("tool_arguments", []), ("tool_result", ["tool_result"])])
def test_an_answer_that_ends_while_guardrails_are_asked_withholds_what_they_are_asked_about(
    where: str, told: list[str]
) -> None:
    held = judged(where)
    held.take(FOUND)
    held.let_go()
    ends = [event for event in held.closings() if event.type == "tool_result"]
    assert kinds(ends) == told
    assert all(event.payload()["error"] == WITHHELD for event in ends)
    (call,) = held.tools.made
    assert call.record()["error"] == WITHHELD
    assert "536-22-8145" not in call.record()["arguments"] if where == "tool_arguments" else True


def test_every_result_has_a_call_of_its_own() -> None:
    """Two results for one call, and one for none: no reader gets a result without its call, or two for one."""
    made = answer("MONITOR")
    events = [event for piece in (*SEARCH, FOUND, FOUND, ProviderToolResult("", "x")) for event in made.take(piece)]
    told = [(event.type, event.payload()["id"]) for event in events]
    ids = [id_ for kind, id_ in told if kind == "tool_call"]
    assert len(set(ids)) == 3
    assert told == [(kind, id_) for id_ in ids for kind in ("tool_call", "tool_result")]


def test_calls_beyond_the_limit_have_no_results_either() -> None:
    made = answer("MONITOR")
    events = [event for n in range(MAX_CALLS + 5) for event in made.take(ProviderToolResult(f"c{n}", "x"))]
    assert kinds(events).count("tool_call") == kinds(events).count("tool_result") == MAX_CALLS
