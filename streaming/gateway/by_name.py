"""Objects of a request that are looked at as the JSON that a model or a program writes them as.

Exists because one dialect has a call's arguments as a string and another one as an object, and a rule may know a value
by the name of its field. Protects the rule that what is found in ``{"ssn": "123456789"}`` is found in either. Pure.
"""

from __future__ import annotations

import json
from dataclasses import replace

from guardrails.policy import Policy
from streaming.gateway.names import Path

_WRITTEN = frozenset({"input", "arguments", "metadata", "json", "output", "result", "structuredContent"})
"""What stands behind these a model or a program has written."""
_BY_PARTS = frozenset({"messages", "tools", "functions", "system", "options", "thinking"})
"""Fields of the request that are texts, descriptions and parameters; all of its others are looked at so."""


def as_json(name: str, path: Path) -> bool:
    """Whether an object is looked at so; not within another one that is. ``path``: of what has the field."""
    if not path:
        return name not in _BY_PARTS
    return name in _WRITTEN and path[0] in _BY_PARTS and _WRITTEN.isdisjoint(path)


def written(value: object) -> str:
    """The JSON of it."""
    return json.dumps(value, ensure_ascii=False)


def without_limits(rules: Policy) -> Policy:
    """The rules without those that say how long a text may be: an object is none."""
    limitless = tuple(guardrail for guardrail in rules.guardrails if not guardrail.limits)
    same = len(limitless) == len(rules.guardrails)
    return rules if same else replace(rules, guardrails=limitless, _plans={}, _parts={}, _demoted={})
