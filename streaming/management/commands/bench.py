"""`manage.py bench [NAME …] [--json FILE]`: every figure with its target and an anchor of the same run, in one table.

Protects the rule that performance is stated in ratios that anyone can measure again. The benchmarks live beside the
tests and come with a source checkout, not with an installed package.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

KEYS = ("name", "measured", "unit", "target", "ok", "anchor")
"""What the file says of a row; ``ok`` is null and ``target`` empty where a figure is context only."""


class Row(Protocol):
    """A measured figure, as the benchmarks give it."""

    name: str
    figure: str
    measured: float
    unit: str
    target: str
    ok: bool | None
    anchor: str


class Command(BaseCommand):
    help = "Measure, compare with the targets, print one table. Exit status 1 if a target is missed."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", metavar="NAME", nargs="*", help="benchmarks to run (default: all)")
        parser.add_argument("--json", metavar="FILE", type=Path, dest="json_file", help="write the rows there as well")
        parser.add_argument("--list", action="store_true", dest="list_only", help="say which benchmarks there are")

    def handle(
        self, *args: object, names: list[str], json_file: Path | None, list_only: bool, **options: object
    ) -> None:
        try:
            registry = importlib.import_module("tests.bench.registry")
        except ImportError as error:
            raise CommandError(f"the benchmarks need a source checkout and the development tools: {error}") from None
        known = registry.benchmarks()
        if unknown := [name for name in names if name not in known]:
            raise CommandError(f"no benchmark named {unknown[0]!r}; there are: {', '.join(known)}", returncode=2)
        if list_only:
            for name, function in known.items():
                self.stdout.write(f"{name}: {(function.__doc__ or '').strip().splitlines()[0]}")
            return
        if json_file is not None:
            self._writable(json_file)
        rows: list[Row] = []
        for name in self._watched(list(dict.fromkeys(names or known))):
            try:
                rows.extend(cast("list[Row]", list(known[name]())))
            except registry.SkipBench as reason:
                self.stderr.write(f"{name}: not measured: {reason}")
        self._print(rows)
        if json_file is not None:
            self._write(rows, json_file)
        if missed := [row.name for row in rows if row.ok is False]:
            raise CommandError(
                f"{len(missed)} of {len(rows)} rows miss their target: {', '.join(missed)}", returncode=1
            )

    def _print(self, rows: list[Row]) -> None:
        table = Table("figure", "target", "measured", "ok", "anchor of the same run", highlight=False)
        for row in rows:
            ok = {True: "yes", False: "NO", None: ""}[row.ok]
            table.add_row(row.figure, row.target, f"{shown(row.measured)} {row.unit}", ok, row.anchor)
        console = Console(file=self.stdout, width=None if self.stdout.isatty() else 180)  # type: ignore[arg-type]
        console.print(table)

    def _watched(self, names: list[str]) -> Iterator[str]:
        """The names one after another, with a bar on a terminal and a line each elsewhere."""
        if not self.stderr.isatty():
            for name in names:
                self.stderr.write(f"{name} …")
                yield name
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True, force_terminal=True), transient=True) as progress:
            task = progress.add_task("", total=len(names))
            for name in names:
                progress.update(task, description=name)
                yield name
                progress.advance(task)

    def _writable(self, path: Path) -> None:
        """Minutes of measuring must not end in a file that cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}", returncode=2) from None

    def _write(self, rows: Iterable[Row], path: Path) -> None:
        listed = [{key: getattr(row, key) for key in KEYS} for row in rows]
        path.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shown(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
