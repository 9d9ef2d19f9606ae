"""Checking the audit log against itself, against the rows that it commits to, and against a head kept elsewhere.

Exists for the command and the page. Protects the word "verified": every entry is recomputed, every sealed session's
row, findings and texts are read again and compared, and what somebody put aside (a signed head) must still be in the
chain. A text whose salt has been purged cannot be compared any more; the purge itself is an entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from guardrails.signing import PublicKey, Purpose, SignatureRefused, SigningKey, canonical_bytes, sign, verify
from streaming.audit.chain import GENESIS, Entry, Fault, commitment, faults
from streaming.audit.rows import finding_digest, session_digest
from streaming.models import AuditEntry, AuditHead, AuditSession

AT_ONCE = 500
"""Sessions that are read together."""

Head = tuple[int, str]
Heads = Mapping[int, str]


def stored_entries() -> Iterator[Entry]:
    """The log in the order of its sequence."""
    for row in AuditEntry.objects.order_by("seq").iterator(chunk_size=2_000):
        yield Entry(row.seq, row.kind, row.session, row.at, row.body, row.before, row.hash)


def log_faults(heads: Heads | None = None) -> Iterator[Fault]:
    """Everything that is wrong with the stored log, and with the rows that it commits to."""
    sealed: list[Entry] = []
    purged: set[str] = set()

    def walk() -> Iterator[Entry]:
        for entry in stored_entries():
            if entry.kind == AuditEntry.Kind.SEALED:
                sealed.append(entry)
            elif entry.kind == AuditEntry.Kind.PURGE:
                purged.add(entry.session)
            yield entry

    note: list[Head] = [(0, GENESIS)]
    yield from faults(_noting(walk(), note), heads=heads)
    stored = AuditHead.objects.filter(pk=AuditHead.ONLY).first()
    last = note[0]
    if (stored.seq, stored.hash) != last if stored else last[0]:
        names = stored.seq if stored else 0
        yield Fault(last[0], "cut_off", f"The log ends at entry {last[0]}, and its head names entry {names}.")
    for start in range(0, len(sealed), AT_ONCE):
        yield from _row_faults(sealed[start : start + AT_ONCE], purged)


def _noting(entries: Iterable[Entry], note: list[Head]) -> Iterator[Entry]:
    for entry in entries:
        note[0] = (entry.seq, entry.hash)
        yield entry


def _row_faults(sealed: list[Entry], purged: set[str]) -> Iterator[Fault]:
    sessions = AuditSession.objects.select_related("prompt", "answer").prefetch_related("findings")
    rows = {str(row.pk): row for row in sessions.filter(pk__in=[entry.session for entry in sealed])}
    for entry in sealed:
        row = rows.get(entry.session)
        if row is None:
            yield Fault(entry.seq, "session_missing", f"Entry {entry.seq}: session {entry.session} is gone.")
            continue
        if session_digest(row) != entry.body["row"]:
            yield Fault(entry.seq, "session_altered", f"Entry {entry.seq}: session {entry.session} was altered.")
        found = [finding_digest(finding) for finding in sorted(row.findings.all(), key=lambda finding: finding.n)]
        if found != entry.body["findings"]:
            words = f"Entry {entry.seq}: the findings of session {entry.session} were altered."
            yield Fault(entry.seq, "findings_altered", words)
        texts = entry.body["texts"]
        assert isinstance(texts, dict)
        for name, message in (("prompt", row.prompt), ("answer", row.answer)):
            if message is None:
                continue
            where = f"Entry {entry.seq}: the {name} of {entry.session}"
            if not message.salt and entry.session not in purged:
                yield Fault(entry.seq, "text_missing", f"{where} was removed, and no entry says so.")
            elif message.salt and commitment(message.salt, message.content) != texts.get(name):
                yield Fault(entry.seq, "text_altered", f"{where} was altered.")


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
        raise SignatureRefused("it is not the head of an audit log") from None


def read_heads(text: str, keys: dict[str, PublicKey]) -> dict[int, str]:
    """All heads of a file, one a line. Raises ``SignatureRefused``, also when there is none."""
    found = dict(read_head(line, keys) for line in text.splitlines() if line.strip())
    if not found:
        raise SignatureRefused("there is no head in it")
    return {seq: hash_ for seq, hash_ in found.items() if seq}


def keep_head(path: Path, key: SigningKey) -> None:
    """Add the present head to a file as a line of its own. Raises ``OSError``."""
    with path.open("a", encoding="ascii") as file:
        file.write(signed_head(key) + "\n")
