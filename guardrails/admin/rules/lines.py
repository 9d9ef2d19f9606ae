r"""A list of strings in one text field: one a line, and not one of them changed by being shown.

A string that a line cannot carry (a line break, an invisible character, blanks at its ends, nothing at all) is written
``json:"two\nlines"``. Plain quotes are left alone: in a pattern they mean themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

MARK = "json:"


def to_lines(texts: Iterable[str]) -> str:
    """The texts, one a line."""
    return "\n".join(map(_line, texts))


def from_lines(field: str) -> list[str]:
    """The texts of a field; blank lines are none."""
    lines = (line.strip() for line in field.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return [_text(line) for line in lines if line]


def _line(text: str) -> str:
    if text and text == text.strip() and text.isprintable() and not text.startswith(MARK):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return MARK + "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in quoted)


def _text(line: str) -> str:
    if line.startswith(MARK):
        try:
            text = json.loads(line.removeprefix(MARK))
        except ValueError:
            return line
        if isinstance(text, str):
            return text
    return line
