"""Walkers without a network: chunks in, what a client would be sent out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from guardrails.policy import Policy, compile_policy
from streaming.gateway.gates import Gates
from streaming.gateway.walk_anthropic import AnthropicWalker
from streaming.gateway.walk_ollama import OllamaWalker
from streaming.gateway.walk_openai import OpenAIWalker
from streaming.gateway.walker import Json, Walker

REDACTING = compile_policy({"policy": "r", "guardrails": [{"name": "pii", "kind": "pii", "action": "redact"}]})
BLOCKING = compile_policy({"policy": "b", "guardrails": [{"name": "pii", "kind": "pii", "action": "block"}]})
OPEN = compile_policy({"policy": "o", "guardrails": []})
WALKERS: dict[str, Callable[[Gates], Walker]] = {
    "openai": OpenAIWalker, "anthropic": AnthropicWalker, "ollama": OllamaWalker,
}  # fmt: skip


def walk(dialect: str, chunks: Iterable[Json], policy: Policy = REDACTING) -> tuple[list[Json], Walker]:
    """What is sent of a stream."""
    walker = WALKERS[dialect](Gates(policy))
    out: list[Json] = []
    for chunk in chunks:
        walker.take(json.loads(json.dumps(chunk)))
        out += walker.drain()
        assert not walker.busy
        if walker.gates.blocked is not None:
            return out + walker.drain() + walker.stopped("stopped"), walker
    walker.finish()
    out += walker.drain()
    if walker.gates.blocked is not None:
        out += walker.stopped("stopped")
    return out, walker


def walk_whole(dialect: str, document: Json, policy: Policy = REDACTING) -> Json:
    """What is sent of a whole answer."""
    walker = WALKERS[dialect](Gates(policy))
    walker.whole(json.loads(json.dumps(document)))
    out = walker.drain() if walker.gates.blocked is None else []
    if walker.gates.blocked is not None:
        return walker.stopped_whole(document, "stopped")
    (made,) = out
    return made


def strings(value: object) -> list[str]:
    """Every string in it, names included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else [str(value)]
