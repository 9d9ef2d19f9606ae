"""Recorded answers under a policy that decides and finds nothing: what is held comes later, and nothing is lost.

Chunks are put together as a client does it, because where a text is cut is nobody's promise. What docs/gateway.md says
is left out under such a policy is left out of what is compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.walker import Json
from tests.streaming.gateway.recorded import recordings
from tests.streaming.gateway.test_walkers import openai
from tests.streaming.gateway.walked import walk

CALM = compile_policy(
    {
        "policy": "calm",
        "guardrails": [
            {"name": "words", "kind": "keywords", "action": "block", "config": {"keywords": ["Quincequince"]}},
            {"name": "pattern", "kind": "regex", "action": "redact",
             "config": {"rules": [{"id": "r", "pattern": "[a-z]{3,12}-never-said-by-anybody", "ignore_case": True}]}},
        ],
    }
)  # fmt: skip
BEGINS = {"openai": ("openai_chat", "openai_chat_compat"), "anthropic": ("anthropic",), "ollama": ("ollama_chat",)}
FILES = [(name, file) for name, begins in BEGINS.items() for file in recordings(*begins)]
LEFT_OUT = ("logprobs", "obfuscation")
NAMES = ("id", "type", "role", "index", "object", "model", "created_at", "signature",
         "system_fingerprint", "service_tier", "provider", "finish_reason", "native_finish_reason")  # fmt: skip
"""Said once, or the same each time."""


def chunks_of(dialect: str, file: Path) -> list[Json]:
    """The chunks of a recording, without the terminator."""
    lines = file.read_text().splitlines()
    if dialect != "ollama":
        lines = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return [json.loads(line) for line in lines if line.startswith("{")]


def joined(before: object, more: object, name: str = "") -> object:
    """Two pieces of one thing."""
    if isinstance(before, dict) and isinstance(more, dict):
        return before | {key: joined(before.get(key), value, key) for key, value in more.items()}
    if isinstance(before, list) and isinstance(more, list):
        numbered = all(isinstance(one, dict) and "index" in one for one in [*before, *more])
        if not numbered:
            return before + more
        found = {one["index"]: one for one in before}
        return [*(found | {one["index"]: joined(found.get(one["index"]), one) for one in more}).values()]
    if isinstance(before, str) and isinstance(more, str) and name not in NAMES:
        return before + more
    return before if more is None else more


def together(dialect: str, chunks: list[Json]) -> object:
    """What a client makes of a stream."""
    out: object = None
    for chunk in chunks:
        said = json.loads(
            json.dumps(chunk), object_hook=lambda one: {k: v for k, v in one.items() if k not in LEFT_OUT}
        )
        if dialect == "anthropic":
            index = said.pop("index", None)
            piece = said.pop("delta", {}) | said.pop("content_block", {})
            said = {"blocks": [{"index": index, **piece}]} if index is not None else {said["type"]: {**said, **piece}}
        elif dialect == "openai":
            said["choices"] = [{**one, "delta": {}, "said": one.get("delta") or {}} for one in said["choices"]]
        out = joined(out, said)
    return _without_nothing(out)


def _without_nothing(value: object) -> object:
    """Empty texts say nothing, wherever they stand."""
    if isinstance(value, dict):
        return {k: _without_nothing(v) for k, v in value.items() if v not in ("", None, [], {})}
    return [_without_nothing(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("dialect", "file"), FILES, ids=[file.stem for _, file in FILES])
def test_it_works(dialect: str, file: Path) -> None:
    chunks = chunks_of(dialect, file)
    if any("error" in one or one.get("type") == "error" for one in chunks):
        pytest.skip("an answer that breaks off: what was held then is not sent")
    sent, walker = walk(dialect, chunks, CALM)
    assert together(dialect, sent) == together(dialect, chunks)
    assert not walker.gates.findings


def test_an_object_beside_the_function_of_a_call_stays_beside_it() -> None:
    """As Google's models are spoken to in this dialect: without the signature they refuse the next turn."""
    signed = {"google": {"thought_signature": "AbCd=="}}
    call: Json = {"index": 0, "id": "c1", "type": "function", "function": {"name": "pay", "arguments": '{"a"'}}
    chunks = [
        openai({"role": "assistant", "tool_calls": [{**call, "extra_content": signed}]}),
        openai({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
        openai({}, "tool_calls"),
    ]
    sent, _ = walk("openai", chunks, CALM)
    assert together("openai", sent) == together("openai", chunks)
    (made,) = [one for chunk in sent for one in chunk["choices"][0]["delta"].get("tool_calls", ())]  # type: ignore[index]
    assert made["extra_content"] == signed
    assert made["function"] == {"name": "pay", "arguments": '{"a": 1}'}


def test_what_stands_beside_the_function_is_looked_at_when_it_is_complete() -> None:
    card = "4111 1111 1111 1111"
    for at in range(1, len(card)):
        pieces = [{"index": 0, "function": {"name": "p", "arguments": "{}"}, "extra": {"note": card[:at]}},
                  {"index": 0, "extra": {"note": card[at:]}}]  # fmt: skip
        chunks = [*(openai({"tool_calls": [piece]}) for piece in pieces), openai({}, "tool_calls")]
        assert "111" not in json.dumps(walk("openai", chunks)[0])
