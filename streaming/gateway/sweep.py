"""The second look at a request: values that were masked somewhere in it, wherever else they stand.

Exists because texts are looked at one by one, and a rule that needs the words around a value finds it in one of them
alone. Protects the rule that what has a placeholder in a request goes upstream nowhere in it as it is: in strings, in
strings of JSON that is a string, in names of fields and in numbers. Numbers that are the request's own parameters are
numbers: those stay. What stands for a redacted value is no name of anything: where the dialect wants one (a model, a
type, an id, a number of a schema), masked values alone are looked for, whose placeholders differ.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Set
from typing import cast

from streaming.gateway.by_name import structure
from streaming.gateway.loose_json import one_meaning
from streaming.gateway.names import Path, is_parameter, spelled
from streaming.gateway.walker import Json

Swept = Callable[[str], str]
LONG = 10_000
"""Characters that are looked at in one go: ten milliseconds or so. Longer texts are looked at in a thread."""


def as_it_is(text: str) -> str:
    """Where nothing is masked."""
    return text


_NAMES = frozenset({"model", "role", "type", "id", "tool_call_id", "tool_use_id"})
"""Fields of the dialects whose texts name something."""


async def sweep(body: Json, swept: Swept, apart: Set[Path], masked: Swept | None = None) -> Json:
    """The request without values that ``swept`` knows. ``apart``: paths of encoded bytes, which are no text.

    ``masked``: the same of masked values alone; None: there are no others.
    """
    if swept is as_it_is:
        return body
    return cast("Json", await _Sweep(swept, apart, masked or swept).value(body, ()))


class _Sweep:
    """One look at a request, which gives way to others."""

    def __init__(self, swept: Swept, apart: Set[Path], masked: Swept) -> None:
        self._swept = swept
        self._masked = masked
        self._apart = apart
        self._since = 0

    async def value(self, value: object, path: Path) -> object:
        """A part of it."""
        if path in self._apart:
            return value
        match value:
            case str(text):
                return await self._text(text, path)
            case dict(fields):
                out: Json = {}
                for name, part in fields.items():
                    shown = await self._look(name, path[-1:] == ("logit_bias",))
                    while shown in out:
                        shown += "_"
                    out[shown] = await self.value(part, (*path, name))
                return out
            case list(items):
                return [await self.value(item, (*path, at)) for at, item in enumerate(items)]
            case bool() | None:
                return value
        if is_parameter(path):
            return value
        said = spelled(cast("int | float", value))
        shown = await self._look(said, structure(path[:-1]) is not None)
        return value if shown == said else shown

    async def _text(self, text: str, path: Path) -> str:
        inner = json_in(text)
        if inner is not None:
            whole = await self.value(inner, (*path, "json"))
            if whole != inner:
                text = json.dumps(whole, ensure_ascii=False)
        return await self._look(text, path[-1] in _NAMES and structure(path[:-1]) is not None)

    async def _look(self, text: str, named: bool = False) -> str:
        if named:
            return self._masked(text)
        if len(text) > LONG:
            return await asyncio.to_thread(self._swept, text)  # nobody else uses the request's values meanwhile
        self._since += len(text) + 16
        if self._since >= LONG:
            self._since = 0
            await asyncio.sleep(0)
        return self._swept(text)


def json_in(text: str) -> object:
    """The object or list that a string is as JSON of one meaning; None: it is none, or has nothing in it."""
    if len(text) < 3 or text.lstrip()[:1] not in ("{", "["):
        return None
    found = one_meaning(text)
    return found if isinstance(found, dict | list) and found else None
