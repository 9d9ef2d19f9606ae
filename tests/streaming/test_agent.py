"""Tools inside an answer: calls that run, that fail in every way, that are stopped, and what the guardrails see."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from datetime import date

import pytest
from pydantic import BaseModel, ConfigDict, Field

from guardrails.policy import Policy
from streaming import agent, calls, endless
from streaming.agent import MAX_RESULT_CHARS, MAX_ROUNDS, NOT_OVER, Said
from streaming.callbacks import StreamCallbacks, _read, start_stream
from streaming.calls import MAX_ARGUMENT_CHARS, MAX_CALLS, MAX_NAME_CHARS, NAME_WITHHELD, Call, ToolCalls
from streaming.core.events import (
    ProviderEvent,
    ProviderNotice,
    ProviderToolResult,
    Stopped,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
)
from streaming.log import MemoryLog, SessionLog
from streaming.log_redis import RedisLog, close_shared_log, shared_log
from streaming.models import Message
from streaming.providers.base import ChatMessage, StreamCutOff
from streaming.sessions import Visitor
from streaming.tools import base
from streaming.tools.base import Context, Tool, ToolError
from tests.streaming.pumping import QUICK, SSN, Controlled, Trial, policy_of, trial

pytestmark = pytest.mark.django_db(transaction=True)
Step = str | ProviderEvent | Exception | asyncio.Event
PLAIN = policy_of(without="harm")
GATED = policy_of(
    {"name": "in", "kind": "pii", "action": "redact", "applies_to": ["tool_arguments", "tool_result"],
     "config": {"entities": {"ssn": True}}},
    {"name": "no", "kind": "regex", "action": "block", "applies_to": ["tool_arguments", "tool_result"],
     "config": {"rules": [{"id": "n", "pattern": "blue heron"}]}},
    without="harm",
)  # fmt: skip


class Any(BaseModel):
    text: str = Field(default="", max_length=50)


class Amount(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = 0
    price: float = 0.0
    day: date | None = None


class Tools:
    """Tools of a test's own, offered to its session."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.saw: list[str] = []
        self.made: dict[str, Tool] = {}
        monkeypatch.setattr("streaming.pump.all_tools", lambda: self.made)

    def add(self, name: str, run: Callable[[str, Context], Awaitable[object]], time_limit_s: float = 5.0) -> None:
        async def running(given: BaseModel, context: Context) -> object:
            assert isinstance(given, Any)
            self.saw.append(given.text)
            return await run(given.text, context)

        self.made[name] = Tool(name, "For a test.", Any, time_limit_s, running)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(monkeypatch)

    async def echo(text: str, context: Context) -> object:
        return f"echo of {text}"

    made.add("echo", echo)
    return made


def asks(*calls: tuple[str, object]) -> list[Step]:
    """A round that asks for tools, its arguments in pieces."""
    out: list[Step] = []
    for index, (name, given) in enumerate(calls):
        text = given if isinstance(given, str) else json.dumps(given)
        out.append(ToolCallDelta(index, f"id{index}", name))
        out += [ToolCallDelta(index, arguments=text[at : at + 7]) for at in range(0, len(text), 7)]
    return [*out, Stopped("tool_calls")]


async def answer(rounds: list[list[Step]], tools: Tools, policy: Policy = PLAIN, log: MemoryLog | None = None) -> Trial:
    """A session whose provider says one round after the other."""
    case = await trial([], policy=policy, log=log)
    left = list(rounds)
    plain = type(case.provider).stream

    async def stream(request: object) -> AsyncIterator[ProviderEvent]:
        case.provider.script = left.pop(0) if left else ["(the model goes on)"]
        async for event in plain(case.provider, request):  # type: ignore[arg-type]
            yield event

    case.provider.stream = stream  # type: ignore[method-assign, assignment]
    specs = tuple(made.spec for made in tools.made.values())
    run = replace(case.pump._run, request=replace(case.pump._run.request, tools=specs))
    case.pump._run, case.pump._request = run, run.request
    return case


async def test_it_works(tools: Tools) -> None:
    case = await answer([["Let me see. ", *asks(("echo", {"text": "one"}))], ["It says so."]], tools)
    await case.pump.run()
    assert await case.shown() == "Let me see. It says so."
    assert [(e["id"], e["name"], e["arguments"]) for e in await case.of("tool_call")] == [
        ("call_1", "echo", '{"text": "one"}')
    ]
    assert [e["result"] for e in await case.of("tool_result")] == ["echo of one"]
    first, second = case.provider.asked
    assert second.messages[len(first.messages) :] == (
        ChatMessage("assistant", "Let me see. ", second.messages[-2].tool_calls),
        ChatMessage("tool", "echo of one", tool_call_id="id0"),
    )
    assert [(c.id, c.name, c.arguments) for c in second.messages[-2].tool_calls] == [("id0", "echo", '{"text": "one"}')]
    stored = await Message.objects.aget(pk=case.answer_id)
    assert stored.content == "Let me see. It says so."
    assert stored.metadata["tools"] == [
        {"id": "call_1", "name": "echo", "arguments": '{"text": "one"}', "result": "echo of one"}
    ]


async def test_text_streams_on_while_arguments_collect_and_calls_run_beside_each_other(tools: Tools) -> None:
    both = asyncio.Barrier(2)

    async def meet(text: str, context: Context) -> object:
        async with asyncio.timeout(5):
            await both.wait()
        return text

    tools.add("meet", meet)
    first, second = asks(("meet", {"text": "a"}))[:-1], asks(("meet", {"text": "x"}), ("meet", {"text": "b"}))[3:]
    case = await answer([[first[0], "text ", *first[1:], "goes on", *second], ["done"]], tools)
    await case.pump.run()
    assert [e["result"] for e in sorted(await case.of("tool_result"), key=lambda e: str(e["id"]))] == ["a", "b"]
    types = [e["type"] for e in await case.events()]
    assert types.index("message_stream") < types.index("tool_call")
    assert await case.shown() == "text goes ondone"


async def test_text_is_visible_while_the_arguments_of_a_call_are_incomplete(tools: Tools) -> None:
    more = asyncio.Event()
    begun = [ToolCallDelta(0, "id0", "echo"), ToolCallDelta(0, arguments='{"text": ')]
    rest = [ToolCallDelta(0, arguments='"one"}'), Stopped("tool_calls")]
    case = await answer([["Let me see. ", *begun, "Meanwhile. ", more, *rest], ["It says so."]], tools)
    run = asyncio.create_task(case.pump.run())
    await case.until_shown("Let me see. Meanwhile. ")
    assert not more.is_set()
    assert (await case.of("tool_call"), tools.saw) == ([], [])
    more.set()
    await asyncio.wait_for(run, 30)
    assert [e["arguments"] for e in await case.of("tool_call")] == ['{"text": "one"}']
    assert tools.saw == ["one"]


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("nobody", {}, "no tool named “nobody”"),
        ("echo", "{not json", "not JSON"),
        ("echo", "[1]", "not a JSON object"),
        ("echo", {"text": 7}, "text: Input should be a valid string"),
        ("echo", {"text": "x" * 51}, "text: String should have at most 50"),
        ("echo", '{"a":' * 40 + "1" + "}" * 40, "deeper than 32"),
        ("echo", '{"a":' * 5_000 + "1" + "}" * 5_000, "deeper than 32"),
        ("echo", json.dumps({"text": "y" * 300_000}), "at most 256,000"),
    ],
    ids=["unknown", "no json", "no object", "wrong type", "too long", "deep", "abyss", "large"],
)
async def test_a_call_that_can_not_run_is_a_result_and_the_answer_goes_on(
    tools: Tools, name: str, given: object, error: str
) -> None:
    case = await answer([asks((name, given)), ["I see."]], tools)
    await case.pump.run()
    (result,) = await case.of("tool_result")
    assert error in str(result["error"])
    assert tools.saw == []
    assert await case.shown() == "I see."
    told = case.provider.asked[1].messages[-1]
    assert (told.failed, told.text) == (True, result["error"])
    assert json.loads(case.provider.asked[1].messages[-2].tool_calls[0].arguments) is not None


def buys(tools: Tools) -> list[BaseModel]:
    """Offers a tool that takes numbers; what it was given."""
    given: list[BaseModel] = []

    async def buy(amount: BaseModel, context: Context) -> object:
        given.append(amount)
        return "bought"

    tools.made["buy"] = Tool("buy", "For a test.", Amount, 5.0, buy)
    return given


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ('{"count": "7"}', "count: Input should be a valid integer"),
        ('{"count": 7.5}', "count: Input should be a valid integer"),
        ('{"count": true}', "count: Input should be a valid integer"),
        ('{"price": "2.5"}', "price: Input should be a valid number"),
        ('{"price": NaN}', "the arguments are not JSON"),
        ('{"day": 20000}', "day: Input should be a valid date"),
        ('{"number": 7}', "number: Extra inputs are not permitted"),
    ],
    ids=["text for integer", "half", "truth", "text for number", "no number", "number for date", "unknown field"],
)
async def test_arguments_are_not_bent_into_what_the_schema_asks_for(tools: Tools, written: str, error: str) -> None:
    given = buys(tools)
    case = await answer([asks(("buy", written)), ["I see."]], tools)
    await case.pump.run()
    (result,) = await case.of("tool_result")
    assert error in str(result["error"])
    assert given == []


async def test_what_json_has_no_other_form_for_is_taken(tools: Tools) -> None:
    given = buys(tools)
    case = await answer([asks(("buy", {"count": 7, "price": 2, "day": "2026-02-03"})), ["I see."]], tools)
    await case.pump.run()
    assert [e["result"] for e in await case.of("tool_result")] == ["bought"]
    assert given == [Amount(count=7, price=2.0, day=date(2026, 2, 3))]


async def test_the_tools_that_come_with_it_take_what_models_write(tools: Tools) -> None:
    tools.made |= base.all_tools()
    calls: list[tuple[str, object]] = [
        ("calculator", {"expression": "1 + 1"}),
        ("current_time", {"time_zone": "Europe/Berlin"}),
        ("search_docs", {"query": "hash chain", "results": 2}),
        ("slow_count", {"steps": 1, "seconds": 0}),
    ]
    assert [name for name, _ in calls] == list(base.all_tools())
    case = await answer([asks(*calls), ["done"]], tools)
    await case.pump.run()
    assert [e.get("error") for e in await case.of("tool_result")] == [None] * 4


@pytest.mark.parametrize("said", [3, 9, 13, 14], ids=["begun", "half", "but its last piece", "whole"])
async def test_a_call_whose_arguments_were_cut_off_never_runs(tools: Tools, said: int) -> None:
    """Also where what has come would be JSON: only the end of the round says that it is complete."""
    pieces = [ToolCallDelta(0, "id0", "echo"), *(ToolCallDelta(0, arguments=char) for char in '{"text": "x"}')]
    case = await answer([["Wait. ", *pieces[:said], StreamCutOff("cut")], ["never"]], tools)
    await case.pump.run()
    assert tools.saw == []
    assert await case.of("tool_call") == []
    assert len(case.provider.asked) == 1
    (done,) = await case.of("done")
    assert (done["outcome"], done["final"]) == ("error", "Wait. ")


@pytest.mark.parametrize("parsed", [True, False], ids=["told_apart", "written_as_text"])
async def test_what_a_call_is_written_in_is_never_text(
    parsed: bool, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on its way to the page nor in what is stored of the answer; nor where the server has no parser."""
    given = json.dumps({"text": "zebra"})
    written = [*'<tool_call>{"name": "echo", "arguments": ', *given, "}</tool_", "call>", Stopped("stop")]
    monkeypatch.setattr(Controlled, "calls_in_text", not parsed)
    case = await answer([["Let me see. ", *(asks(("echo", given)) if parsed else written)], ["It says so."]], tools)
    await case.pump.run()
    texts = [event for event in await case.events() if event["type"] in ("message_stream", "message_update", "done")]
    stored = await Message.objects.aget(pk=case.answer_id)
    assert stored.content == "Let me see. It says so."
    for markup in ("zebra", "id0", "echo", "tool", "{"):
        assert not any(markup in str(event.get(name, "")) for event in texts for name in ("chunk", "content", "final"))
    assert [e["result"] for e in await case.of("tool_result")] == ["echo of zebra"]


async def test_arguments_without_end_are_not_collected() -> None:
    """As many as tell that they are too many, whatever sizes they come in."""
    collected = ToolCalls()
    for piece in ("", "{", "x" * (MAX_ARGUMENT_CHARS - 2), "", "y" * 9_000_000, *["z"] * 1_000):
        collected.take(ToolCallDelta(0, "id0", "echo", piece))
    (call,) = collected.round()
    assert call.arguments == "{" + "x" * (MAX_ARGUMENT_CHARS - 2) + "yy"
    assert len(call.pieces) == 3
    assert calls.too_long(call.arguments)
    for _ in range(2):
        collected.take(ToolCallDelta(0, "id1", "echo", '{"text": "short"}'))
    assert not calls.too_long(collected.round()[0].arguments), "a call that is long enough says nothing of the next one"


async def raises(text: str, context: Context) -> object:
    raise RuntimeError("with a secret in it")


async def says_no(text: str, context: Context) -> object:
    raise ToolError("the shop is closed")


async def hangs(text: str, context: Context) -> object:
    await asyncio.Event().wait()
    return None


async def floods(text: str, context: Context) -> object:
    return "x" * 10_000_000


async def complains_at_length(text: str, context: Context) -> object:
    raise ToolError("x" * 10_000_000)


async def complains_in_halves(text: str, context: Context) -> object:
    raise ToolError("no: \ud800.")


async def complains_with_nul(text: str, context: Context) -> object:
    raise ToolError("no: \0.")


class Unreadable(ToolError):
    def __str__(self) -> str:
        raise RuntimeError("with a secret in it")


async def complains_of_nothing_readable(text: str, context: Context) -> object:
    raise Unreadable


async def leaves(text: str, context: Context) -> object:
    sys.exit("with a secret in it")


async def leaves_in_a_thread(text: str, context: Context) -> object:
    return await asyncio.to_thread(sys.exit, 2)


async def reads_a_command_line(text: str, context: Context) -> object:
    with redirect_stderr(io.StringIO()):
        return argparse.ArgumentParser().parse_args(["--no-such-option"])


async def odd(text: str, context: Context) -> object:
    return object()


async def cancels(text: str, context: Context) -> object:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (raises, "the tool failed (RuntimeError)"),
        (says_no, "the shop is closed"),
        (hangs, "no result within 0.05 s"),
        (floods, f"10,000,000 characters; at most {MAX_RESULT_CHARS:,}"),
        (complains_at_length, f"the error has 10,000,000 characters; at most {MAX_RESULT_CHARS:,}"),
        (complains_in_halves, "no: \ufffd."),
        (complains_with_nul, "no: \ufffd."),
        (complains_of_nothing_readable, "the tool failed"),
        (leaves, "the tool failed (SystemExit)"),
        (leaves_in_a_thread, "the tool failed (SystemExit)"),
        (reads_a_command_line, "the tool failed (SystemExit)"),
        (odd, "the tool failed (TypeError)"),
        (cancels, "the tool stopped itself"),
    ],
)
async def test_whatever_a_tool_does_becomes_its_result(
    tools: Tools, run: Callable[[str, Context], Awaitable[object]], error: str
) -> None:
    tools.add("bad", run, time_limit_s=0.05)
    case = await answer([asks(("bad", {}), ("echo", {"text": "fine"})), ["on"]], tools)
    await case.pump.run()
    results = {str(e["id"]): e for e in await case.of("tool_result")}
    assert error in str(results["call_1"]["error"])
    assert "secret" not in json.dumps(await case.events())
    assert results["call_2"]["result"] == "echo of fine"
    assert await case.shown() == "on"
    stored = await Message.objects.aget(pk=case.answer_id)
    assert error in stored.metadata["tools"][0]["error"]


async def test_anything_that_json_can_carry_is_a_result(tools: Tools) -> None:
    async def table(text: str, context: Context) -> object:
        return {"rows": [1, 2], "name": "Köln"}

    tools.add("table", table)
    case = await answer([asks(("table", {}))], tools)
    await case.pump.run()
    assert [e["result"] for e in await case.of("tool_result")] == ['{"rows": [1, 2], "name": "Köln"}']


@pytest.mark.parametrize("plain", ["raises", "returns"])
async def test_a_tool_that_is_no_coroutine_is_a_result_and_the_answer_goes_on(tools: Tools, plain: str) -> None:
    def run(given: BaseModel, context: Context) -> object:
        if plain == "raises":
            raise RuntimeError("secret reason")
        return "no awaitable"

    tools.made["plain"] = Tool("plain", "For a test.", Any, 5.0, run)  # type: ignore[arg-type]
    case = await answer([asks(("plain", {}))], tools)
    await case.pump.run()
    (result,) = await case.of("tool_result")
    assert result["error"] == f"the tool failed ({'RuntimeError' if plain == 'raises' else 'TypeError'})"
    assert await case.shown() == "(the model goes on)"


async def test_texts_inside_a_result_are_looked_at_as_they_are_and_it_stays_json(tools: Tools) -> None:
    policy = policy_of(
        {"name": "two", "kind": "regex", "action": "redact", "applies_to": ["tool_result"],
         "config": {"rules": [{"id": "l", "pattern": "line\\nbreak"}, {"id": "q", "pattern": 'say "no"'}]}},
        without="harm",
    )  # fmt: skip

    async def table(text: str, context: Context) -> object:
        return {"a": "one line\nbreak here", "b": ['they say "no" to it'], "c": 3}

    tools.add("table", table)
    case = await answer([asks(("table", {}))], tools, policy)
    await case.pump.run()
    (result,) = await case.of("tool_result")
    found = json.loads(str(result["result"]))
    assert found["c"] == 3
    assert found["a"].startswith("one ")
    assert "break" not in found["a"]
    assert "no" not in found["b"][0].replace("to it", "")
    assert len(await case.of("finding")) == 2


async def test_progress_is_told_and_not_too_often(tools: Tools) -> None:
    async def far(text: str, context: Context) -> object:
        for step in range(100):
            await context.progress(step / 100, f"step {step}")
        await context.progress(7, "over")
        return "ok"

    tools.add("far", far)
    case = await answer([asks(("far", {}))], tools)
    await case.pump.run()
    told = await case.of("tool_progress")
    assert 2 <= len(told) < 20
    assert (told[0]["progress"], told[-1]["progress"], told[-1]["message"]) == (0.0, 1.0, "over")


async def test_a_tool_that_is_at_its_end_again_and_again_says_so_once_in_a_while(tools: Tools) -> None:
    async def over(text: str, context: Context) -> object:
        for step in range(10_000):
            await context.progress(1, f"step {step}")
        return "ok"

    tools.add("over", over)
    case = await answer([asks(("over", {}))], tools)
    await case.pump.run()
    told = await case.of("tool_progress")
    assert told[0]["message"] == "step 0"
    assert len(told) < 1_000


async def test_ten_rounds_are_enough(tools: Tools) -> None:
    """The results of each go back; what the model asks for after them is not run, because nobody would hear of it."""
    case = await answer([asks(("echo", {"text": f"{n}"})) for n in range(50)], tools)
    await case.pump.run()
    assert tools.saw == [f"{n}" for n in range(MAX_ROUNDS)]
    assert len(await case.of("tool_call")) == len(await case.of("tool_result")) == MAX_ROUNDS
    sent_back = [m.text for m in case.provider.asked[-1].messages if m.role == "tool"]
    assert sent_back == [f"echo of {n}" for n in range(MAX_ROUNDS)]
    assert len(case.provider.asked) == MAX_ROUNDS + 1
    assert [(e["code"], e["recoverable"]) for e in await case.of("error")] == [("too_many_rounds", True)]
    assert (await case.of("done"))[0]["outcome"] == "allowed"
    stored = (await Message.objects.aget(pk=case.answer_id)).metadata["tools"]
    assert [call.get("error") for call in stored] == [*[None] * MAX_ROUNDS, agent.TOO_LATE]


async def test_what_an_answer_may_say_is_counted_over_all_its_rounds(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endless, "MAX_ANSWER_CHARS", 200)
    signed = ThinkingDelta("", signature="s" * 30)
    round_: list[Step] = ["Let me see. ", ThinkingDelta("y" * 28), signed, *asks(("echo", {"text": "z" * 18}))]
    case = await answer([round_, round_, ["on", " and on"]], tools)
    await case.pump.run()
    assert len(tools.saw) == 2
    assert [(e["code"], e["recoverable"]) for e in await case.of("error")] == [("provider_garbage", False)]
    (done,) = await case.of("done")
    assert (done["outcome"], done["final"]) == ("error", "Let me see. Let me see. "), "100 each"


async def test_after_ten_rounds_the_model_may_say_what_it_has_found(tools: Tools) -> None:
    case = await answer([*(asks(("echo", {"text": f"{n}"})) for n in range(MAX_ROUNDS)), ["The end."]], tools)
    await case.pump.run()
    assert len(tools.saw) == MAX_ROUNDS
    assert (await case.shown(), await case.of("error")) == ("The end.", [])


async def test_what_the_provider_ran_after_ten_rounds_is_shown(tools: Tools) -> None:
    theirs = ToolCallDelta(7, "srv", "echo", '{"text": "x"}', ran_by_provider=True)
    rounds: list[list[Step]] = [asks(("echo", {"text": f"{n}"})) for n in range(MAX_ROUNDS)]
    case = await answer([*rounds, [theirs, *asks(("echo", {"text": "late"}))]], tools)
    await case.pump.run()
    assert len(tools.saw) == MAX_ROUNDS
    assert [e["id"] for e in await case.of("tool_call")][MAX_ROUNDS:] == [f"call_{MAX_ROUNDS + 1}"]
    assert [e["code"] for e in await case.of("error")] == ["too_many_rounds"]


@pytest.mark.parametrize("rounds", [1, 5], ids=["in_one_round", "in_five"])
async def test_calls_beyond_the_limit_are_not_made_and_the_reader_is_told_once(tools: Tools, rounds: int) -> None:
    """However many there are: those before them are made, and the answer goes on."""
    each = (MAX_CALLS + 11) // rounds
    said = [asks(*(("echo", {"text": f"{n} of {number}"}) for n in range(each))) for number in range(rounds)]
    case = await answer([*said, ["The end."]], tools)
    await case.pump.run()
    assert len(tools.saw) == len(await case.of("tool_call")) == len(await case.of("tool_result")) == MAX_CALLS
    assert [(e["code"], e["recoverable"]) for e in await case.of("error")] == [("too_many_tool_calls", True)]
    stored = await Message.objects.aget(pk=case.answer_id)
    assert len(stored.metadata["tools"]) == MAX_CALLS
    assert stored.metadata["notices"] == [["", "too_many_tool_calls", 1]]
    (done,) = await case.of("done")
    assert (done["final"], done["outcome"]) == ("The end.", "allowed")


async def test_as_many_calls_as_the_limit_are_no_error(tools: Tools) -> None:
    case = await answer([asks(*(("echo", {"text": f"{n}"}) for n in range(MAX_CALLS))), ["The end."]], tools)
    await case.pump.run()
    assert len(tools.saw) == MAX_CALLS
    assert await case.of("error") == []


async def test_every_call_has_an_id_of_its_own_although_the_model_repeats_them(tools: Tools) -> None:
    case = await answer([asks(("echo", {"text": "a"})), asks(("echo", {"text": "b"})), ["end"]], tools)
    await case.pump.run()
    ids = [e["id"] for e in await case.of("tool_call")]
    assert len(set(ids)) == 2
    assert [e["id"] for e in await case.of("tool_result")] == ids


def test_a_made_up_id_is_never_one_that_the_model_uses() -> None:
    calls = ToolCalls()
    for index, id_ in enumerate(("call_2", "", "call_2", "call_3")):
        calls.take(ToolCallDelta(index, id_, "echo"))
    made = calls.round()
    sent = [call.sent_id for call in made]
    assert sent[0] == "call_2"
    assert len(set(sent)) == 4
    assert [call.id for call in made] == ["call_1", "call_2", "call_3", "call_4"]


async def test_an_id_goes_back_to_the_model_alone(tools: Tools) -> None:
    """Whatever an endpoint puts there: no guardrail reads an id."""
    id_ = f"joe@example.com {SSN}"
    ours = [ToolCallDelta(0, id_, "echo", "{}"), ToolCallDelta(1, f"{id_}!", "nobody", "{}")]
    theirs = [
        ToolCallDelta(2, f"{id_}?", "find", "{}", ran_by_provider=True),
        ProviderToolResult(f"{id_}?", "found", ""),
        ProviderToolResult(f"{id_}#", "nobody asked", ""),
    ]
    case = await answer([[*ours, *theirs, Stopped("tool_calls")], ["end"]], tools)
    await case.pump.run()
    assert [call.id for call in case.provider.asked[1].messages[-3].tool_calls] == [id_, f"{id_}!"]
    assert [message.tool_call_id for message in case.provider.asked[1].messages[-2:]] == [id_, f"{id_}!"]
    called, returned = await case.of("tool_call"), await case.of("tool_result")
    assert sorted(str(e["id"]) for e in called) == ["call_1", "call_2", "call_3", "call_4"]
    assert {e["id"] for e in returned} == {e["id"] for e in called}
    stored = await Message.objects.aget(pk=case.answer_id)
    assert SSN not in f"{json.dumps(await case.events())} {stored.metadata}"


async def test_without_tools_on_offer_nothing_runs_and_no_round_follows(tools: Tools) -> None:
    case = await trial([*asks(("echo", {"text": "x"}))], policy=PLAIN)
    await case.pump.run()
    assert tools.saw == []
    assert len(case.provider.asked) == 1
    assert "offered: none" in str((await case.of("tool_result"))[0]["error"])


async def test_a_tool_that_the_provider_ran_is_shown_and_never_run(tools: Tools) -> None:
    ran: list[Step] = [ToolCallDelta(0, "srv", "echo", '{"text": "x"}', ran_by_provider=True), "text", Stopped("stop")]
    case = await answer([ran], tools)
    await case.pump.run()
    assert tools.saw == []
    assert [e["name"] for e in await case.of("tool_call")] == ["echo"]
    assert [e["error"] for e in await case.of("tool_result")] == [NOT_OVER]
    assert len(case.provider.asked) == 1


# -- guardrails -----------------------------------------------------------------------------------------------------


async def test_the_tool_gets_what_the_guardrails_left_and_nobody_sees_the_rest(tools: Tools) -> None:
    case = await answer([asks(("echo", {"text": f"file of {SSN}"})), ["fine"]], tools, GATED)
    await case.pump.run()
    assert tools.saw == ["file of [SSN]"]
    assert SSN not in json.dumps(await case.events())
    assert SSN not in repr(case.provider.asked)
    assert [e["channel"] for e in await case.of("finding")] == ["tool_arguments"]


async def test_a_value_written_in_escapes_does_not_reach_the_tool(tools: Tools) -> None:
    escaped = "".join(f"\\u{ord(char):04x}" for char in SSN)
    case = await answer([asks(("echo", f'{{"text": "{escaped}"}}')), ["end"]], tools, GATED)
    await case.pump.run()
    assert "[SSN]" in str((await case.of("tool_call"))[0]["arguments"])
    assert tools.saw == ["[SSN]"]
    assert SSN not in str(await case.of("tool_result"))


SPELLED = policy_of(
    {"name": "in", "kind": "pii", "action": "redact", "applies_to": ["tool_arguments"],
     "config": {"entities": {"ssn": True, "email": True, "credit_card": True}}},
    {"name": "no", "kind": "regex", "action": "block", "applies_to": ["tool_arguments"],
     "config": {"rules": [{"id": "n", "pattern": "blue\\s+heron"}, {"id": "u", "pattern": "https://bad\\.example"},
                          {"id": "q", "pattern": "say \"heron\""}]}},
    without="harm",
)  # fmt: skip


async def in_pieces(tools: Tools, *pieces: str) -> tuple[Call, list[Said]]:
    """One call whose arguments come in these pieces, made."""
    calls, said = ToolCalls(), list[Said]()
    calls.take(ToolCallDelta(0, "id0", "echo"))
    for piece in pieces:
        calls.take(ToolCallDelta(0, arguments=piece))
    (call,) = calls.round()
    await agent.make_call(call, tools.made, SPELLED, said.append, monitor=False)
    return call, said


async def at_every_cut(tools: Tools, written: str) -> tuple[Call, list[Said]]:
    call, said = await in_pieces(tools, *written)
    for at in range(len(written)):
        cut, told = await in_pieces(tools, written[:at], written[at:])
        assert (cut.run, cut.result, told) == (call.run, call.result, [replace(each, call=cut) for each in said])
    return call, said


@pytest.mark.parametrize(
    "spelled",
    [r"https:\/\/bad.example", r"\u0068ttps:\/\/bad\u002eexample", r"blue\nheron", r"blue\theron", r"blue\r\n heron",
     r"blue\u0020heron", r"say \"heron\"", r"say \u0022heron\""],
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ['{"text": "%s"}', '{"text": "x", "more": [{"deep": ["%s"]}]}', '{"text": "x", "%s": 1}']
)
async def test_a_block_is_met_however_a_value_is_spelled_and_cut(tools: Tools, spelled: str, place: str) -> None:
    call, said = await at_every_cut(tools, place % spelled)
    assert tools.saw == []
    assert [each.blocked is not None for each in said] == [True]
    assert said[0].events == ()
    assert not any(word in call.run for word in ("heron", "bad", "example"))


@pytest.mark.parametrize("place", ["text", "nested", "key"])
@pytest.mark.parametrize("spelled", [r"joe\u0040example.com", r"joe@example\u002ecom", "joe@example.com"])
async def test_a_value_is_redacted_inside_its_string_and_the_arguments_stay_json(
    tools: Tools, spelled: str, place: str
) -> None:
    around = f'to\\n\\"{spelled}\\" \\/ \\t now'
    left = 'to\n"[EMAIL]" / \t now'
    written, expected = {
        "text": ('{"text": "%s"}', {"text": left}),
        "nested": ('{"text": "x", "more": [{"deep": ["%s"]}, 7]}', {"text": "x", "more": [{"deep": [left]}, 7]}),
        "key": ('{"text": "x", "%s": true}', {"text": "x", left: True}),
    }[place]
    call, said = await at_every_cut(tools, written % around)
    assert json.loads(call.run) == expected
    assert [event.arguments for each in said for event in each.events if isinstance(event, ToolCall)] == [call.run]
    assert set(tools.saw) == {left if place == "text" else "x"}
    assert "joe" not in f"{call.record()} {call.sendable} {said}".replace(repr(call.pieces), "")


async def test_a_number_of_which_anything_is_hidden_is_a_string(tools: Tools) -> None:
    call, _ = await at_every_cut(tools, '{"text": "x", "card": 4111111111111111, "n": 4}')
    assert json.loads(call.run) == {"text": "x", "card": "[CREDIT_CARD]", "n": 4}


async def test_page_and_storage_and_model_see_what_the_tool_gets(tools: Tools) -> None:
    given = r'{"text": "a\/b\njoe\u0040example.com"}'
    case = await answer([asks(("echo", given)), ["end"]], tools, SPELLED)
    await case.pump.run()
    assert tools.saw == ["a/b\n[EMAIL]"]
    (told,) = await case.of("tool_call")
    (stored,) = (await Message.objects.aget(pk=case.answer_id)).metadata["tools"]
    (made,) = case.provider.asked[1].messages[-2].tool_calls
    for shown in (told["arguments"], stored["arguments"], made.arguments):
        assert json.loads(str(shown)) == {"text": "a/b\n[EMAIL]"}


async def test_arguments_that_are_too_large_are_shown_to_nobody(tools: Tools) -> None:
    given = json.dumps({"text": "zebra " * 50_000})
    case = await answer([asks(("echo", given)), ["on"]], tools)
    await case.pump.run()
    assert [e["arguments"] for e in await case.of("tool_call")] == ["{}"]
    assert "zebra" not in await everything(case)
    assert tools.saw == []


async def test_half_a_surrogate_and_nul_do_not_end_the_answer(tools: Tools) -> None:
    case = await answer([asks(("echo", '{"text": "a\\ud800b\\u0000c"}')), ["end"]], tools)
    await case.pump.run()
    assert [e["result"] for e in await case.of("tool_result")] == ["echo of a\ufffdb\ufffdc"]
    assert (await case.of("done"))[0]["outcome"] == "allowed"


async def test_a_result_is_redacted_for_reader_and_model_alike(tools: Tools) -> None:
    async def leaks(text: str, context: Context) -> object:
        await context.progress(0.5, f"reading {SSN}")
        return f"found {SSN}"

    tools.add("leaks", leaks)
    case = await answer([asks(("leaks", {})), ["fine"]], tools, GATED)
    await case.pump.run()
    assert [e["result"] for e in await case.of("tool_result")] == ["found [SSN]"]
    assert case.provider.asked[1].messages[-1].text == "found [SSN]"
    assert SSN not in json.dumps(await case.events())
    assert SSN not in (await Message.objects.aget(pk=case.answer_id)).metadata.__repr__()


@pytest.mark.parametrize("where", ["arguments", "result", "error"])
async def test_a_block_in_a_call_stops_the_answer(tools: Tools, where: str) -> None:
    async def heron(text: str, context: Context) -> object:
        if where == "error":
            raise ToolError("no blue heron here")
        return "a blue heron"

    tools.add("heron", heron)
    text = "blue heron" if where == "arguments" else "x"
    case = await answer([["Look: ", *asks(("heron", {"text": text}))], ["never"]], tools, GATED)
    await case.pump.run()
    assert (await case.of("done"))[0]["outcome"] == "blocked"
    assert len(case.provider.asked) == 1
    assert tools.saw == ([] if where == "arguments" else ["x"])
    assert "blue heron" not in json.dumps([e for e in await case.events() if e["type"] != "finding"])
    assert await case.shown() == "Look: "


async def everything(case: Trial) -> str:
    """All that a reader, the store and the model got."""
    stored = await Message.objects.aget(pk=case.answer_id)
    return f"{json.dumps(await case.events())} {stored.metadata} {stored.content} {case.provider.asked}"


async def test_a_name_that_no_tool_has_passes_the_guardrails_for_arguments(tools: Tools) -> None:
    case = await answer([asks((SSN, {}), ("nobody", {})), ["fine"]], tools, GATED)
    await case.pump.run()
    assert sorted(str(e["name"]) for e in await case.of("tool_call")) == [NAME_WITHHELD, "nobody"]
    errors = sorted(str(e["error"]) for e in await case.of("tool_result"))
    assert [f"“{name}”" in error for name, error in zip((NAME_WITHHELD, "nobody"), errors, strict=True)] == [True] * 2
    assert [e["channel"] for e in await case.of("finding")] == ["tool_arguments"]
    assert SSN not in await everything(case)
    assert await case.shown() == "fine"


async def test_a_name_that_is_a_block_stops_the_answer(tools: Tools) -> None:
    case = await answer([["Look: ", *asks(("blue heron", {}))], ["never"]], tools, GATED)
    await case.pump.run()
    assert (await case.of("done"))[0]["outcome"] == "blocked"
    assert (await case.of("tool_call"), len(case.provider.asked)) == ([], 1)
    assert "blue heron" not in await everything(case)


@pytest.mark.parametrize(("name", "shown"), [(SSN, NAME_WITHHELD), ("web_search", "web_search")], ids=["value", "name"])
async def test_a_name_is_looked_at_also_when_the_answer_ends_before_the_call_was(
    tools: Tools, name: str, shown: str
) -> None:
    ran = ToolCallDelta(0, "srv", name, "{}", ran_by_provider=True)
    script: list[Step] = [ran, ProviderToolResult("srv", "found", ""), "text ", asyncio.Event()]
    case = await answer([script], tools, GATED)
    run = asyncio.create_task(case.pump.run())
    await case.until_shown("text ")
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 30)
    stored = await Message.objects.aget(pk=case.answer_id)
    assert [(call["name"], call["result"]) for call in stored.metadata["tools"]] == [(shown, "found")]
    assert SSN not in await everything(case)


async def test_names_and_ids_have_a_length_limit_and_no_cut_hides_what_a_value_is(tools: Tools) -> None:
    name = "x" * (MAX_NAME_CHARS + 2 - len(SSN)) + SSN
    script: list[Step] = [ToolCallDelta(0, "i" * 5_000, name, "{}"), Stopped("tool_calls")]
    case = await answer([script, ["on"]], tools, GATED)
    await case.pump.run()
    (call,) = await case.of("tool_call")
    assert call["name"] == NAME_WITHHELD
    assert case.provider.asked[1].messages[-1].tool_call_id == "i" * MAX_NAME_CHARS
    assert SSN[:7] not in await everything(case)


async def test_a_value_split_over_two_rounds_is_still_found(tools: Tools) -> None:
    case = await answer([[f"It is {SSN[:7]}", *asks(("echo", {}))], [f"{SSN[7:]}, there."]], tools)
    await case.pump.run()
    assert await case.shown() == "It is [SSN], there."


async def test_thinking_goes_back_with_its_signature_only_if_nothing_of_it_was_hidden(tools: Tools) -> None:
    policy = policy_of(
        {"name": "thoughts", "kind": "pii", "action": "redact", "applies_to": ["thinking"],
         "config": {"entities": {"ssn": True}}},
        without="harm",
    )  # fmt: skip
    for thought, sent in (("plain", ("plain", "sig")), (f"it is {SSN} then", ("", ""))):
        script: list[Step] = [ThinkingDelta(thought), ThinkingDelta("", signature="sig"), *asks(("echo", {}))]
        case = await answer([script, ["end"]], tools, policy)
        await case.pump.run()
        message = case.provider.asked[1].messages[-2]
        assert (message.thinking, message.signature) == sent


# -- interrupt ------------------------------------------------------------------------------------------------------


async def stubborn(text: str, context: Context) -> object:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)
            return "late"


@pytest.fixture
async def redis_log(valkey_url: str) -> AsyncIterator[RedisLog]:
    yield shared_log()
    await close_shared_log()


@pytest.mark.parametrize("waiting", ["token", "tool", "stubborn tool", "held sentence"])
@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_an_interrupt_takes_effect_within_a_tenth_of_a_second(
    tools: Tools, waiting: str, kind: str, redis_log: RedisLog
) -> None:
    tools.add("hangs", hangs)
    tools.add("stubborn", stubborn)
    log: SessionLog = MemoryLog() if kind == "memory" else redis_log
    scripts: dict[str, list[Step]] = {
        "token": ["some text", asyncio.Event()],
        "tool": ["some text", *asks(("hangs", {}))],
        "stubborn tool": ["some text", *asks(("stubborn", {}))],
        "held sentence": [f"some text {SSN[:8]}", asyncio.Event()],
    }
    took: list[float] = []
    while len(took) < 5 and min(took, default=1) >= 0.1:  # cores are shared: the best of five counts
        case = await answer([scripts[waiting]], tools, log=log)  # type: ignore[arg-type]
        task = asyncio.create_task(case.pump.run())
        await case.until("tool_call" if "tool" in waiting else "message_stream")
        started = time.monotonic()
        await log.interrupt(case.session_id)
        await case.until("done")
        took.append(time.monotonic() - started)
        await task
        (done,) = await case.of("done")
        assert done["outcome"] == "interrupted"
        assert str(done["final"]).split()[0] == "some"  # what was held is dropped (ADR 0103)
        assert SSN[:3] not in str(done["final"])
        assert case.provider.closed
    assert min(took) < 0.1, f"{[round(each * 1000) for each in took]} ms"


# -- callbacks and scenarios ----------------------------------------------------------------------------------------


class Heard(StreamCallbacks):
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.text = ""

    def on_text(self, text: str) -> None:
        self.text += text

    async def on_tool_use(self, name: str, input: object) -> None:
        self.calls.append(("use", name, input))

    def on_tool_progress(self, name: str, input: object, message: str, progress: float) -> None:
        self.calls.append(("progress", name, progress))
        raise RuntimeError("a callback of yours is broken")

    def on_tool_result(self, name: str, input: object, result: str) -> None:
        self.calls.append(("result", name, input, result))

    def on_tool_error(self, name: str, input: object, error: str) -> None:
        self.calls.append(("error", name, error))

    def on_state_change(self, old: str, new: str) -> None:
        self.calls.append(("state", old, new))

    def on_thinking(self, text: str) -> None:
        self.calls.append(("thinking", text))

    async def on_error(self, error: str, recoverable: bool) -> None:
        self.calls.append(("problem", error, recoverable))


@pytest.mark.usefixtures("demo_policy")
async def test_callbacks_hear_what_a_reader_sees(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "5000")
    quick_count(monkeypatch)
    heard = Heard()
    handle = await start_stream(
        {"scenario": "tools"}, heard, visitor=Visitor(client="mine"), log=MemoryLog(), settings=QUICK
    )
    assert await handle.wait() == "allowed"
    assert ("use", "calculator", {"expression": "80 * 12 * 5.5"}) in heard.calls
    assert ("result", "calculator", {"expression": "80 * 12 * 5.5"}, "5280") in heard.calls
    assert ("progress", "slow_count", 1.0) in heard.calls
    assert heard.text.endswith(
        "The chamber holds 5280 cubic metres of water. Filling it took its time: I counted to 5 meanwhile."
    )
    assert [call for call in heard.calls if call[0] == "state"] == [
        ("state", "", "ACTIVE"),
        ("state", "ACTIVE", "COMPLETE"),
    ]


async def test_callbacks_hear_thinking_failures_of_tools_and_of_the_provider(tools: Tools) -> None:
    tools.add("bad", says_no)
    script: list[Step] = [ThinkingDelta("Hm. "), "One moment. ", *asks(("bad", {"text": "x"}))]
    case = await answer([script, ["So ", ProviderNotice("malformed_line", "lost a line"), StreamCutOff("cut")]], tools)
    await case.pump.run()
    heard = Heard()
    assert await _read(case.session_id, "order-4711", heard, case.log, QUICK) == "error"
    assert heard.text == "One moment. So "
    assert ("thinking", "Hm. ") in heard.calls
    assert ("use", "bad", {"text": "x"}) in heard.calls
    assert ("error", "bad", "the shop is closed") in heard.calls
    assert [call for call in heard.calls if call[0] == "problem"] == [
        ("problem", "lost a line", True), ("problem", "cut", True)
    ]  # fmt: skip


@pytest.mark.usefixtures("demo_policy")
async def test_a_policy_wholly_in_monitor_hides_nothing_and_says_what_it_would_have_done(settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    text, would = "Her number is 536-22-8145.", ("allowed", "redacted")
    for monitor, shown in ((True, text), (False, "Her number is [SSN].")):
        heard, log = Heard(), MemoryLog()
        start = {"scenario": "own_text", "text": text}
        handle = await start_stream(
            start, heard, visitor=Visitor(client="mine"), log=log, monitor=monitor, settings=QUICK
        )
        outcome = await handle.wait()
        assert heard.text == shown
        (finding,) = [event for event in await log.read(handle.session_id, 0) if event["type"] == "finding"]
        assert (outcome, finding["would_have"]) == (would if monitor else ("redacted", None))


def quick_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow tool without its slowness."""
    slow = base.all_tools()["slow_count"]

    async def run(given: BaseModel, context: Context) -> object:
        return await slow.run(given.model_copy(update={"seconds": 0}), context)

    monkeypatch.setitem(base._tools, "slow_count", replace(slow, run=run))


@pytest.mark.parametrize("times", [100])
@pytest.mark.usefixtures("demo_policy")
async def test_three_of_three_tool_scenarios_complete_every_time(
    monkeypatch: pytest.MonkeyPatch, settings: object, times: int
) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "1000000")
    quick_count(monkeypatch)
    endings = {
        "tools": "5280 cubic",
        "tool_search": "documentation says",
        "tool_error": "no tool named",
    }

    async def completes(scenario: str) -> None:
        heard = Heard()
        handle = await start_stream(
            {"scenario": scenario}, heard, visitor=Visitor(client="mine"), log=MemoryLog(), settings=QUICK
        )
        assert await handle.wait() == "allowed"
        assert endings[scenario] in heard.text
        uses = [call for call in heard.calls if call[0] == "use"]
        assert len(uses) == len([call for call in heard.calls if call[0] in ("result", "error")])

    for _ in range(times // 10):
        await asyncio.gather(*(completes(scenario) for scenario in list(endings) * 10))


def test_limits_are_what_the_documentation_says() -> None:
    assert (MAX_ROUNDS, calls.MAX_DEPTH, MAX_ARGUMENT_CHARS, MAX_RESULT_CHARS) == (
        10, 32, 256_000, 100_000
    )  # fmt: skip
    assert (MAX_NAME_CHARS, MAX_CALLS) == (200, 64)
