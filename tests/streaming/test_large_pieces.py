"""What an endpoint says in one large piece: everybody else in the process has a turn meanwhile, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable

import pytest

from streaming.agent import MAX_RESULT_CHARS, Said, make_call
from streaming.calls import Call
from streaming.core.effects import RELEASE, Effect
from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.gate import Gate
from streaming.core.json_text import JsonChannel
from streaming.messages import MessageIn, ToolCallIn
from streaming.prompting import handed_over
from streaming.slices import READ, SLICE

from .pumping import policy_of, trial

pytestmark = pytest.mark.django_db(transaction=True)
LIMIT_S = 30
PIECE = "See joe@example.com there. "
LARGE = PIECE * (40 * SLICE // len(PIECE))
SHOWN = LARGE.replace("joe@example.com", "[EMAIL]")
GATED = policy_of(
    {"name": "tools", "kind": "pii", "action": "redact", "applies_to": ["tool_result", "thinking"],
     "config": {"entities": {"email": True}}},
    without="harm",
)  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [TextDelta(LARGE), ThinkingDelta(LARGE, signature="s"), ProviderToolResult("t", LARGE)],
    ids=["text", "thinking", "result"],
)
async def test_it_works(said: ProviderEvent, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, fed, most, turns = Gate.feed, 0, 0, 0

    def counted(gate: Gate, text: str) -> object:
        nonlocal fed, most
        if threading.current_thread() is threading.main_thread():
            fed += len(text)
            most = max(most, fed)
        return feed(gate, text)

    async def others() -> None:
        nonlocal fed, turns
        while True:
            await asyncio.sleep(0)
            fed, turns = 0, turns + 1

    case = await trial([said, TextDelta("The end.")], policy=GATED)
    monkeypatch.setattr(Gate, "feed", counted)
    beside = asyncio.create_task(others())
    async with asyncio.timeout(LIMIT_S):
        await case.pump.run()
    beside.cancel()
    assert 0 < most <= 2 * SLICE, "of every thousand characters the others have a turn"
    told = await case.events()
    if isinstance(said, ProviderToolResult):
        assert [event["result"] for event in told if event["type"] == "tool_result"] == [SHOWN]
    else:
        channel = "text" if isinstance(said, TextDelta) else "thinking"
        assert case.pump._answer.visible(channel).startswith(SHOWN)
    assert case.pump._answer._round.signature == ("s" if isinstance(said, ThinkingDelta) else "")


ARGUMENTS = json.dumps({"q": [1] * (20 * SLICE)})


async def by_our_tool() -> None:
    call, told = Call(wanted="nobody's", pieces=[ARGUMENTS]), list[Said]()
    await make_call(call, {}, GATED, told.append, monitor=False)
    assert call.run == ARGUMENTS


async def by_the_provider() -> None:
    said = ToolCallDelta(0, "t", "search", ARGUMENTS, ran_by_provider=True), ProviderToolResult("t", "Found.")
    case = await trial([*said, TextDelta("The end.")], policy=GATED)
    await case.pump.run()
    assert [event["arguments"] for event in await case.of("tool_call")] == [ARGUMENTS]


async def by_the_client() -> None:
    calls = [ToolCallIn(id="t", name="search", arguments=ARGUMENTS)]
    asked = [MessageIn(role="assistant", tool_calls=calls), MessageIn(role="user", content="Hello")]
    prompted = await handed_over(GATED, asked, monitor=False)
    assert prompted.messages[0].tool_calls[0].arguments == ARGUMENTS


@pytest.mark.parametrize("written", [by_our_tool, by_the_provider, by_the_client])
async def test_long_arguments_are_read_and_written_in_turns(
    written: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a microsecond for each character of JSON: a quarter of a million are a tenth of a second for everybody."""
    decode, encode, most, now = JsonChannel.decode, JsonChannel.encode, {"read": 0, "written": 0}, {}

    def note(what: str, chars: int) -> None:
        now[what] = now.get(what, 0) + chars
        most[what] = max(most[what], now[what])

    def decoding(channel: JsonChannel, delta: str) -> str:
        note("read", len(delta))
        return decode(channel, delta)

    def encoding(channel: JsonChannel, effects: list[Effect]) -> str:
        note("written", sum(len(effect[1]) for effect in effects if effect[0] == RELEASE))
        return encode(channel, effects)

    async def others() -> None:
        while True:
            now.clear()
            await asyncio.sleep(0)

    monkeypatch.setattr(JsonChannel, "decode", decoding)
    monkeypatch.setattr(JsonChannel, "encode", encoding)
    beside = asyncio.create_task(others())
    async with asyncio.timeout(LIMIT_S):
        await written()
    beside.cancel()
    assert 0 < most["read"] <= 2 * READ
    assert 0 < most["written"] <= 2 * READ


async def test_what_a_tool_of_the_provider_returns_is_bounded_like_what_ours_return() -> None:
    results = ProviderToolResult("a", "x" * (MAX_RESULT_CHARS + 1)), ProviderToolResult("b", error="y" * 200_000)
    case = await trial([*results, ProviderToolResult("c", "z" * MAX_RESULT_CHARS)], policy=GATED)
    async with asyncio.timeout(LIMIT_S):
        await case.pump.run()
    first, second, third = await case.of("tool_result")
    assert first["error"] == "the result has 100,001 characters; at most 100,000 are taken"
    assert second["error"] == "the error has 200,000 characters; at most 100,000 are taken"
    assert third["result"] == "z" * MAX_RESULT_CHARS
