"""Numbers of an answer: a value that is written as one is hidden wherever it stands, but what is counted passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import Gates
from streaming.gateway.measure import Endless
from streaming.gateway.walker import Json, Walker, WrongDialect
from tests.streaming.gateway.walked import BLOCKING, OPEN, REDACTING, WALKERS

CARD = 4111111111111111

_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}', "strict": None},
         "extra_content": {"google": {"thought_signature": "x"}}}  # fmt: skip
_CHOICE = {
    "index": 0, "finish_reason": None, "logprobs": None, "content_filter_results": {"hate": {"filtered": False}},
    "delta": {"role": "assistant", "content": "Hi", "refusal": None, "reasoning_content": "so", "tool_calls": [_CALL],
              "function_call": {"name": "f", "arguments": "{}"}, "new": {"x": ["y", {"z": 1}]},
              "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "so"}],
              "annotations": [{"type": "url_citation", "url_citation": {"start_index": 1, "title": "t"}}]},
}  # fmt: skip
_USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.1, "completion_tokens_details": {"audio_tokens": 0}}
_AROUND = {
    "id": "x", "created": 1, "model": "m", "system_fingerprint": "fp", "service_tier": "default", "usage": _USAGE,
    "citations": ["u"], "x_groq": {"id": "r", "queue_time": 0.1}, "new": {"deep": [{"er": 1}]}, "obfuscation": "x",
}  # fmt: skip
_BLOCKS: list[Json] = [
    {"type": "text", "text": "Hi", "citations": [{"type": "char_location", "start_char_index": 1, "cited_text": "t"}]},
    {"type": "thinking", "thinking": "so", "signature": "c2ln"},
    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}, "caller": {"type": "direct"}},
    {"type": "new_kind", "new": {"deep": [1]}},
]
_MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": None, "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2, "server_tool_use": {"web_search_requests": 0}},
    "container": {"id": "c", "expires_at": "2026-01-01T00:00:00Z"}, "new": {"deep": [1]},
}  # fmt: skip


def _streamed_blocks() -> list[Json]:
    deltas: list[list[Json]] = [
        [{"type": "text_delta", "text": "Hi"}, {"type": "citations_delta", "citation": {"end_char_index": 1}}],
        [{"type": "thinking_delta", "thinking": "so"}, {"type": "signature_delta", "signature": "c2ln"}],
        [{"type": "input_json_delta", "partial_json": '{"a": 1}'}],
        [{"type": "new_delta", "new": {"deep": [1]}}],
    ]
    out: list[Json] = [{"type": "message_start", "message": {**_MESSAGE, "content": []}}]
    for index, (block, said) in enumerate(zip(_BLOCKS, deltas, strict=True)):
        out.append({"type": "content_block_start", "index": index, "content_block": block})
        out += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in said]
        out.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": "end_turn", "stop_sequence": None, "new": 1}
    return [
        *out,
        {"type": "ping", "new": 1},
        {"type": "new_event", "new": {"deep": [1]}},
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 2}, "context_management": {"edits": [1]}},
        {"type": "message_stop", "new": 1},
    ]


_LINE = {
    "model": "m", "created_at": "2026-01-01T00:00:00Z", "new": {"deep": [1]},
    "message": {"role": "assistant", "content": "Hi", "thinking": "so", "tool_name": "f", "new": {"deep": [1]},
                "tool_calls": [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]},
}  # fmt: skip
_COUNTED = {"done": True, "done_reason": "stop", "total_duration": 1, "load_duration": 1, "prompt_eval_count": 1,
            "prompt_eval_duration": 1, "eval_count": 1, "eval_duration": 1}  # fmt: skip
STREAMS: dict[str, list[Json]] = {
    "openai": [
        {"object": "chat.completion.chunk", "choices": [_CHOICE], **_AROUND},
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **_AROUND},
        {"object": "chat.completion.chunk", "choices": [], **_AROUND},
    ],
    "anthropic": _streamed_blocks(),
    "ollama": [{**_LINE, "done": False}, {**_LINE, **_COUNTED}],
}
WHOLE: dict[str, Json] = {
    "openai": {"object": "chat.completion", **_AROUND, "choices": [
        {**{name: value for name, value in _CHOICE.items() if name != "delta"}, "message": _CHOICE["delta"],
         "finish_reason": "stop"}]},
    "anthropic": {**_MESSAGE, "content": _BLOCKS},
    "ollama": {**_LINE, **_COUNTED},
}  # fmt: skip
ERRORS: dict[str, Json] = {
    "openai": {"error": {"message": "no", "type": "t", "param": None, "code": "c", "details": [{"x": 1}]}},
    "anthropic": {"type": "error", "error": {"type": "t", "message": "no", "details": [{"x": 1}]}, "request_id": "r"},
    "ollama": {"error": "no", "details": [{"x": 1}]},
}


def planted(document: object) -> Iterator[object]:
    """The document with the number in it: in the place of each value, and in a new field of each object."""
    yield CARD
    if isinstance(document, dict):
        yield {**document, "planted": CARD}
        for name, value in document.items():
            for changed in planted(value):
                yield {**document, name: changed}
    elif isinstance(document, list):
        yield [*document, CARD]
        for at, value in enumerate(document):
            for changed in planted(value):
                yield [*document[:at], changed, *document[at + 1 :]]


def sent(walker: Walker, chunks: list[Json], *, whole: bool) -> str:
    """All that a client is sent."""
    out: list[Json] = []
    try:
        for chunk in chunks:
            (walker.whole if whole else walker.take)(deepcopy(chunk))
            out += walker.drain()
        walker.finish()
        out += walker.drain()
    except (WrongDialect, Endless) as error:  # an error, and nothing more of it
        out.append({"error": str(error)})
    if walker.gates.blocked is not None:
        out += [walker.stopped_whole(deepcopy(chunks[0]), "no")] if whole else walker.stopped("no")
    return json.dumps(out)


def seen(dialect: str, number: int, policy: object = REDACTING) -> Iterator[tuple[str, str]]:
    """What a client is sent of each of the documents with the number in one place, and what that was made of."""

    def walker() -> Walker:
        return WALKERS[dialect](Gates(policy))  # type: ignore[arg-type]

    for at, chunk in enumerate(STREAMS[dialect]):
        for changed in planted(chunk):
            if isinstance(changed, dict):
                chunks = [*STREAMS[dialect][:at], changed, *STREAMS[dialect][at + 1 :]]
                yield sent(walker(), chunks, whole=False), json.dumps(changed)
    for changed in planted(WHOLE[dialect]):
        if isinstance(changed, dict):
            yield sent(walker(), [changed], whole=True), json.dumps(changed)
    for changed in planted(ERRORS[dialect]):
        yield json.dumps(walker().plain(changed)), json.dumps(changed)


@pytest.mark.parametrize("policy", [REDACTING, BLOCKING], ids=["redact", "block"])
@pytest.mark.parametrize("dialect", WALKERS)
def test_it_works(dialect: str, policy: object) -> None:
    """In every object of every shape, with a number as the value."""
    count = 0
    for said, made_of in seen(dialect, CARD, policy):
        assert str(CARD) not in said, made_of
        assert str(CARD)[:10] not in said, made_of
        count += 1
    assert count > 60


@pytest.mark.parametrize("dialect", WALKERS)
def test_where_nothing_is_looked_for_numbers_pass(dialect: str) -> None:
    passed = sum(str(CARD) in said for said, _ in seen(dialect, CARD, OPEN))
    assert passed > 40


NAMES = ["prompt_tokens", "created", "eval_count", "total_duration", "queue_time", "n", "size", "index", "took_ms"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_counted_passes_unless_it_is_too_much(name: str) -> None:
    walker = WALKERS["openai"](Gates(REDACTING))
    for small in (0.4111111111111111, 1_790_000_000_000):  # what looks like a card, and milliseconds since 1970
        assert walker.plain({"usage": {name: small}}) == {"usage": {name: small}}
        assert walker.once({"usage": {name: small}}) == {"usage": {name: small}}
    assert walker.plain({"usage": {name: CARD}}) == {"usage": {name: "[CREDIT_CARD]"}}
    assert walker.once({name: CARD}) == {name: "[CREDIT_CARD]"}
    named = {"name": "n", "kind": "keywords", "action": "redact", "config": {"keywords": ["4711"]}}
    walker = WALKERS["openai"](Gates(compile_policy({"policy": "n", "guardrails": [named]})))
    assert walker.plain({name: 4711, "account": 4711}) == {name: 4711, "account": "[REDACTED]"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("card", [4222222222222, 378282246310005, 5555555555554444])
def test_no_count_and_no_time_is_long_enough_for_the_number_of_a_card(name: str, card: int) -> None:
    walker = WALKERS["openai"](Gates(REDACTING))
    for number in (card, float(card)):
        assert walker.plain({"usage": {name: number}}) == {"usage": {name: "[CREDIT_CARD]"}}
        assert walker.once({"usage": {name: number}}) == {"usage": {name: "[CREDIT_CARD]"}}
    hour = 3_600_000_000_001  # nanoseconds: looked at, and no value
    assert walker.plain({name: hour}) == {name: hour}
