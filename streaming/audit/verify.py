"""Checking the audit log against itself, against the rows that it commits to, and against a head kept elsewhere.

Exists for the command and the page. Protects the word "verified": every entry is recomputed, every sealed session's
row, findings and texts and every review are read again and compared, and what somebody put aside (a signed head) must
still be in the chain. A text whose salt has been purged cannot be compared any more; the purge itself is an entry.
What cannot be read at all is pointed at like what was altered, and everything else is still compared.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from django.db import DatabaseError, connection, transaction
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast

from guardrails.signing import PublicKey, Purpose, SignatureRefused, SigningKey, canonical_bytes, sign, verify
from streaming.audit.chain import GENESIS, Entry, Fault, Walk, commitment, next_entry
from streaming.audit.people import review_body
from streaming.audit.rows import (
    KEPT_METADATA,
    TEXT_REMOVED,
    beside_digest,
    check_digest,
    check_name,
    finding_digest,
    message_digest,
    opened_body,
    session_digest,
    shadow_digest,
    stored_json,
)
from streaming.audit.services import SHADOW
from streaming.models import AuditEntry, AuditHead, AuditSession, DeferredCheck, Finding, Message, Review
from streaming.texts import CANNOT_BE_OPENED, Unopened

AT_ONCE = 500
"""Rows that are read together."""
_TEXTS = ("prompt", "answer")
NOTE = "note"
"""What a ``purge`` entry calls the notes of reviews."""

K = TypeVar("K")
T = TypeVar("T")
Head = tuple[int, str]
Heads = Sequence[Head]


def stored_entries() -> Iterator[Entry]:
    """The log in the order of its sequence. What cannot be read is given as something that no hash fits: a body that is
    no JSON object any more as text under "damaged", a row that the database cannot give at all as one of empty columns.
    """
    for seq, entry in _each(_entries, _pages(AuditEntry.objects.order_by("seq").values_list("seq", flat=True), "seq")):
        number = seq if isinstance(seq, int) else -1
        yield entry or Entry(number, "", "", "", {"damaged": "this row cannot be read"}, "", "")


def entries_between(after: int, last: int, most: int) -> list[Entry]:
    """The next entries behind ``after``, up to ``last``, at most so many; what cannot be read as above."""
    keys = AuditEntry.objects.filter(seq__gt=after, seq__lte=last).order_by("seq").values_list("seq", flat=True)
    damaged = {"damaged": "this row cannot be read"}
    return [entry or Entry(seq, "", "", "", damaged, "", "") for seq, entry in _each(_entries, keys[:most])]


def _entries(keys: Sequence[int]) -> dict[int, Entry]:
    columns = ("seq", "kind", "session", "at", "written", "before", "hash")
    rows = AuditEntry.objects.filter(seq__in=keys).order_by("seq").annotate(written=Cast("body", TextField()))
    return {row[0]: _entry(*row) for row in rows.values_list(*columns)}


def _entry(seq: int, kind: str, session: str, at: str, written: str, before: str, digest: str) -> Entry:
    try:
        body = json.loads(written)
    except (ValueError, TypeError, RecursionError):
        body = str(written)
    body = body if isinstance(body, dict) else {"damaged": body}
    return Entry(seq, str(kind), str(session), str(at), body, str(before), str(digest))  # a column may hold anything


DAMAGE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, DatabaseError)


def _each(read: Callable[[Sequence[K]], Mapping[K, T]], keys: Iterable[K]) -> Iterator[tuple[K, T | None]]:
    """What is read of each key, many at once; where that fails, one by one, and None for what cannot be read."""
    waiting = iter(keys)
    while some := list(islice(waiting, AT_ONCE)):
        if (found := _try(lambda some=some: read(some))) is not None:  # type: ignore[misc]
            yield from found.items()
            continue
        for key in some:
            alone = _try(lambda key=key: read([key]))  # type: ignore[misc]
            yield from {key: None}.items() if alone is None else alone.items()


def _pages(keys: QuerySet[Any, K], name: str) -> Iterator[K]:
    """The keys of rows in their order, few in memory at a time; ``name`` is their column, by which they are ordered."""
    done, page = 0, list(keys[:AT_ONCE])
    while page:
        yield from page
        done += len(page)
        # A damaged column may hold what cannot be compared; such are the last, and few.
        last = page[-1]
        page = list(keys.filter(**{f"{name}__gt": last})[:AT_ONCE] if isinstance(last, int | UUID) else keys[done:])
        if not isinstance(last, int | UUID):
            yield from page
            return


def _try(read: Callable[[], T]) -> T | None:
    """None where rows are damaged: columns of another type, text that is no text, or what the database refuses."""
    try:
        with transaction.atomic():  # after an error the database may refuse everything but the way back to here
            return read()
    except DAMAGE:
        return None


def _made(make: Callable[[], T]) -> T | None:
    """The same of what is at hand: no statement is sent."""
    try:
        return make()
    except DAMAGE:
        return None


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
    """What a walk over the log has to remember: the last entry, and what the entries say of rows.

    ``opened``: by session, of those that no entry has sealed yet. ``sealed``: those that are still to be compared with
    their rows. What grows with the log is not remembered, but for what people did: reviews, and notes that are gone.
    """

    last: Head = (0, GENESIS)
    opened: dict[str, Entry] = field(default_factory=dict)
    sealed: list[Entry] = field(default_factory=list)
    reviews: dict[tuple[str, object, object], Entry] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        self.last = (entry.seq, entry.hash)
        match entry.kind:
            case AuditEntry.Kind.OPENED:
                self.opened[entry.session] = entry
            case AuditEntry.Kind.SEALED:
                self.opened.pop(entry.session, None)
                self.sealed.append(entry)
            case AuditEntry.Kind.REVIEW:
                which = (entry.body.get(name) for name in ("finding", "version"))
                finding, version = (one if isinstance(one, int) else str(one) for one in which)
                self.reviews[entry.session, finding, version] = entry
            case AuditEntry.Kind.PURGE if NOTE in _purged_of(entry):
                self.notes[entry.session] = entry.seq


@dataclass(slots=True)
class _Since:
    """What entries say of some sessions beside that they were sealed: findings that came late, what a shadow has come
    to since, texts that are gone."""

    late: defaultdict[str, list[object]] = field(default_factory=lambda: defaultdict(list))
    checks: defaultdict[str, dict[str, object]] = field(default_factory=lambda: defaultdict(dict))
    purged: set[tuple[str, str]] = field(default_factory=set)
    shadows: dict[str, object] = field(default_factory=dict)

    KINDS: ClassVar = (AuditEntry.Kind.FINDING, AuditEntry.Kind.SHADOW, AuditEntry.Kind.PURGE)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> _Since:
        since = cls()
        for entry in entries:
            if entry.kind == AuditEntry.Kind.FINDING:
                since.late[entry.session].append(entry.body.get("row"))
                if isinstance(checks := entry.body.get("checks"), dict):
                    since.checks[entry.session] |= checks
            elif entry.kind == AuditEntry.Kind.SHADOW:
                since.shadows[entry.session] = entry.body.get("row")
            elif entry.kind == AuditEntry.Kind.PURGE:
                since.purged |= {(entry.session, name) for name in _purged_of(entry)}
        return since

    @classmethod
    def stored(cls, sealed: Sequence[Entry]) -> _Since:
        """As the log has it now. Whether those entries are as they were written is found when the walk is there."""
        keys = [entry.session for entry in sealed]
        rows = AuditEntry.objects.filter(session__in=keys, kind__in=cls.KINDS).order_by("seq")
        seqs = _try(lambda: list(rows.values_list("seq", flat=True))) or ()
        return cls.of(entry for _, entry in _each(_entries, seqs) if entry is not None)


def _purged_of(entry: Entry) -> set[str]:
    texts = entry.body.get("texts")
    return {str(name) for name in texts} if isinstance(texts, list) else set()


def log_faults(heads: Heads = (), *, told: Callable[[], None] = lambda: None) -> Iterator[Fault]:
    """Everything that is wrong with the stored log, and with the rows that it commits to.

    ``told`` is called once for each entry and once for each that commits to a session's rows.
    """
    noted, walk = _Noted(), Walk(heads)
    for entry in stored_entries():
        yield from walk.take(entry)
        noted.take(entry)
        told()
        if len(noted.sealed) >= AT_ONCE:
            yield from _sealed_faults(noted, told)
    yield from walk.end()
    stored = _try(lambda: AuditHead.objects.filter(pk=AuditHead.ONLY).first())
    last = noted.last
    if (stored.seq, stored.hash) != last if stored else last[0]:
        names = stored.seq if stored else 0
        yield Fault(last[0], "cut_off", f"The log ends at entry {last[0]}, and its head names entry {names}.")
    yield from _sealed_faults(noted, told)
    yield from _unsealed_faults(noted)
    yield from _added_faults(noted)
    yield from _review_faults(noted)


def _sealed_faults(noted: _Noted, told: Callable[[], None]) -> Iterator[Fault]:
    """Of the sealed sessions that the walk has come by; then they are forgotten."""
    yield from _row_faults(noted.sealed, _Since.stored(noted.sealed))
    for _ in noted.sealed:
        told()
    noted.sealed.clear()


def session_faults(session: AuditSession) -> tuple[list[Entry], list[Fault]]:
    """The entries of one session, and what is wrong with them, with their neighbours in the chain and with its rows.

    Costs what the session costs, not what the log costs; only ``log_faults`` sees what was done to the rest.
    """
    key = str(session.pk)
    seqs = list(AuditEntry.objects.filter(session=key).order_by("seq").values_list("seq", flat=True))
    around = {seq + step for seq in seqs for step in (-1, 0, 1)} - {0}
    stored = {seq: entry for seq, entry in _each(_entries, sorted(around)) if entry is not None}
    noted = _Noted()
    found: list[Fault] = []
    entries = [stored[seq] for seq in seqs if seq in stored]
    for entry in entries:
        noted.take(entry)
        found += _place_faults(entry, stored)
    kinds = {entry.kind for entry in entries}
    over = session.state == AuditSession.State.COMPLETE
    for kind in [AuditEntry.Kind.OPENED, *([AuditEntry.Kind.SEALED] if over else [])]:
        if kind not in kinds and (kind == AuditEntry.Kind.OPENED or AuditEntry.Kind.OPENED not in kinds):
            found.append(Fault(0, "entry_missing", f"No entry says that the session was {kind.value}."))
    found += _row_faults(noted.sealed, _Since.of(entries))
    found += _unsealed_faults(noted)
    found += _review_faults(noted, Review.objects.filter(finding__session=session))
    return entries, found


def _fits(entry: Entry) -> bool:
    try:
        written = next_entry(
            last_seq=entry.seq - 1,
            last_hash=entry.before,
            kind=entry.kind,
            session=entry.session,
            at=entry.at,
            body=entry.body,
        )
    except (ValueError, RecursionError):
        return False  # whatever stands there, nobody could have hashed it
    return written.hash == entry.hash


def _place_faults(entry: Entry, stored: Mapping[int, Entry]) -> Iterator[Fault]:
    """Whether an entry is as it was hashed, and hangs between the two beside it."""
    if not _fits(entry):
        yield Fault(entry.seq, "altered", f"Entry {entry.seq} was altered after it was written.")
    before = stored.get(entry.seq - 1)
    if entry.seq > 1 and before is None:
        yield Fault(entry.seq, "gap", f"Entry {entry.seq}: the entry before it is missing.")
    elif entry.before != (before.hash if before else GENESIS):
        yield Fault(entry.seq, "broken", f"Entry {entry.seq} does not follow the entry before it.")
    after = stored.get(entry.seq + 1)
    if after is not None and after.before != entry.hash:
        yield Fault(after.seq, "broken", f"Entry {after.seq} does not follow the entry before it.")
    elif after is None:
        head = _try(lambda: AuditHead.objects.filter(pk=AuditHead.ONLY).first())
        if head is None or (head.seq, head.hash) != (entry.seq, entry.hash):
            yield Fault(entry.seq, "cut_off", f"No entry follows entry {entry.seq}, and the head names another.")


def _row_faults(sealed: list[Entry], since: _Since) -> Iterator[Fault]:
    rows = dict(_each(_sessions, [entry.session for entry in sealed if _is_id(entry.session)]))
    for entry in sealed:
        if entry.session not in rows:
            yield Fault(entry.seq, "session_missing", f"Entry {entry.seq}: session {entry.session} is gone.")
        else:
            yield from _session_faults(entry, rows[entry.session], since)


def _unsealed_faults(noted: _Noted) -> Iterator[Fault]:
    """Of sessions that have begun and, as far as the log knows, are not over."""
    rows = dict(_each(_unsealed, [key for key in noted.opened if _is_id(key)]))
    for key, entry in noted.opened.items():
        if key not in rows:
            yield Fault(entry.seq, "session_missing", f"Entry {entry.seq}: session {key} is gone.")
        elif (row := rows[key]) is None:
            yield Fault(entry.seq, "session_unreadable", f"Entry {entry.seq}: session {key} cannot be read.")
        else:
            over, body = row
            if over:
                words = f"Entry {entry.seq}: session {key} is over, and no entry says that it was sealed."
                yield Fault(entry.seq, "entry_missing", words)
            if body != entry.body:
                yield Fault(entry.seq, "session_altered", f"Entry {entry.seq}: session {key} was altered.")


def _unsealed(keys: Sequence[str]) -> dict[str, tuple[bool, dict[str, object]]]:
    rows = AuditSession.objects.filter(pk__in=keys)
    return {str(row.pk): (row.state == AuditSession.State.COMPLETE, opened_body(row)) for row in rows}


def _added_faults(noted: _Noted) -> Iterator[Fault]:
    """Of sessions that stand in the database and never began."""
    began = AuditEntry.objects.filter(kind__in=(AuditEntry.Kind.OPENED, AuditEntry.Kind.SEALED)).order_by()
    keys = _pages(AuditSession.objects.order_by("pk").values_list("pk", flat=True), "pk")
    while (some := _try(lambda: [str(key) for key in islice(keys, AT_ONCE)])) is not None:
        if not some:
            return
        known = set(began.filter(session__in=some).values_list("session", flat=True))
        for key in some:
            if key not in known:
                yield Fault(noted.last[0], "session_added", f"No entry tells of session {key}.")
    yield Fault(noted.last[0], "session_unreadable", "A session has an id that cannot be read.")


def _sessions(keys: Sequence[str]) -> dict[str, _Session]:
    rows = AuditSession.objects.select_related("prompt", "answer").prefetch_related("findings", "deferred_checks")
    return {str(row.pk): _Session.of(row) for row in rows.filter(pk__in=keys)}


@dataclass(frozen=True, slots=True)
class _Session:
    """What a ``sealed`` entry is compared with. None: it cannot be read; a text that is not there has no key."""

    digest: str | None
    apart: str | None
    """The same without the shadow, and"""
    shadow: str | None
    """the shadow."""
    beside: str | None
    findings: list[object] | None
    checks: Mapping[str, object] | None
    texts: Mapping[str, Message | None] | None

    @classmethod
    def of(cls, row: AuditSession) -> _Session:
        """All of it. Raises whatever a damaged row raises."""
        found = [finding_digest(finding) for finding in sorted(row.findings.all(), key=lambda finding: finding.n)]
        texts = {"prompt": row.prompt, "answer": row.answer}
        return cls(
            session_digest(row),
            session_digest(row, shadow=False),
            shadow_digest(row),
            beside_digest(row),
            [*found],
            {check_name(check): check_digest(check) for check in row.deferred_checks.all()},
            {name: one for name, one in texts.items() if one is not None},
        )

    @classmethod
    def in_parts(cls, key: str) -> _Session:
        """What can be read of a session of which not all can."""
        rows = AuditSession.objects.filter(pk=key)
        found = _try(lambda: [finding_digest(one) for one in Finding.objects.filter(session__pk=key).order_by("n")])
        ids = _try(lambda: dict(zip(_TEXTS, rows.values_list("prompt_id", "answer_id").get(), strict=True)))
        texts = None if ids is None else dict(_each(_messages, [one for one in ids.values() if one is not None]))
        return cls(
            _try(lambda: session_digest(rows.get())),
            _try(lambda: session_digest(rows.get(), shadow=False)),
            _try(lambda: shadow_digest(rows.get())),
            _try(lambda: beside_digest(rows.get())),
            None if found is None else [*found],
            _try(lambda: {check_name(one): check_digest(one) for one in DeferredCheck.objects.filter(session__pk=key)}),
            None if ids is None or texts is None else {name: texts[one] for name, one in ids.items() if one in texts},
        )


def _messages(keys: Sequence[UUID]) -> dict[UUID, Message]:
    return {row.pk: row for row in Message.objects.filter(pk__in=keys)}


def _session_faults(entry: Entry, read: _Session | None, since: _Since) -> Iterator[Fault]:
    session = read or _Session.in_parts(entry.session)
    if session.digest is None or session.beside is None:
        yield Fault(entry.seq, "session_unreadable", f"Entry {entry.seq}: session {entry.session} cannot be read.")
    elif _altered(entry, session, since) or entry.body.get("beside", session.beside) != session.beside:
        yield Fault(entry.seq, "session_altered", f"Entry {entry.seq}: session {entry.session} was altered.")
    said = entry.body.get("findings")
    if session.findings is None:
        words = f"Entry {entry.seq}: the findings of session {entry.session} cannot be read."
        yield Fault(entry.seq, "findings_unreadable", words)
    elif not isinstance(said, list) or session.findings != [*said, *since.late[entry.session]]:
        words = f"Entry {entry.seq}: the findings of session {entry.session} were altered."
        yield Fault(entry.seq, "findings_altered", words)
    yield from _check_faults(entry, session, since)
    for name in _TEXTS:
        where = f"Entry {entry.seq}: the {name} of {entry.session}"
        if session.texts is None:
            yield Fault(entry.seq, "text_unreadable", f"{where} cannot be read.")
        elif name not in session.texts:
            if (
                name in _named(entry, "texts")
                and not {(entry.session, role) for role in Message.Role.values} & since.purged
            ):
                yield Fault(entry.seq, "text_missing", f"{where} was removed, and no entry says so.")
        elif (message := session.texts[name]) is None:
            yield Fault(entry.seq, "text_unreadable", f"{where} cannot be read.")
        elif (fault := _message_fault(entry, name, message, since)) is not None:
            yield Fault(entry.seq, fault[0], f"{where} {fault[1]}")


def _altered(entry: Entry, session: _Session, since: _Since) -> bool:
    """Whether the session's row is another one than was sealed, or than a later entry says of its shadow."""
    if SHADOW not in entry.body:
        return session.digest != entry.body.get("row")
    newest = since.shadows.get(entry.session, entry.body[SHADOW])
    return session.apart != entry.body.get("row") or session.shadow != newest


def _message_fault(entry: Entry, name: str, message: Message, since: _Since) -> tuple[str, str] | None:
    """A fault's code and words; the first one tells enough of a message."""
    purged = message.salt in ("", TEXT_REMOVED)
    if purged and (entry.session, message.role) not in since.purged:
        return "text_missing", "was removed, and no entry says so."
    if purged and message.content:
        return "text_altered", "was removed, and another one stands in its place."
    if not purged and commitment(message.salt, message.content) != _named(entry, "texts").get(name):
        if message.content == CANNOT_BE_OPENED:
            return "text_unreadable", "cannot be opened with the keys that are set."
        return "text_altered", "was altered."
    if "messages" not in entry.body:  # begun before rows and metadata were committed to
        return None
    try:
        row = message_digest(message)
        beside = None if purged else commitment(message.salt, stored_json(message.metadata))
        added = purged and message.metadata.keys() - KEPT_METADATA
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return "message_altered", "was altered in its row: nobody could have committed to it."
    if added:
        return "text_altered", "was removed, and words stand beside it."
    if isinstance(message.metadata, Unopened):
        return "text_unreadable", "has words beside it that cannot be opened with the keys that are set."
    if row != _named(entry, "messages").get(name) or (
        beside is not None and beside != _named(entry, "metadata").get(name)
    ):
        return "message_altered", "was altered in its row, or in what is kept beside the text."
    return None


def _check_faults(entry: Entry, session: _Session, since: _Since) -> Iterator[Fault]:
    """Of deferred checks. A log that was begun before they were committed to says nothing of them."""
    if "checks" not in entry.body:
        return
    where = f"Entry {entry.seq}: the deferred checks of session {entry.session}"
    if session.checks is None:
        yield Fault(entry.seq, "checks_unreadable", f"{where} cannot be read.")
    elif session.checks != _named(entry, "checks") | since.checks[entry.session]:
        yield Fault(entry.seq, "checks_altered", f"{where} were altered.")


def _named(entry: Entry, key: str) -> dict[str, object]:
    """What an entry says by name; an altered one may be of any form."""
    said = entry.body.get(key)
    return said if isinstance(said, dict) else {}


def _is_id(word: str) -> bool:
    try:
        return str(UUID(word)) == word
    except ValueError:
        return False


def _reviews(keys: Sequence[int]) -> dict[int, Review]:
    rows = Review.objects.select_related("finding").order_by("pk")
    return {row.pk: row for row in rows.filter(pk__in=keys)}


def _review_faults(noted: _Noted, rows: QuerySet[Review] | None = None) -> Iterator[Fault]:
    """Of all reviews, or of those in ``rows``, which are all that the entries noted tell of."""
    said = dict(noted.reviews)
    rows = Review.objects.all() if rows is None else rows
    for key, review in _each(_reviews, rows.order_by("pk").values_list("pk", flat=True)):
        if review is None or (present := _made(partial(review_body, review, review.finding.n))) is None:
            yield Fault(noted.last[0], "review_unreadable", f"Review {key} cannot be read.")
            continue
        session, n = str(review.finding.session_id), review.finding.n
        entry = said.pop((session, n, review.version), None)
        which = f"the review of finding {n} of session {session} by {review.by}"
        if entry is None:
            yield Fault(noted.last[0], "review_added", f"No entry tells of {which}.")
            continue
        found, told = dict(present), dict(entry.body)
        if not review.salt:
            if noted.notes.get(session, 0) < entry.seq:
                words = f"Entry {entry.seq}: the note of {which} was removed, and no entry says so."
                yield Fault(entry.seq, "text_missing", words)
            elif review.note:
                words = f"Entry {entry.seq}: the note of {which} was removed, and another one stands in its place."
                yield Fault(entry.seq, "review_altered", words)
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


def read_heads(text: str, keys: dict[str, PublicKey]) -> tuple[list[Head], list[Fault]]:
    """All heads of a file, one a line, and a fault for each line that is none: the others count all the same.

    Raises ``SignatureRefused`` when no line says anything.
    """
    found: list[Head] = []
    refused: list[Fault] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append(read_head(line, keys))
            except SignatureRefused as error:
                refused.append(Fault(0, "head_refused", f"Line {number} of the kept heads is not believed: {error}."))
    if not found and not refused:
        raise SignatureRefused("form", "there is no head in it")
    return [head for head in found if head[0]], refused


def keep_head(path: Path, key: SigningKey) -> None:
    """Add the present head to a file as a line of its own, and wait until it lies there. Raises ``OSError``.

    A line that was cut off in the middle (a full disk, a loss of power) is ended first: it spoils itself alone.
    """
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if torn else b"") + signed_head(key).encode("ascii") + b"\n")
        file.flush()
        os.fsync(file.fileno())
