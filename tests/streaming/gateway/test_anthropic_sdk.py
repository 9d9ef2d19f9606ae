"""The official Anthropic library against the gateway: what it parses is what it parses at the upstream itself."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.streaming.gateway.fake import JSON, Answer
from tests.streaming.gateway.recorded import recordings
from tests.streaming.gateway.served import OPENED, Gateway

ASKED = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
CARD = "4111 1111 1111 1111"


def events(*found: dict[str, object]) -> list[bytes]:
    return [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in found]


def block(index: int, begin: dict[str, object], *deltas: dict[str, object]) -> list[dict[str, object]]:
    said = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    start = {"type": "content_block_start", "index": index, "content_block": begin}
    return [start, *said, {"type": "content_block_stop", "index": index}]


def message(*blocks: list[dict[str, object]], reason: str = "end_turn") -> list[bytes]:
    begin = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None,
             "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 1}}  # fmt: skip
    ends = {"stop_reason": reason, "stop_sequence": None}
    return events(
        {"type": "message_start", "message": begin},
        {"type": "ping"},
        *(one for found in blocks for one in found),
        {"type": "message_delta", "delta": ends, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    )


def text(*parts: str, index: int = 0) -> list[dict[str, object]]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": part} for part in parts))


THINKING = block(
    0, {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "First, "}, {"type": "thinking_delta", "thinking": "the weather."},
    {"type": "signature_delta", "signature": "c2lnbmVk"},
)  # fmt: skip
CALL = block(
    2, {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    {"type": "input_json_delta", "partial_json": '{"city": '}, {"type": "input_json_delta", "partial_json": '"Bath"}'},
)  # fmt: skip
EVERYTHING = message(THINKING, text("Good ", "morning.", index=1), CALL, reason="tool_use")


def client(served: Gateway, policy: str) -> Anthropic:
    return opened(served.url, served.keys[policy])


def direct(served: Gateway) -> Anthropic:
    return opened(served.fake.url, "any")


def opened(url: str, key: str) -> Anthropic:
    made = Anthropic(api_key=key, base_url=url, max_retries=0)
    OPENED.append(made.close)
    return made


def raw(of: Anthropic, model: str) -> list[dict[str, object]]:
    with of.messages.create(model=model, stream=True, **ASKED) as found:  # type: ignore[call-overload]
        return [one.model_dump(warnings=False) for one in found]


def final(of: Anthropic, model: str) -> dict[str, object]:
    with of.messages.stream(model=model, **ASKED) as found:  # type: ignore[arg-type]
        return found.get_final_message().model_dump()


def test_it_works(served: Gateway) -> None:
    served.fake.answers["all"] = Answer(EVERYTHING)
    assert raw(client(served, "open"), "all") == raw(direct(served), "all")
    path, headers, _ = served.fake.asked[-2]
    assert (path, headers["x-api-key"]) == ("/v1/messages", "upstream-key")


@pytest.mark.parametrize("policy", ["open", "strict"])
def test_the_library_puts_the_same_message_together(served: Gateway, policy: str) -> None:
    served.fake.answers["all"] = Answer(EVERYTHING)
    assert final(client(served, policy), "all") == final(direct(served), "all")


async def test_the_asynchronous_library_streams_and_does_not(served: Gateway) -> None:
    whole = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
             "content": [{"type": "text", "text": f"card {CARD}"}], "stop_sequence": None,
             "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
    served.fake.answers["whole"] = Answer([json.dumps(whole).encode()], JSON)
    served.fake.answers["all"] = Answer(EVERYTHING)
    async with AsyncAnthropic(api_key=served.keys["strict"], base_url=served.url, max_retries=0) as ours:
        got = await ours.messages.create(model="whole", **ASKED)  # type: ignore[call-overload]
        assert [one.text for one in got.content] == ["card [CREDIT_CARD]"]
        async with ours.messages.stream(model="all", **ASKED) as found:  # type: ignore[arg-type]
            assert [part async for part in found.text_stream] == ["Good ", "morning."]


@pytest.mark.parametrize("file", recordings("anthropic"), ids=lambda file: file.stem)
def test_recordings_parse_as_they_do_at_the_upstream(served: Gateway, file: object) -> None:
    served.fake.answers["replay"] = Answer([file.read_bytes()])  # type: ignore[attr-defined]

    def outcome(of: Anthropic) -> object:
        try:
            return raw(of, "replay")
        except anthropic.APIError as error:
            return str(error.body or type(error).__name__)

    assert outcome(client(served, "open")) == outcome(direct(served))


def test_a_planted_card_reaches_nobody(served: Gateway) -> None:
    said = f"Your card is {CARD}, they say."
    arguments = json.dumps({"note": said})
    for at in range(len("Your card is ") + 1, said.index(","), 6):
        call = block(2, {"type": "tool_use", "id": "t", "name": "pay", "input": {}},
                     {"type": "input_json_delta", "partial_json": arguments[: at + 9]},
                     {"type": "input_json_delta", "partial_json": arguments[at + 9 :]})  # fmt: skip
        thinking = block(0, {"type": "thinking", "thinking": "", "signature": ""},
                         {"type": "thinking_delta", "thinking": said[:at]},
                         {"type": "thinking_delta", "thinking": said[at:]})  # fmt: skip
        served.fake.answers["plant"] = Answer(message(thinking, text(said[:at], said[at:], index=1), call))
        got = final(client(served, "strict"), "plant")
        shown = "Your card is [CREDIT_CARD], they say."
        blocks = got["content"]
        assert isinstance(blocks, list)
        assert [blocks[0]["thinking"], blocks[1]["text"], blocks[2]["input"]["note"]] == [shown] * 3


def test_a_block_is_a_refusal(served: Gateway) -> None:
    served.fake.answers["heron"] = Answer(message(text("It is Project Blue", " Heron, really.")))
    got = final(client(served, "stopping"), "heron")
    assert got["stop_reason"] == "refusal"
    assert got["content"][0]["text"] == "It is "  # type: ignore[index]
    assert "words" in str(got["stop_details"])


def test_a_blocked_prompt_is_answered_and_nothing_goes_upstream(served: Gateway) -> None:
    before = len(served.fake.asked)
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "project blue heron"},
    }
    messages = [{"role": "user", "content": [document, {"type": "text", "text": "What is it?"}]}]
    got = client(served, "stopping").messages.create(model="all", max_tokens=9, messages=messages)  # type: ignore[arg-type]
    assert (got.stop_reason, got.content) == ("refusal", [])
    with client(served, "stopping").messages.stream(model="all", max_tokens=9, messages=messages) as found:  # type: ignore[arg-type]
        assert found.get_final_message().stop_reason == "refusal"
    assert len(served.fake.asked) == before


def test_errors_are_those_that_the_library_knows(served: Gateway) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        final(opened(served.url, "sg_wrong"), "all")
    with pytest.raises(anthropic.NotFoundError, match="no such model"):
        final(client(served, "open"), "unknown")
    broken = message(text("Good "))[:4]
    overloaded = events({"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}})
    served.fake.answers["busy"] = Answer([*broken, *overloaded])
    with pytest.raises(anthropic.APIStatusError, match="too busy"):
        final(client(served, "open"), "busy")
    served.fake.answers["busy"] = Answer(overloaded)
    with pytest.raises(anthropic.InternalServerError, match="too busy"):
        final(client(served, "open"), "busy")


@pytest.mark.parametrize("model", ["scripted-1", "openai/said"])
def test_any_provider_may_stand_behind(served: Gateway, model: str) -> None:
    def chunk(delta: object, reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return b"data: " + json.dumps({"id": "c", "model": "m", "choices": choices}).encode() + b"\n\n"

    call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city": "Bath"}'}}
    pieces = [chunk({"content": "Good day."}), chunk({"tool_calls": [call]}), chunk({}, "tool_calls")]
    served.fake.answers["said"] = Answer([*pieces, b"data: [DONE]\n\n"])
    tools = [{"name": "weather", "input_schema": {"type": "object"}}] if model == "openai/said" else []
    with client(served, "strict").messages.stream(model=model, tools=tools, **ASKED) as found:  # type: ignore[arg-type]
        got = found.get_final_message()
    if not tools:
        assert "scripted model" in got.content[0].text
        return
    assert [one.type for one in got.content] == ["text", "tool_use"]
    assert (got.content[0].text, got.content[1].input, got.stop_reason) == ("Good day.", {"city": "Bath"}, "tool_use")
    assert served.fake.last()["tools"]


def test_what_the_provider_behind_has_no_words_for_is_refused(served: Gateway) -> None:
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        client(served, "open").messages.create(model="openai/said", extra_body={"top_k": 3}, **ASKED)  # type: ignore[call-overload]
