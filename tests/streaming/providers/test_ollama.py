"""Ollama's dialect: lines cut anywhere, both of its calls, whole answers, and what its requests look like."""

from __future__ import annotations

import json
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.core.events import (
    ModelNamed,
    ProviderEvent,
    ProviderNotice,
    Stopped,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from streaming.core.sse import MAX_EVENT_BYTES
from streaming.providers.base import (
    ChatMessage,
    ProviderError,
    ProviderProtocolError,
    ProviderRefused,
    ProviderRequest,
    ProviderUnavailable,
    StreamCutOff,
    TimeLimits,
    ToolCallMade,
    ToolSpec,
)
from streaming.providers.ollama import OllamaProvider
from streaming.providers.ollama_lines import LineReader
from streaming.providers.reading import MAX_MALFORMED
from tests.streaming.local_server import serve

QUICK = TimeLimits(connect_s=5, token_s=5, total_s=20)
USER = ChatMessage("user", "hello")
ASK = ProviderRequest((USER,))


def line(done: bool = False, **fields: object) -> bytes:
    return json.dumps({"model": "m-1", "done": done, **fields}, ensure_ascii=False).encode() + b"\n"


def says(content: str = "", **message: object) -> bytes:
    return line(message={"role": "assistant", "content": content, **message})


def calls(*functions: tuple[str, object]) -> bytes:
    return says(tool_calls=[{"function": {"name": name, "arguments": given}} for name, given in functions])


END = line(done=True, done_reason="stop", prompt_eval_count=7, eval_count=9)
ANSWER = b"".join([
    says(thinking="Grübeln \u2026"), b"\r\n", says("Grüße 🌍\u2028n"), says("eu"),
    calls(("weather", {"city": "Köln"}), ("time", {})), END,
])  # fmt: skip


def read(pieces: list[bytes], calls_made: int = 0) -> list[ProviderEvent]:
    reader = LineReader(calls_made)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.finish()]


def text_of(events: list[ProviderEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


async def ask(
    pieces: list[bytes], request: ProviderRequest = ASK, *, streaming: bool = True, generate: bool = False
) -> tuple[list[ProviderEvent], ProviderError | None, bytes]:
    """The events, the error that ended them, and the request as it was sent."""
    events: list[ProviderEvent] = []
    error = None
    async with serve(pieces) as endpoint:
        provider = OllamaProvider(
            endpoint.base_url.removesuffix("/v1"), "m-1", QUICK, api_key="ok-1", generate=generate
        )
        call = provider.stream if streaming else provider.standard
        try:
            async with aclosing(call(request)) as answer:
                async for event in answer:
                    events.append(event)  # noqa: PERF401 - what came before an error counts
        except ProviderError as raised:
            error = raised
        return events, error, b"".join(endpoint.requests)


def body_of(sent: bytes) -> dict[str, object]:
    body = json.loads(sent.split(b"\r\n\r\n", 1)[1])
    assert isinstance(body, dict)
    return body


async def test_it_works() -> None:
    events, error, sent = await ask([ANSWER])
    assert error is None
    assert events == [
        ModelNamed("m-1"),
        ThinkingDelta("Grübeln \u2026"),
        TextDelta("Grüße 🌍\u2028n"),
        TextDelta("eu"),
        ToolCallDelta(0, "call_0", "weather", '{"city": "K\\u00f6ln"}'),
        ToolCallDelta(1, "call_1", "time", "{}"),
        Usage(7, 9),
        Stopped("tool_calls"),
    ]
    assert sent.startswith(b"POST /api/chat ")
    assert b"authorization: bearer ok-1" in sent.lower()
    assert body_of(sent) == {"model": "m-1", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


@given(places=st.lists(st.integers(0, len(ANSWER))))
def test_every_cut_gives_the_same_events(places: list[int]) -> None:
    edges = [0, *sorted(places), len(ANSWER)]
    assert read([ANSWER[a:b] for a, b in pairwise(edges)]) == read([ANSWER])


async def test_generate_gives_the_same_events_for_its_own_fields() -> None:
    pieces = [line(thinking="hm", response=""), line(response="Grü"), line(response="ße"), END]
    events, error, sent = await ask(pieces, generate=True)
    assert error is None
    assert events == [
        ModelNamed("m-1"), ThinkingDelta("hm"), TextDelta("Grü"), TextDelta("ße"), Usage(7, 9), Stopped("stop"),
    ]  # fmt: skip
    assert sent.startswith(b"POST /api/generate ")
    assert body_of(sent) == {"model": "m-1", "stream": True, "prompt": "hello"}


@pytest.mark.parametrize("generate", [False, True])
async def test_an_answer_that_is_not_streamed_gives_the_same(generate: bool) -> None:
    said = {"response": "Grüße"} if generate else {"message": {"role": "assistant", "content": "Grüße"}}
    events, error, sent = await ask(
        [line(done=True, done_reason="length", eval_count=9, **said)], streaming=False, generate=generate
    )
    assert error is None
    assert events == [ModelNamed("m-1"), TextDelta("Grüße"), Usage(None, 9), Stopped("length")]
    assert body_of(sent)["stream"] is False


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", says("half an answer")])
async def test_an_answer_that_is_not_streamed_and_not_one_is_an_error(body: bytes) -> None:
    _, error, _ = await ask([body], streaming=False)
    assert isinstance(error, ProviderProtocolError)


@pytest.mark.parametrize(
    "tail", [b"", b'{"mess', says("x")[:-3], "ü".encode()[:1]], ids=["line", "open", "late", "utf8"]
)
async def test_an_end_without_done_keeps_the_text_and_is_a_cut_off(tail: bytes) -> None:
    events, error, _ = await ask([says("half an ans"), tail])
    assert text_of(events) == "half an ans"
    assert isinstance(error, StreamCutOff)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"error": "model 'x' not found"}, ProviderRefused),
        ({"error": "unexpected end of the runner"}, ProviderUnavailable),
        ({"error": "too much", "status_code": 400}, ProviderRefused),
        ({"error": "later", "status_code": 429}, ProviderUnavailable),
        ({"error": {"message": "invalid format"}}, ProviderRefused),
    ],
)
async def test_an_error_as_a_line_is_typed_and_keeps_the_text(
    fields: dict[str, object], kind: type[ProviderError]
) -> None:
    events, error, _ = await ask([says("par"), json.dumps(fields).encode() + b"\n", says("never")])
    assert text_of(events) == "par"
    assert type(error) is kind


def test_a_line_that_never_ends_is_given_up_before_it_fills_the_memory() -> None:
    reader = LineReader()
    assert list(reader.feed(says("a")))
    half = b"x" * (MAX_EVENT_BYTES // 2 + 1)
    assert not list(reader.feed(half))
    with pytest.raises(ValueError, match="larger than"):
        list(reader.feed(half))


async def test_such_a_line_is_a_typed_error_that_keeps_the_text() -> None:
    events, error, _ = await ask([says("a"), b"x" * (MAX_EVENT_BYTES + 1)])
    assert text_of(events) == "a"
    assert isinstance(error, ProviderProtocolError)


def test_a_few_malformed_lines_are_skipped_and_told_and_many_are_an_error() -> None:
    bad = b"[1]\n"
    events = read([bad, says("a"), bad, says("b"), END])
    assert text_of(events) == "ab"
    assert [(e.code, e.attempt) for e in events if isinstance(e, ProviderNotice)] == [
        ("malformed_line", 1),
        ("malformed_line", 2),
    ]
    with pytest.raises(ProviderProtocolError):
        read([says("a"), bad * (MAX_MALFORMED + 1), END])


def test_a_malformed_line_that_is_a_tool_call_is_never_skipped() -> None:
    """Here a call is one line: without it the answer would look complete, and nobody would have called anything."""
    broken = calls(("pay", {"amount": 1})).rstrip(b"}\n") + b"\n"
    said: list[ProviderEvent] = []
    reader = LineReader()
    with pytest.raises(ProviderProtocolError, match="within a tool call"):
        said.extend(reader.feed(says("Let me see. ") + broken + END))
    events = read([says("a"), b'{"message": {"content": "say \\"tool_calls\\": [{" oops\n', says("b"), END])
    assert text_of(events) == "ab"
    (notice,) = [event for event in events if isinstance(event, ProviderNotice)]
    assert "a few words or a tool call may be missing" in notice.message


def test_a_call_whose_line_was_cut_off_is_a_stream_cut_off() -> None:
    with pytest.raises(StreamCutOff):
        read([says("a"), calls(("pay", {"amount": 1}))[:-3]])


def test_ids_of_calls_are_unique_over_the_rounds_of_a_conversation() -> None:
    made = (ToolCallMade("call_0", "a", "{}"), ToolCallMade("call_1", "a", "{}"))
    request = ProviderRequest((USER, ChatMessage("assistant", "", made)))
    reader = OllamaProvider("http://box")._reader(request)
    events = [*reader.feed(calls(("a", {}), ("b", "{}"))), *reader.feed(END)]
    assert [(e.index, e.id) for e in events if isinstance(e, ToolCallDelta)] == [(0, "call_2"), (1, "call_3")]


async def test_tool_results_go_back_under_the_name_of_their_tool() -> None:
    made = (ToolCallMade("call_0", "weather", '{"city": "Bonn"}'), ToolCallMade("call_1", "time", "not JSON"))
    request = ProviderRequest(
        (
            ChatMessage("system", "Be brief."),
            USER,
            ChatMessage("assistant", "Let me see.", made, thinking="hm"),
            ChatMessage("tool", "sunny", tool_call_id="call_0"),
            ChatMessage("tool", "no clock", tool_call_id="call_1", failed=True),
        ),
        model="m-2",
        tools=(ToolSpec("weather", "Says the weather.", {"type": "object", "properties": {}}),),
        max_tokens=5,
    )
    _, error, sent = await ask([END], request)
    assert error is None
    assert body_of(sent) == {
        "model": "m-2",
        "stream": True,
        "options": {"num_predict": 5},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Let me see.", "thinking": "hm", "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Bonn"}}},
                {"function": {"name": "time", "arguments": {"not_an_object": "not JSON"}}}]},
            {"role": "tool", "content": "sunny", "tool_name": "weather"},
            {"role": "tool", "content": "Error: no clock", "tool_name": "time"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "weather", "description": "Says the weather.",
            "parameters": {"type": "object", "properties": {}}}}],
    }  # fmt: skip


async def test_more_than_one_choice_is_refused_before_anything_is_sent() -> None:
    _, error, sent = await ask([END], ProviderRequest((USER,), choices=2))
    assert isinstance(error, ProviderRefused)
    assert "one answer" in str(error)
    assert sent == b""


def test_the_api_is_one_of_two_and_anything_else_names_the_setting() -> None:
    provider = OllamaProvider.from_environment({"OLLAMA_HOST": "box", "OLLAMA_API": "generate"})
    assert provider is not None
    assert provider._call(ASK, streaming=True).path == "/api/generate"
    with pytest.raises(ValueError, match="OLLAMA_API"):
        OllamaProvider.from_environment({"OLLAMA_HOST": "box", "OLLAMA_API": "completions"})
