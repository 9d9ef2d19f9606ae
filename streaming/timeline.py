"""The timeline of one answer as a drawing: when text arrived, when it was settled, what was held in between.

Exists so that the page can show the price of the gate beside its work. Protects two rules. The figures are those that
were measured: nothing here is smoothed or guessed. And however long an answer is, its drawing is small: what falls on
one column of the drawing is one mark, as high as the highest there, and all marks of a kind are one path (a thousand
elements of a long answer kept the page busy for longer than a frame may take).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streaming.pace import points
from streaming.presentation import count, milliseconds, whole_number


@dataclass(frozen=True, slots=True)
class Mark:
    """The arrivals or the releases of one column, in the drawing's units."""

    x: int
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
    COLUMN = 2
    MIDDLE = 50
    REACH = 32
    BAND = 12

    @property
    def arrivals_path(self) -> str:
        """All of them as a path."""
        return _path(self.arrivals)

    @property
    def releases_path(self) -> str:
        """All of them as a path."""
        return _path(self.releases)

    @classmethod
    def of(cls, event: Mapping[str, object]) -> TimelineView:
        """From a ``timing`` event: [milliseconds, characters] pairs in order."""
        arrivals, releases = points(event.get("arrivals")), points(event.get("releases"))
        end = max([ms for ms, _ in arrivals + releases], default=0) or 1
        tallest = max([chars for _, chars in arrivals + releases], default=1) or 1
        return cls(
            arrivals=_marks(arrivals, end, tallest, up=True),
            releases=_marks(releases, end, tallest, up=False),
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


def _marks(found: Sequence[tuple[int, int]], end: int, tallest: int, *, up: bool) -> list[Mark]:
    highest: dict[int, int] = {}
    for ms, chars in found:
        x = _column(ms, end)
        highest[x] = max(highest.get(x, 0), chars)
    return [_mark(x, chars, tallest, up=up) for x, chars in highest.items()]


def _column(ms: int, end: int) -> int:
    """Where its column begins."""
    return TimelineView.WIDTH * ms // end // TimelineView.COLUMN * TimelineView.COLUMN


def _mark(x: int, chars: int, tallest: int, *, up: bool) -> Mark:
    # By square root: one long release after a hold must not flatten everything else.
    height = round(max(2.0, TimelineView.REACH * (chars / tallest) ** 0.5), 1)
    off = TimelineView.BAND + 2
    return Mark(x=x, y=round(TimelineView.MIDDLE - off - height, 1) if up else TimelineView.MIDDLE + off, height=height)


def _path(marks: Sequence[Mark]) -> str:
    width = TimelineView.COLUMN
    return "".join(f"M{mark.x},{mark.y:g}h{width}v{mark.height:g}h-{width}z" for mark in marks)


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
    """``points`` of a step polygon around the middle line: thick where much is held. A column has two: most, last."""
    steps = _held(arrivals, releases)
    most = max((held for _, held in steps), default=0)
    if not most:
        return ""
    columns: dict[int, tuple[int, int]] = {}
    for ms, held in steps:
        x = _column(ms, end)
        columns[x] = (max(held, columns.get(x, (0, 0))[0]), held)
    upper: list[str] = []
    lower: list[str] = []
    before = 0.0
    for x, of_column in columns.items():
        for held in of_column:
            half = round(TimelineView.BAND * held / most, 2)
            if half == before:
                continue
            for y in (before, half):
                upper.append(f"{x},{TimelineView.MIDDLE - y:g}")
                lower.append(f"{x},{TimelineView.MIDDLE + y:g}")
            before = half
    if before:  # to its last column
        upper.append(f"{TimelineView.WIDTH},{TimelineView.MIDDLE - before:g}")
        lower.append(f"{TimelineView.WIDTH},{TimelineView.MIDDLE + before:g}")
    return ",".join(upper + lower[::-1])
