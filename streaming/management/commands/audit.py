"""`manage.py audit verify|head|export|purge|rotate`: the audit log from the command line.

Exit status 0, 1 (the log, a row or a head is not as it was written), 2 (usage).
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from guardrails.keys import signing_key, trusted_keys
from guardrails.signing import KeyRefused, PublicKey, Purpose, SignatureRefused, SigningKey
from streaming.audit.chain import Entry, Fault, faults
from streaming.audit.retention import configured, due, purge
from streaming.audit.services import Unreadable, rotate_texts
from streaming.audit.verify import Heads, log_faults, one_moment, read_heads, signed_head, stored_entries
from streaming.models import AuditEntry

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
            "--key", type=Path, metavar="FILE", help="the audit key (private, PEM), if it is not this one"
        )
        check.add_argument("--json", action="store_true", help="one fault a line")
        actions.add_parser("head", help="print the signed head, to be kept elsewhere")
        actions.add_parser("export", help="print every entry, one a line")
        actions.add_parser(
            "purge", help="remove the texts that have been kept for as long as SLUICEGATE_RETENTION says"
        )
        actions.add_parser("rotate", help="encrypt all stored texts anew with the first of SLUICEGATE_TEXT_KEYS")

    def handle(self, *args: object, verb: str, **options: object) -> None:
        try:
            getattr(self, f"do_{verb}")(**options)
        except (KeyRefused, SignatureRefused, Unreadable) as error:
            raise CommandError(str(error), returncode=1) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}", returncode=2) from None

    def do_verify(self, *, file: Path | None, head: Path | None, key: Path | None, json: bool, **_: object) -> None:
        kept = read_heads(head.read_text("ascii", "replace"), self.keys(key)) if head else []
        if file is not None:
            entries, damaged = self.entries(file)
            found, length = [*damaged, *faults(entries, heads=kept)][:SHOWN], len(entries)
        else:
            found, length = self.in_database(kept)
        for fault in found:
            self.tell(fault, as_json=json)
        if found:
            raise CommandError("the audit log is not as it was written", returncode=1)
        if not json:
            self.stdout.write(
                f"{length:,} entries, all as they were written" + (", every kept head among them" if kept else "")
            )

    def do_head(self, **_: object) -> None:
        self.stdout.write(signed_head(signing_key(Purpose.AUDIT)))

    def do_export(self, **_: object) -> None:
        for entry in stored_entries():
            self.stdout.write(json.dumps(entry.as_dict(), ensure_ascii=False, separators=(",", ":")))

    def do_purge(self, **_: object) -> None:
        done = purge(due(timezone.now(), configured()))
        self.stdout.write(f"texts of {done:,} sessions removed")

    def do_rotate(self, **_: object) -> None:
        done = rotate_texts()
        self.stdout.write(f"{done:,} texts encrypted anew")

    def in_database(self, heads: Heads) -> tuple[list[Fault], int]:
        """The first faults, of one moment: sessions go on ending while the log is read."""
        with one_moment():
            return list(islice(log_faults(heads), SHOWN)), AuditEntry.objects.count()

    def tell(self, fault: Fault, *, as_json: bool) -> None:
        line = json.dumps({"seq": fault.seq, "code": fault.code, "message": fault.message})
        self.stdout.write(line if as_json else fault.message)

    def keys(self, file: Path | None) -> dict[str, PublicKey]:
        if file is None:
            return trusted_keys(Purpose.AUDIT)
        public = SigningKey.from_pem(file.read_bytes(), Purpose.AUDIT).public
        return {public.kid: public}

    def entries(self, file: Path) -> tuple[list[Entry], list[Fault]]:
        """The entries of an export, and the lines that are none."""
        out: list[Entry] = []
        damaged = []
        for number, line in enumerate(file.read_text("utf-8", "replace").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                out.append(_Line.model_validate_json(line).entry())
            except ValidationError:
                last = out[-1].seq if out else 0
                damaged.append(Fault(last, "unreadable", f"Line {number} of {file} is not an entry."))
        return out, damaged
