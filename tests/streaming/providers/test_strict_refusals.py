"""The strict fakes can fail: what is valid is broken in one place, and the refusal names that place.

Each case begins with a body that our own adapter sent and the fake took, so that nothing but the breakage is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import ChatMessage, Provider, ProviderRefused, ProviderRequest, ToolCallMade, ToolSpec
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider

from .strict import vendor

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
USER = ChatMessage("user", "Bonn and Ulm?")
CALLS = tuple(ToolCallMade(f"call_{n}", "weather", '{"city": "Bonn"}') for n in (1, 2))
REQUEST = ProviderRequest(
    (
        ChatMessage("system", "Be brief."),
        USER,
        ChatMessage("assistant", "Let me see.", CALLS, thinking="Two.", signature="c2ln"),
        ChatMessage("tool", "sunny", tool_call_id="call_1"),
        ChatMessage("tool", "away", tool_call_id="call_2", failed=True),
        ChatMessage("user", "And?"),
    ),
    tools=(ToolSpec("weather", "Says the weather.", PARAMETERS),),
    max_tokens=50,
)
JPEG = {"type": "base64", "media_type": "image/jpeg", "data": "/9j/"}


@dataclass(frozen=True)
class Target:
    make: Callable[[str], Provider]
    path: str
    headers: dict[str, str]


TARGETS = {
    "openai": Target(
        lambda url: OpenAIProvider(f"{url}/v1", "sk-strict"),
        "/v1/chat/completions",
        {"authorization": "Bearer sk-strict"},
    ),
    "anthropic": Target(
        lambda url: AnthropicProvider(url, "sk-strict"),
        "/v1/messages",
        {"x-api-key": "sk-strict", "anthropic-version": "2023-06-01"},
    ),
    "ollama": Target(lambda url: OllamaProvider(url), "/api/chat", {}),
}


def words(answer: httpx.Response) -> str:
    """The message of a refusal, which every vendor puts somewhere else."""
    body = answer.json()
    return str(body["error"] if isinstance(body["error"], str) else body["error"]["message"])


def at(body: object, path: str) -> tuple[dict[str, object] | list[object], str | int]:
    """What holds the last part of a dotted path, and that part."""
    *before, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in before:
        body = body[part]  # type: ignore[index]
    assert isinstance(body, dict | list)
    return body, last


def replaced(body: dict[str, object], path: str, value: object) -> dict[str, object]:
    """The body with one place changed; ``...`` removes it."""
    out = copy.deepcopy(body)
    holder, last = at(out, path)
    if value is ...:
        del holder[last]  # type: ignore[arg-type]
    else:
        holder[last] = value  # type: ignore[index]
    return out


async def test_it_works() -> None:
    for target in TARGETS.values():
        async with vendor() as fake, httpx.AsyncClient(trust_env=False) as client:
            assert await target.make(fake.base_url).complete(REQUEST) == "fine"
            again = await client.post(fake.base_url + target.path, json=fake.taken[0], headers=target.headers)
        assert again.status_code == 200
        assert fake.taken[0] == fake.taken[1]


BROKEN: list[tuple[str, str, object, str]] = [
    # OpenAI: 0 system, 1 user, 2 assistant with two calls, 3 and 4 results, 5 user
    ("openai", "model", ..., "'model'"),
    ("openai", "model", "", "'model'"),
    ("openai", "messages", [], "'messages'"),
    ("openai", "surprise", 1, "'surprise'"),
    ("openai", "max_tokens", 0, "'max_tokens'"),
    ("openai", "max_tokens", "50", "'max_tokens'"),
    ("openai", "n", 0, "'n'"),
    ("openai", "stream_options", {"include_usage": True}, "'stream_options'"),
    ("openai", "messages.1.role", "human", "'messages[1]'"),
    ("openai", "messages.1.content", None, "'messages[1].content'"),
    ("openai", "messages.1.content", 5, "'messages[1].content'"),
    (
        "openai",
        "messages.1.content",
        [{"type": "image_url", "image_url": {"url": "data:,"}}],
        "'messages[1].content[0]",
    ),
    ("openai", "messages.2.tool_calls", [], "'messages[2].tool_calls'"),
    ("openai", "messages.2.tool_calls.0.function.arguments", {"city": "Bonn"}, "[0].function.arguments'"),
    ("openai", "messages.2.tool_calls.0.id", "call_2", "one id"),
    ("openai", "messages.2.thinking", "hm", "'messages[2].thinking'"),
    ("openai", "messages.3.tool_call_id", ..., "'messages[3].tool_call_id'"),
    ("openai", "messages.3.tool_call_id", "call_2", "answers no call"),
    ("openai", "messages.3", ..., "call_1"),
    ("openai", "messages.2", ..., "answers no call"),
    ("openai", "tools", [], "'tools'"),
    ("openai", "tools.0.function.name", "the weather", "'tools[0].function.name'"),
    ("openai", "tools.0.function.parameters.type", "string", "'tools[0].function.parameters.type'"),
    ("openai", "tools.0.function.parameters.properties", ..., "'tools[0].function.parameters.properties'"),
    ("openai", "tools.0.function.parameters.required", ["town"], "'tools[0].function.parameters'"),
    # Anthropic: 0 user, 1 assistant (thinking, text, two calls), 2 user (two results, text)
    ("anthropic", "model", ..., "model"),
    ("anthropic", "max_tokens", ..., "max_tokens"),
    ("anthropic", "max_tokens", 0, "max_tokens"),
    ("anthropic", "n", 2, "n: "),
    ("anthropic", "thinking", {"type": "enabled", "budget_tokens": 50}, "thinking.budget_tokens"),
    ("anthropic", "thinking", {"type": "enabled", "budget_tokens": 2048}, "max_tokens"),
    ("anthropic", "system", "", "system"),
    ("anthropic", "messages", [], "messages"),
    ("anthropic", "messages.0", {"role": "system", "content": "Be brief."}, "messages.0"),
    ("anthropic", "messages.0", ..., "messages.0: roles"),
    ("anthropic", "messages.0.content", [], "messages.0.user.content"),
    ("anthropic", "messages.0.content.0.text", " \n", "messages.0.user.content.0.text.text"),
    ("anthropic", "messages.0.content.0", {"type": "image", "source": JPEG}, "messages.0.user.content.0"),
    ("anthropic", "messages.0.content.0", {"type": "tool_use", "id": "x", "name": "y", "input": {}}, "messages.0.user"),
    ("anthropic", "messages.1.content.0.signature", ..., "thinking.signature"),
    ("anthropic", "messages.1.content.2.input", '{"city": "Bonn"}', "tool_use.input"),
    ("anthropic", "messages.1.content.2.id", "call 1", "tool_use.id"),
    ("anthropic", "messages.1.content.2.id", "call_2", "messages."),
    ("anthropic", "messages.1.content.3", {"type": "thinking", "thinking": "late", "signature": "s"}, "thinking comes"),
    ("anthropic", "messages.2.content.0.is_error", "yes", "tool_result.is_error"),
    ("anthropic", "messages.2.content.0.tool_use_id", "call_2", "messages.2: tool_result"),
    ("anthropic", "messages.2.content.0", ..., "messages.2: tool_result"),
    ("anthropic", "messages.2.content.0", {"type": "text", "text": "first"}, "tool_result blocks come before"),
    ("anthropic", "messages.2", ..., "tool_result"),
    ("anthropic", "tools.0.name", "the weather", "tools.0.name"),
    ("anthropic", "tools.0.input_schema", {"properties": {}}, "input_schema.type"),
    ("anthropic", "tools.0.type", "function", "tools.0.type"),
    # Ollama: 0 system, 1 user, 2 assistant with two calls, 3 and 4 results, 5 user
    ("ollama", "model", ..., "model"),
    ("ollama", "n", 2, "n: "),
    ("ollama", "max_tokens", 5, "max_tokens"),
    ("ollama", "messages", [], "messages"),
    ("ollama", "options.num_predict", "50", "options.num_predict"),
    ("ollama", "messages.1.role", "human", "messages.1.role"),
    ("ollama", "messages.1.content", ..., "messages.1.content"),
    ("ollama", "messages.1.content", [{"type": "text", "text": "x"}], "messages.1.content"),
    ("ollama", "messages.1.images", ["/9j/"], "messages.1.images"),
    ("ollama", "messages.2.tool_calls.0.function.arguments", '{"city": "Bonn"}', "function.arguments"),
    ("ollama", "messages.3.tool_name", ..., "tool_name"),
    ("ollama", "messages.3.tool_name", "clock", "answers no call"),
    ("ollama", "messages.3", ..., "no tool message answers"),
    ("ollama", "messages.5.tool_calls", [{"function": {"name": "x", "arguments": {}}}], "messages.5"),
    ("ollama", "tools.0.type", "custom", "tools.0.type"),
    ("ollama", "tools.0.function.parameters", ..., "tools.0.function.parameters"),
]


@pytest.mark.parametrize(("name", "path", "value", "named"), BROKEN)
async def test_one_broken_place_is_refused_by_its_name(name: str, path: str, value: object, named: str) -> None:
    target = TARGETS[name]
    async with vendor() as fake, httpx.AsyncClient(trust_env=False) as client:
        await target.make(fake.base_url).complete(REQUEST)
        body = replaced(fake.taken[0], path, value)
        answer = await client.post(fake.base_url + target.path, json=body, headers=target.headers)
    assert answer.status_code == 400
    assert named in words(answer)
    assert len(fake.taken) == 1


@pytest.mark.parametrize(
    ("name", "headers", "status"),
    [
        ("openai", {}, 401),
        ("openai", {"authorization": "sk-strict"}, 401),
        ("anthropic", {}, 401),
        ("anthropic", {"authorization": "Bearer sk-strict", "anthropic-version": "2023-06-01"}, 401),
        ("anthropic", {"x-api-key": "sk-strict"}, 400),
        ("anthropic", {"x-api-key": "sk-strict", "anthropic-version": "2023-01-01"}, 400),
    ],
)
async def test_a_missing_header_is_refused(name: str, headers: dict[str, str], status: int) -> None:
    target = TARGETS[name]
    async with vendor() as fake, httpx.AsyncClient(trust_env=False) as client:
        await target.make(fake.base_url).complete(REQUEST)
        answer = await client.post(fake.base_url + target.path, json=fake.taken[0], headers=headers)
    assert answer.status_code == status
    if status == 400:
        assert "anthropic-version" in words(answer)


async def test_two_results_for_one_call_are_refused() -> None:
    async with vendor() as fake, httpx.AsyncClient(trust_env=False) as client:
        for name, path in (("openai", "messages.3"), ("anthropic", "messages.2.content.0"), ("ollama", "messages.3")):
            target = TARGETS[name]
            await target.make(fake.base_url).complete(REQUEST)
            body = copy.deepcopy(fake.taken[-1])
            holder, place = at(body, path)
            assert isinstance(holder, list)
            assert isinstance(place, int)
            # Three results for two calls: the first one twice.
            holder.insert(place, copy.deepcopy(holder[place]))
            answer = await client.post(fake.base_url + target.path, json=body, headers=target.headers)
            assert answer.status_code == 400, name


@pytest.mark.parametrize("name", TARGETS)
async def test_our_adapter_tells_which_field_the_vendor_refused(name: str) -> None:
    broken = ProviderRequest((USER,), tools=(ToolSpec("weather", "", {"type": "string", "properties": {}}),))
    async with vendor() as fake:
        with pytest.raises(ProviderRefused, match=r"tools.*0.*type"):
            await TARGETS[name].make(fake.base_url).complete(broken)
    assert not fake.taken


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_a_call_that_was_never_answered_does_not_pass_unseen(name: str) -> None:
    left = ProviderRequest((USER, ChatMessage("assistant", "", CALLS[:1]), ChatMessage("user", "Well?")))
    async with vendor() as fake:
        with pytest.raises(ProviderRefused):
            await TARGETS[name].make(fake.base_url).complete(left)
    assert json.dumps(fake.taken) == "[]"
