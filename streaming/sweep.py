"""Repair: what is left behind by processes that died, found by time alone.

Exists because a killed pump or worker says nothing. Protects the rule that no session stays open for ever and no
check is forgotten: each repair is a conditional UPDATE, so that a sweep that runs twice, or beside a process that
was merely slow, changes nothing twice. One that fails ends no other. What is done to a session is in the log under the
session's own correlation id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from channels.db import database_sync_to_async
from django.db import transaction
from django.db.models import QuerySet

from guardrails.findings import Outcome
from streaming import sessions, swept
from streaming.conf import conf
from streaming.core.events import Done, ErrorEvent, MessageUpdate, ServerEvent, StateChange
from streaming.deferred import tell
from streaming.guarded.late import catch_up
from streaming.guarded.rows import forget, silent
from streaming.guarded.service import Streams
from streaming.log import LogUnavailable, SessionLog
from streaming.log_redis import RedisLog
from streaming.models import AuditSession, DeferredCheck
from streaming.salvage import salvage
from streaming.shadow import worker
from streaming.standing import lines_of, untold
from streaming.swept import Failures

logger = structlog.get_logger(__name__)

LOST = "The process that streamed this answer is gone; what had been shown is kept."
IN_TIME = "No worker made this check in time."
AT_ONCE, LOOKED_AT = 500, 10_000
"""Silent streams that one round ends at most, and looks at: some may be left to other processes, or fail."""
EVERY_S = 10.0
"""Seconds from one round to the next, as the schedule of tasks has it."""
AHEAD_S = 1.5 * EVERY_S
"""A session that may wait for its checks for ten minutes is over within them: what would be due before the next round,
or one that comes a little late, is ended in this one."""
_State = AuditSession.State
WATCHED = (AuditSession.Origin.CHAT, AuditSession.Origin.STREAM)
"""Where somebody reads the answer and waits for what its checks say."""
_Check = DeferredCheck.State


@dataclass(slots=True)
class Swept:
    """What a sweep did: ids of sessions ended as lost, checks to queue again, sessions whose limit passed; and what it
    could not do."""

    lost: list[str] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)


async def sweep(
    now: datetime,
    log: SessionLog,
    queue: Callable[[int], object],
    *,
    watched: Callable[[int], object] | None = None,
    shadows: Callable[[int], object] | None = None,
) -> Swept:
    """One round of repair at the time ``now`` of the database's clock; ``queue`` hands a check to the workers.

    ``watched`` does so with checks whose answer somebody reads, ``shadows`` with those of shadows.
    """
    done = Swept()
    # One after the other: what a part leaves undone for want of the store or of one bad row is no reason for the next.
    await _end_lost(now, log, done)
    await _end_overdue(now, log, done)
    if isinstance(log, RedisLog):
        with suppress(LogUnavailable):  # whether streams are silent is known to the store alone
            await _end_silent(now, log, done)
            await catch_up(log, conf(), now, lambda: done.failures.alone("unwritten"))
    with done.failures.alone("tombstones"):
        await database_sync_to_async(forget)(now - timedelta(seconds=conf().tombstone_s))
    await _queue_again(now, log, done, queue, watched or queue)
    await _see_to_shadows(now, done, shadows)
    if isinstance(log, RedisLog):
        with suppress(LogUnavailable):
            await swept.note(log, done.failures.number)
    return done


async def _end_lost(now: datetime, log: SessionLog, done: Swept) -> None:
    for one in await database_sync_to_async(_stale_sessions)(now):
        with one.logged(), done.failures.alone("answers"):
            if await _lives(log, one.session_id):
                continue
            ended = await database_sync_to_async(sessions.end_lost)(
                session_id=one.session_id,
                stale_before=now - timedelta(seconds=conf().stale_s),
                error=LOST,
                salvaged=await salvage(log, one.session_id, one.answer_id),
            )
            if ended:
                done.lost.append(one.session_id)
                logger.warning("session_lost")
                await _tell_checks(log, one.session_id)
                await _announce(log, one.session_id, [ErrorEvent("pump_lost", LOST, recoverable=True)])


async def _end_overdue(now: datetime, log: SessionLog, done: Swept) -> None:
    for one in await database_sync_to_async(_overdue_sessions)(now):
        with one.logged(), done.failures.alone("checks"):
            if await database_sync_to_async(expire)(session_id=one.session_id, now=now) is not None:
                done.expired.append(one.session_id)
                await _tell_checks(log, one.session_id)
                await _announce(log, one.session_id, [], answer=False)
    for one in await database_sync_to_async(_done_but_open)():
        with one.logged(), done.failures.alone("checks"):
            if await database_sync_to_async(sessions.complete_if_done)(one.session_id):
                done.completed.append(one.session_id)
                await _tell_checks(log, one.session_id)
                await _announce(log, one.session_id, [], answer=False)


async def _end_silent(now: datetime, log: RedisLog, done: Swept) -> None:
    streams, ended = Streams(log, conf()), 0
    for one in await database_sync_to_async(_silent_streams)(now):
        with one.logged(), done.failures.alone("streams"):
            if await streams.expire(one.session_id):
                done.expired.append(one.session_id)
                ended += 1
        if ended == AT_ONCE:
            return


async def _queue_again(
    now: datetime, log: SessionLog, done: Swept, queue: Callable[[int], object], watched: Callable[[int], object]
) -> None:
    given_up: list[str] = []
    with done.failures.alone("checks"):
        done.requeued, given_up = await database_sync_to_async(requeue)(now=now)
    for session_id in given_up:
        with done.failures.alone("checks"):
            await _tell_checks(log, session_id)
    for check_id, one in await database_sync_to_async(_sessions_of)(done.requeued):
        with one.logged(), done.failures.alone("checks"):
            (watched if one.watched else queue)(check_id)


async def _see_to_shadows(now: datetime, done: Swept, queue: Callable[[int], object] | None) -> None:
    """What shadows were not told in time is not waited for any more; the rest goes behind what is queued already."""
    with done.failures.alone("checks"):
        for check_id, why in await database_sync_to_async(worker.overdue)(now=now):
            with done.failures.alone("checks"):
                await database_sync_to_async(worker.give_up)(check_id, why, now=now)
        if queue is not None:
            for check_id in await database_sync_to_async(worker.requeue)(now=now):
                queue(check_id)


async def _lives(log: SessionLog, session_id: str) -> bool:
    """Whether the session's process has told the log that it is there, for it could not tell the database."""
    try:
        return await log.alive(session_id)
    except LogUnavailable:
        return False


@dataclass(frozen=True, slots=True)
class _Found:
    """A session that something has to be done about."""

    session_id: str
    correlation_id: str
    answer_id: str = ""
    watched: bool = False

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
    limit_s = conf().monitoring_limit_s
    overdue = now - timedelta(seconds=max(limit_s - AHEAD_S, limit_s / 2))
    # The last sign of life is the answer's end, by the database's clock; ``answered_at`` is by that of the process.
    return _Found.among(AuditSession.objects.filter(state=_State.MONITORING, heartbeat_at__lt=overdue))


def _done_but_open() -> list[_Found]:
    """Sessions whose last check ended in a process that died before it could take the last step."""
    rows = AuditSession.objects.filter(state=_State.MONITORING)
    return _Found.among(rows.exclude(deferred_checks__state__in=DeferredCheck.OPEN))


def _silent_streams(now: datetime) -> list[_Found]:
    return _Found.among(silent(now - timedelta(seconds=conf().stream_expiry_s), LOOKED_AT))


def _sessions_of(check_ids: Sequence[int]) -> list[tuple[int, _Found]]:
    """Each check with its session, in the order given."""
    rows = DeferredCheck.objects.filter(pk__in=check_ids).values_list(
        "pk", "session_id", "session__correlation_id", "session__origin"
    )
    found = {pk: _Found(str(key), call, watched=origin in WATCHED) for pk, key, call, origin in rows}
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


def requeue(*, now: datetime) -> tuple[list[int], list[str]]:
    """Checks to queue: never picked up for a while, or held by a worker for longer than a lease.

    One that used up its attempts ends as an error, because a text that kills workers must not kill all of them; the
    sessions of such checks are the second thing that is returned, because nobody else tells their readers.
    """
    settings = conf()
    held_since = now - timedelta(seconds=settings.check_lease_s)
    waiting_since = now - timedelta(seconds=settings.stale_s)
    with transaction.atomic():
        held = DeferredCheck.objects.filter(state=_Check.CHECKING, started_at__lt=held_since)
        spent = list(held.filter(attempts__gte=settings.check_attempts).values_list("pk", "session_id"))
        held.filter(pk__in=[pk for pk, _ in spent]).update(
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
    return [*again, *late], list(dict.fromkeys(str(session_id) for _, session_id in spent))


async def _tell_checks(log: SessionLog, session_id: str) -> None:
    """Tell the readers what is stored of the session's checks and was never told them."""
    session, lines = await database_sync_to_async(_standing)(session_id)
    if events := await untold(log, session_id, lines, after=session.last_seq):
        await tell(log, session_id, session.started_at, session.last_seq, events)


def _standing(session_id: str) -> tuple[AuditSession, list[ServerEvent]]:
    return AuditSession.objects.get(pk=session_id), lines_of(session_id)


async def _announce(log: SessionLog, session_id: str, events: list[ServerEvent], *, answer: bool = True) -> None:
    session = await database_sync_to_async(AuditSession.objects.select_related("answer").get)(pk=session_id)
    if answer:
        content = session.answer.content if session.answer else ""
        if session.answer is not None:
            events.append(MessageUpdate(str(session.answer_id), content, session.answer.metadata))
        events.append(Done(content, Outcome.ERROR.value))
    events.append(StateChange(_State.COMPLETE.value, session.outcome))
    await tell(log, session_id, session.started_at, session.last_seq, events)
