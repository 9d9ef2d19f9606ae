"""Figures as drawings and as tables: every drawing has its table, for whoever does not see it.

Exists so that the template only writes down what is worked out here. Protects two rules: a drawing shows measured
values and nothing between them where nothing was measured (a line has gaps), and no series is told from another by
colour alone (dashes, the order of a stack, and the words of the legend). Pure; a drawing unit is a pixel of a box of
420 x 200.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streaming.presentation import milliseconds

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 410, 10, 172
LABELS = 5
"""Most labels below a drawing."""

Words = Callable[[float | None], str]


def percent(value: float | None) -> str:
    """A rate with its unit; a dash where there is nothing to count over."""
    if value is None:
        return "–"
    hundred = value * 100
    return f"{hundred:.0f} %" if hundred in (0, 100) else f"{hundred:.1f} %" if hundred >= 0.1 else f"{hundred:.2f} %"


def whole(value: float | None) -> str:
    """A number of things."""
    return "–" if value is None else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Series:
    """Values in the order of the labels. ``look``: 1 to 5, which colour and dashes."""

    name: str
    look: int
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line, or a piece of a column, with what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    look: int
    says: str


@dataclass(frozen=True, slots=True)
class Line:
    """A stretch of measured values: ``points`` of a polyline."""

    look: int
    points: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at an axis."""

    at: float
    words: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing and its table."""

    id: str
    title: str
    note: str
    legend: Sequence[Series]
    columns: Sequence[Mark]
    lines: Sequence[Line]
    dots: Sequence[Mark]
    down: Sequence[Tick]
    along: Sequence[Tick]
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    empty: bool


def chart(
    id: str,
    title: str,
    note: str,
    labels: Sequence[str],
    series: Sequence[Series],
    words: Words,
    *,
    stacked: bool = False,
    most: float | None = None,
) -> Chart:
    """Lines, or stacked columns. ``most``: the largest value there can be, 1 for rates."""
    measured = [value for one in series for value in one.values if value is not None]
    sums = [sum(one.values[at] or 0 for one in series) for at in range(len(labels))] if stacked else measured
    top = _top(max(sums, default=0), most)
    return Chart(
        id=id,
        title=title,
        note=note,
        legend=series,
        columns=_columns(labels, series, words, top) if stacked else (),
        lines=() if stacked else [line for one in series for line in _lines(one, len(labels), top)],
        dots=() if stacked else [dot for one in series for dot in _dots(one, labels, words, top)],
        down=[Tick(round(_y(top * part, top), 1), _short(words(top * part))) for part in (0, 0.5, 1)],
        along=_along(labels),
        head=[one.name for one in series],
        rows=[(label, [words(one.values[at]) for one in series]) for at, label in enumerate(labels)],
        empty=not any(sums) if stacked else not measured,
    )


def bar(parts: Sequence[tuple[int, int]], of: int) -> list[Mark]:
    """(look, number) pairs as pieces of a bar of width 100 and height 10; ``of`` is what the whole bar stands for."""
    out: list[Mark] = []
    x = 0.0
    for look, number in parts:
        width = 100 * number / of if of else 0.0
        if width:
            out.append(Mark(round(x, 2), 0, round(width, 2), 10, look, f"{number:,}"))
        x += width
    return out


def _top(largest: float, most: float | None) -> float:
    """Where the axis ends: a round number that holds the largest value, and half of it is one as well."""
    if largest <= 0:
        return most if most is not None else 10.0
    step = 10.0 ** math.floor(math.log10(largest))
    found = next(step * by for by in (1, 2, 4, 6, 8, 10) if step * by >= largest * 0.999_999)
    return found if most is None else min(found, most)


def _x(at: int, slots: int) -> float:
    return LEFT + (RIGHT - LEFT) * (at + 0.5) / max(slots, 1)


def _y(value: float, top: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * min(value / top, 1.0)


def _short(words: str) -> str:
    """A round number needs no decimals."""
    return words.replace(".0 ", " ")


def _columns(labels: Sequence[str], series: Sequence[Series], words: Words, top: float) -> list[Mark]:
    width = (RIGHT - LEFT) / max(len(labels), 1) * 0.72
    out: list[Mark] = []
    for at, label in enumerate(labels):
        below = 0.0
        for one in series:
            if not (value := one.values[at]):
                continue
            y, base = _y(below + value, top), _y(below, top)
            says = f"{label}: {one.name} {words(value)}"
            x = round(_x(at, len(labels)) - width / 2, 1)
            out.append(Mark(x, round(y, 1), round(width, 1), round(base - y, 1), one.look, says))
            below += value
    return out


def _lines(series: Series, slots: int, top: float) -> list[Line]:
    stretches: list[list[str]] = [[]]
    for at, value in enumerate(series.values):
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{_x(at, slots):.1f},{_y(value, top):.1f}")
    return [Line(series.look, " ".join(points)) for points in stretches if len(points) > 1]


def _dots(series: Series, labels: Sequence[str], words: Words, top: float) -> list[Mark]:
    return [
        Mark(
            round(_x(at, len(labels)), 1), round(_y(value, top), 1), 0, 0, series.look,
            f"{labels[at]}: {series.name} {words(value)}",
        )
        for at, value in enumerate(series.values)
        if value is not None
    ]  # fmt: skip


def _along(labels: Sequence[str]) -> list[Tick]:
    every = max(1, math.ceil(len(labels) / LABELS))
    return [Tick(round(_x(at, len(labels)), 1), label) for at, label in enumerate(labels) if at % every == 0]


def times(value: float | None) -> str:
    """A duration with its unit."""
    return "0 ms" if value == 0 else milliseconds(value)
