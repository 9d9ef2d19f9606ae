"""JSON as models and clients write it: cut short, two objects in a row, the same field twice.

Exists because readers differ in what they make of such texts, and a value may hide behind their difference: behind an
escape that a parser would have decoded, or in the first of two fields of which it keeps the last. Protects the rule
that a text is looked at as the values that it says only where every reader finds the same ones in it; any other is also
looked at with every escape read that any reader might read, whatever its quotes say. Pure.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Container, Generator, Hashable, Iterable, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, cast

from guardrails.findings import Action, Finding, Mode
from guardrails.policy import compile_policy
from streaming.core.gate import Gate
from streaming.core.json_text import JsonChannel
from streaming.core.text import REPLACEMENT

_LETS_ALL_PASS = compile_policy({"policy": "nothing", "guardrails": []})
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|/)")


_NUMBER = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(-?[0-9][0-9.eE+-]*)')
"""A number of JSON, or a string, in which there are none."""
_BARE = re.compile(r"[:,\[]\s*+-?[0-9]")

_HALF = r"\\++u([Dd][%s][0-9A-Fa-f]{2})"
_ANY_ESCAPE = re.compile(
    rf"""(?<!\\)(?:{_HALF % "89ABab"}{_HALF % "C-Fc-f"}|\\++(?:u([0-9A-Fa-f]{{4}})|x([0-9A-Fa-f]{{2}})|(["'/bfnrt])))"""
)
"""An escape however often it was escaped itself: a pair, one by its number, one by its letter. A run of backslashes is
looked at from its start only and never given back, or a long one that is no escape would cost the square of its length.
"""
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_BEFORE = 64
"""Characters in front of a value of which the escapes are opened with it: words that say what it is stand there."""


class _Twice(ValueError):
    """An object says one field twice."""


def one_meaning(text: str) -> object:
    """What a text says, where it is JSON of one meaning; None where it is none, or says a field twice."""
    try:
        return cast("object", json.loads(text, object_pairs_hook=_once)) if text else None
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice
    return found


def is_json(text: str) -> bool:
    """Whether a parser takes it."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def numbers_with(text: str, found: Sequence[Finding]) -> list[tuple[int, int]]:
    """Where numbers of JSON stand in which something was found."""
    spans = sorted((finding.start, finding.end) for finding in found)
    starts = [start for start, _ in spans]
    ends = list(accumulate((end for _, end in spans), max))
    out: list[tuple[int, int]] = []
    for number in _NUMBER.finditer(text):
        known = bisect_left(starts, number.end())
        if number[1] and known and ends[known - 1] > number.start():
            out.append(number.span())
    return out


def has_numbers(text: str) -> bool:
    """Whether a number may stand in JSON: one that is hidden has to become a string."""
    return _BARE.search(text) is not None


def has_escapes(text: str) -> bool:
    """Whether something may stand in it in a spelling that a rule does not know."""
    return _ESCAPE.search(text) is not None


def unescaped(text: str, channel: JsonChannel | None = None) -> str:
    """The same JSON, or what is left of it, with the escapes that JSON needs and no others.

    ``channel``: one that puts values back.
    """
    channel, gate = channel or JsonChannel(), Gate(_LETS_ALL_PASS)
    shown = channel.encode(gate.feed(channel.decode(text)))
    shown += channel.encode(gate.feed(channel.decode_rest()))
    return shown + channel.encode(gate.finish()) + channel.finish()


class _Escape(NamedTuple):
    """Where an escape stands in a text, what it says, and where that stands in the text as it is read."""

    start: int
    end: int
    says: str
    at: int


def _escapes(text: str) -> tuple[str, list[_Escape]]:
    """The text with every escape read, and where they were."""
    parts: list[str] = []
    found: list[_Escape] = []
    at = length = 0
    for match in _ANY_ESCAPE.finditer(text):
        high, low, four, two, letter = match.groups()
        if high:
            says = chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
        else:
            says = _LETTERS.get(letter, letter) if letter else chr(int(four or two, 16))
        says = REPLACEMENT if says == "\0" or "\ud800" <= says <= "\udfff" else says
        length += match.start() - at
        found.append(_Escape(match.start(), match.end(), says, length))
        parts += (text[at : match.start()], says)
        at, length = match.end(), length + 1
    return "".join((*parts, text[at:])), found


class _Places:
    """Where a place of a text as it is read is in one of which some escapes are left; it costs no more for many."""

    __slots__ = ("_at", "_longer")

    def __init__(self, left: Sequence[_Escape]) -> None:
        self._at = [escape.at for escape in left]
        self._longer = [0, *accumulate(escape.end - escape.start - 1 for escape in left)]

    def written(self, at: int) -> int:
        return at + self._longer[bisect_left(self._at, at)]


class _Spans:
    """Spans of several sorts, to say of any other whether one of its sort covers it; it costs no more for many."""

    __slots__ = ("_by_sort",)

    def __init__(self, spans: Iterable[tuple[Hashable, int, int]]) -> None:
        self._by_sort: dict[Hashable, tuple[list[int], list[int]]] = {}
        for sort, start, end in sorted(spans, key=itemgetter(1)):
            starts, ends = self._by_sort.setdefault(sort, ([], []))
            starts.append(start)
            ends.append(max(end, ends[-1]) if ends else end)  # the furthest of all that begin no later

    def cover(self, sort: Hashable, start: int, end: int) -> bool:
        starts, ends = self._by_sort.get(sort, ((), ()))
        known = bisect_right(starts, start)
        return known > 0 and ends[known - 1] >= end


def _numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    """What is in any of these half-open ranges; each number is counted once, however they overlap."""
    found: set[int] = set()
    after = 0
    for start, end in sorted(ranges):
        found.update(range(max(start, after), end))
        after = max(after, end)
    return found


def _does(finding: Finding) -> int:
    """How much is done about it: nothing, a warning, it is hidden, the text goes nowhere."""
    if finding.mode is not Mode.BLOCK:
        return 0
    return {Action.WARN: 1, Action.BLOCK: 3}.get(finding.action, 2)


class _Text:
    """A text with its escapes, and what was found in it as it is and as it is read."""

    def __init__(self, text: str, escapes: list[_Escape], found: Sequence[Finding]) -> None:
        self.text = text
        self.escapes = escapes
        self._found = [finding for finding in found if finding.kind != "length"]
        self._at = [escape.at for escape in escapes]

    def missed(self, there: Sequence[Finding], opened: Container[int]) -> list[Finding]:
        """What is found in the text as it is read, and not in the one with these escapes opened: ``there`` is."""
        places = _Places([e for number, e in enumerate(self.escapes) if number not in opened])
        spans = _Spans(((f.guardrail, f.rule), f.start, f.end) for f in there)
        return [
            f for f in self._found
            if not spans.cover((f.guardrail, f.rule), places.written(f.start), places.written(f.end))
        ]  # fmt: skip

    def around(self, missed: Sequence[Finding]) -> set[int]:
        """The escapes in these findings and in the words before them."""
        at = self._at
        return _numbers((bisect_left(at, f.start - _BEFORE), bisect_left(at, f.end)) for f in missed)

    def kept(self, there: Sequence[Finding], missed: Sequence[Finding]) -> set[int]:
        """The escapes that are part of a value only as they are written, or its border.

        ``there``: what is found in the text as it is. ``missed``: what is not, of which one that does more than the
        value has those that it needs itself.
        """
        starts, ends = [e.start for e in self.escapes], [e.end for e in self.escapes]
        shorter = [0, *accumulate(e.end - e.start - 1 for e in self.escapes)]

        def read(at: int, within: int) -> int:
            """Where a place of the text is in the text as it is read; ``within`` an escape at its start or its end."""
            known = bisect_right(ends, at)
            inside = known < len(starts) and starts[known] < at
            return self._at[known] + within if inside else at - shorter[known]

        spans = _Spans((does, f.start, f.end) for f in self._found for does in range(_does(f) + 1))
        lost = [
            f for f in there
            if f.kind != "length" and not spans.cover(_does(f), read(f.start, 0), read(f.end, 1))
        ]  # fmt: skip
        out: set[int] = set()
        for does in sorted({_does(f) for f in lost}):
            own = _numbers((bisect_left(ends, f.start), bisect_right(starts, f.end)) for f in lost if _does(f) == does)
            more = (f for f in missed if _does(f) > does)
            out |= own - _numbers((bisect_left(self._at, f.start - 1), bisect_right(self._at, f.end)) for f in more)
        return out

    def opened(self, numbers: Iterable[int]) -> str:
        """The text with these escapes read."""
        parts: list[str] = []
        at = 0
        for number in sorted(numbers):
            escape = self.escapes[number]
            parts += (self.text[at : escape.start], escape.says)
            at = escape.end
        return "".join((*parts, self.text[at:]))


def laid_open(text: str, looked: Callable[[str], Sequence[Finding]]) -> str:
    """A text without those of its escapes that hide something from a rule; all others stay as they are.

    So do those without which something would not be found that is found now. ``looked``: what the rules find in a text.
    """
    work = _laying_open(text)
    try:
        asked = next(work)
        while True:
            asked = work.send(looked(asked))
    except StopIteration as over:
        return cast("str", over.value)


async def laid_open_in_turns(text: str, looked: Callable[[str], Awaitable[Sequence[Finding]]]) -> str:
    """The same where looking gives way to others."""
    work = _laying_open(text)
    try:
        asked = next(work)
        while True:
            asked = work.send(await looked(asked))
    except StopIteration as over:
        return cast("str", over.value)


def _laying_open(text: str) -> Generator[str, Sequence[Finding], str]:
    """Yields the texts that are to be looked at."""
    if "\\" not in text:
        return text
    read, escapes = _escapes(text)
    if not escapes or not (found := (yield read)):
        return text
    both, there = _Text(text, escapes, found), (yield text)
    if not (missed := both.missed(there, ())):
        return text
    kept = both.kept(there, missed)
    opened = both.around(missed) - kept
    said = both.opened(opened)
    if opened and not both.missed((yield said), opened):
        return said
    return both.opened(number for number in range(len(escapes)) if number not in kept)
