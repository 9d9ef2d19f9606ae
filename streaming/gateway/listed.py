"""Values in lists that stand under the name of a field, each with that name before it.

Exists because a rule that knows a value by the name of its field sees one before the list, and none before what is in
it: ``"ssn": ["123456789"]``. Protects the rule that a list hides nothing from it: what is in lists, and in lists of
lists, is looked at as if each value were the field's own, one by one, so that what is hidden of one leaves the others
as they were. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streaming.gateway.by_name import end_of

_SHORTEST, _FEWEST_DIGITS = 3, 6
"""Shorter strings and numbers say nothing that a name makes clear; vectors and lists of tokens have thousands."""


def listed(value: object, name: str = "") -> list[tuple[str, object]]:
    """Each of them behind the end of its name. ``name``: the value's own."""
    return list(_named(value, end_of(name)))


def unlisted(value: object, items: Iterable[object], name: str = "") -> object:
    """The value again, with ``items`` in the place of what is ``listed`` of it."""
    return _rebuilt(value, end_of(name), iter(items))


def _named(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if isinstance(part, dict | list):
                yield from _named(part, end_of(str(key)))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                yield from _named(item, name)
            elif _counts(name, item):
                yield name, item


def _rebuilt(value: object, name: str, items: Iterator[object]) -> object:
    if isinstance(value, dict):
        return {
            key: _rebuilt(part, end_of(str(key)), items) if isinstance(part, dict | list) else part
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [
            _rebuilt(item, name, items)
            if isinstance(item, dict | list)
            else next(items)
            if _counts(name, item)
            else item
            for item in value
        ]
    return value


def _counts(name: str, item: object) -> bool:
    if not name or item is None or isinstance(item, bool):
        return False
    return len(str(item)) >= (_SHORTEST if isinstance(item, str) else _FEWEST_DIGITS)
