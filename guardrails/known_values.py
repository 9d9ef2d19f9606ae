"""Values that were masked in one text of a request, found again in its other texts.

Exists because a rule may need the words around a value: "my ssn is 123456789" has one, "noted 123456789" in the next
turn has none, and the history of a conversation has both. Protects the rule that a value which has a placeholder in a
request stands nowhere else in it, whatever stands around it there.

A text is read as words, runs of letters and digits with their percent-encoding undone, or the escapes of JSON and of
program code. A value is found where its words follow each other with no more between them than the value has (one sign
at least), so that other dashes, another case, wide digits and ``%40`` for ``@`` make no difference. What is longer than
the value at its first or last word is another word. Costs what the text costs, however many values are known. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import le
from urllib.parse import unquote

SHORTEST = 5
"""Characters of the shortest value that is looked for: shorter ones stand in too much."""

_WORDS = re.compile(r"[^\W_]+")
_LETTER = "3[0-9]|4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa]"
"""Letters and digits of ASCII by their numbers."""
_ENCODED_LETTER = rf"%(?:{_LETTER}|[89A-Fa-f][0-9A-Fa-f])"
_ENCODED_WORDS = re.compile(rf"((?:[^\W_]|{_ENCODED_LETTER})+)|%[0-9A-Fa-f]{{2}}")
_BACKSLASHES = r"(?<!\\)\\++"
"""A whole run of them: looked at from its start only and never given back, or a long one would cost its square."""
_ESCAPE = re.compile(_BACKSLASHES + r"(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|[\"'/bfnrt])")
_HEX = "[0-9A-Fa-f]"
_BEYOND = rf"00[C-Fc-f]{_HEX}|[02][1-9A-Fa-f]{_HEX}{{2}}|[13-9A-Fa-f]{_HEX}{{3}}"
_ESCAPED_LETTER = rf"{_BACKSLASHES}(?:(?:u00|x)(?:{_LETTER})|u(?:{_BEYOND}))"
_ESCAPED_WORDS = re.compile(rf"((?:[^\W_]|{_ESCAPED_LETTER})+)|{_ESCAPE.pattern}")


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a text: a half-open range of code points, and how it is compared."""

    start: int
    end: int
    said: str


def _compared(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _plain_words(text: str) -> list[_Word]:
    return [_Word(m.start(), m.end(), _compared(m[0])) for m in _WORDS.finditer(text)]


def _encoded_words(text: str) -> list[_Word]:
    found = ((m.start(1), m.end(1), m[1]) for m in _ENCODED_WORDS.finditer(text) if m[1] is not None)
    return [_Word(start, end, _compared(unquote(said))) for start, end, said in found]


def _escaped_words(text: str) -> list[_Word]:
    found = ((m.start(1), m.end(1), m[1]) for m in _ESCAPED_WORDS.finditer(text) if m[1] is not None)
    return [_Word(start, end, _compared(_unescaped(said))) for start, end, said in found]


def _unescaped(text: str) -> str:
    """The text with its escapes undone, of which those by a letter are no words: a sign each."""
    return _ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else ".", text)


def _between(text: str, words: Sequence[_Word]) -> Iterator[int]:
    """How many signs stand between one word and the next."""
    for before, after in pairwise(words):
        yield len(unquote(_unescaped(text[before.end : after.start])))


@dataclass(frozen=True, slots=True)
class _Value:
    """How many signs may stand between its words, and what sort of value it is."""

    gaps: tuple[int, ...]
    sort: str


class KnownValues:
    """The values of one request, to be found in any of its texts.

    ``values``: pairs of a value and its sort, which ``replaced`` hands on.
    """

    __slots__ = ("_lengths", "_values")

    def __init__(self, values: Iterable[tuple[str, str]]) -> None:
        self._values: dict[tuple[str, ...], _Value] = {}
        self._lengths: dict[str, list[int]] = {}  # by the first word: how many words such values have, most first
        for value, sort in values:
            words = _encoded_words(value) if "%" in value else _escaped_words(value)
            if not words or words[-1].end - words[0].start < SHORTEST:
                continue
            said = tuple(word.said for word in words)
            self._values[said] = _Value(tuple(max(1, gap) for gap in _between(value, words)), sort)
            lengths = self._lengths.setdefault(said[0], [])
            if len(said) not in lengths:
                lengths.append(len(said))
                lengths.sort(reverse=True)

    def __len__(self) -> int:
        """How many values are looked for."""
        return len(self._values)

    def replaced(self, text: str, apart: Sequence[tuple[int, int]], made: Callable[[str, str], str]) -> str:
        """The text with ``made(what stands there, sort)`` in the place of every value outside the ranges ``apart``."""
        if not self._values:
            return text
        spans = self._spans(text, _plain_words(text))
        if "%" in text:
            spans += self._spans(text, _encoded_words(text))
        if "\\" in text:
            spans += self._spans(text, _escaped_words(text))
        taken = sorted(apart)
        out: list[str] = []
        at = 0
        for start, end, sort in sorted(spans, key=lambda span: (span[0], -span[1])):
            near = bisect_left(taken, (end, 0))
            if start < at or (near and taken[near - 1][1] > start):
                continue
            out += (text[at:start], made(text[start:end], sort))
            at = end
        return "".join((*out, text[at:]))

    def _spans(self, text: str, words: list[_Word]) -> list[tuple[int, int, str]]:
        out: list[tuple[int, int, str]] = []
        after = 0
        for at, word in enumerate(words):
            for length in self._lengths.get(word.said, ()) if at >= after else ():
                here = words[at : at + length]
                value = self._values.get(tuple(one.said for one in here))
                if value is not None and all(map(le, _between(text, here), value.gaps)):
                    after = at + length
                    out.append((word.start, here[-1].end, value.sort))
                    break
        return out
