"""The OpenAI-compatible provider against a real socket: every way of cutting a recorded stream gives the same text."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

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
from streaming.providers.base import (
    ChatMessage,
    ProviderAuthError,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderTimeout,
    ProviderUnavailable,
    StreamCutOff,
    TimeLimits,
    ToolCallMade,
    ToolSpec,
)
from streaming.providers.openai import DEFAULT_BASE_URL, OpenAIProvider
from streaming.providers.openai_chunks import ChunkReader, whole
from streaming.providers.reading import MAX_CALLS, MAX_CHOICES, MAX_MALFORMED
from tests.streaming.local_server import cuts, serve

STREAMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "streams"
RECORDED = (
    [entry for entry in json.loads((STREAMS / "index.json").read_text()) if entry["provider"].startswith("openai_chat")]
    if (STREAMS / "index.json").exists()
    else []
)
QUICK = TimeLimits(connect_s=5, token_s=5, total_s=10)
ASK = ProviderRequest((ChatMessage("user", "hello"),))


def chunk(**delta: object) -> bytes:
    body = {"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    return f"data: {json.dumps(body)}\n\n".encode()


def stop(reason: str = "stop") -> bytes:
    body = {"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return f"data: {json.dumps(body)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


async def collect(provider: OpenAIProvider, request: ProviderRequest = ASK) -> tuple[list[ProviderEvent], object]:
    events: list[ProviderEvent] = []
    error = None
    try:
        async with aclosing(provider.stream(request)) as stream:
            async for event in stream:
                events.append(event)  # noqa: PERF401 - what came before an error counts
    except ProviderError as raised:
        error = raised
    return events, error


async def answer_of(pieces: list[bytes], **kwargs: object) -> tuple[list[ProviderEvent], object]:
    async with serve(pieces, **kwargs) as endpoint:
        return await collect(OpenAIProvider(endpoint.base_url, "sk-key", limits=QUICK))


def text_of(events: list[ProviderEvent], choice: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.choice == choice)


async def test_it_works() -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
    async with serve(
        [chunk(role="assistant"), chunk(content="Hel"), chunk(content="lo"), stop(), usage, DONE]
    ) as there:
        provider = OpenAIProvider(there.base_url, "sk-secret", "m-1", QUICK)
        events, error = await collect(provider)
    assert error is None
    assert text_of(events) == "Hello"
    assert ModelNamed("m-1") in events
    assert Stopped("stop") in events
    assert Usage(3, 2, None) in events
    sent = there.requests[0].decode()
    assert "POST /v1/chat/completions" in sent
    assert "authorization: bearer sk-secret" in sent.lower()
    body = json.loads(sent.split("\r\n\r\n", 1)[1])
    assert body["stream"] is True
    assert body["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.skipif(not RECORDED, reason="recorded streams are not present")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: str(entry["file"]))
async def test_recorded_stream_cut_anywhere_gives_its_text(entry: dict[str, object], seed: int) -> None:
    data = (STREAMS / str(entry["file"])).read_bytes()
    events, error = await answer_of(cuts(data, seed, most=3 if len(data) < 4_000 else 400))
    assert text_of(events) == entry["final_text"]
    assert (error is not None) == entry["ends_in_error"]
    assert bool([e for e in events if isinstance(e, ThinkingDelta)]) == entry["has_thinking"]
    if entry["has_tools"]:
        calls = [e for e in events if isinstance(e, ToolCallDelta)]
        assert {e.name for e in calls} - {""}
        for index in {e.index for e in calls}:
            json.loads("".join(e.arguments for e in calls if e.index == index))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_utf8_and_line_ends_cut_at_every_byte(size: int) -> None:
    data = chunk(content="Grüße, 世界 🌍\u2028next").replace(b"\\u", b"\\u") + stop() + DONE
    raw = json.loads(data.split(b"\n")[0][6:])
    data = b"data: " + json.dumps(raw, ensure_ascii=False).encode() + b"\r\n\r\n" + stop().replace(b"\n", b"\r") + DONE
    events, error = await answer_of([data[at : at + size] for at in range(0, len(data), size)])
    assert error is None
    assert text_of(events) == "Grüße, 世界 🌍\u2028next"


async def test_halves_of_a_surrogate_pair_in_two_chunks_become_one_character() -> None:
    halves = [
        b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % h for h in (b"\\ud83c", b"\\udf0d")
    ]
    events, error = await answer_of([*halves, chunk(content="\x00!"), stop(), DONE])
    assert error is None
    assert text_of(events) == "🌍\ufffd!"


async def test_halves_of_a_character_in_two_pieces_of_arguments_become_one_call_by_call() -> None:
    """Of each choice by itself; a half that is left over is replaced."""
    head = (
        b'data: {"choices": [{"index": %d, "delta": {"tool_calls": [{"index": %d, "function": {"arguments": "%s"}}]}}]}'
    )
    pieces = [
        head % (*where, said) + b"\n\n"
        for where, said in [
            ((0, 0), rb"\ud83c"), ((0, 1), rb"\ud83d"), ((1, 0), rb"\ude00"),
            ((0, 0), rb"\udf0d\ud83c"), ((0, 1), rb"\ude00"), ((1, 0), rb"!\ud83c"), ((0, 0), rb"\udf0d."),
        ]
    ]  # fmt: skip
    events, error = await answer_of([*pieces, stop("tool_calls"), DONE])
    assert error is None
    said: dict[tuple[int, int], str] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            said[event.choice, event.index] = said.get((event.choice, event.index), "") + event.arguments
    assert said == {(0, 0): "🌍🌍.", (0, 1): "😀", (1, 0): "\ufffd!\ufffd"}


async def test_stream_without_terminator_is_an_error_that_keeps_the_text() -> None:
    events, error = await answer_of([chunk(content="half an ans")])
    assert text_of(events) == "half an ans"
    assert isinstance(error, StreamCutOff)
    assert not error.permanent


async def test_finish_reason_without_done_is_an_end() -> None:
    events, error = await answer_of([chunk(content="whole"), stop("length")])
    assert error is None
    assert Stopped("length") in events


async def test_a_complete_answer_is_no_failure_when_the_server_forgets_to_hang_up() -> None:
    async with serve([chunk(content="whole"), stop()], hang=True) as endpoint:
        limits = TimeLimits(connect_s=5, token_s=0.05, total_s=5)
        events, error = await collect(OpenAIProvider(endpoint.base_url, limits=limits))
    assert error is None
    assert events[-1] == Stopped("stop")


async def test_error_inside_the_stream_ends_it_with_the_providers_words() -> None:
    said = b'event: error\ndata: {"error": {"message": "no more for sk-key", "status_code": 400}}\n\n'
    events, error = await answer_of([chunk(content="may"), said, DONE])
    assert text_of(events) == "may"
    assert isinstance(error, ProviderRefused)
    assert "no more" in str(error)
    assert "sk-key" not in str(error), "the key must not reach a reader"


@pytest.mark.parametrize(
    "body",
    [b"<html><body>It works!</body></html>", b"", b'{"choices": "?"}', b"data: not json\n\n", b"data: [1]\n\n",
     b"\xff\xfe\x00garbage", b": only a comment\n\n", b"data: " + b"[" * 100_000 + b"\n\n"],
)  # fmt: skip
async def test_garbage_is_a_protocol_error_not_silence(body: bytes) -> None:
    events, error = await answer_of([body])
    assert text_of(events) == ""
    assert isinstance(error, ProviderProtocolError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, ProviderRefused), (401, ProviderAuthError), (403, ProviderAuthError), (404, ProviderRefused),
     (429, ProviderRateLimited), (500, ProviderUnavailable), (503, ProviderUnavailable)],
)  # fmt: skip
async def test_status_says_whether_trying_again_helps(status: int, kind: type[ProviderError]) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nRetry-After: 7\r\nConnection: close\r\n\r\n"
    body = b'{"error": {"message": "wrong key sk-key given"}}'
    _, error = await answer_of([body], head=head.encode())
    assert type(error) is kind
    assert "sk-key" not in str(error)
    assert str(status) in str(error)
    if isinstance(error, ProviderRateLimited):
        assert error.retry_after_s == 7


async def test_endpoint_down_is_unavailable_and_names_where() -> None:
    async with serve([]) as endpoint:
        url = endpoint.base_url
    _, error = await collect(OpenAIProvider(url, limits=QUICK))
    assert isinstance(error, ProviderUnavailable)
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize("url", ["ftp://example.com", "nonsense"])
async def test_unusable_base_url_is_refused_in_words(url: str) -> None:
    _, error = await collect(OpenAIProvider(url, limits=QUICK))
    assert isinstance(error, ProviderRefused)


async def test_not_http_at_all_is_a_protocol_error() -> None:
    _, error = await answer_of([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], head=b"")
    assert isinstance(error, ProviderProtocolError)


async def test_a_connection_closed_without_an_answer_may_be_tried_again() -> None:
    _, error = await answer_of([], head=b"")
    assert isinstance(error, ProviderUnavailable)
    assert not error.permanent


async def test_silence_ends_at_the_token_limit_although_comments_keep_coming() -> None:
    async with serve([chunk(content="a"), b": keep\n\n"], hang=True) as endpoint:
        limits = TimeLimits(connect_s=5, token_s=0.1, total_s=10)
        events, error = await collect(OpenAIProvider(endpoint.base_url, limits=limits))
    assert text_of(events) == "a"
    assert isinstance(error, ProviderTimeout)


async def test_closing_the_stream_closes_the_connection() -> None:
    async with serve([chunk(content="a")], hang=True) as endpoint:
        async with aclosing(OpenAIProvider(endpoint.base_url, limits=QUICK).stream(ASK)) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    break
        await asyncio.wait_for(endpoint.client_gone.wait(), 5)


async def test_many_choices_and_reasoning_names_stay_apart() -> None:
    def of(index: int, **delta: object) -> bytes:
        return f"data: {json.dumps({'choices': [{'index': index, 'delta': delta}]})}\n\n".encode()

    pieces = [of(0, content="A"), of(1, content="B"), of(0, reasoning="r0"), of(1, reasoning_content="r1"), DONE]
    events, error = await answer_of(pieces)
    assert error is None
    assert (text_of(events, 0), text_of(events, 1)) == ("A", "B")
    assert ThinkingDelta("r0", 0) in events
    assert ThinkingDelta("r1", 1) in events


def of(index: int, reason: str | None = None, **delta: object) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return b"data: %s\n\n" % json.dumps({"model": "m-1", "choices": [choice]}, ensure_ascii=False).encode()


def call(index: int | None, id_: str = "", name: str = "", arguments: object = "", choice: int = 0) -> bytes:
    piece = {"id": id_, "function": {"name": name, "arguments": arguments}}
    return of(choice, tool_calls=[piece if index is None else {"index": index, **piece}])


def calls_of(events: list[ProviderEvent]) -> dict[tuple[int, int], tuple[str, str, str]]:
    """(choice, index) -> id, name and arguments."""
    out: dict[tuple[int, int], tuple[str, str, str]] = {}
    for e in events:
        if isinstance(e, ToolCallDelta):
            id_, name, arguments = out.get((e.choice, e.index), ("", "", ""))
            out[e.choice, e.index] = (id_ or e.id, name or e.name, arguments + e.arguments)
    return out


EVERYTHING = b"".join([
    b": keep-alive\r\n\r\n", of(0, role="assistant", reasoning="Grübeln \u2026 "), of(1, reasoning_content="r1"),
    of(0, content="Grüße 🌍\u2028n"), of(1, content=[{"type": "text", "text": "zwei"}]), of(1, refusal=" nein"),
    call(0, "c-1", "weather", '{"city": "K'), call(0, "", "", 'öln"}'), call(1, "c-2", "time", "{}"),
    of(0, "tool_calls"), of(1, "stop"),
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, '
    b'"completion_tokens_details": {"reasoning_tokens": 1}}}\n\n', DONE,
])  # fmt: skip


def read(pieces: list[bytes]) -> list[ProviderEvent]:
    reader = ChunkReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.finish()]


def test_the_dialect_says_everything_it_has_to_say() -> None:
    events = read([EVERYTHING])
    assert text_of(events, 0) == "Grüße 🌍\u2028n"
    assert text_of(events, 1) == "zwei nein"
    assert [e for e in events if isinstance(e, ThinkingDelta)] == [
        ThinkingDelta("Grübeln \u2026 ", 0),
        ThinkingDelta("r1", 1),
    ]
    assert calls_of(events) == {(0, 0): ("c-1", "weather", '{"city": "Köln"}'), (0, 1): ("c-2", "time", "{}")}
    assert [e for e in events if isinstance(e, Stopped)] == [Stopped("tool_calls", 0), Stopped("stop", 1)]
    assert events[-1] == Usage(3, 4, 1)


@given(places=st.lists(st.integers(0, len(EVERYTHING))))
def test_every_cut_gives_the_same_events(places: list[int]) -> None:
    edges = [0, *sorted(places), len(EVERYTHING)]
    assert read([EVERYTHING[a:b] for a, b in pairwise(edges)]) == read([EVERYTHING])


async def test_an_answer_that_is_not_streamed_gives_the_same() -> None:
    message = {
        "role": "assistant", "content": "Grüße", "reasoning_content": "hm",
        "tool_calls": [{"id": "c-1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    }  # fmt: skip
    whole = {
        "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    async with serve([json.dumps(whole).encode()]) as endpoint:
        provider = OpenAIProvider(endpoint.base_url, "sk-key", limits=QUICK)
        async with aclosing(provider.standard(ASK)) as answer:
            events = [event async for event in answer]
        sent = json.loads(endpoint.requests[0].split(b"\r\n\r\n", 1)[1])
    assert sent["stream"] is False
    assert "stream_options" not in sent
    assert events == [
        ModelNamed("m-1"),
        ThinkingDelta("hm"),
        TextDelta("Grüße"),
        ToolCallDelta(0, "c-1", "weather", "{}"),
        Usage(3, 4),
        Stopped("tool_calls"),
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"{", ProviderProtocolError), (b"[]", ProviderProtocolError), (b"{}", ProviderProtocolError),
     (b'{"choices": []}', ProviderProtocolError), (b'{"error": {"message": "no", "code": 429}}', ProviderRateLimited),
     (b'{"error": {"message": "sk-key", "code": "invalid_api_key"}}', ProviderAuthError),
     (b'{"error": "overloaded"}', ProviderRefused), (b'{"error": {"code": "503"}}', ProviderUnavailable),
     (b'{"error": {"code": {}, "type": "server_error"}}', ProviderUnavailable)],
)  # fmt: skip
async def test_an_answer_that_is_not_streamed_and_not_one_is_a_typed_error(
    body: bytes, kind: type[ProviderError]
) -> None:
    async with serve([body]) as endpoint:
        with pytest.raises(ProviderError) as raised:
            await OpenAIProvider(endpoint.base_url, "sk-key", limits=QUICK).complete(ASK)
    assert type(raised.value) is kind
    assert "sk-key" not in str(raised.value)


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    pieces = [call(0, "c-1", "a", "{}"), call(0, "c-2", "b", '{"x"'), call(0, "c-2", "", ": 1}"), of(0, "tool_calls")]
    assert calls_of(read(pieces)) == {(0, 0): ("c-1", "a", "{}"), (0, 1): ("c-2", "b", '{"x": 1}')}


def test_any_number_of_calls_may_share_an_index_and_pieces_of_an_earlier_one_may_still_come() -> None:
    """Else one tool would be run with another one's arguments."""
    names = ("a", "b", "c", "d")
    begun = [call(0, f"c-{name}", name, '{"x"') for name in names]
    expected = {(0, n): (f"c-{name}", name, '{"x": 1}') for n, name in enumerate(names)}
    together = [call(0, f"c-{name}", "", ": 1}") for name in names]
    in_turn = [piece for pair in zip(begun, together, strict=True) for piece in pair]
    assert calls_of(read([*begun, *together, of(0, "tool_calls")])) == expected
    assert calls_of(read([*in_turn, of(0, "tool_calls")])) == expected
    nameless = [piece for n, first in enumerate(begun) for piece in (first, call(0, "", "", ": 1}"))]
    assert calls_of(read([*nameless, of(0, "tool_calls")])) == expected
    calls = [{"index": 0, "id": f"c-{n}", "function": {"name": n, "arguments": '{"x": 1}'}} for n in names]
    assert calls_of(list(whole({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}))) == expected


@pytest.mark.parametrize("given", [{"index": 0}, {"index": 1, "id": "same"}, {}], ids=["no id", "one id", "neither"])
def test_calls_of_an_answer_in_one_piece_are_as_many_as_it_lists(given: dict[str, object]) -> None:
    """Its list says which is which, whatever they call themselves: two joined ones would be one that nobody made."""
    listed = [{**given, "function": {"name": name, "arguments": '{"x": 1}'}} for name in "ab"]
    sent = list(whole({"choices": [{"index": 0, "message": {"tool_calls": listed}}]}))
    id_ = given.get("id", "")
    assert calls_of(sent) == {(0, n): (id_, name, '{"x": 1}') for n, name in enumerate("ab")}


def test_arguments_sent_as_an_object_or_without_an_index_are_not_lost() -> None:
    events = read([call(None, "c-1", "a", {"x": 1}), of(0, "tool_calls")])
    assert calls_of(events) == {(0, 0): ("c-1", "a", '{"x": 1}')}


def test_one_choice_that_ended_does_not_end_the_others() -> None:
    with pytest.raises(StreamCutOff):
        read([of(0, content="A"), of(1, content="B"), of(0, "stop")])


def test_a_malformed_line_is_skipped_and_told_but_not_within_a_tool_call() -> None:
    bad = b"data: {oops\n\n"
    events = read([bad, of(0, content="a"), bad, b"stray line\n", of(0, content="b"), of(0, "stop"), DONE])
    assert text_of(events) == "ab"
    assert [(e.code, e.attempt) for e in events if isinstance(e, ProviderNotice)] == [
        ("malformed_line", 1), ("malformed_line", 2), ("malformed_line", 3),
    ]  # fmt: skip
    with pytest.raises(ProviderProtocolError, match="within a tool call"):
        read([call(0, "c-1", "pay", '{"amount": 1'), bad, call(0, "", "", "}"), of(0, "tool_calls"), DONE])
    with pytest.raises(ProviderProtocolError):
        read([of(0, content="a"), bad * (MAX_MALFORMED + 1), of(0, "stop"), DONE])


def test_choices_and_calls_without_end_are_not_listened_to() -> None:
    """Each choice costs a gate, and each call a place to collect it in."""
    assert text_of(read([of(MAX_CHOICES - 1, content="last"), DONE]), MAX_CHOICES - 1) == "last"
    with pytest.raises(ProviderProtocolError, match="more than 128 choices"):
        read([of(MAX_CHOICES, content="one more"), DONE])
    calls = [call(n, f"c-{n}", "pay", "{}") for n in range(MAX_CALLS)]
    read([*calls, of(0, "tool_calls"), DONE])
    with pytest.raises(ProviderProtocolError, match="more than 1,000 tool calls"):
        read([*calls, call(MAX_CALLS, "c", "pay", "{}"), of(0, "tool_calls"), DONE])
    calls = [call(0, f"c-{n}", "pay", "{}") for n in range(MAX_CALLS)]
    read([*calls, of(0, "tool_calls"), DONE])
    with pytest.raises(ProviderProtocolError, match="more than 1,000 tool calls"):
        read([*calls, call(0, "c", "pay", "{}"), of(0, "tool_calls"), DONE])


def test_an_answer_that_is_not_streamed_has_no_more_choices_than_one_that_is() -> None:
    last = {"index": MAX_CHOICES - 1, "message": {"content": "last"}, "finish_reason": "stop"}
    assert text_of(list(whole({"choices": [last]})), MAX_CHOICES - 1) == "last"
    events: list[ProviderEvent] = []
    with pytest.raises(ProviderProtocolError, match="more than 128 choices"):
        events.extend(whole({"choices": [last, last | {"index": MAX_CHOICES}]}))
    assert events == []


def test_a_number_that_no_store_takes_counts_nothing() -> None:
    said = json.dumps({"choices": [], "usage": {"prompt_tokens": 10**40, "completion_tokens": 3}}).encode()
    events = read([of(0, content="a"), of(0, "stop"), b"data: " + said + b"\n\n", DONE])
    assert Usage(None, 3) in events


def test_a_malformed_line_that_begins_a_tool_call_is_never_skipped() -> None:
    broken = call(0, "c-1", "pay", '{"amount": 1}').rstrip(b"}\n") + b"\n\n"
    with pytest.raises(ProviderProtocolError, match="within a tool call"):
        read([of(0, content="a"), broken, of(0, "tool_calls"), DONE])
    empty = b'data: {"choices": [{"index": 0, "delta": {"content": "x", "tool_calls": []}}\n\n'
    events = read([of(0, content="a"), empty, of(0, "stop"), DONE])
    assert [event.code for event in events if isinstance(event, ProviderNotice)] == ["malformed_line"]


def test_a_last_line_that_was_cut_is_a_stream_cut_off_also_within_a_tool_call() -> None:
    with pytest.raises(StreamCutOff):
        read([call(0, "c-1", "pay", '{"amount": 1'), call(0, "", "", "}")[:-20]])


async def test_requests_are_written_as_the_dialect_has_them() -> None:
    made = ToolCallMade("c-1", "weather", '{"city": "Bonn"}')
    request = ProviderRequest(
        (
            ChatMessage("system", "Be brief."),
            ChatMessage("user", "Weather? \ud83c"),
            ChatMessage("assistant", "", (made,), thinking="secret thoughts"),
            ChatMessage("tool", "no such city", tool_call_id="c-1", failed=True),
        ),
        tools=(ToolSpec("weather", "Says the weather.", {"type": "object", "properties": {}}),),
        choices=2,
        max_tokens=7,
    )
    async with serve([of(0, "stop"), DONE]) as endpoint:
        await collect(OpenAIProvider(endpoint.base_url, limits=QUICK), request)
        sent = json.loads(endpoint.requests[0].split(b"\r\n\r\n", 1)[1])
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather? ?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}]},
        {"role": "tool", "tool_call_id": "c-1", "content": "Error: no such city"},
    ]  # fmt: skip
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert (sent["n"], sent["max_tokens"], sent["stream_options"]) == (2, 7, {"include_usage": True})
    assert OpenAIProvider(DEFAULT_BASE_URL)._call(request, streaming=True).body["max_completion_tokens"] == 7


def test_it_is_offered_only_when_configured() -> None:
    assert OpenAIProvider.from_environment({}) is None
    assert OpenAIProvider.from_environment({"OPENAI_MODEL": "x"}).default_model == "x"  # type: ignore[union-attr]
