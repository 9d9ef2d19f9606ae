"""The timeline of one answer as a drawing: when text arrived, when it was settled, what was held in between.

Exists so that the page can show the price of the gate beside its work. Protects the rule that the figures are those
that were measured: nothing here is smoothed or guessed, a drawing unit is a millisecond or a character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streaming.pace import points
from streaming.presentation import count, milliseconds, whole_number


@dataclass(frozen=True, slots=True)
class Mark:
    """One arrival or release in the drawing's units."""

    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class TimelineView:
    """Arrivals above the line, releases below it, what is held between them. Drawn in a box of 1000 x 100."""

    arrivals: Sequence[Mark]
    releases: Sequence[Mark]
    held: str
    first_token: str
    first_release: str
    total: str
    longest_hold: str
    calls: int
    audit_rows: int
    naive_calls: int
    empty: bool = False

    WIDTH = 1000
    MIDDLE = 50
    REACH = 32
    BAND = 12

    @classmethod
    def of(cls, event: Mapping[str, object]) -> TimelineView:
        """From a ``timing`` event: [milliseconds, characters] pairs in order."""
        arrivals, releases = points(event.get("arrivals")), points(event.get("releases"))
        end = max([ms for ms, _ in arrivals + releases], default=0) or 1
        tallest = max([chars for _, chars in arrivals + releases], default=1) or 1
        return cls(
            arrivals=[_mark(ms, chars, end, tallest, up=True) for ms, chars in arrivals],
            releases=[_mark(ms, chars, end, tallest, up=False) for ms, chars in releases],
            held=_held_outline(arrivals, releases, end),
            first_token=milliseconds(arrivals[0][0] if arrivals else None),
            first_release=milliseconds(releases[0][0] if releases else None),
            total=milliseconds(end if arrivals or releases else None),
            longest_hold=count(max((held for _, held in _held(arrivals, releases)), default=0), "character"),
            calls=whole_number(event.get("calls")),
            audit_rows=whole_number(event.get("audit_rows")),
            naive_calls=whole_number(event.get("naive_calls")),
            empty=not arrivals,
        )


def _mark(ms: int, chars: int, end: int, tallest: int, *, up: bool) -> Mark:
    # By square root: one long release after a hold must not flatten everything else.
    height = round(max(2.0, TimelineView.REACH * (chars / tallest) ** 0.5), 1)
    off = TimelineView.BAND + 2
    return Mark(
        x=round(TimelineView.WIDTH * ms / end, 1),
        y=round(TimelineView.MIDDLE - off - height, 1) if up else TimelineView.MIDDLE + off,
        height=height,
    )


def _held(arrivals: Sequence[tuple[int, int]], releases: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(ms, characters held from then on), in order; at one instant arrivals count before releases."""
    changes = sorted([(ms, 0, chars) for ms, chars in arrivals] + [(ms, 1, -chars) for ms, chars in releases])
    out: list[tuple[int, int]] = []
    held = 0
    for ms, _, change in changes:
        held = max(0, held + change)
        if out and out[-1][0] == ms:
            out[-1] = (ms, held)
        else:
            out.append((ms, held))
    return out


def _held_outline(arrivals: Sequence[tuple[int, int]], releases: Sequence[tuple[int, int]], end: int) -> str:
    """``points`` of a step polygon around the middle line: thick where much is held."""
    steps = _held(arrivals, releases)
    most = max((held for _, held in steps), default=0)
    if not most:
        return ""
    upper: list[str] = []
    lower: list[str] = []
    before = 0.0
    for ms, held in steps:
        x = round(TimelineView.WIDTH * ms / end, 1)
        half = round(TimelineView.BAND * held / most, 2)
        for y in (before, half):
            upper.append(f"{x},{TimelineView.MIDDLE - y}")
            lower.append(f"{x},{TimelineView.MIDDLE + y}")
        before = half
    return " ".join(upper + lower[::-1])
