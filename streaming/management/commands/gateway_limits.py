"""`manage.py gateway_limits`: the table of docs/gateway-limits.md, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from streaming import disguises


class Command(BaseCommand):
    help = "Measure what the starter policies catch of values that are not written as they are."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")

    def handle(self, *args: Any, write: Path | None = None, **options: Any) -> None:
        if write is None:
            self.stdout.write(disguises.table())
            return
        try:
            write.write_text(disguises.filled_in(write.read_text("utf-8")), "utf-8")
        except (OSError, ValueError) as error:
            raise CommandError(f"{write}: {error}") from None
        self.stdout.write(f"{write} is up to date.")
