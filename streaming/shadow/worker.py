"""A shadow's own checks in a worker: taken on lease, made, folded into the comparison, gone.

Exists beside ``streaming.deferred`` because nothing here is told to a reader and no session waits for it. Protects the
same rules: a check is made by one worker at a time, a result counts only under the lease that it was made under, a
guardrail that is away is asked again later and one that is known to be away not at all, and whatever becomes of a check
its text is gone afterwards. Nobody is paid for a shadow that has ended, or that shall cost nothing any more. And these
checks stay behind those of the session: few run at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from channels.db import database_sync_to_async
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from guardrails.findings import AppliesTo, Finding, Mode
from guardrails.kinds.base import CheckRequest, Turn
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import PolicyUnavailable, policy_by_digest, shadow_pays
from streaming.aside import SHARE_OF_LEASE, ask_each, worst_of
from streaming.checks import Checked
from streaming.conf import conf
from streaming.database_clock import database_now
from streaming.leases import Busy, may_pass, one_at_a_time
from streaming.models import AuditSession
from streaming.sealed import SealBroken
from streaming.shadow.late import Came, settle
from streaming.shadow.outbox import ShadowCheck
from streaming.shadow.record import Piece
from streaming.shadow.sealing import opened
from streaming.tries import LONGEST_WAIT_S, TRIES, wait_s

logger = structlog.get_logger(__name__)

AT_ONCE = 2
"""Checks of one guardrail of a policy's shadow that are under way, over all workers."""

State = ShadowCheck.State
Again = Callable[[int, float], object]


@dataclass(frozen=True, slots=True)
class _Lease:
    """A check that this worker may make now."""

    row: ShadowCheck
    correlation_id: str

    @property
    def held(self) -> QuerySet[ShadowCheck]:
        """The row, while nobody else has taken it over."""
        return ShadowCheck.objects.filter(pk=self.row.pk, state=State.CHECKING, attempts=self.row.attempts)


async def run_shadow_check(
    check_id: int, clock: Callable[[], float] = time.monotonic, again: Again | None = None
) -> bool:
    """Make one check. False where there was nothing to do, or it is to be made later.

    ``again`` queues a check after some seconds: this one once more, or the one that has its place next; where nothing
    can be queued it is made now or never. One that finds no place is queued by whoever gives one back.
    """
    lease = await database_sync_to_async(_take)(check_id)
    if lease is None or isinstance(lease, Busy):
        return False
    session_id = str(lease.row.session_id)
    with structlog.contextvars.bound_contextvars(correlation_id=lease.correlation_id, session=session_id):
        done = await _make(lease, clock, again)
    if done and again is not None and (waiting := await database_sync_to_async(_next)(lease)) is not None:
        told = waiting.session
        with structlog.contextvars.bound_contextvars(correlation_id=told.correlation_id, session=str(told.pk)):
            again(waiting.pk, 0.0)
    return done


async def _make(lease: _Lease, clock: Callable[[], float], again: Again | None) -> bool:
    row = lease.row
    try:
        policy: Policy = await database_sync_to_async(policy_by_digest)(row.policy_digest)
        guardrail = policy.guardrail(row.guardrail)
        pieces, turns = opened(row)
    except (PolicyUnavailable, KeyError, SealBroken) as error:
        logger.error("shadow_check_cannot_be_made", guardrail=row.guardrail, error=str(error))
        return await database_sync_to_async(_end)(lease, (), Came.FAILURE)
    if guardrail.impl.performance.network and not await database_sync_to_async(shadow_pays)(row.policy_digest):
        return await database_sync_to_async(_end)(lease, (), Came.NOTHING)
    limit_s = conf().check_lease_s * SHARE_OF_LEASE
    guardrail = replace(guardrail, time_limit_s=min(guardrail.time_limit_s, limit_s))
    tries = TRIES if again is None else 1
    results = await ask_each(guardrail, _requests(guardrail, row, pieces, turns), limit_s=limit_s, clock=clock,
                             tries=tries)  # fmt: skip
    worst = worst_of(results)
    if again is not None and may_pass(guardrail, worst, row.attempts):
        spent = not worst.circuit_open
        delay_s = wait_s(row.attempts) if spent else LONGEST_WAIT_S
        if await database_sync_to_async(_give_back)(lease, spent=spent, delay_s=delay_s):
            again(row.pk, delay_s)
        return False
    came = Came.FAILURE if worst.verdict.error is not None else Came.VERDICT
    return await database_sync_to_async(_end)(lease, _findings(guardrail, pieces, results), came)


def _requests(
    guardrail: Guardrail, row: ShadowCheck, pieces: Sequence[Piece], turns: tuple[Turn, ...]
) -> list[CheckRequest]:
    applies_to = AppliesTo(row.applies_to)
    return [CheckRequest(piece.text, applies_to, turns, guardrail.time_limit_s) for piece in pieces]


def _findings(guardrail: Guardrail, pieces: Sequence[Piece], results: Sequence[Checked]) -> list[Finding]:
    return [
        Finding(
            guardrail=guardrail.name,
            kind=guardrail.kind,
            rule=checked.verdict.category or guardrail.kind,
            category=checked.verdict.category,
            start=piece.start,
            end=piece.end,
            mode=Mode.MONITOR,
            action=guardrail.action,
            channel=piece.channel,
            score=checked.verdict.score,
            exposed=piece.exposed,
            n=0,
        )
        for piece, checked in zip(pieces, results, strict=True)
        if checked.verdict.error is None and checked.verdict.hit
    ]


def _take(check_id: int) -> _Lease | Busy | None:
    """The check, if it waits and its guardrail has a place; as ``leases.take_lease``."""
    with transaction.atomic():
        row = ShadowCheck.objects.filter(pk=check_id, state=State.WAITING).select_related("session").first()
        if row is None:
            return None
        one_at_a_time(row.session.policy_name, f"{row.guardrail} (shadow)")
        under_way = ShadowCheck.objects.filter(
            state=State.CHECKING,
            started_at__gte=database_now() - timedelta(seconds=conf().check_lease_s),
            guardrail=row.guardrail,
            session__policy_name=row.session.policy_name,
        )
        waits = ShadowCheck.objects.filter(pk=check_id, state=State.WAITING)
        if under_way.count() >= AT_ONCE:
            waits.filter(queued_at__gt=Now()).update(queued_at=Now())  # whoever gives a place back finds it
            return Busy()
        if not waits.update(state=State.CHECKING, attempts=F("attempts") + 1, started_at=Now()):
            return None
        row.refresh_from_db(fields=["attempts", "state"])
    return _Lease(row, row.session.correlation_id)


def _next(lease: _Lease) -> ShadowCheck | None:
    """The check that has waited longest for the place that this one has given back, when its end is stored.

    Who looks next finds another one; and who found no place before then has said so, because both hold the lock.
    """
    policy_name, guardrail = lease.row.session.policy_name, lease.row.guardrail
    with transaction.atomic():
        one_at_a_time(policy_name, f"{guardrail} (shadow)")
        waiting = ShadowCheck.objects.filter(
            state=State.WAITING, queued_at__lte=Now(), guardrail=guardrail, session__policy_name=policy_name
        )
        found = waiting.select_related("session").order_by("pk").first()
        if found is not None:
            later = Now() + timedelta(seconds=conf().check_again_s)
            ShadowCheck.objects.filter(pk=found.pk, state=State.WAITING).update(queued_at=later)
    return found


def _give_back(lease: _Lease, *, spent: bool, delay_s: float) -> bool:
    attempts = lease.row.attempts if spent else lease.row.attempts - 1
    later = Now() + timedelta(seconds=delay_s)
    return bool(lease.held.update(state=State.WAITING, queued_at=later, attempts=attempts))


def _end(lease: _Lease, findings: Sequence[Finding], came: Came) -> bool:
    """Fold the result in and forget the check. False when the lease is not held any more."""
    with transaction.atomic():
        session = AuditSession.objects.select_for_update().get(pk=lease.row.session_id)
        if not lease.held.delete()[0]:
            return False
        settle(session, lease.row.guardrail, findings, came)
    return True


# -- what nobody finishes -----------------------------------------------------------------------------------------


def requeue(*, now: datetime) -> list[int]:
    """Checks to queue, oldest first: never picked up for a while, or held by a worker for longer than a lease.

    No more of a guardrail than run at once: each of them queues the next. ``now``: by the database's clock.
    """
    settings = conf()
    held_since = now - timedelta(seconds=settings.check_lease_s)
    ShadowCheck.objects.filter(
        state=State.CHECKING, started_at__lt=held_since, attempts__lt=settings.check_attempts
    ).update(state=State.WAITING, queued_at=now - timedelta(seconds=settings.stale_s + 1))
    forgotten = ShadowCheck.objects.filter(
        state=State.WAITING, queued_at__lt=now - timedelta(seconds=settings.stale_s)
    ).order_by("pk")
    found: list[int] = []
    taken: Counter[tuple[str, str]] = Counter()
    for pk, policy_name, guardrail in forgotten.values_list("pk", "session__policy_name", "guardrail"):
        taken[policy_name, guardrail] += 1
        if taken[policy_name, guardrail] <= AT_ONCE:
            found.append(pk)
    ShadowCheck.objects.filter(pk__in=found, state=State.WAITING).update(queued_at=now)
    return found


def overdue(*, now: datetime) -> list[tuple[int, Came]]:
    """Checks to give up, with why: nobody made them in time, or each worker that took them died."""
    settings = conf()
    held_since = now - timedelta(seconds=settings.check_lease_s)
    spent = ShadowCheck.objects.filter(
        state=State.CHECKING, started_at__lt=held_since, attempts__gte=settings.check_attempts
    )
    late = _unheld(now).filter(stored_at__lt=now - timedelta(seconds=settings.monitoring_limit_s))
    found = dict.fromkeys(late.values_list("pk", flat=True), Came.NOTHING)
    return [*(found | dict.fromkeys(spent.values_list("pk", flat=True), Came.FAILURE)).items()]


def _unheld(now: datetime) -> QuerySet[ShadowCheck]:
    """Checks that no worker makes at that moment."""
    held_since = now - timedelta(seconds=conf().check_lease_s)
    return ShadowCheck.objects.exclude(state=State.CHECKING, started_at__gte=held_since)


def give_up(check_id: int, came: Came, *, now: datetime) -> bool:
    """Leave a check unmade; its session stays unknown. False when it has ended meanwhile, or a worker has taken it."""
    with transaction.atomic():
        row = ShadowCheck.objects.filter(pk=check_id).first()
        if row is None:
            return False
        session = AuditSession.objects.select_for_update().get(pk=row.session_id)
        if not _unheld(now).filter(pk=check_id).delete()[0]:
            return False
        settle(session, row.guardrail, (), came)
    return True


def open_shadow_checks(session_id: str) -> QuerySet[ShadowCheck]:
    """A session's checks that have not ended."""
    return ShadowCheck.objects.filter(session__pk=session_id).order_by("id")
