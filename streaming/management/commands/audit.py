"""`manage.py audit verify|head|export|purge|rotate`: the audit log from the command line.

Exit status 0, 1 (the log, a row or a head is not as it was written), 2 (usage).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, SystemCheckError
from django.utils import timezone
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from guardrails.keys import signing_key, trusted_keys
from guardrails.signing import KeyRefused, PublicKey, Purpose, SignatureRefused
from streaming.audit.chain import Entry, Fault, Walk
from streaming.audit.heads import audit_keys
from streaming.audit.retention import configured, due, purge
from streaming.audit.services import Unreadable, rotate_texts, texts_stored
from streaming.audit.verification import log_length, steps
from streaming.audit.verify import Heads, log_faults, one_moment, read_heads, signed_head, stored_entries
from streaming.models import AuditEntry
from streaming.terminal.progress import bar

SHOWN = 50


class _Line(BaseModel):
    """A line of an export, of which nobody has said yet that it is as it was written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seq: int
    kind: str
    session: str
    at: str
    body: dict[str, JsonValue]
    before: str
    hash: str

    def entry(self) -> Entry:
        """The same as the log knows it."""
        return Entry(self.seq, self.kind, self.session, self.at, self.body, self.before, self.hash)


class Command(BaseCommand):
    help = "Verify and export the audit log."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="verb", required=True, metavar="ACTION")
        check = actions.add_parser("verify", help="recompute every entry and compare every sealed session")
        check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="an export instead of the database")
        check.add_argument("--head", type=Path, metavar="FILE", help="signed heads that were put aside, one a line")
        check.add_argument(
            "--key",
            type=Path,
            metavar="FILE",
            help="an audit key that is believed beside the present ones: PEM, public or private, or a JWK set",
        )
        check.add_argument("--json", action="store_true", help="one fault a line")
        actions.add_parser("head", help="print the signed head, to be kept elsewhere")
        actions.add_parser("export", help="print every entry, one a line")
        actions.add_parser(
            "purge", help="remove the texts that have been kept for as long as SLUICEGATE_RETENTION says"
        )
        actions.add_parser("rotate", help="encrypt all stored texts anew with the first of SLUICEGATE_TEXT_KEYS")

    def check(self, *args: Any, **kwargs: Any) -> None:
        """Settings that are wrong are a mistake of usage; exit status 1 says that the log is not as it was written."""
        try:
            super().check(*args, **kwargs)
        except SystemCheckError as error:
            raise CommandError(str(error), returncode=2) from None

    def handle(self, *args: object, verb: str, **options: object) -> None:
        try:
            getattr(self, f"do_{verb}")(**options)
        except (KeyRefused, SignatureRefused, Unreadable) as error:
            raise CommandError(str(error), returncode=1) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}", returncode=2) from None

    def do_verify(self, *, file: Path | None, head: Path | None, key: Path | None, json: bool, **_: object) -> None:
        kept, refused = read_heads(head.read_text("ascii", "replace"), self.keys(key)) if head else ([], [])
        if file is not None:
            found, length = self.in_export(file, kept, bar_wanted=not json)
        else:
            found, length = self.in_database(kept, bar_wanted=not json)
        for fault in [*refused[:SHOWN], *found]:
            self.tell(fault, as_json=json)
        if found:
            raise CommandError("the audit log is not as it was written", returncode=1)
        if refused:
            words = f"the log is as it was written, but not every kept head is believed: {refused[0].message}"
            raise CommandError(words, returncode=1)
        if not json:
            self.stdout.write(
                f"{length:,} entries, all as they were written" + (", every kept head among them" if kept else "")
            )

    def do_head(self, **_: object) -> None:
        self.stdout.write(signed_head(signing_key(Purpose.AUDIT)))

    def do_export(self, **_: object) -> None:
        # Where the lines themselves go to a terminal, they say how far it is.
        with bar("export", log_length(), err=self.stderr, wanted=not self.stdout.isatty()) as step:
            for entry in stored_entries():
                self.stdout.write(entry.line())
                step()

    def do_purge(self, **_: object) -> None:
        try:
            retention = configured()
        except ValueError as error:
            raise CommandError(f"SLUICEGATE_RETENTION: {error}", returncode=2) from None
        wanted = due(timezone.now(), retention)
        with bar("purge", len(wanted), err=self.stderr) as step:
            done = purge(wanted, told=step)
        self.stdout.write(f"texts of {done:,} sessions removed")

    def do_rotate(self, **_: object) -> None:
        with bar("rotate", texts_stored(), err=self.stderr) as step:
            done = rotate_texts(told=step)
        self.stdout.write(f"{done:,} texts encrypted anew")

    def in_database(self, heads: Heads, *, bar_wanted: bool) -> tuple[list[Fault], int]:
        """The first faults, of one moment: sessions go on ending while the log is read."""
        with one_moment(), bar("verify", steps(), err=self.stderr, wanted=bar_wanted) as step:
            return list(islice(log_faults(heads, told=step), SHOWN)), AuditEntry.objects.count()

    def in_export(self, file: Path, heads: Heads, *, bar_wanted: bool) -> tuple[list[Fault], int]:
        """The first faults of a file, lines that are no entries before all others, and how many entries there are."""
        damaged: list[Fault] = []
        found: list[Fault] = []
        walk, length = Walk(heads), 0
        with bar("verify", file.stat().st_size, err=self.stderr, wanted=bar_wanted) as step:
            for one in self.lines(file, walk, step):
                if isinstance(one, Fault):
                    damaged.append(one)
                else:
                    length += 1
                    found += walk.take(one)
                if len(damaged) >= SHOWN:
                    break
                del found[SHOWN:]
            found += walk.end()
        return [*damaged, *found][:SHOWN], length

    def tell(self, fault: Fault, *, as_json: bool) -> None:
        line = json.dumps({"seq": fault.seq, "code": fault.code, "message": fault.message})
        self.stdout.write(line if as_json else fault.message)

    def keys(self, file: Path | None) -> dict[str, PublicKey]:
        """The keys whose heads are believed. One that is revoked here stays so, whoever names it."""
        if file is None:
            return trusted_keys(Purpose.AUDIT)
        named = {key.kid: key for key in audit_keys(file.read_bytes())}
        try:
            return named | trusted_keys(Purpose.AUDIT)
        except KeyRefused:  # whoever only verifies need not have keys that work
            return named

    def lines(self, file: Path, walk: Walk, step: Callable[[int], None]) -> Iterator[Entry | Fault]:
        """The entries of an export, and a fault for each line that is none; ``step`` is told of bytes."""
        with file.open("rb") as data:
            for number, line in enumerate(data, start=1):
                if text := line.decode("utf-8", "replace").strip():
                    try:
                        yield _Line.model_validate_json(text).entry()
                    except ValidationError:
                        yield Fault(walk.last[0], "unreadable", f"Line {number} of {file} is not an entry.")
                step(len(line))
