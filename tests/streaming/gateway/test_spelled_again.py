"""Fields that spell a withheld text once more, token by token: left out at every level while a guardrail decides."""

from __future__ import annotations

import json

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_walkers import CARD, anthropic_block, ollama, openai
from tests.streaming.gateway.walked import OPEN, REDACTING, walk, walk_whole

PIECES: list[Json] = [{"token": CARD[:8], "logprob": -0.1, "bytes": [52]}, {"token": CARD[8:], "logprob": -0.2}]
SPELT: dict[str, object] = {
    "logprobs": {"content": PIECES}, "top_logprobs": PIECES, "prompt_logprobs": [{"1": {"decoded_token": CARD[:8]}}],
    "token_ids": [17, 4111, 1111], "prompt_token_ids": [17, 4111], "tokens": [CARD[:8], CARD[8:]],
    "__verbose": {"content": CARD[:8], "tokens": PIECES}, "completion_probabilities": PIECES,
}  # fmt: skip


def openai_with(spelt: Json) -> list[Json]:
    chunk = openai({"content": "fine", "more": [spelt], **spelt}, "stop")
    choice: Json = chunk["choices"][0]  # type: ignore[index]
    return [{**chunk, **spelt, "timings": spelt, "choices": [{**choice, **spelt, "more": {"deep": [spelt]}}]}]


def openai_called(spelt: Json) -> list[Json]:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "x", "arguments": "{}", **spelt}, **spelt}
    return [openai({"tool_calls": [call]}, "tool_calls")]


def anthropic_with(spelt: Json) -> list[Json]:
    chunks = anthropic_block({"type": "text", "text": "", **spelt}, [{"type": "text_delta", "text": "fine", **spelt}])
    return [{**chunk, **({} if "block" in str(chunk["type"]) else {"more": {"deep": [spelt]}})} for chunk in chunks]


def ollama_with(spelt: Json) -> list[Json]:
    call = {"function": {"name": "x", "arguments": {}, **spelt}, **spelt}
    message: Json = {"content": "fine", "more": [spelt], "tool_calls": [call], **spelt}
    return [ollama(message, more={"deep": [spelt]}, **spelt), ollama({"content": ""}, done=True, **spelt)]


MADE = {"openai": openai_with, "openai calls": openai_called, "anthropic": anthropic_with, "ollama": ollama_with}


@pytest.mark.parametrize("name", SPELT)
@pytest.mark.parametrize("shape", MADE)
def test_it_works(shape: str, name: str) -> None:
    chunks = MADE[shape]({name: SPELT[name]})
    dialect = shape.split()[0]
    sent = json.dumps(walk(dialect, chunks, REDACTING)[0])
    assert "4111" not in sent
    assert "fine" in sent or shape == "openai calls"
    assert walk(dialect, chunks, OPEN)[0] == chunks


@pytest.mark.parametrize("name", SPELT)
def test_whole_answers_spell_nothing_either(name: str) -> None:
    spelt: Json = {name: SPELT[name]}
    message: Json = {"role": "assistant", "content": "fine", "more": [spelt], **spelt}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **spelt}
    block = {"type": "text", "text": "fine", "more": [spelt], **spelt}
    documents: dict[str, Json] = {
        "openai": {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], **spelt},
        "anthropic": {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [block], **spelt},
        "ollama": {"model": "m", "message": message, "done": True, **spelt},
    }
    for dialect, document in documents.items():
        assert "4111" not in json.dumps(walk_whole(dialect, document, REDACTING)), dialect
        assert walk_whole(dialect, document, OPEN) == document


def test_counts_and_arguments_of_such_names_stay() -> None:
    counted = {**openai({"content": "fine"}, "stop"), "usage": {"tokens": 12}}
    assert walk("openai", [counted], REDACTING)[0][-1]["usage"] == {"tokens": 12}
    said = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {
        "name": "x", "arguments": '{"tokens": ["a"]}'}}]}  # fmt: skip
    document: Json = {"id": "c", "choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}]}
    assert walk_whole("openai", document, REDACTING) == document


def test_a_guardrail_that_only_watches_leaves_them_in() -> None:
    watching = compile_policy({"policy": "w", "guardrails": [{"name": "pii", "kind": "pii", "action": "warn"}]})
    chunks = openai_with({"logprobs": {"content": PIECES}})
    assert walk("openai", chunks, watching)[0] == chunks
