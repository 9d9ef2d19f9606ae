"""The second look at a request: values that were masked somewhere in it, wherever else they stand.

Exists because texts are looked at one by one, and a rule that needs the words around a value finds it in one of them
alone. Protects the rule that what has a placeholder in a request goes upstream nowhere in it as it is: in strings, in
strings of JSON that is a string, in names of fields and in numbers. Numbers that are the request's own parameters are
numbers: those stay. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from typing import cast

from streaming.gateway.loose_json import one_meaning
from streaming.gateway.names import Path, is_parameter
from streaming.gateway.walker import Json, spelled

Swept = Callable[[str], str]


def as_it_is(text: str) -> str:
    """Where nothing is masked."""
    return text


def sweep(body: Json, swept: Swept, apart: Set[Path]) -> Json:
    """The request without values that ``swept`` knows. ``apart``: paths of encoded bytes, which are no text."""
    if swept is as_it_is:
        return body
    return cast("Json", _value(body, (), swept, apart))


def _value(value: object, path: Path, swept: Swept, apart: Set[Path]) -> object:
    if path in apart:
        return value
    match value:
        case str(text):
            return _text(text, path, swept, apart)
        case dict(fields):
            out: Json = {}
            for name, part in fields.items():
                out[swept(name)] = _value(part, (*path, name), swept, apart)
            return out
        case list(items):
            return [_value(item, (*path, at), swept, apart) for at, item in enumerate(items)]
        case bool() | None:
            return value
    if is_parameter(path):
        return value
    said = spelled(cast("int | float", value))
    shown = swept(said)
    return value if shown == said else shown


def _text(text: str, path: Path, swept: Swept, apart: Set[Path]) -> str:
    inner = json_in(text)
    if inner is not None:
        whole = _value(inner, (*path, "json"), swept, apart)
        if whole != inner:
            text = json.dumps(whole, ensure_ascii=False)
    return swept(text)


def json_in(text: str) -> object:
    """The object or list that a string is as JSON of one meaning; None: it is none, or has nothing in it."""
    if len(text) < 3 or text.lstrip()[:1] not in ("{", "["):
        return None
    found = one_meaning(text)
    return found if isinstance(found, dict | list) and found else None
