"""`manage.py make_signing_key FILE`: an Ed25519 private key for production, readable by its owner alone.

Needs no settings that are complete: production without keys must be able to make them. Exit status 0, 1 (the file
exists or cannot be written).
"""

from __future__ import annotations

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails.keys import write_new_key


class Command(BaseCommand):
    help = "Write a new Ed25519 private key; name it in SLUICEGATE_VERSION_KEY_FILE, …_ACTIVATION_… or …_AUDIT_…."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE")

    def handle(self, *args: object, file: Path, **options: object) -> None:
        try:
            made = write_new_key(file)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}", returncode=1) from None
        if not made:
            raise CommandError(f"{file} exists; a key is never overwritten", returncode=1)
        self.stdout.write(f"{file} written; keep a copy where only you can read it")
