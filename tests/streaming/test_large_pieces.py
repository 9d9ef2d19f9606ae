"""What an endpoint says in one large piece: everybody else in the process has a turn meanwhile, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streaming.agent import MAX_RESULT_CHARS
from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta
from streaming.core.gate import Gate
from streaming.slices import SLICE

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


async def test_what_a_tool_of_the_provider_returns_is_bounded_like_what_ours_return() -> None:
    results = ProviderToolResult("a", "x" * (MAX_RESULT_CHARS + 1)), ProviderToolResult("b", error="y" * 200_000)
    case = await trial([*results, ProviderToolResult("c", "z" * MAX_RESULT_CHARS)], policy=GATED)
    async with asyncio.timeout(LIMIT_S):
        await case.pump.run()
    first, second, third = await case.of("tool_result")
    assert first["error"] == "the result has 100,001 characters; at most 100,000 are taken"
    assert second["error"] == "the error has 200,000 characters; at most 100,000 are taken"
    assert third["result"] == "z" * MAX_RESULT_CHARS
