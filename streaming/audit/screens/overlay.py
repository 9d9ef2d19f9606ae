"""Findings laid over the text that the reader saw. Pure.

Exists because a finding names places of the original text, and what is stored is the visible one, where placeholders
stand for what was hidden. Protects the rule that a mark never lies: places are carried over only if placeholders and
hiding findings fit each other one to one; where they do not, the text is shown without marks and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of visible text under the same findings. ``numbers``: of the findings; ``chip``: it is a placeholder."""

    text: str
    numbers: tuple[int, ...] = ()
    chip: bool = False

    @property
    def chars(self) -> int:
        """Its length in code points."""
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a finding is in the original text, and whether what is there was hidden."""

    number: int
    start: int
    end: int
    hidden: bool


@dataclass(frozen=True, slots=True)
class Overlay:
    """The visible text in runs. ``placed``: the findings could be carried over; ``beyond``: those behind its end."""

    segments: Sequence[Segment]
    placed: bool
    beyond: Sequence[int] = ()


def overlay(text: str, redactions: Iterable[tuple[int, str]], hits: Sequence[Hit]) -> Overlay:
    """``text`` in runs, cut at placeholders and at the edges of findings.

    ``redactions``: [offset in ``text``, placeholder] pairs; one that does not stand there is not taken for one.
    """
    chips = [(at, at + len(label)) for at, label in sorted(redactions) if label and text[at : at + len(label)] == label]
    chips = [one for i, one in enumerate(chips) if i == 0 or one[0] >= chips[i - 1][1]]
    hidden = _merged([(hit.start, hit.end) for hit in hits if hit.hidden and hit.end > hit.start])
    moves = _moves(chips, hidden, len(text))
    if moves is None:
        return Overlay(_cut(text, chips, {}), placed=not hits)
    marks: dict[int, Span] = {}
    beyond: list[int] = []
    for hit in hits:
        start, end = _carried(hit.start, moves, at_end=False), _carried(hit.end, moves, at_end=True)
        start, end = min(start, len(text)), min(end, len(text))
        if end > start:
            marks[hit.number] = (start, end)
        else:
            beyond.append(hit.number)
    return Overlay(_cut(text, chips, marks), placed=True, beyond=beyond)


def _merged(spans: list[Span]) -> list[Span]:
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start < out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def _moves(chips: list[Span], hidden: list[Span], length: int) -> list[tuple[Span, Span]] | None:
    """Original and visible span of each placeholder; None if they do not fit one to one.

    Hidden spans behind the end of the visible text are left out: a block or an interruption came first.
    """
    moves, shift = [], 0
    for (at, done), (start, end) in zip(chips, hidden, strict=False):
        if start + shift != at:
            return None
        moves.append(((start, end), (at, done)))
        shift += (done - at) - (end - start)
    if len(chips) > len(hidden):
        return None
    if any(start + shift < length for start, _ in hidden[len(chips) :]):
        return None
    return moves


def _carried(place: int, moves: Sequence[tuple[Span, Span]], *, at_end: bool) -> int:
    """A place of the original text in the visible one; inside of what was hidden, the placeholder's near edge."""
    shift = 0
    for (start, end), (at, done) in moves:
        if place < start or (at_end and place == start):
            break
        if place < end or (at_end and place == end):
            return done if at_end else at
        shift = done - end
    return place + shift


def _cut(text: str, chips: Sequence[Span], marks: Mapping[int, Span]) -> list[Segment]:
    edges = {0, len(text)}
    for start, end in (*chips, *marks.values()):
        edges |= {start, end}
    ordered = sorted(edges)
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for number, (start, end) in marks.items():
        begins.setdefault(start, []).append(number)
        ends.setdefault(end, []).append(number)
    chip_from = {start: end for start, end in chips}
    out: list[Segment] = []
    over: set[int] = set()
    chip_end = 0
    for start, end in pairwise(ordered):
        over = (over - set(ends.get(start, ()))) | set(begins.get(start, ()))
        chip_end = chip_from.get(start, chip_end)
        out.append(Segment(text[start:end], tuple(sorted(over)), chip=start < chip_end))
    return out
