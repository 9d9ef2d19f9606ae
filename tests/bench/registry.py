"""What a benchmark is and how benchmarks are found: one function per row (or family of rows), one file per subject.

Protects the habit that a figure is never quoted without its target and, where one exists, an anchor measured in the
same run. Adding a benchmark is adding a decorated function; no list is edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import tests.bench


class SkipBench(Exception):
    """The row cannot be measured here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure. ``target``: as text, empty for context. ``ok``: None where there is no target.

    ``anchor`` says what it was compared with, measured in the same run.
    """

    name: str
    figure: str
    measured: float
    unit: str
    target: str = ""
    ok: bool | None = None
    anchor: str = ""


Benchmark = Callable[[], Iterable[Row]]
_BENCHMARKS: dict[str, Benchmark] = {}


def bench(name: str) -> Callable[[Benchmark], Benchmark]:
    """Register a benchmark under the name that ``manage.py bench NAME`` takes."""

    def register(function: Benchmark) -> Benchmark:
        if name in _BENCHMARKS:
            raise ValueError(f"two benchmarks are named {name!r}")
        _BENCHMARKS[name] = function
        return function

    return register


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by name, in the order of files and of definitions.

    What runs in processes of its own is not imported here: an application with one provider more offers it at once.
    """
    for module in pkgutil.iter_modules(tests.bench.__path__):
        if not module.name.endswith(("_app", "_child")):
            importlib.import_module(f"tests.bench.{module.name}")
    return dict(_BENCHMARKS)


def at_most(name: str, figure: str, measured: float, limit: float, unit: str, anchor: str = "") -> Row:
    """A row that is good when it measures ``limit`` or less."""
    return Row(name, figure, measured, unit, f"<= {limit:g} {unit}", measured <= limit, anchor)


def at_least(name: str, figure: str, measured: float, limit: float, unit: str, anchor: str = "") -> Row:
    """A row that is good when it measures ``limit`` or more."""
    return Row(name, figure, measured, unit, f">= {limit:g} {unit}", measured >= limit, anchor)


def context(name: str, figure: str, measured: float, unit: str, anchor: str = "") -> Row:
    """A row without a target: what a reader needs to judge the others."""
    return Row(name, figure, measured, unit, anchor=anchor)
