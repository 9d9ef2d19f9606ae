"""Checking the audit log against itself, against the rows that it commits to, and against a head kept elsewhere.

Exists for the command and the page. Protects the word "verified": every entry is recomputed, every sealed session's
row, findings and texts and every review are read again and compared, and what somebody put aside (a signed head) must
still be in the chain. A text whose salt has been purged cannot be compared any more; the purge itself is an entry.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from django.db import connection, transaction
from django.db.models import TextField
from django.db.models.functions import Cast

from guardrails.signing import PublicKey, Purpose, SignatureRefused, SigningKey, canonical_bytes, sign, verify
from streaming.audit.chain import GENESIS, Entry, Fault, commitment, faults
from streaming.audit.people import review_body
from streaming.audit.rows import finding_digest, session_digest
from streaming.models import AuditEntry, AuditHead, AuditSession, Message, Review

AT_ONCE = 500
"""Rows that are read together."""
NOTE = "note"
"""What a ``purge`` entry calls the notes of reviews."""

Head = tuple[int, str]
Heads = Mapping[int, str]


def stored_entries() -> Iterator[Entry]:
    """The log in the order of its sequence; a body that is no JSON object any more is given as text under "damaged"."""
    columns = ("seq", "kind", "session", "at", "written", "before", "hash")
    rows = AuditEntry.objects.order_by("seq").annotate(written=Cast("body", TextField())).values_list(*columns)
    for seq, kind, session, at, written, before, digest in rows.iterator(chunk_size=2_000):
        try:
            body = json.loads(written)
        except ValueError:
            body = written
        yield Entry(seq, kind, session, at, body if isinstance(body, dict) else {"damaged": body}, before, digest)


@contextmanager
def one_moment() -> Iterator[None]:
    """What is read inside is the database of one moment, while others go on writing."""
    if connection.in_atomic_block:
        yield
        return
    if connection.vendor == "sqlite":
        # Transactions take the write lock at once here (settings); who only reads must not keep everybody waiting.
        connection.ensure_connection()  # the mode is there with the connection only
        usual = connection.transaction_mode  # type: ignore[attr-defined]  # SQLite's alone
        connection.transaction_mode = "DEFERRED"  # type: ignore[attr-defined]
        try:
            with transaction.atomic():
                yield
        finally:
            connection.transaction_mode = usual  # type: ignore[attr-defined]
        return
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


@dataclass(slots=True)
class _Noted:
    """What a walk over the log has to remember: the last entry, and what the entries say of rows."""

    last: Head = (0, GENESIS)
    sealed: list[Entry] = field(default_factory=list)
    late: defaultdict[str, list[object]] = field(default_factory=lambda: defaultdict(list))
    reviews: dict[tuple[str, object, object], Entry] = field(default_factory=dict)
    purged: dict[tuple[str, object], int] = field(default_factory=dict)

    def walk(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self.last = (entry.seq, entry.hash)
            match entry.kind:
                case AuditEntry.Kind.SEALED:
                    self.sealed.append(entry)
                case AuditEntry.Kind.FINDING:
                    self.late[entry.session].append(entry.body.get("row"))
                case AuditEntry.Kind.REVIEW:
                    self.reviews[entry.session, entry.body.get("finding"), entry.body.get("version")] = entry
                case AuditEntry.Kind.PURGE:
                    texts = entry.body.get("texts")
                    for name in texts if isinstance(texts, list) else ():
                        self.purged[entry.session, name] = entry.seq
            yield entry


def log_faults(heads: Heads | None = None) -> Iterator[Fault]:
    """Everything that is wrong with the stored log, and with the rows that it commits to."""
    noted = _Noted()
    yield from faults(noted.walk(stored_entries()), heads=heads)
    stored = AuditHead.objects.filter(pk=AuditHead.ONLY).first()
    last = noted.last
    if (stored.seq, stored.hash) != last if stored else last[0]:
        names = stored.seq if stored else 0
        yield Fault(last[0], "cut_off", f"The log ends at entry {last[0]}, and its head names entry {names}.")
    for start in range(0, len(noted.sealed), AT_ONCE):
        yield from _row_faults(noted.sealed[start : start + AT_ONCE], noted)
    yield from _review_faults(noted)


def _row_faults(sealed: list[Entry], noted: _Noted) -> Iterator[Fault]:
    sessions = AuditSession.objects.select_related("prompt", "answer").prefetch_related("findings")
    rows = {str(row.pk): row for row in sessions.filter(pk__in=[e.session for e in sealed if _is_id(e.session)])}
    for entry in sealed:
        row = rows.get(entry.session)
        if row is None:
            yield Fault(entry.seq, "session_missing", f"Entry {entry.seq}: session {entry.session} is gone.")
            continue
        if session_digest(row) != entry.body.get("row"):
            yield Fault(entry.seq, "session_altered", f"Entry {entry.seq}: session {entry.session} was altered.")
        found = [finding_digest(finding) for finding in sorted(row.findings.all(), key=lambda finding: finding.n)]
        said = entry.body.get("findings")
        if not isinstance(said, list) or found != [*said, *noted.late[entry.session]]:
            words = f"Entry {entry.seq}: the findings of session {entry.session} were altered."
            yield Fault(entry.seq, "findings_altered", words)
        texts = entry.body.get("texts")
        texts = texts if isinstance(texts, dict) else {}  # an altered entry may be of any form
        for name, message in (("prompt", row.prompt), ("answer", row.answer)):
            where = f"Entry {entry.seq}: the {name} of {entry.session}"
            if message is None:
                if name in texts and not {(entry.session, role) for role in Message.Role.values} & noted.purged.keys():
                    yield Fault(entry.seq, "text_missing", f"{where} was removed, and no entry says so.")
                continue
            if not message.salt and (entry.session, message.role) not in noted.purged:
                yield Fault(entry.seq, "text_missing", f"{where} was removed, and no entry says so.")
            elif message.salt and commitment(message.salt, message.content) != texts.get(name):
                yield Fault(entry.seq, "text_altered", f"{where} was altered.")


def _is_id(word: str) -> bool:
    try:
        return str(UUID(word)) == word
    except ValueError:
        return False


def _review_faults(noted: _Noted) -> Iterator[Fault]:
    said = dict(noted.reviews)
    for review in Review.objects.select_related("finding").order_by("pk").iterator(chunk_size=AT_ONCE):
        session, n = str(review.finding.session_id), review.finding.n
        entry = said.pop((session, n, review.version), None)
        which = f"the review of finding {n} of session {session} by {review.by}"
        if entry is None:
            yield Fault(noted.last[0], "review_added", f"No entry tells of {which}.")
            continue
        found, told = review_body(review, n), dict(entry.body)
        if not review.salt:
            if noted.purged.get((session, NOTE), 0) < entry.seq:
                words = f"Entry {entry.seq}: the note of {which} was removed, and no entry says so."
                yield Fault(entry.seq, "text_missing", words)
            del found["note"]
            told.pop("note", None)
        if found != told:
            yield Fault(entry.seq, "review_altered", f"Entry {entry.seq}: {which} was altered.")
    for entry in said.values():
        yield Fault(entry.seq, "review_missing", f"Entry {entry.seq}: a review of session {entry.session} is gone.")


def signed_head(key: SigningKey) -> str:
    """The present head as a compact JWS, to be kept where the database's owner cannot reach."""
    head = AuditHead.objects.filter(pk=AuditHead.ONLY).first()
    payload = {"seq": head.seq if head else 0, "hash": head.hash if head else ""}
    return sign(canonical_bytes(payload), key)


def read_head(compact: str, keys: dict[str, PublicKey]) -> Head:
    """A head that was put aside. Raises ``SignatureRefused``."""
    payload = json.loads(verify(compact.strip(), keys, Purpose.AUDIT))
    try:
        return int(payload["seq"]), str(payload["hash"])
    except (KeyError, TypeError, ValueError):
        raise SignatureRefused("form", "it is not the head of an audit log") from None


def read_heads(text: str, keys: dict[str, PublicKey]) -> dict[int, str]:
    """All heads of a file, one a line. Raises ``SignatureRefused``, also when there is none."""
    found = dict(read_head(line, keys) for line in text.splitlines() if line.strip())
    if not found:
        raise SignatureRefused("form", "there is no head in it")
    return {seq: hash_ for seq, hash_ in found.items() if seq}


def keep_head(path: Path, key: SigningKey) -> None:
    """Add the present head to a file as a line of its own. Raises ``OSError``."""
    with path.open("a", encoding="ascii") as file:
        file.write(signed_head(key) + "\n")
