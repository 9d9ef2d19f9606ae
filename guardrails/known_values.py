"""Values that were masked in one text of a request, found again in its other texts.

Exists because a rule may need the words around a value: "my ssn is 123456789" has one, "noted 123456789" in the next
turn has none, and the history of a conversation has both. Protects the rule that a value which has a placeholder in a
request stands nowhere else in it, whatever stands around it there.

A text is read as words, runs of letters and digits with their percent-encoding undone, or the escapes of JSON and of
program code. A value is found where its words follow each other with no more between them than the value has (one sign
at least), so that other dashes, another case, wide digits and ``%40`` for ``@`` make no difference. What is longer than
the value at its first or last word is another word. Costs what the text costs, however many values are known; values
whose words repeat each other, what the longest of them costs for every word. Pure.
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


class _Gaps(dict[int, int]):
    """How many signs stand before a word, worked out where somebody asks."""

    def __init__(self, text: str, words: Sequence[_Word]) -> None:
        super().__init__()
        self._text = text
        self._words = words

    def __missing__(self, at: int) -> int:
        found = self[at] = next(_between(self._text, self._words[at - 1 : at + 1]))
        return found


def _between(text: str, words: Sequence[_Word]) -> Iterator[int]:
    """How many signs stand between one word and the next."""
    for before, after in pairwise(words):
        yield len(unquote(_unescaped(text[before.end : after.start])))


@dataclass(slots=True)
class _Step:
    """A word that values begin with or go on with. ``gap``: how many signs may stand before it, in any of them."""

    next: dict[str, _Step]
    gap: int = 0
    gaps: tuple[int, ...] = ()
    sort: str = ""
    """Of the value that ends here, and how many signs may stand between its words; empty: none does."""


class KnownValues:
    """The values of one request, to be found in any of its texts.

    ``values``: pairs of a value and its sort, which ``replaced`` hands on.
    """

    __slots__ = ("_count", "_first")

    def __init__(self, values: Iterable[tuple[str, str]] = ()) -> None:
        self._first: dict[str, _Step] = {}
        self._count = 0
        for value, sort in values:
            self.add(value, sort)

    def __len__(self) -> int:
        """How many values are looked for."""
        return self._count

    def add(self, value: str, sort: str) -> None:
        """One more of them. Costs what the value costs, however many there are."""
        words = _encoded_words(value) if "%" in value else _escaped_words(value)
        if not words or words[-1].end - words[0].start < SHORTEST:
            return
        gaps = tuple(max(1, gap) for gap in _between(value, words))
        steps, step = self._first, _Step({})
        for word, gap in zip(words, (0, *gaps), strict=True):
            step = steps.setdefault(word.said, _Step({}))
            step.gap = max(step.gap, gap)
            steps = step.next
        self._count += not step.sort
        step.gaps, step.sort = tuple(map(max, gaps, step.gaps)) if step.sort else gaps, sort

    def replaced(self, text: str, apart: Sequence[tuple[int, int]], made: Callable[[str, str], str]) -> str:
        """The text with ``made(what stands there, sort)`` in the place of every value outside the ranges ``apart``."""
        if not self._count:
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
        """The longest value that begins at each word, behind the one before."""
        out: list[tuple[int, int, str]] = []
        gaps = _Gaps(text, words)
        at = 0
        while at < len(words):
            last, sort, end = at, "", at
            steps = self._first
            while end < len(words) and (step := steps.get(words[end].said)) is not None:
                if end > at and gaps[end] > step.gap:
                    break
                if step.sort and all(map(le, map(gaps.__getitem__, range(at + 1, end + 1)), step.gaps)):
                    last, sort = end, step.sort
                steps = step.next
                end += 1
            if sort:
                out.append((words[at].start, words[last].end, sort))
                at = last
            at += 1
        return out
