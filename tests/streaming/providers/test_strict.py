"""What our adapters send is what the vendors' schemas allow; what they do not allow is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from streaming.core.events import ModelNamed, ProviderEvent, Stopped, TextDelta, Usage
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import ChatMessage, Provider, ProviderRefused, ProviderRequest, ToolCallMade, ToolSpec
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from streaming.tools.base import specs

from .strict import vendor

ADAPTERS: dict[str, Callable[[str], Provider]] = {
    "openai": lambda url: OpenAIProvider(f"{url}/v1", "sk-strict"),
    "anthropic": lambda url: AnthropicProvider(url, "sk-strict"),
    "ollama": OllamaProvider,
}
WEATHER = ToolSpec(
    "weather", "Says the weather.", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
USER = ChatMessage("user", "What is the weather in Bonn and in Ulm?")
CALLS = (ToolCallMade("call_1", "weather", '{"city": "Bonn"}'), ToolCallMade("call_2", "weather", '{"city": "Ulm"}'))
ASKED = ChatMessage("assistant", "", CALLS, thinking="Two cities.", signature="c2ln")
RESULTS = (
    ChatMessage("tool", "sunny", tool_call_id="call_1"),
    ChatMessage("tool", "the service is away", tool_call_id="call_2", failed=True),
)
REQUESTS = {
    "one message": ProviderRequest((USER,)),
    "system prompts": ProviderRequest((ChatMessage("system", "Be brief."), ChatMessage("system", "Be kind."), USER)),
    "several turns": ProviderRequest((USER, ChatMessage("assistant", "Fine."), ChatMessage("user", "And now?"))),
    "two user messages in a row": ProviderRequest((USER, ChatMessage("user", "Please."))),
    "a blank message": ProviderRequest((USER, ChatMessage("assistant", "  "), ChatMessage("user", "Well?"))),
    "tools": ProviderRequest((USER,), tools=(WEATHER,)),
    "tool calls and results": ProviderRequest((USER, ASKED, *RESULTS), tools=(WEATHER,)),
    "text before a call": ProviderRequest((USER, replace(ASKED, text="Let me see."), *RESULTS), tools=(WEATHER,)),
    "a question after results": ProviderRequest((USER, ASKED, *RESULTS, ChatMessage("user", "So?")), tools=(WEATHER,)),
    "begun by an assistant": ProviderRequest((ChatMessage("assistant", "Welcome."), USER)),
    "begun by an assistant's call": ProviderRequest((ASKED, *RESULTS, USER), tools=(WEATHER,)),
    "most tokens": ProviderRequest((USER,), max_tokens=5, model="another"),
}

AFTER_CALLS = (
    "begun by an assistant's call",
    "tool calls and results",
    "text before a call",
    "a question after results",
)


async def ask(provider: Provider, request: ProviderRequest, *, streaming: bool) -> list[ProviderEvent]:
    call = provider.stream if streaming else provider.standard
    async with aclosing(call(request)) as events:
        return [event async for event in events]


@pytest.mark.parametrize("streaming", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_it_works(adapter: str, request_: ProviderRequest, streaming: bool) -> None:
    async with vendor() as fake:
        events = await ask(ADAPTERS[adapter](fake.base_url), request_, streaming=streaming)
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["fine"]
    assert Stopped("stop") in events
    assert fake.taken[0]["stream"] is streaming
    if not streaming:
        assert ModelNamed("m") in events
        assert Usage(1, 1) in events


@pytest.mark.parametrize("streaming", [True, False])
async def test_openai_gives_several_answers(streaming: bool) -> None:
    async with vendor() as fake:
        provider = ADAPTERS["openai"](fake.base_url)
        events = await ask(provider, ProviderRequest((USER,), choices=3), streaming=streaming)
    assert sorted(e.choice for e in events if isinstance(e, TextDelta)) == [0, 1, 2]


@pytest.mark.parametrize("adapter", ["anthropic", "ollama"])
async def test_who_gives_one_answer_refuses_more_before_anything_is_sent(adapter: str) -> None:
    async with vendor() as fake:
        with pytest.raises(ProviderRefused, match="one answer"):
            await ask(ADAPTERS[adapter](fake.base_url), ProviderRequest((USER,), choices=2), streaming=True)
    assert fake.taken == []


async def test_ollama_generate_takes_a_conversation_and_refuses_tools() -> None:
    async with vendor() as fake:
        provider = OllamaProvider(fake.base_url, generate=True)
        for request in ("one message", "several turns", "system prompts"):
            events = await ask(provider, REQUESTS[request], streaming=True)
            assert TextDelta("fine") in events
        with pytest.raises(ProviderRefused, match="tools"):
            await ask(provider, REQUESTS["tools"], streaming=True)
    assert fake.taken[0]["prompt"] == USER.text
    assert "User: " in str(fake.taken[1]["prompt"])
    assert fake.taken[2]["system"] == "Be brief.\n\nBe kind."


@pytest.mark.parametrize("name", REQUESTS)
async def test_anthropic_thinks_when_it_is_told_to_and_may(name: str) -> None:
    unsigned = replace(REQUESTS[name], messages=tuple(replace(m, signature="") for m in REQUESTS[name].messages))
    async with vendor() as fake:
        provider = AnthropicProvider(fake.base_url, "sk-strict", thinking_tokens=2048)
        for request in (REQUESTS[name], unsigned):
            assert TextDelta("fine") in await ask(provider, request, streaming=True)
    signed, without = fake.taken
    assert signed["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert signed["max_tokens"] == (REQUESTS[name].max_tokens or 4096) + 2048
    # Calls whose thinking cannot be sent back are gone on with without any.
    assert ("thinking" in without) == (name not in AFTER_CALLS)


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_the_schemas_of_our_own_tools_are_taken(adapter: str) -> None:
    assert specs()
    async with vendor() as fake:
        assert await ADAPTERS[adapter](fake.base_url).complete(ProviderRequest((USER,), tools=specs())) == "fine"
    told = json.dumps(fake.taken[0]["tools"])
    assert all(f'"name": "{spec.name}"' in told for spec in specs())
