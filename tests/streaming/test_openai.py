"""The OpenAI-compatible provider against a real socket: every way of cutting a recorded stream gives the same text."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
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
)
from streaming.providers.openai import OpenAIProvider
from tests.streaming.local_server import HEAD, cuts, serve

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


async def test_stream_without_terminator_is_an_error_that_keeps_the_text() -> None:
    events, error = await answer_of([chunk(content="half an ans")])
    assert text_of(events) == "half an ans"
    assert isinstance(error, StreamCutOff)
    assert not error.permanent


async def test_finish_reason_without_done_is_an_end() -> None:
    events, error = await answer_of([chunk(content="whole"), stop("length")])
    assert error is None
    assert Stopped("length") in events


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


def test_it_is_offered_only_when_configured() -> None:
    assert OpenAIProvider.from_environment({}) is None
    assert OpenAIProvider.from_environment({"OPENAI_MODEL": "x"}).default_model == "x"  # type: ignore[union-attr]
    assert HEAD
