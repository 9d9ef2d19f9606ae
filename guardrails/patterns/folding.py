"""The folding table: what a reader sees as the same character, matched as the same character.

Folding is per code point (character -> string), never a normalisation of strings: NFKC of chunks is not NFKC of the
text. ASCII folds to itself; decimal digits fold by value; look-alike letters to the ASCII letter they resemble;
marks and ignorable characters to nothing. More than ``MAX_RUN`` characters in a row that fold to nothing end every
match: they fold to the sentinel, once, or a million zero-width characters would be held as part of a card number.

The automaton folds inside its edges; ``Folder`` is the same fold for text at rest, with the map back to offsets.
"""

from __future__ import annotations

import functools
import json
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from guardrails.patterns.charset import SENTINEL, Ranges

MAX_RUN = 16
"""Characters in a row that may fold to nothing inside a match."""


@dataclass(frozen=True, slots=True)
class Table:
    """The shipped table.

    ``odd``: every character that does not fold to exactly one character. ``by_page``: the characters that do not fold
    to themselves, by code point divided by 1,024.
    """

    version: int
    fold: dict[str, str]
    odd: frozenset[str]
    word: Ranges
    one_to_one: dict[int, str]
    by_page: dict[int, list[str]]


@functools.cache
def table() -> Table:
    """The folding table, read once per process."""
    raw = json.loads(Path(__file__).with_name("folding_v1.json").read_text("ascii"))
    fold: dict[str, str] = {SENTINEL: "\ufffd"}
    for target, chars in raw["fold"].items():
        for char in chars:
            fold[char] = target
    for lo, hi in raw["ignorable"]:
        for code in range(lo, hi + 1):
            fold[chr(code)] = ""
    by_page: dict[int, list[str]] = defaultdict(list)
    for char in fold:
        by_page[ord(char) >> 10].append(char)
    return Table(
        version=raw["version"],
        fold=fold,
        odd=frozenset(char for char, target in fold.items() if len(target) != 1),
        word=tuple((lo, hi) for lo, hi in raw["word"]),
        one_to_one={ord(char): target for char, target in fold.items() if len(target) == 1},
        by_page=dict(by_page),
    )


def fold_plain(text: str) -> str:
    """The fold of a short text without bookkeeping, for rules' own words: no run limit, no offsets."""
    fold = table().fold
    return text if text.isascii() else "".join(fold.get(char, char) for char in text)


@dataclass(slots=True)
class Folded:
    """Folded text with the way back.

    ``starts[i]`` is the offset in the original (plus ``base``) of the character that folded character i came from,
    or ``starts`` is None when offsets are the same. ``run`` counts the ignorable characters at the end.
    """

    text: str
    starts: list[int] | None
    base: int
    length: int
    run: int

    def start(self, i: int) -> int:
        """Original offset of folded character ``i`` (or of the end, for ``i == len(text)``)."""
        if self.starts is None:
            return self.base + i
        return self.starts[i] if i < len(self.starts) else self.base + self.length

    def index(self, offset: int) -> int:
        """The first folded character that comes from original offset ``offset`` or later."""
        if self.starts is None:
            return offset - self.base
        return bisect_left(self.starts, offset)

    def end(self, i: int) -> int:
        """Original offset just behind the character that folded character ``i - 1`` came from."""
        if self.starts is None:
            return self.base + i
        return self.starts[i - 1] + 1


def fold_text(text: str, *, base: int = 0, run: int = 0) -> Folded:
    """Fold with offsets. ``run``: how many ignorable characters stand directly before the text."""
    if text.isascii():
        return Folded(text, None, base, len(text), 0 if text else run)
    known = table()
    if known.odd.isdisjoint(text):
        return Folded(text.translate(known.one_to_one), None, base, len(text), 0 if text else run)
    out: list[str] = []
    starts: list[int] = []
    fold = known.fold
    for offset, char in enumerate(text):
        target = fold.get(char, char)
        if target:
            run = 0
            out.append(target)
            starts.extend([base + offset] * len(target))
        else:
            run += 1
            if run == MAX_RUN + 1:
                out.append(SENTINEL)
                starts.append(base + offset)
    return Folded("".join(out), starts, base, len(text), min(run, MAX_RUN + 1))


def joined(head: Folded, text: str) -> Folded:
    """``head`` with more text behind it; costs what the new text costs, however long the head is."""
    more = fold_text(text, base=head.base + head.length, run=head.run)
    length = head.length + len(text)
    if head.starts is None and more.starts is None:
        return Folded(head.text + more.text, None, head.base, length, more.run)
    starts = head.starts if head.starts is not None else list(range(head.base, head.base + head.length))
    tail = more.starts if more.starts is not None else range(more.base, more.base + more.length)
    return Folded(head.text + more.text, [*starts, *tail], head.base, length, more.run)


def without_head(folded: Folded, offset: int) -> Folded:
    """What is left of a folded text when everything before original offset ``offset`` is dropped."""
    at = folded.index(offset)
    starts = None if folded.starts is None else folded.starts[at:]
    return Folded(folded.text[at:], starts, offset, folded.length - (offset - folded.base), folded.run)


def fold_end(text: str, before: str, run: int) -> tuple[str, int]:
    """The last folded character of a text, and how many ignorable ones end it (``MAX_RUN + 1`` at the most).

    ``before`` and ``run``: the same of what stands directly before the text.
    """
    fold = table().fold
    ignorables = 0
    for char in reversed(text):
        folded = fold.get(char, char)
        if folded:
            before, run = folded[-1], 0
            break
        ignorables += 1
    run += ignorables
    return (before, run) if run <= MAX_RUN else (SENTINEL, MAX_RUN + 1)


def raw_text(text: str, *, base: int = 0) -> Folded:
    """The same shape for rules that do not fold. The sentinel itself, should a text contain it, is replaced."""
    return Folded(text.replace(SENTINEL, "\ufffd"), None, base, len(text), 0)


def skewed(text: str) -> bool:
    """Does any character of the text fold to no, or to several, characters?"""
    return not text.isascii() and not table().odd.isdisjoint(text)


def trailing_ignorables(text: str) -> int:
    """How many characters at the end of a text fold to nothing."""
    fold, count = table().fold, 0
    for char in reversed(text):
        if fold.get(char, char):
            break
        count += 1
    return count
