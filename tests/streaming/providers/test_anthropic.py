"""Anthropic over a real socket: its recorded answers, its errors, and what it is asked."""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from streaming.core.events import (
    ModelNamed,
    ProviderEvent,
    Stopped,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from streaming.providers import base
from streaming.providers.anthropic import AnthropicProvider, conversation
from streaming.providers.anthropic_events import whole
from streaming.providers.base import ChatMessage, ProviderRequest, TimeLimits, ToolCallMade
from tests.streaming.local_server import HEAD, cuts, serve

from .anthropic_stream import Event, calls, ends, read, said, sse, start, text, thought

STREAMS = Path(__file__).resolve().parents[4] / "shared" / "data" / "streams"
INDEX = json.loads((STREAMS / "index.json").read_text()) if (STREAMS / "index.json").exists() else []
RECORDED = [entry for entry in INDEX if entry["provider"] == "anthropic"]
QUICK = TimeLimits(connect_s=5, token_s=5, total_s=20)
ASK = ProviderRequest((ChatMessage("user", "hello"),))


def expected_of(data: bytes) -> tuple[str, str, dict[int, tuple[str, str]]]:
    """Text, thinking and calls of a recording, read in the plainest way there is: line by line, all at once."""
    words, thoughts, made = "", "", dict[int, tuple[str, str]]()
    for line in data.decode().splitlines():
        event = json.loads(line[5:]) if line.startswith("data:") else {}
        index, block, change = event.get("index", -1), event.get("content_block", {}), event.get("delta", {})
        words += change.get("text", "")
        thoughts += change.get("thinking", "")
        if block.get("type", "").endswith("tool_use"):
            made[index] = (block["name"], "")
        if "partial_json" in change:
            made[index] = (made[index][0], made[index][1] + change["partial_json"])
    return words, thoughts, {index: (name, arguments or "{}") for index, (name, arguments) in made.items()}


async def answer_of(pieces: list[bytes], head: bytes = HEAD) -> tuple[list[ProviderEvent], base.ProviderError | None]:
    events: list[ProviderEvent] = []
    async with serve(pieces, head=head) as endpoint:
        provider = AnthropicProvider(endpoint.base_url, "sk-secret", limits=QUICK)
        try:
            async with aclosing(provider.stream(ASK)) as stream:
                async for event in stream:
                    events.append(event)  # noqa: PERF401 - what came before an error counts
        except base.ProviderError as error:
            return events, error
    return events, None


async def test_it_works() -> None:
    async with serve([sse(start(), *text("Grüße 🌍"), *ends())]) as endpoint:
        provider = AnthropicProvider(endpoint.base_url, "sk-secret", "claude-x", QUICK)
        async with aclosing(provider.stream(ASK)) as stream:
            events = [event async for event in stream]
    assert events == [ModelNamed("claude-x"), Usage(10, 1), TextDelta("Grüße 🌍"), Usage(10, 7), Stopped("stop")]
    head, body = endpoint.requests[0].decode().split("\r\n\r\n", 1)
    assert head.startswith("POST /v1/messages HTTP/1.1")
    assert "x-api-key: sk-secret" in head.lower()
    assert "anthropic-version: 2023-06-01" in head.lower()
    assert json.loads(body) == {
        "model": "claude-x",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "stream": True,
    }


@pytest.mark.skipif(not RECORDED, reason="the recorded streams are not here")
@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: str(entry["file"]))
class TestRecorded:
    @pytest.mark.parametrize("size", [1, 2, 5, 1_000_000])
    def test_pieces_of_any_size_give_text_thinking_and_calls(self, entry: dict[str, object], size: int) -> None:
        data = (STREAMS / str(entry["file"])).read_bytes()
        events = read(data, size)
        words, thoughts, made = expected_of(data)
        assert said(events) == entry["final_text"] == words
        assert thought(events) == thoughts
        assert bool(thoughts) == entry["has_thinking"]
        assert {index: call[1:3] for index, call in calls(events).items()} == made
        assert bool(made) == entry["has_tools"]
        assert all(json.loads(call[2]) is not None and call[0] for call in calls(events).values())
        assert isinstance(events[-1], Stopped)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_the_same_over_tcp_cut_at_random(self, entry: dict[str, object], seed: int) -> None:
        data = (STREAMS / str(entry["file"])).read_bytes()
        events, error = await answer_of(cuts(data, seed, most=(9, 90, 900)[seed - 1]))
        assert error is None
        assert said(events) == entry["final_text"]
        assert [e for e in events if not isinstance(e, TextDelta)] == [
            e for e in read(data) if not isinstance(e, TextDelta)
        ]

    async def test_cut_off_before_its_end_it_is_an_error_that_keeps_the_text(self, entry: dict[str, object]) -> None:
        data = (STREAMS / str(entry["file"])).read_bytes()
        events, error = await answer_of([data[: data.rindex(b"event: message_stop")]])
        assert isinstance(error, base.StreamCutOff)
        assert said(events) == entry["final_text"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", base.ProviderUnavailable),
        ("api_error", base.ProviderUnavailable),
        ("timeout_error", base.ProviderUnavailable),
        ("rate_limit_error", base.ProviderRateLimited),
        ("invalid_request_error", base.ProviderRefused),
        ("request_too_large", base.ProviderRefused),
        ("not_found_error", base.ProviderRefused),
        ("authentication_error", base.ProviderAuthError),
        ("permission_error", base.ProviderAuthError),
        ("of_tomorrow", base.ProviderRefused),
        (None, base.ProviderRefused),
    ],
)
async def test_error_in_the_middle_is_typed_and_the_text_stands(
    kind: str | None, expected: type[base.ProviderError]
) -> None:
    broken: Event = {"type": "error", "error": {"type": kind, "message": "not with sk-secret"}}
    events, error = await answer_of([sse(start(), *text("half an ans")[:2], broken), sse(*text("never seen", 1))])
    assert type(error) is expected
    assert said(events) == "half an ans"
    assert "sk-secret" not in str(error), "the key must not reach a reader"


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", base.ProviderRefused),
        (401, "authentication_error", base.ProviderAuthError),
        (404, "not_found_error", base.ProviderRefused),
        (413, "request_too_large", base.ProviderRefused),
        (429, "rate_limit_error", base.ProviderRateLimited),
        (500, "api_error", base.ProviderUnavailable),
        (529, "overloaded_error", base.ProviderUnavailable),
    ],
)
async def test_status_says_whether_trying_again_helps(
    status: int, kind: str, expected: type[base.ProviderError]
) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nRetry-After: 7\r\nConnection: close\r\n\r\n"
    body = json.dumps({"type": "error", "error": {"type": kind, "message": "max_tokens: too many for sk-secret"}})
    _, error = await answer_of([body.encode()], head=head.encode())
    assert type(error) is expected
    assert "sk-secret" not in str(error)
    if expected is base.ProviderRefused:
        assert "max_tokens: too many" in str(error)
    if isinstance(error, base.ProviderRateLimited):
        assert error.retry_after_s == 7


class TestWhole:
    DOCUMENT: Event = {
        "type": "message",
        "model": "claude-x",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 9},
    }

    async def test_it_gives_the_events_of_a_stream(self) -> None:
        async with serve([json.dumps(self.DOCUMENT).encode()]) as endpoint:
            provider = AnthropicProvider(endpoint.base_url, limits=QUICK)
            events = [event async for event in provider.standard(ASK)]
        assert events == [
            ModelNamed("claude-x"),
            Usage(7, 9),
            ThinkingDelta("hm"),
            TextDelta("Let me see."),
            ToolCallDelta(2, "toolu_1", "weather"),
            ToolCallDelta(2, arguments='{"city": "Köln"}'),
            ThinkingDelta("", signature="c2ln"),
            Stopped("tool_calls"),
        ]
        head, body = endpoint.requests[0].split(b"\r\n\r\n", 1)
        assert json.loads(body)["stream"] is False
        assert b"x-api-key" not in head.lower(), "without a key none is sent"

    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            ({"type": "error", "error": {"type": "overloaded_error"}}, base.ProviderUnavailable),
            ({"type": "error"}, base.ProviderRefused),
            ({}, base.ProviderProtocolError),
            ({"content": "text"}, base.ProviderProtocolError),
        ],
    )
    def test_what_is_no_message_is_an_error(self, document: Event, expected: type[base.ProviderError]) -> None:
        with pytest.raises(base.ProviderError) as caught:
            list(whole(document))
        assert type(caught.value) is expected


class TestConversation:
    ASKED = ChatMessage(
        "assistant", "Let me see.", (ToolCallMade("toolu_1", "weather", '{"city": "Bonn"}'),), thinking="hm",
        signature="c2ln",
    )  # fmt: skip

    def test_thinking_comes_first_then_text_then_calls_and_results_are_the_users(self) -> None:
        failed = ChatMessage("tool", "no such city", tool_call_id="toolu_1", failed=True)
        messages = (ChatMessage("system", "Be brief."), ChatMessage("user", "Weather?"), self.ASKED, failed)
        assert conversation((*messages, ChatMessage("user", "And?"))) == [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bonn"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such city", "is_error": True},
                    {"type": "text", "text": "And?"},
                ],
            },
        ]

    def test_thinking_without_its_signature_is_not_sent_back(self) -> None:
        unsigned = ChatMessage("assistant", "x", thinking="hm")
        assert conversation((ASK.messages[0], unsigned))[1:] == [
            {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
        ]

    @pytest.mark.parametrize("arguments", ["{oops", "[1]", '"x"', "[" * 100_000])
    def test_arguments_that_are_no_object_go_back_inside_one(self, arguments: str) -> None:
        _, message = conversation((ChatMessage("assistant", "", (ToolCallMade("t", "n", arguments),)),))
        assert message["content"] == [
            {"type": "tool_use", "id": "t", "name": "n", "input": {"not_an_object": arguments}}
        ]

    def test_ids_of_another_provider_are_made_to_fit_and_to_differ(self) -> None:
        def round_(id_: str, said: str) -> tuple[ChatMessage, ChatMessage]:
            asked = ChatMessage("assistant", "", (ToolCallMade(id_, "n", "{}"),))
            return asked, ChatMessage("tool", said, tool_call_id=id_)

        rounds = [*round_("call_0", "a"), *round_("call_0", "b"), *round_("call_0_2", "c"), *round_("f.n:0", "d")]
        blocks = [block for message in conversation(rounds) for block in message["content"]]  # type: ignore[attr-defined]
        made = [block["id"] for block in blocks if block["type"] == "tool_use"]
        answered = {block["tool_use_id"]: block["content"] for block in blocks if block["type"] == "tool_result"}
        assert made[:3] == ["call_0", "call_0_2", "call_0_2_2"]
        assert re.fullmatch("[a-zA-Z0-9_-]+", made[3])
        assert answered == dict(zip(made, "abcd", strict=True))

    def test_a_conversation_without_words_is_refused_before_it_is_sent(self) -> None:
        with pytest.raises(base.ProviderRefused, match="no message"):
            conversation((ChatMessage("system", "Be brief."), ChatMessage("user", " \n")))


async def test_several_answers_are_refused_before_anything_is_sent() -> None:
    async with serve([]) as endpoint:
        with pytest.raises(base.ProviderRefused, match="one answer"):
            await AnthropicProvider(endpoint.base_url).complete(ProviderRequest(ASK.messages, choices=2))
    assert not endpoint.requests


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_address_may_end_in_its_version_or_not(url: str) -> None:
    assert AnthropicProvider(url)._base_url == "http://h:1"


def test_it_is_offered_only_when_configured() -> None:
    assert AnthropicProvider.from_environment({"ANTHROPIC_API_KEY": " "}) is None
    for name in ("BASE_URL", "API_KEY", "MODEL"):
        assert AnthropicProvider.from_environment({f"ANTHROPIC_{name}": "x"}) is not None
    named = AnthropicProvider.from_environment({"ANTHROPIC_MODEL": "claude-x"})
    assert named is not None
    assert named.default_model == "claude-x"


@pytest.mark.parametrize("tokens", ["0", "-5", "many", "1e4", "²", "1000001"])
def test_an_ill_formed_limit_of_tokens_is_named(tokens: str) -> None:
    env = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_MAX_TOKENS": tokens}
    with pytest.raises(ValueError, match="ANTHROPIC_MAX_TOKENS"):
        AnthropicProvider.from_environment(env)
    found = AnthropicProvider.from_environment({**env, "ANTHROPIC_MAX_TOKENS": " 9000 "})
    assert found is not None
    assert found._call(ASK, streaming=True).body["max_tokens"] == 9000
    assert found._call(replace(ASK, max_tokens=7), streaming=True).body["max_tokens"] == 7


@pytest.mark.parametrize("tokens", ["1023", "-5", "many", "1e4", "²", "9" * 5000])
def test_an_ill_formed_number_of_thinking_tokens_is_named(tokens: str) -> None:
    env = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_THINKING_TOKENS": tokens}
    with pytest.raises(ValueError, match="ANTHROPIC_THINKING_TOKENS"):
        AnthropicProvider.from_environment(env)
    found = AnthropicProvider.from_environment({**env, "ANTHROPIC_THINKING_TOKENS": " 2048 "})
    assert found is not None
    assert found._call(ASK, streaming=True).body["thinking"] == {"type": "enabled", "budget_tokens": 2048}
