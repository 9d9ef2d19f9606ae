"""A posted form, read field by field, remembering which field each path of the document came from.

The page's script sends the fields as one JSON list of pairs, because a policy with an imported rule pack has more
fields than Django accepts one by one; without the script they arrive one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from guardrails.admin.rules.nodes import Place

PREFIX = "f"
"""Every field of the rule form begins with it."""


class Reading:
    """Values by field name. ``names``: document path to field name. ``problems``: what reading itself refuses."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)
        self.names: dict[str, str] = {}
        self.problems: dict[str, str] = {}

    def note(self, at: Place) -> None:
        """Remember which field a path is."""
        self.names[at.path] = at.name

    def one(self, name: str) -> str:
        """A field's text with plain line breaks; empty if it was not sent."""
        values = self._values.get(name)
        return values[-1].replace("\r\n", "\n") if values else ""

    def all(self, name: str) -> list[str]:
        """A repeated field's texts, in the form's order."""
        return self._values.get(name, [])


def pairs_from_json(text: str | bytes) -> list[tuple[str, str]]:
    """The fields that the page's script sent. Raises ``ValueError`` if it is not a list of pairs of texts."""
    try:
        sent = json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    if not isinstance(sent, list):
        raise ValueError("not a list")
    pairs: list[tuple[str, str]] = []
    for pair in sent:
        match pair:
            case [str(name), str(value)]:
                pairs.append((name, value))
            case _:
                raise ValueError("not a list of pairs of texts")
    return pairs
