"""The database's side of a stream that its client owns: begun, written through, ended.

Exists so that a lost store costs at most a few deltas that are sent again. Protects the rules that an older state never
goes over a newer one, that a finding is stored once however often it is written, and that a stream ends once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import (
    Annotated,
    Literal,
    NotRequired,  # pydantic reads it, and before Python 3.12 only this one
)
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Max, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from pydantic import Field
from typing_extensions import TypedDict

from guardrails.findings import AppliesTo, Outcome
from guardrails.kinds.base import Turn
from streaming import conversing, models, sessions
from streaming.audit import services as audit
from streaming.guarded.record import Record, finding_of, rows_of
from streaming.guarded.telling import message_status, metadata
from streaming.models import AuditSession, GuardedStream, Message
from streaming.pace import BY_CLIENT
from streaming.sessions import DeferredText, Ending, State, Visitor, finding_row
from streaming.shadow.record import ShadowRecord
from streaming.totals import AllTotals

LOST = "state_lost"
NOT_BEGUN = "log_unavailable"


OutcomeName = Literal["allowed", "redacted", "blocked", "warned", "interrupted", "abandoned", "expired", "error"]
"""The values of ``Outcome``, as a schema says them."""
Count = Annotated[int, Field(ge=0)]


class Counted(TypedDict):
    """The audit record's counters. ``chunks`` are the client's deltas; ``naive_calls``: what a check of every
    chunk that it received would have taken, where it says how many those were.
    """

    calls: Count
    chunks: Count
    checks: Count
    audit_rows: Count
    naive_calls: NotRequired[Count]
    guardrails: AllTotals


class Summary(Counted):
    """The same when the stream is over, with how it ended and what became of its characters."""

    outcome: OutcomeName
    chars_in: Count
    released: Count
    withheld: Count
    exposed: Count
    findings: Count


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
                started_at=datetime.fromisoformat(record.started_at),
                heartbeat_at=Now(),
            )
            record.conversation_id, record.message_id = str(conversation.pk), str(message.pk)
            GuardedStream.objects.create(session=session, rev=record.rev, seq=record.seq, sealed_state=record.seal())
            _keep_what_is_shown(record)
            audit.opened(session=session)
    except IntegrityError:
        return False
    return True


def write_through(*, record: Record, blob: bytes) -> bool:
    """Bring the database to this state, unless it has a newer one (False) or the stream is over."""
    with transaction.atomic():
        newer = GuardedStream.objects.filter(
            session__pk=record.session_id, rev__lt=record.rev, sealed_state__isnull=False
        ).update(rev=record.rev, seq=record.seq, sealed_state=blob)
        if newer:
            _keep_what_is_shown(record)
        return (
            bool(newer) or not GuardedStream.objects.filter(session__pk=record.session_id, rev__gt=record.rev).exists()
        )


def _in_the_order_of_writers(session_id: str) -> None:
    """Lock the row of a stream's state before the session's, as ``write_through`` does: an end that took them crosswise
    would wait for a write that is under way, and it for the end, until the database calls one of them off.
    """
    GuardedStream.objects.select_for_update().filter(pk=UUID(session_id)).values_list("pk").first()


def _keep_what_is_shown(record: Record) -> None:
    chars_in, released, withheld, exposed = record.counts
    AuditSession.objects.filter(pk=record.session_id, state=State.ACTIVE).update(
        heartbeat_at=Now(),
        chars_in=chars_in,
        released=released,
        withheld=withheld,
        exposed=exposed,
        timing=_timing(record),
    )
    Message.objects.filter(pk=record.message_id).update(content=record.visible)
    # Their numbers have no gaps. Each call is to store its own: a long text may have thousands of them.
    kept = models.Finding.objects.filter(session__pk=record.session_id).aggregate(last=Max("n"))["last"] or 0
    rows = [finding_row(record.session_id, finding_of(data)) for data in record.findings[kept:]]
    models.Finding.objects.bulk_create(rows, ignore_conflicts=True)


def end(*, record: Record, tombstone: bytes, last_seq: int, shadow: ShadowRecord | None = None) -> Ended:
    """The stream is over: store all of it and move on; the answers to its end are kept in the place of its state.

    Done once; whoever comes again is told what it came to.
    """
    outcome = Outcome(record.ended)
    chars_in, released, _, exposed = record.counts
    ending = Ending(
        outcome=outcome,
        status=message_status(outcome),
        content=record.visible,
        metadata=metadata(record, outcome),
        findings=tuple(finding_of(data) for data in record.findings),
        deferred=tuple(DeferredText(name, record.kind, record.raw, name in record.aside) for name in record.deferred),
        chars_in=chars_in,
        released=released,
        withheld=chars_in - released,
        exposed=exposed,
        timing=_timing(record),
        last_seq=last_seq,
        streaming=True,
        shadow=shadow,
    )
    with transaction.atomic():
        _in_the_order_of_writers(record.session_id)
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
    # ``answered_at`` is by the clock of whoever ended it; the last sign of life is its end, by the database's clock.
    ended = {"session__heartbeat_at__lt": before, "session__state__in": (State.MONITORING, State.COMPLETE)}
    over = GuardedStream.objects.filter(sealed_state__isnull=False, **ended)
    while names := list(over.values_list("pk", flat=True)[:at_once]):
        GuardedStream.objects.filter(pk__in=names).update(sealed_state=None)


def summary(record: Record) -> Counted:
    """What is counted so far."""
    counted = Counted(
        calls=record.calls,
        chunks=record.chunks,
        checks=record.checks,
        audit_rows=rows_of(record),
        guardrails={name: totals.copy() for name, totals in record.guardrails.items()},
    )
    if record.naive is not None:
        counted["naive_calls"] = record.naive
    return counted


def _timing(record: Record) -> dict[str, object]:
    """The counters with the timeline, as the session's row has them."""
    return {**summary(record), "arrivals": record.arrivals, "releases": record.releases, BY_CLIENT: True}


def lose(*, session_id: str) -> None:
    """No store has this stream's state any more: end it, visibly, with what had been shown."""
    with transaction.atomic():
        _in_the_order_of_writers(session_id)
        sessions.end_lost(
            session_id=session_id,
            stale_before=timezone.now() + timedelta(days=1),
            error="The state of this stream was lost; what had been shown is kept.",
            code=LOST,
            why_unjudged="The state of this stream was lost; nobody judged its text.",
        )
        GuardedStream.objects.filter(session__pk=session_id).update(sealed_state=None)


def withdraw(*, session_id: str) -> None:
    """A stream that began here alone, and whose client was refused: it is over, on record, before it was one."""
    with transaction.atomic():
        _in_the_order_of_writers(session_id)
        sessions.end_lost(
            session_id=session_id,
            stale_before=timezone.now() + timedelta(days=1),
            error="The store of streams could not be reached; the stream did not begin.",
            code=NOT_BEGUN,
            why_unjudged="",
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


def unheard(before: datetime, most: int, behind: str = "") -> list[tuple[str, int]]:
    """Open streams that were last written before then, each with the state that is written; in the order of their ids,
    those behind one of them.
    """
    rows = GuardedStream.objects.filter(
        session__state=State.ACTIVE, session__origin=AuditSession.Origin.STREAM, session__heartbeat_at__lt=before
    ).order_by("pk")
    if behind:
        rows = rows.filter(pk__gt=behind)
    return [(str(pk), rev) for pk, rev in rows.values_list("pk", "rev")[:most]]


def silent_for(*, session_id: str) -> float:
    """For how many seconds the database has not heard of an open stream, by its own clock; 0 for one that is over."""
    session = AuditSession.objects.filter(pk=session_id, state=State.ACTIVE).annotate(now=Now()).first()
    return (session.now - session.heartbeat_at).total_seconds() if session and session.heartbeat_at else 0.0


def heard_of(*, session_id: str, ago_s: float) -> None:
    """The store knows of a call that the database does not."""
    AuditSession.objects.filter(pk=session_id, state=State.ACTIVE).update(heartbeat_at=Now() - timedelta(seconds=ago_s))


def turns(record: Record, most: int) -> tuple[Turn, ...]:
    """What stands in the stream's conversation beside it, visible text only, oldest first."""
    rows = (
        Message.objects.filter(conversation_id=record.conversation_id)
        .exclude(pk=record.message_id)
        .exclude(content="")
        .order_by("-created")[: most + 1]
    )
    return conversing.newest([Turn(row.role, row.content) for row in reversed(rows)], most)
