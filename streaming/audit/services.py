"""Writing the audit log: one locked row, one entry, in the caller's transaction.

Exists so that an entry stands or falls with what it records. Protects the gapless sequence: the head row is locked for
as long as the transaction goes on, so entries come one after the other however many processes write; whoever appends
does it last.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.db import transaction
from django.utils import timezone

from streaming.audit.chain import GENESIS, Entry, commitment, next_entry
from streaming.audit.rows import finding_digest, session_digest, stamp
from streaming.models import AuditEntry, AuditHead, AuditSession, Finding, Message, Review
from streaming.texts import CANNOT_BE_OPENED


class Unreadable(ValueError):
    """A stored text that none of the keys opens."""


@transaction.atomic
def append(*, kind: str, session_id: str = "", body: Mapping[str, object] | None = None) -> Entry:
    """Add an entry. Raises ``ValueError`` for a body that canonical JSON cannot carry."""
    head = AuditHead.objects.select_for_update().filter(pk=AuditHead.ONLY).first()
    if head is None:
        head, _ = AuditHead.objects.get_or_create(pk=AuditHead.ONLY, defaults={"seq": 0, "hash": GENESIS})
        head = AuditHead.objects.select_for_update().get(pk=AuditHead.ONLY)
    entry = next_entry(
        last_seq=head.seq,
        last_hash=head.hash,
        kind=kind,
        session=session_id,
        at=stamp(timezone.now()),
        body=dict(body or {}),
    )
    AuditEntry.objects.create(
        seq=entry.seq,
        kind=kind,
        session=session_id,
        at=entry.at,
        body=dict(entry.body),
        before=entry.before,
        hash=entry.hash,
    )
    AuditHead.objects.filter(pk=AuditHead.ONLY).update(seq=entry.seq, hash=entry.hash)
    return entry


def opened(*, session: AuditSession) -> Entry:
    """A session has begun."""
    body = {
        "policy": session.policy_name,
        "version": session.policy_version,
        "digest": session.policy_digest,
        "origin": session.origin,
        "client": session.client,
    }
    return append(kind=AuditEntry.Kind.OPENED, session_id=str(session.pk), body=body)


def sealed(*, session_id: str) -> Entry:
    """A session is COMPLETE: its row and its findings are committed to as they stand now."""
    session = AuditSession.objects.select_related("prompt", "answer").get(pk=session_id)
    body: dict[str, object] = {
        "row": session_digest(session),
        "findings": [finding_digest(row) for row in session.findings.order_by("n")],
        "outcome": session.outcome,
        "texts": {
            name: commitment(message.salt, message.content)
            for name, message in (("prompt", session.prompt), ("answer", session.answer))
            if isinstance(message, Message)
        },
    }
    return append(kind=AuditEntry.Kind.SEALED, session_id=str(session.pk), body=body)


def late_finding(*, finding: Finding) -> Entry:
    """A finding that was made after its session had been sealed."""
    body = {"n": finding.n, "guardrail": finding.guardrail, "row": finding_digest(finding)}
    return append(kind=AuditEntry.Kind.FINDING, session_id=str(finding.session_id), body=body)


def rotate_texts() -> int:
    """Encrypt every stored text anew with the first key; returns how many. Safe to be cut off and run again.

    Raises ``Unreadable`` at a text that cannot be opened with the keys that are set; it is left as it is.
    """
    done = 0
    for message in Message.objects.order_by("pk").iterator(chunk_size=500):
        if message.content == CANNOT_BE_OPENED:
            raise Unreadable(f"message {message.pk} cannot be opened with the keys that are set")
        with transaction.atomic():
            locked = Message.objects.select_for_update().get(pk=message.pk)
            locked.save(update_fields=["content", "metadata"])
        done += 1
    for review in Review.objects.exclude(note="").order_by("pk").iterator(chunk_size=500):
        if review.note == CANNOT_BE_OPENED:
            raise Unreadable(f"the note of review {review.pk} cannot be opened with the keys that are set")
        with transaction.atomic():
            Review.objects.select_for_update().get(pk=review.pk).save(update_fields=["note"])
        done += 1
    return done
