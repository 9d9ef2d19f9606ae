"""Repair: what is left behind by processes that died, found by time alone.

Exists because a killed pump or worker says nothing. Protects the rule that no session stays open for ever and no
check is forgotten: each repair is a conditional UPDATE, so that a sweep that runs twice, or beside a process that
was merely slow, changes nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from channels.db import database_sync_to_async
from django.db import transaction

from guardrails.findings import Outcome
from guardrails.performance import Checkpoint
from streaming import sessions
from streaming.conf import conf
from streaming.core.events import Done, ErrorEvent, GuardrailStatus, MessageUpdate, ServerEvent, StateChange
from streaming.deferred import tell
from streaming.guarded.rows import forget, silent
from streaming.guarded.service import Streams
from streaming.log import LogUnavailable, SessionLog
from streaming.log_redis import RedisLog
from streaming.models import AuditSession, DeferredCheck
from streaming.salvage import salvage

LOST = "The process that streamed this answer is gone; what had been shown is kept."
_State = AuditSession.State
_Check = DeferredCheck.State


@dataclass(slots=True)
class Swept:
    """What a sweep did: ids of sessions ended as lost, checks to queue again, sessions whose limit passed."""

    lost: list[str] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)


async def sweep(now: datetime, log: SessionLog, queue: Callable[[int], object]) -> Swept:
    """One round of repair at the time ``now``; ``queue`` hands a check to the workers."""
    done = Swept()
    for session_id, message_id in await database_sync_to_async(_stale_sessions)(now):
        ended = await database_sync_to_async(sessions.end_lost)(
            session_id=session_id,
            stale_before=now - timedelta(seconds=conf().stale_s),
            error=LOST,
            salvaged=await salvage(log, session_id, message_id),
        )
        if ended:
            done.lost.append(session_id)
            await _announce(log, session_id, [ErrorEvent("pump_lost", LOST, recoverable=True)])
    for session_id in await database_sync_to_async(_overdue_sessions)(now):
        names = await database_sync_to_async(expire)(session_id=session_id, now=now)
        if names is not None:
            done.expired.append(session_id)
            statuses = [GuardrailStatus(name, Checkpoint.DEFERRED.value, "expired") for name in names]
            await _announce(log, session_id, list[ServerEvent](statuses), answer=False)
    for session_id in await database_sync_to_async(_done_but_open)():
        if await database_sync_to_async(sessions.complete_if_done)(session_id):
            done.completed.append(session_id)
            await _announce(log, session_id, [], answer=False)
    if isinstance(log, RedisLog):
        streams = Streams(log, conf())
        for session_id in await database_sync_to_async(silent)(now - timedelta(seconds=conf().stream_expiry_s), 500):
            try:
                if await streams.expire(session_id):
                    done.expired.append(session_id)
            except LogUnavailable:
                break  # whether they are silent is known to the store alone
    await database_sync_to_async(forget)(now - timedelta(seconds=conf().tombstone_s))
    done.requeued = await database_sync_to_async(requeue)(now=now)
    for check_id in done.requeued:
        queue(check_id)
    return done


def _stale_sessions(now: datetime) -> list[tuple[str, str]]:
    """Sessions without a sign of life, each with its answer's id."""
    stale = now - timedelta(seconds=conf().stale_s)
    rows = AuditSession.objects.filter(state=_State.ACTIVE, origin=AuditSession.Origin.CHAT, heartbeat_at__lt=stale)
    return [(str(pk), str(answer_id)) for pk, answer_id in rows.values_list("pk", "answer_id")]


def _overdue_sessions(now: datetime) -> list[str]:
    overdue = now - timedelta(seconds=conf().monitoring_limit_s)
    rows = AuditSession.objects.filter(state=_State.MONITORING, answered_at__lt=overdue)
    return [str(pk) for pk in rows.values_list("pk", flat=True)]


def _done_but_open() -> list[str]:
    """Sessions whose last check ended in a process that died before it could take the last step."""
    rows = AuditSession.objects.filter(state=_State.MONITORING).exclude(deferred_checks__state__in=DeferredCheck.OPEN)
    return [str(pk) for pk in rows.values_list("pk", flat=True)]


def expire(*, session_id: str, now: datetime) -> list[str] | None:
    """End a session's open checks as expired and complete it; their guardrails, or None if another process did."""
    with transaction.atomic():
        AuditSession.objects.select_for_update().filter(pk=session_id).first()
        rows = DeferredCheck.objects.filter(session__pk=session_id, state__in=DeferredCheck.OPEN)
        names = sorted(set(rows.values_list("guardrail", flat=True)))
        rows.update(state=_Check.EXPIRED, finished_at=now, sealed_text=None, error="No worker made this check in time.")
        return names if sessions.complete_if_done(session_id) else None


def requeue(*, now: datetime) -> list[int]:
    """Checks to queue: never picked up for a while, or held by a worker for longer than a lease.

    One that used up its attempts ends as an error, because a text that kills workers must not kill all of them.
    """
    settings = conf()
    held_since = now - timedelta(seconds=settings.check_lease_s)
    waiting_since = now - timedelta(seconds=settings.stale_s)
    with transaction.atomic():
        held = DeferredCheck.objects.filter(state=_Check.CHECKING, started_at__lt=held_since)
        held.filter(attempts__gte=settings.check_attempts).update(
            state=_Check.ERROR,
            finished_at=now,
            sealed_text=None,
            error=f"Given up after {settings.check_attempts} attempts: the worker died each time.",
        )
        again = list(held.filter(state=_Check.CHECKING).values_list("pk", flat=True))
        DeferredCheck.objects.filter(pk__in=again, state=_Check.CHECKING).update(state=_Check.WAITING, queued_at=now)
        forgotten = DeferredCheck.objects.filter(state=_Check.WAITING, queued_at__lt=waiting_since)
        late = list(forgotten.values_list("pk", flat=True))
        forgotten.update(queued_at=now)
    return [*again, *late]


async def _announce(log: SessionLog, session_id: str, events: list[ServerEvent], *, answer: bool = True) -> None:
    session = await database_sync_to_async(AuditSession.objects.select_related("answer").get)(pk=session_id)
    if answer:
        content = session.answer.content if session.answer else ""
        if session.answer is not None:
            events.append(MessageUpdate(str(session.answer_id), content, session.answer.metadata))
        events.append(Done(content, Outcome.ERROR.value))
    events.append(StateChange(_State.COMPLETE.value, session.outcome))
    await tell(log, session_id, session.started_at, session.last_seq, events)
