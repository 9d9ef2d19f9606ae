"""Repair: what is left behind by processes that died, found by time alone.

Exists because a killed pump or worker says nothing. Protects the rule that no session stays open for ever and no
check is forgotten: each repair is a conditional UPDATE, so that a sweep that runs twice, or beside a process that
was merely slow, changes nothing twice. What is done to a session is in the log under the session's own correlation id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from channels.db import database_sync_to_async
from django.db import transaction
from django.db.models import QuerySet

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

logger = structlog.get_logger(__name__)

LOST = "The process that streamed this answer is gone; what had been shown is kept."
IN_TIME = "No worker made this check in time."
AT_ONCE = 500
"""Silent streams that one round ends at most."""
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
    """One round of repair at the time ``now`` of the database's clock; ``queue`` hands a check to the workers."""
    done = Swept()
    for one in await database_sync_to_async(_stale_sessions)(now):
        with one.logged():
            ended = await database_sync_to_async(sessions.end_lost)(
                session_id=one.session_id,
                stale_before=now - timedelta(seconds=conf().stale_s),
                error=LOST,
                salvaged=await salvage(log, one.session_id, one.answer_id),
            )
            if ended:
                done.lost.append(one.session_id)
                logger.warning("session_lost")
                await _announce(log, one.session_id, [ErrorEvent("pump_lost", LOST, recoverable=True)])
    for one in await database_sync_to_async(_overdue_sessions)(now):
        with one.logged():
            names = await database_sync_to_async(expire)(session_id=one.session_id, now=now)
            if names is not None:
                done.expired.append(one.session_id)
                statuses = [
                    GuardrailStatus(name, Checkpoint.DEFERRED.value, "expired", error=why)
                    for name, why in names.items()
                ]
                await _announce(log, one.session_id, list[ServerEvent](statuses), answer=False)
    for one in await database_sync_to_async(_done_but_open)():
        with one.logged():
            if await database_sync_to_async(sessions.complete_if_done)(one.session_id):
                done.completed.append(one.session_id)
                await _announce(log, one.session_id, [], answer=False)
    if isinstance(log, RedisLog):
        streams = Streams(log, conf())
        for one in await database_sync_to_async(_silent_streams)(now):
            try:
                with one.logged():
                    if await streams.expire(one.session_id):
                        done.expired.append(one.session_id)
            except LogUnavailable:
                break  # whether they are silent is known to the store alone
    await database_sync_to_async(forget)(now - timedelta(seconds=conf().tombstone_s))
    done.requeued = await database_sync_to_async(requeue)(now=now)
    for check_id, one in await database_sync_to_async(_sessions_of)(done.requeued):
        with one.logged():
            queue(check_id)
    return done


@dataclass(frozen=True, slots=True)
class _Found:
    """A session that something has to be done about."""

    session_id: str
    correlation_id: str
    answer_id: str = ""

    @classmethod
    def among(cls, rows: QuerySet[AuditSession]) -> list[_Found]:
        found = rows.values_list("pk", "correlation_id", "answer_id")
        return [cls(str(pk), correlation_id, str(answer_id)) for pk, correlation_id, answer_id in found]

    def logged(self) -> AbstractContextManager[object]:
        """What is logged inside leads to the call that began the session, like everything else about it."""
        return structlog.contextvars.bound_contextvars(correlation_id=self.correlation_id, session=self.session_id)


def _stale_sessions(now: datetime) -> list[_Found]:
    """Sessions without a sign of life, each with its answer's id."""
    stale = now - timedelta(seconds=conf().stale_s)
    pumped = (AuditSession.Origin.CHAT, AuditSession.Origin.GATEWAY)
    rows = AuditSession.objects.filter(state=_State.ACTIVE, origin__in=pumped, heartbeat_at__lt=stale)
    return _Found.among(rows)


def _overdue_sessions(now: datetime) -> list[_Found]:
    overdue = now - timedelta(seconds=conf().monitoring_limit_s)
    # The last sign of life is the answer's end, by the database's clock; ``answered_at`` is by that of the process.
    return _Found.among(AuditSession.objects.filter(state=_State.MONITORING, heartbeat_at__lt=overdue))


def _done_but_open() -> list[_Found]:
    """Sessions whose last check ended in a process that died before it could take the last step."""
    rows = AuditSession.objects.filter(state=_State.MONITORING)
    return _Found.among(rows.exclude(deferred_checks__state__in=DeferredCheck.OPEN))


def _silent_streams(now: datetime) -> list[_Found]:
    return _Found.among(silent(now - timedelta(seconds=conf().stream_expiry_s), AT_ONCE))


def _sessions_of(check_ids: Sequence[int]) -> list[tuple[int, _Found]]:
    """Each check with its session, in the order given."""
    rows = DeferredCheck.objects.filter(pk__in=check_ids).values_list("pk", "session_id", "session__correlation_id")
    found = {pk: _Found(str(session_id), correlation_id) for pk, session_id, correlation_id in rows}
    return [(check_id, found[check_id]) for check_id in check_ids if check_id in found]


def expire(*, session_id: str, now: datetime) -> dict[str, str] | None:
    """End a session's open checks as expired and complete it; None if another process did.

    Their guardrails, each with why: what the last attempt failed of, if there was one, stays on record.
    """
    with transaction.atomic():
        AuditSession.objects.select_for_update().filter(pk=session_id).first()
        rows = DeferredCheck.objects.filter(session__pk=session_id, state__in=DeferredCheck.OPEN)
        names: dict[str, str] = {}
        for row in rows.order_by("guardrail", "id"):
            error = IN_TIME + (f" The last attempt: {row.error}" if row.error else "")
            rows.filter(pk=row.pk).update(state=_Check.EXPIRED, finished_at=now, sealed_text=None, error=error)
            names.setdefault(row.guardrail, error)
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
