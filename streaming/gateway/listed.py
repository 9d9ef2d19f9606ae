"""Values in lists that stand under the name of a field, each with that name before it.

Exists because a rule that knows a value by the name of its field sees one before the list, and none before what is in
it: ``"ssn": ["123456789"]``. Protects the rule that a list hides nothing from it: what is in lists, and in lists of
lists, is looked at as if each value were the field's own. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

_SHORTEST, _FEWEST_DIGITS = 3, 6
"""Shorter strings and numbers say nothing that a name makes clear; vectors and lists of tokens have thousands."""


def listed(value: object, name: str = "") -> list[dict[str, object]]:
    """An object for each of them. ``name``: the value's own, which is before the values of its own list already."""
    return [{name: item} for name, item in _named(value, name, own=True)]


def unlisted(value: object, shown: object, name: str = "") -> object:
    """The value again, of whose ``listed`` is left what is ``shown``. Where that is no such list nothing is left."""
    count = sum(1 for _ in _named(value, name, own=True))
    items = shown if isinstance(shown, list) and len(shown) == count else [""] * count
    return _rebuilt(value, name, iter([_only(item) for item in items]), own=True)


def _named(value: object, name: str, *, own: bool = False) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if isinstance(part, dict | list):
                yield from _named(part, str(key))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                yield from _named(item, name)
            elif not own and _counts(name, item):
                yield name, item


def _rebuilt(value: object, name: str, items: Iterator[object], *, own: bool = False) -> object:
    if isinstance(value, dict):
        return {
            key: _rebuilt(part, str(key), items) if isinstance(part, dict | list) else part
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [
            _rebuilt(item, name, items)
            if isinstance(item, dict | list)
            else next(items)
            if not own and _counts(name, item)
            else item
            for item in value
        ]
    return value


def _counts(name: str, item: object) -> bool:
    if not name or item is None or isinstance(item, bool):
        return False
    return len(str(item)) >= (_SHORTEST if isinstance(item, str) else _FEWEST_DIGITS)


def _only(item: object) -> object:
    return next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else ""
