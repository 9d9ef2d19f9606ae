"""What every test of a kind needs: its hits in a text, found the way the gate finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from json import dumps, loads

import pytest

from guardrails.kinds.base import Config, Kind, all_kinds
from guardrails.lint import spans_in
from guardrails.patterns.compiler import CompiledRule, compile_rule

Hits = Callable[..., list[tuple[str, str]]]


def build(kind: str, config: Mapping[str, object]) -> Kind[Config]:
    """An instance of a kind from its parameters. Raises pydantic's ``ValidationError``."""
    cls = all_kinds()[kind]
    return cls(cls.Config.model_validate(dict(config)))


@cache
def _compiled(kind: str, config: str) -> tuple[CompiledRule, ...]:
    return tuple(compile_rule(rule) for rule in build(kind, loads(config)).rules())


def find(kind: str, text: str, config: Mapping[str, object] | None = None) -> list[tuple[str, str]]:
    """``(rule id, what is hidden)`` of every hit, in text order; a length limit is the rule ``max_chars``."""
    found = []
    for rule in _compiled(kind, dumps(config or {}, sort_keys=True)):
        found += [(start, rule.rule.id, text[start:end]) for start, end in spans_in(rule, text)]
    for limit in build(kind, config or {}).limits():
        if len(text) > limit.max_chars:
            found.append((limit.max_chars, limit.rule, text[limit.max_chars :]))
    return [(rule_id, hidden) for _, rule_id, hidden in sorted(found)]


@pytest.fixture
def hits() -> Hits:
    return find
