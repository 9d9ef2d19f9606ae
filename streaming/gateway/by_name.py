"""Values that are looked at together with the names of their fields, as the JSON that they stand in.

Exists because one dialect has a call's arguments as a string and another one as an object, and a rule may know a value
by the name of its field. Protects the rule that what is found in ``{"ssn": "123456789"}`` is found wherever a request
has it: what is no structure of a dialect is JSON that somebody wrote, and schemas stay schemas, because what is looked
at of them are the values that they give. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from guardrails.policy import Policy
from streaming.gateway.names import HOLDERS, Path, is_parameter


def _all(kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


_PART = _all("part", "content source citations annotations url_citation file_citation cache_control") | dict.fromkeys(
    HOLDERS, "part"
)
_FORMAT = _all("format", "response_format output_format output_config structured_outputs json_schema") | _all(
    "schema", "schema guided_json"
)
_INTO: dict[str, Mapping[str, str]] = {
    "request": _all("message", "messages") | _all("tool", "tools functions") | _all("part", "system options thinking")
    | _FORMAT | {"format": "schema"},
    "message": _PART | _all("part", "images reasoning_details") | _all("call", "tool_calls function_call"),
    "part": _PART,
    "call": _all("call", "function custom"),
    "tool": _all("tool", "function custom") | _all("schema", "parameters input_schema") | _all("part", "cache_control"),
    "format": _FORMAT | {"format": "format", "json": "schema"},
    "schema": _all("fields", "properties patternProperties $defs definitions dependentSchemas")
    | _all("schema", "items prefixItems additionalItems additionalProperties unevaluatedItems unevaluatedProperties "
           "allOf anyOf oneOf not if then else contains propertyNames contentSchema")
    | _all("names", "required dependentRequired type"),
    "names": {},
}  # fmt: skip
"""What the objects of the dialects have in which fields. What stands under ``fields`` are schemas, by any name."""
PLAIN = frozenset(
    _all(
        "",
        "role content name text type id index model object status format title description strict url detail filename "
        "file_id file_data media_type data source refusal reasoning reasoning_content thinking signature summary "
        "tool_call_id tool_use_id tool_name server_name arguments input is_error ttl context cited_text "
        "encrypted_content encrypted_index page_age stdout stderr return_code start_index end_index "
        "$ref $id $schema $comment $anchor pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf "
        "minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains "
        "created_at done_reason system_fingerprint provider stream user stop service_tier reasoning_effort verbosity "
        "prompt_cache_key safety_identifier",
    )
)
"""Texts and numbers of the dialects, whose names say nothing of what is in them."""
_GIVEN = frozenset({"default", "const", "enum", "examples", "example"})
"""Values that a schema gives, of the field that it describes."""


class Structure(NamedTuple):
    """An object of a dialect. ``field``: what it describes, where it is a schema."""

    kind: str
    field: str = ""

    def called(self, name: str, value: object, path: Path) -> str | None:
        """How a field of it is called that is looked at by its name; None: it is not. ``path``: of the structure."""
        if isinstance(value, bool | None) or value in ("", {}, []):
            return None
        if self.kind == "fields":
            return None if isinstance(value, dict) else name
        known = name in _INTO[self.kind]
        if not isinstance(value, dict | list):
            known = known or name in PLAIN or is_parameter((*path, name))
        if known:
            return None
        return self.field if self.field and name in _GIVEN else name


def structure(path: Path) -> Structure | None:
    """What stands there, if it is an object of a dialect."""
    kind, field = "request", ""
    for part in path:
        if isinstance(part, str):
            known = "schema" if kind == "fields" else _INTO[kind].get(part)
            if known is None:
                return None
            kind, field = known, part if kind == "fields" else field if known in ("schema", "fields") else ""
    return Structure(kind, field)


def written(value: object) -> str:
    """The JSON of it."""
    return json.dumps(value, ensure_ascii=False)


_MOST, _LEAST = 500_000, 100
"""Characters that the names before the values of one list may come to, and of each name there always are."""


def _end_of(name: str, values: int) -> str:
    return name[-max(_LEAST, _MOST // max(1, values)) :]


def by_name(value: object, name: str) -> object:
    """The value with its name: an object has names of its own, and so have those of a list."""
    if isinstance(value, dict) or not name:
        return value
    if isinstance(value, list):
        short = _end_of(name, len(value))
        return [item if isinstance(item, dict) else {short if at else name: item} for at, item in enumerate(value)]
    return {name: value}


def left(shown: str, value: object, name: str) -> object:
    """What is left of a value, of which the JSON with its name is ``shown``; that text, where it is no such JSON."""
    try:
        found: object = json.loads(shown)
    except (ValueError, RecursionError):
        return [shown] if isinstance(value, list) else shown
    return without_name(found, value, name)


def without_name(found: object, value: object, name: str) -> object:
    """The value again, of which ``found`` is what became of it with its name."""
    if isinstance(value, dict) or not name:
        return found
    if not isinstance(value, list):
        return _only(found)
    if not isinstance(found, list) or len(found) != len(value):
        return [written(found)]
    return [one if isinstance(was, dict) else _only(one) for one, was in zip(found, value, strict=True)]


def _only(found: object) -> object:
    return next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else written(found)


def without_limits(rules: Policy) -> Policy:
    """The rules without those that say how long a text may be: an object is none."""
    limitless = tuple(guardrail for guardrail in rules.guardrails if not guardrail.limits)
    same = len(limitless) == len(rules.guardrails)
    return rules if same else replace(rules, guardrails=limitless, _plans={}, _parts={}, _demoted={})
