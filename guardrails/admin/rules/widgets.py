"""The fields of the rule form. Each shows a value and reads it back, so that both directions stand side by side.

What does not fit a field (letters where a number belongs) is read as the text that it is: the kind then refuses it by
name, and the page still shows what was typed.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from guardrails.admin.rules.lines import from_lines, to_lines
from guardrails.admin.rules.nodes import Node, Option, Place
from guardrails.admin.rules.reading import Reading

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


class LeftOut:
    """The value of a field that says nothing: its key stays out of the document and the default counts."""


LEFT_OUT = LeftOut()


class Widget(ABC):
    """One kind of field."""

    @abstractmethod
    def view(self, at: Place, value: object) -> Node:
        """The field, filled in with a JSON value."""

    @abstractmethod
    def read(self, at: Place, form: Reading) -> object:
        """The JSON value that was posted."""

    def blanks(self, at: Place) -> Iterator[Node]:
        """Empty items for what can be added here and inside."""
        return iter(())


class Check(Widget):
    """True or false."""

    def view(self, at: Place, value: object) -> Node:
        """A checkbox."""
        return Node(at, "check", checked=value is True)

    def read(self, at: Place, form: Reading) -> object:
        """A box that is not ticked is not sent."""
        return bool(form.all(at.name))


@dataclass(frozen=True)
class Text(Widget):
    """Text. ``optional``: empty means null. ``long``: of more than a line."""

    long: bool = False
    optional: bool = False

    def view(self, at: Place, value: object) -> Node:
        """A text field; one that keeps line breaks if there are any."""
        text = _text(value)
        return Node(at, "text", value=text, long=self.long or "\n" in text)

    def read(self, at: Place, form: Reading) -> object:
        """The text as it is."""
        return form.one(at.name) or (None if self.optional else "")


@dataclass(frozen=True)
class Number(Widget):
    """A number. Empty means null, or the default where null is none."""

    whole: bool = False
    optional: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)

    def view(self, at: Place, value: object) -> Node:
        """A field for digits."""
        return Node(at, "number", value=_text(value), facts=dict(self.facts))

    def read(self, at: Place, form: Reading) -> object:
        """The number, or what was typed instead."""
        text = form.one(at.name).strip()
        if not text:
            return None if self.optional else LEFT_OUT
        if _WHOLE.fullmatch(text):
            return int(text)
        if not self.whole and _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
            return number
        return text


@dataclass(frozen=True)
class Choice(Widget):
    """One of several values, each with the word that stands for it in the form."""

    values: Mapping[str, object]
    labels: Mapping[str, str] = field(default_factory=dict)

    def view(self, at: Place, value: object) -> Node:
        """A list to pick from; a value that is none of them is shown as well, to be refused by name."""
        options = [Option(word, self.labels.get(word, word), known == value) for word, known in self.values.items()]
        if not any(option.selected for option in options):
            options.append(Option(_text(value), f"{_text(value)} (not possible here)", True))
        return Node(at, "choice", options=options)

    def read(self, at: Place, form: Reading) -> object:
        """The value; an unknown word is itself."""
        word = form.one(at.name)
        return self.values.get(word, word) if form.all(at.name) else LEFT_OUT


@dataclass(frozen=True)
class Several(Widget):
    """Any number of some words, in the order in which the document has them."""

    words: Sequence[str]

    def view(self, at: Place, value: object) -> Node:
        """Checkboxes, the ticked ones first so that their order is kept."""
        chosen = [_text(word) for word in value] if isinstance(value, list) else []
        options = [Option(word, word, True) for word in chosen]
        options += [Option(word, word) for word in self.words if word not in chosen]
        return Node(at, "several", options=options)

    def read(self, at: Place, form: Reading) -> object:
        """The ticked ones."""
        return list(form.all(at.name))


class Lines(Widget):
    """A list of strings."""

    def view(self, at: Place, value: object) -> Node:
        """One a line."""
        return Node(at, "lines", value=to_lines(map(_text, value)) if isinstance(value, list) else _text(value))

    def read(self, at: Place, form: Reading) -> object:
        """The lines."""
        return from_lines(form.one(at.name))


class Json(Widget):
    """Whatever no other field fits."""

    def view(self, at: Place, value: object) -> Node:
        """The JSON text."""
        return Node(at, "json", value=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    def read(self, at: Place, form: Reading) -> object:
        """The value, or what was typed if it is no JSON."""
        text = form.one(at.name)
        if not text.strip():
            return LEFT_OUT
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
