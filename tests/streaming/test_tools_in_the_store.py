"""Answers with tools over the store that production has: all of each loop is told, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from streaming import registry
from streaming.callbacks import start_stream
from streaming.frames import StartFrame
from streaming.log_redis import close_shared_log, shared_log
from streaming.sessions import Visitor
from tests.streaming.chats import chat
from tests.streaming.providers.strict import CALL_ME, vendor
from tests.streaming.providers.test_strict import ADAPTERS
from tests.streaming.pumping import QUICK, policy_of
from tests.streaming.test_agent import Heard, quick_count

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
TIMES = 3
SCENARIOS = {"tools": "5280 cubic", "tool_search": "documentation says", "tool_error": "no tool named"}


@pytest.fixture(autouse=True)
async def alone() -> AsyncIterator[None]:
    yield
    await registry.shutdown()
    await close_shared_log()


async def test_it_works(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "5000")
    quick_count(monkeypatch)

    async def completes(scenario: str) -> None:
        heard = Heard()
        handle = await start_stream(
            {"scenario": scenario}, heard, visitor=Visitor(client="mine"), log=shared_log(), settings=QUICK
        )
        assert await handle.wait() == "allowed"
        assert SCENARIOS[scenario] in heard.text
        uses = [call for call in heard.calls if call[0] == "use"]
        assert len(uses) == len([call for call in heard.calls if call[0] in ("result", "error")]) > 0

    for _ in range(TIMES):
        await asyncio.gather(*map(completes, SCENARIOS))


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_a_strict_vendor_takes_back_what_came_of_its_calls(adapter: str) -> None:
    frame = StartFrame(type="start", prompt=CALL_ME, tools=True)
    for _ in range(TIMES):
        async with vendor() as fake:
            provider = ADAPTERS[adapter](fake.base_url)
            answered = await chat(provider, policy_of(without="harm"), frame=frame, log=shared_log())
        assert len(fake.taken) == 2, "the model is asked, and asked again with the results"
        assert len(answered.of("tool_call")) == len(answered.of("tool_result")) == 2
        assert [event["seq"] for event in answered.events] == list(range(1, len(answered.events) + 1))
        assert (answered.done["outcome"], answered.codes) == ("allowed", [])
        assert answered.message.content == answered.done["final"] == "fine"
