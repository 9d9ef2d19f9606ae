"""The database's side of a stream that its client owns: begun, written through, ended.

Exists so that a lost store costs at most a few deltas that are sent again. Protects the rules that an older state never
goes over a newer one, that a finding is stored once however often it is written, and that a stream ends once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from guardrails.findings import AppliesTo, Outcome
from guardrails.kinds.base import Turn
from streaming import models, sessions
from streaming.audit import services as audit
from streaming.guarded.record import Record, finding_of
from streaming.models import AuditSession, GuardedStream, Message
from streaming.pace import BY_CLIENT
from streaming.sessions import DeferredText, Ending, State, Visitor, finding_row
from streaming.shadow.record import ShadowRecord

LOST = "state_lost"
_STATUS = {
    Outcome.BLOCKED: Message.Status.BLOCKED,
    Outcome.EXPIRED: Message.Status.INTERRUPTED,
}


@dataclass(frozen=True, slots=True)
class Ended:
    """What the end of a stream came to. ``first``: by this very call."""

    state: State
    outcome: str
    first: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What the database has of a stream. ``blob`` None: it has been over for a while, or is lost."""

    rev: int
    client: str
    state: State
    outcome: str
    error_code: str
    expected_seq: int
    blob: bytes | None


def begin(*, record: Record, visitor: Visitor, conversation_key: str, correlation_id: str) -> bool:
    """Store a stream with its first state. False when there is one of this id already (a repeated start)."""
    now = timezone.now()
    try:
        with transaction.atomic():
            if AuditSession.objects.filter(pk=record.session_id).exists():
                return False
            conversation = sessions.named_conversation(
                visitor=visitor, key=conversation_key, policy=record.policy, now=now
            )
            role = Message.Role.USER if record.kind == AppliesTo.PROMPT else Message.Role.ASSISTANT
            message = Message.objects.create(
                conversation=conversation, role=role, status=Message.Status.STREAMING, created=now
            )
            session = AuditSession.objects.create(
                pk=UUID(record.session_id),
                origin=AuditSession.Origin.STREAM,
                conversation=conversation,
                answer=message,
                policy_name=record.policy,
                policy_version=record.version,
                policy_digest=record.policy_digest,
                streaming=True,
                shadow_version=record.shadow["version"] if record.shadow else 0,
                client=record.client,
                correlation_id=correlation_id,
                started_at=now,
                heartbeat_at=Now(),
            )
            record.conversation_id, record.message_id = str(conversation.pk), str(message.pk)
            record.started_at = now.isoformat()
            GuardedStream.objects.create(session=session, rev=record.rev, seq=record.seq, sealed_state=record.seal())
            _keep_what_is_shown(record)
            audit.opened(session=session)
    except IntegrityError:
        return False
    return True


def write_through(*, record: Record, blob: bytes) -> None:
    """Bring the database to this state, unless it has a newer one or the stream is over."""
    with transaction.atomic():
        newer = GuardedStream.objects.filter(
            session__pk=record.session_id, rev__lt=record.rev, sealed_state__isnull=False
        ).update(rev=record.rev, seq=record.seq, sealed_state=blob)
        if newer:
            _keep_what_is_shown(record)


def _keep_what_is_shown(record: Record) -> None:
    chars_in, released, withheld, exposed = record.counts
    AuditSession.objects.filter(pk=record.session_id, state=State.ACTIVE).update(
        heartbeat_at=Now(), chars_in=chars_in, released=released, withheld=withheld, exposed=exposed
    )
    Message.objects.filter(pk=record.message_id).update(content=record.visible)
    rows = [finding_row(record.session_id, hit) for hit in record.hits()]
    models.Finding.objects.bulk_create(rows, ignore_conflicts=True)


def end(*, record: Record, tombstone: bytes, last_seq: int, shadow: ShadowRecord | None = None) -> Ended:
    """The stream is over: store all of it and move on; the answers to its end are kept in the place of its state.

    Done once; whoever comes again is told what it came to.
    """
    outcome = Outcome(record.ended)
    status = _STATUS.get(outcome, Message.Status.COMPLETE)
    chars_in, released, _, exposed = record.counts
    ending = Ending(
        outcome=outcome,
        status=status,
        content=record.visible,
        metadata={"status": status.value, "redactions": [list(pair) for pair in record.redactions]},
        findings=tuple(finding_of(data) for data in record.findings),
        deferred=tuple(DeferredText(name, record.kind, record.raw, name in record.aside) for name in record.deferred),
        chars_in=chars_in,
        released=released,
        withheld=chars_in - released,
        exposed=exposed,
        timing={**summary(record), "arrivals": record.arrivals, "releases": record.releases, BY_CLIENT: True},
        last_seq=last_seq,
        streaming=True,
        shadow=shadow,
    )
    with transaction.atomic():
        state = sessions.finish_streaming(session_id=record.session_id, ending=ending)
        if state is not None:
            GuardedStream.objects.filter(session__pk=record.session_id).update(
                sealed_state=tombstone, seq=record.seq, rev=record.rev
            )
            return Ended(state, record.ended, first=True)
    session = AuditSession.objects.get(pk=record.session_id)
    return Ended(State(session.state), session.outcome, first=False)


def forget(before: datetime, at_once: int = 500) -> None:
    """Wipe the answers of streams that were over before then, few at a time: nobody waits long for the database."""
    over = GuardedStream.objects.filter(sealed_state__isnull=False, session__answered_at__lt=before)
    while names := list(over.values_list("pk", flat=True)[:at_once]):
        GuardedStream.objects.filter(pk__in=names).update(sealed_state=None)


def summary(record: Record) -> dict[str, object]:
    """The audit record's counters. ``naive_calls``: what a check of every chunk would have taken."""
    return {
        "calls": record.calls,
        "chunks": record.chunks,
        "checks": record.checks,
        "audit_rows": 3 + len(record.findings),
        "naive_calls": record.chunks,
        "guardrails": {name: dict(totals) for name, totals in record.guardrails.items()},
    }


def about(*, session_id: str, record: Record | None) -> dict[str, object]:
    """What a status says: of an open stream by its record, of one that is over by the audit record."""
    session = AuditSession.objects.prefetch_related("deferred_checks").get(pk=session_id)
    stream = GuardedStream.objects.filter(session__pk=session_id).first()
    chars_in, released, withheld, exposed = (
        record.counts if record else (session.chars_in, session.released, session.withheld, session.exposed)
    )
    told = summary(record) if record else session.timing
    return {
        "session_id": str(session.pk),
        "state": session.state,
        "outcome": session.outcome,
        "policy": {
            "name": session.policy_name,
            "version": session.policy_version,
            "digest": session.policy_digest,
        },
        "counts": {
            "chars_in": chars_in,
            "released": released,
            "withheld": withheld,
            "exposed": exposed,
            **{name: told[name] for name in ("calls", "chunks", "checks") if name in told},
        },
        "guardrails": told.get("guardrails", {}),
        "deferred": [
            {"guardrail": check.guardrail, "applies_to": check.applies_to, "state": check.state}
            for check in session.deferred_checks.all()
        ],
        "held_chars": record.held if record else 0,
        "expected_seq": record.expected_seq if record else (stream.seq + 1 if stream else 1),
    }


def lose(*, session_id: str) -> None:
    """No store has this stream's state any more: end it, visibly, with what had been shown."""
    with transaction.atomic():
        sessions.end_lost(
            session_id=session_id,
            stale_before=timezone.now() + timedelta(days=1),
            error="The state of this stream was lost; what had been shown is kept.",
            code=LOST,
        )
        GuardedStream.objects.filter(session__pk=session_id).update(sealed_state=None)


def kept(session_id: str) -> Kept | None:
    """What the database has of a stream; None when there is no such stream."""
    row = GuardedStream.objects.select_related("session").filter(pk=UUID(session_id)).first()
    if row is None:
        return None
    session = row.session
    blob = None if row.sealed_state is None else bytes(row.sealed_state)
    state = State(session.state)
    return Kept(row.rev, session.client, state, session.outcome, session.error_code, row.seq + 1, blob)


def silent(before: datetime, most: int) -> QuerySet[AuditSession]:
    """Open streams that the database has not heard of since ``before``, oldest first."""
    rows = AuditSession.objects.filter(
        state=State.ACTIVE, origin=AuditSession.Origin.STREAM, heartbeat_at__lt=before
    ).order_by("heartbeat_at")
    return rows[:most]


def heard_of(*, session_id: str, ago_s: float) -> None:
    """The store knows of a call that the database does not."""
    AuditSession.objects.filter(pk=session_id, state=State.ACTIVE).update(heartbeat_at=Now() - timedelta(seconds=ago_s))


def turns(record: Record, most: int) -> tuple[Turn, ...]:
    """What stands in the stream's conversation beside it, visible text only, oldest first."""
    rows = (
        Message.objects.filter(conversation_id=record.conversation_id)
        .exclude(pk=record.message_id)
        .exclude(content="")
        .order_by("-created")[:most]
    )
    return tuple(Turn(row.role, row.content) for row in reversed(rows))
