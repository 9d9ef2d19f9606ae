"""Writing the audit log: one locked row, the entries of one transaction, in the caller's transaction.

Exists so that an entry stands or falls with what it records. Protects the gapless sequence: the head row is locked for
as long as the transaction goes on, so entries come one after the other however many processes write; whoever appends
does it last. Others wait meanwhile, so the statements are written out: three (on PostgreSQL two) for any number of
entries, and what can be computed before the lock is.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from streaming import statement
from streaming.audit.chain import GENESIS, Entry, canonical, commitment, next_entry
from streaming.audit.rows import (
    beside_digest,
    check_digest,
    check_name,
    finding_digest,
    message_digest,
    opened_body,
    session_digest,
    shadow_digest,
    shadow_is_over,
    stamp,
    stored_json,
)
from streaming.models import AuditEntry, AuditHead, AuditSession, DeferredCheck, Finding, Message, Review, Upstream
from streaming.texts import CANNOT_BE_OPENED, Unopened

_READ = "SELECT seq, hash FROM streaming_audithead WHERE id = 1"
_WRITE = "INSERT INTO streaming_auditentry (seq, kind, session, at, body, before, hash) VALUES (?, ?, ?, ?, ?, ?, ?)"
_MOVE = "UPDATE streaming_audithead SET seq = ?, hash = ? WHERE id = 1"
"""SQLite's."""
_WRITE_AND_MOVE = """
WITH written AS (
    INSERT INTO streaming_auditentry (seq, kind, session, at, body, before, hash)
    SELECT seq, kind, session, at, body, before, hash FROM json_to_recordset(%s::json) AS
    entry(seq bigint, kind text, session text, at text, body jsonb, before text, hash text)
)
UPDATE streaming_audithead SET seq = %s, hash = %s WHERE id = 1
"""
"""PostgreSQL's: however many entries there are, they are one parameter; a thousand of them take longer to put into the
words of a statement than the database takes to store them."""


class _Thread(threading.local):
    """What is being gathered in this thread, which has one connection to the database."""

    def __init__(self) -> None:
        self.drafts: list[Draft] | None = None


_thread = _Thread()


SHADOW = "shadow"
"""Where a ``sealed`` entry commits to the shadow apart from the session's row."""


class Unreadable(ValueError):
    """A stored text that none of the keys opens."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry before it has its place in the log."""

    kind: str
    session_id: str = ""
    body: Mapping[str, object] = field(default_factory=dict)


def append(*, kind: str, session_id: str = "", body: Mapping[str, object] | None = None) -> Entry:
    """Add an entry. Raises ``ValueError`` for a body that canonical JSON cannot carry."""
    return append_all([Draft(kind, session_id, body or {})])[0]


@contextmanager
def gathered() -> Iterator[list[Draft]]:
    """What sessions say of themselves inside is appended at the end of the block, under one lock; it waits here.

    The block stands in a transaction. Nothing is appended when it raises.
    """
    if _thread.drafts is not None:
        raise RuntimeError("entries are being gathered already")
    drafts = _thread.drafts = []
    try:
        yield drafts
    finally:
        _thread.drafts = None
    if drafts:
        append_all(drafts)


def _note(draft: Draft) -> None:
    if _thread.drafts is None:
        append_all([draft])
    else:
        _thread.drafts.append(draft)


def append_all(drafts: Sequence[Draft]) -> list[Entry]:
    """Add entries, one after the other, under one lock: all of them or none.

    Raises ``ValueError`` for a body that canonical JSON cannot carry.
    """
    here = connections[DEFAULT_DB_ALIAS]  # looked up once: the usual way to it is looked up at every word
    if here.in_atomic_block:  # a savepoint would be two more statements for nothing
        return _append(here, drafts)
    with transaction.atomic():
        return _append(here, drafts)


def _append(here: BaseDatabaseWrapper, drafts: Sequence[Draft]) -> list[Entry]:
    drafts = [Draft(str(draft.kind), draft.session_id, dict(draft.body)) for draft in drafts]
    bodies = [canonical(draft.body) for draft in drafts]  # nobody waits yet
    last_seq, last_hash = _locked_head(here)
    at = stamp(timezone.now())
    entries: list[Entry] = []
    for draft, written in zip(drafts, bodies, strict=True):
        entry = next_entry(
            last_seq=last_seq,
            last_hash=last_hash,
            kind=draft.kind,
            session=draft.session_id,
            at=at,
            body=draft.body,
            written=written,
        )
        entries.append(entry)
        last_seq, last_hash = entry.seq, entry.hash
    _store(here, entries, bodies)
    return entries


def _store(here: BaseDatabaseWrapper, entries: Sequence[Entry], bodies: Sequence[str]) -> None:
    if not entries:
        return
    head = (entries[-1].seq, entries[-1].hash)
    rows = [(e.seq, e.kind, e.session, e.at, body, e.before, e.hash) for e, body in zip(entries, bodies, strict=True)]
    if here.vendor == "sqlite":
        with here.wrap_database_errors:
            file = _file(here)
            file.executemany(_WRITE, rows)
            file.execute(_MOVE, head)
        return
    with here.cursor() as cursor:
        cursor.execute(_WRITE_AND_MOVE, [f"[{','.join(map(_as_json, rows))}]", *head])


def _as_json(row: tuple[int, str, str, str, str, str, str]) -> str:
    seq, kind, session, at, body, before, digest = row
    named = {"seq": seq, "kind": kind, "session": session, "at": at, "before": before, "hash": digest}
    return f'{json.dumps(named)[:-1]},"body":{body}}}'  # the body is JSON already


def _locked_head(here: BaseDatabaseWrapper) -> tuple[int, str]:
    """The last entry's number and hash; nobody else gets them before this transaction is over."""
    row = _head(here)
    if row is None:
        AuditHead.objects.get_or_create(pk=AuditHead.ONLY, defaults={"seq": 0, "hash": GENESIS})
        row = _head(here)
    assert row is not None
    return row


def _head(here: BaseDatabaseWrapper) -> tuple[int, str] | None:
    row: tuple[int, str] | None
    if here.vendor == "sqlite":  # the whole file is locked
        with here.wrap_database_errors:
            row = _file(here).execute(_READ).fetchone()
        return row
    with here.cursor() as cursor:
        cursor.execute(_READ + " FOR UPDATE")
        row = cursor.fetchone()
    return row


def _file(here: BaseDatabaseWrapper) -> sqlite3.Connection:
    """SQLite without Django's cursors: a statement takes 3 µs, and a cursor around it 6 while all others wait."""
    file: sqlite3.Connection = here.connection
    return file


def opened(*, session: AuditSession) -> None:
    """A session has begun."""
    _note(Draft(AuditEntry.Kind.OPENED, str(session.pk), opened_body(session)))


def sealed(*, session_id: str, checks: bool = False) -> None:
    """A session is COMPLETE: its row, findings, deferred checks and messages are committed to as they stand now.

    ``checks``: it may have had deferred checks; one that was never MONITORING has none, and nobody asks for them.
    """
    if not (found := statement.rows(AuditSession, {"pk": session_id})):
        raise AuditSession.DoesNotExist
    session = found[0]
    ids = {"prompt": session.prompt_id, "answer": session.answer_id}
    stored = {one.pk: one for one in statement.rows(Message, {"pk": tuple(pk for pk in ids.values() if pk)})}
    messages = {name: stored[pk] for name, pk in ids.items() if pk in stored}
    made = DeferredCheck.objects.filter(session__pk=session_id) if checks else ()
    over = shadow_is_over(session)
    body: dict[str, object] = {
        "row": session_digest(session, shadow=over),
        **({} if over else {SHADOW: shadow_digest(session)}),
        "findings": [finding_digest(row) for row in statement.rows(Finding, {"session": session_id}, "n")],
        "outcome": session.outcome,
        "texts": {name: commitment(message.salt, message.content) for name, message in messages.items()},
        "beside": beside_digest(session),
        "checks": {check_name(check): check_digest(check) for check in made},
        "messages": {name: message_digest(message) for name, message in messages.items()},
        "metadata": {name: commitment(one.salt, stored_json(one.metadata)) for name, one in messages.items()},
    }
    _note(Draft(AuditEntry.Kind.SEALED, str(session.pk), body))


def shadow_may_change(*, session: AuditSession) -> bool:
    """Whether a sealed session's entry leaves what its shadow comes to for later ones."""
    found = AuditEntry.objects.filter(session=str(session.pk), kind=AuditEntry.Kind.SEALED).order_by("seq").first()
    return found is not None and SHADOW in found.body


def shadow_changed(*, session_id: str) -> None:
    """A verdict of the shadow came after its session had been sealed: what it comes to stands as follows since."""
    session = AuditSession.objects.get(pk=session_id)
    _note(Draft(AuditEntry.Kind.SHADOW, session_id, {"row": shadow_digest(session)}))


def late_finding(*, finding: Finding, check: DeferredCheck) -> None:
    """A finding that was made after its session had been sealed, and the check that made it as it stands since."""
    body = {
        "n": finding.n,
        "guardrail": finding.guardrail,
        "row": finding_digest(finding),
        "checks": {check_name(check): check_digest(check)},
    }
    _note(Draft(AuditEntry.Kind.FINDING, str(finding.session_id), body))


def texts_stored() -> int:
    """How many texts ``rotate_texts`` has to encrypt anew."""
    notes, keys = Review.objects.exclude(note=""), Upstream.objects.exclude(key="")
    return Message.objects.count() + notes.count() + keys.count()


def rotate_texts(*, told: Callable[[], None] = lambda: None) -> int:
    """Encrypt every stored text anew with the first key; returns how many. Safe to be cut off and run again.

    ``told`` is called once for each.

    Raises ``Unreadable`` at a text that cannot be opened with the keys that are set; it is left as it is.
    """
    done = 0
    for message in Message.objects.order_by("pk").iterator(chunk_size=500):
        if message.content == CANNOT_BE_OPENED or isinstance(message.metadata, Unopened):
            raise Unreadable(f"message {message.pk} cannot be opened with the keys that are set")
        with transaction.atomic():
            locked = Message.objects.select_for_update().get(pk=message.pk)
            locked.save(update_fields=["content", "metadata"])
        done += 1
        told()
    for review in Review.objects.exclude(note="").order_by("pk").iterator(chunk_size=500):
        if review.note == CANNOT_BE_OPENED:
            raise Unreadable(f"the note of review {review.pk} cannot be opened with the keys that are set")
        with transaction.atomic():
            Review.objects.select_for_update().get(pk=review.pk).save(update_fields=["note"])
        done += 1
        told()
    for upstream in Upstream.objects.exclude(key="").order_by("pk"):
        if upstream.key == CANNOT_BE_OPENED:
            raise Unreadable(f"the key of the upstream {upstream.name} cannot be opened with the keys that are set")
        with transaction.atomic():
            Upstream.objects.select_for_update().get(pk=upstream.pk).save(update_fields=["key"])
        done += 1
        told()
    return done
