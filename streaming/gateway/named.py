"""Values of an answer that a rule knows by the name of their field.

Exists because an object that nobody here knows has its strings looked at one by one, and ``"ssn": "123456789"`` says
only as a whole what it is. Protects the rule that an answer says so nowhere, while every string keeps the gate that it
has, and what is counted stays a number. Pure.
"""

from __future__ import annotations

import json
from typing import cast

from guardrails.findings import AppliesTo
from streaming.gateway.by_name import PLAIN, by_name, without_name, written
from streaming.gateway.gates import Gates
from streaming.gateway.loose_json import is_json
from streaming.gateway.names import is_count, spelled


def without_named(gates: Gates, value: object, name: str, *, told: bool = False) -> object:
    """A value without what rules hide of its JSON. ``name``: its own, empty where it has none that says anything.

    What they hide of a string by itself is left to its gate. ``told``: what is found here is told already.
    """
    if not value or value is True or not (isinstance(value, dict | list) or (name and name not in PLAIN)):
        return value
    named = by_name(value, name)
    if gates.stays(written(_bare(gates, named, name))):
        return value
    bare = _bare(gates, named, name, alone=True)
    said = written(bare)
    shown = gates.by_name(said, told=told)
    if shown == said:
        return value
    if is_json(shown):
        return without_name(_merged(named, bare, json.loads(shown)), value, name)
    return _each(gates, value, name)


def _each(gates: Gates, value: object, name: str) -> object:
    """What is left where that is no JSON any more: every field by itself, if these are all that has to be hidden."""
    each: object = ""
    if isinstance(value, dict):
        each = {key: without_named(gates, part, str(key), told=True) for key, part in value.items()}
    elif isinstance(value, list):
        each = [without_named(gates, part, name, told=True) for part in value]
    if gates.stays(written(_bare(gates, by_name(each, name), name, alone=True))):
        return each
    return type(value)() if isinstance(value, dict | list) else ""


def _bare(gates: Gates, value: object, name: str, *, alone: bool = False) -> object:
    """The value without counts. ``alone``: and without strings and numbers of which something is hidden anyway."""
    match value:
        case dict(fields):
            return {key: _bare(gates, part, str(key), alone=alone) for key, part in fields.items()}
        case list(items):
            return [_bare(gates, part, name, alone=alone) for part in items]
        case str(text):
            return "" if alone and gates.hides(text, AppliesTo.RESPONSE) else text
        case bool() | None:
            return value
    number = cast("int | float", value)
    hidden = alone and gates.hides(spelled(number), AppliesTo.RESPONSE)
    return 0 if hidden or is_count(name, number) else number


def _merged(was: object, bare: object, shown: object) -> object:
    """What was, with what was hidden where ``shown`` is another than ``bare``, which is what of it was looked at."""
    if isinstance(was, dict) and isinstance(bare, dict) and isinstance(shown, dict) and len(was) == len(shown):
        parts = zip(was.values(), bare.values(), shown, shown.values(), strict=True)
        return {name: _merged(old, looked, new) for old, looked, name, new in parts}
    if isinstance(was, list) and isinstance(bare, list) and isinstance(shown, list) and len(was) == len(shown):
        return [_merged(old, looked, new) for old, looked, new in zip(was, bare, shown, strict=True)]
    return was if shown == bare else shown
