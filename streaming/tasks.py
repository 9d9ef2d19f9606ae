"""What workers are asked to do; thin, the work is in ``deferred`` and ``sweep``.

Only ids travel through the broker, never text. Acknowledged late, so that a worker that dies leaves its task to
another one; that a task may therefore run twice is what ``deferred`` is built for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from asgiref.sync import async_to_sync
from celery import Task, current_task, shared_task
from channels.db import database_sync_to_async
from django.utils import timezone
from kombu.exceptions import OperationalError

from guardrails.keys import signing_key
from guardrails.signing import KeyRefused, Purpose
from streaming import cohorts
from streaming.audit import retention, verification
from streaming.audit.heads import heads_file
from streaming.audit.verify import keep_head
from streaming.correlation import correlation_in, task_id_of
from streaming.database_clock import database_now
from streaming.deferred import run_deferred
from streaming.log_redis import own_log
from streaming.selectors import open_checks
from streaming.shadow.worker import open_shadow_checks, run_shadow_check
from streaming.sweep import WATCHED as WATCHED_ORIGINS
from streaming.sweep import sweep as sweep_once
from streaming.workers import workers_alive

logger = structlog.get_logger(__name__)

__all__ = ["check", "keep_audit_head", "purge", "queue_chain_check", "queue_check", "queue_session",
           "queue_shadow_check", "queue_watched", "shadow_check", "sweep", "verify_chain", "watch_rollouts",
           "workers_alive"]  # fmt: skip


WATCHED = 3
"""Priority of checks whose answer somebody reads, 0 first: the sweep, which repairs, waits behind none."""
CHECKS = 5
"""Priority of all other checks: of one-shot calls, of the gateway, and whatever else comes in bulk."""
SHADOWS = 7
"""Priority of what a shadow still has to be told, which nobody waits for at all."""
PURGE_S = 45.0
"""How long one purge begins further steps; well before the time at which a task is ended."""


@shared_task(name="streaming.tasks.check", acks_late=True, ignore_result=True)
def check(check_id: int) -> None:
    """Make one deferred check."""
    asked_by = correlation_in(str(current_task.request.id)) if current_task else ""
    with structlog.contextvars.bound_contextvars(**({"correlation_id": asked_by} if asked_by else {})):
        async_to_sync(_check)(check_id)


async def _check(check_id: int) -> None:
    async with own_log() as log:
        await run_deferred(check_id, log, again=queue_again)


@shared_task(name="streaming.tasks.shadow_check", acks_late=True, ignore_result=True)
def shadow_check(check_id: int) -> None:
    """Make one check of a shadow."""
    asked_by = correlation_in(str(current_task.request.id)) if current_task else ""
    with structlog.contextvars.bound_contextvars(**({"correlation_id": asked_by} if asked_by else {})):
        async_to_sync(run_shadow_check)(check_id, again=queue_shadow_check)


@shared_task(name="streaming.tasks.sweep", ignore_result=True, expires=30)
def sweep() -> None:
    """Repair what dead processes left behind; runs every 10 s and whenever a worker starts."""
    async_to_sync(_sweep)()


async def _sweep() -> None:
    async with own_log() as log:
        now = await database_sync_to_async(database_now)()
        done = await sweep_once(now, log, queue_check, watched=queue_watched, shadows=queue_shadow_check)
    failed = done.failures.number.total()
    if done.lost or done.requeued or done.expired or failed:
        counts = {"lost": len(done.lost), "requeued": len(done.requeued), "expired": len(done.expired)}
        logger.info("swept", **counts, **({"failed": failed} if failed else {}))


@shared_task(name="streaming.tasks.watch_rollouts", ignore_result=True, expires=30)
def watch_rollouts() -> None:
    """Roll back versions that left the limits of their rollout; runs every half a minute."""
    cohorts.watch()


@shared_task(name="streaming.tasks.purge", ignore_result=True, expires=3_600)
def purge(begin: str = "") -> None:
    """Remove texts that have been kept long enough; runs every hour, and goes on at once behind what else waits when
    its time is over before the work is: with the session ``begin``, so that texts which no key opens, and which stay
    due, keep nothing behind them from being reached."""
    try:
        days = retention.configured()
    except ValueError as error:
        logger.error("retention_refused", error=str(error))
        return
    wanted = retention.all_due(timezone.now(), days, begin=begin)
    if done := retention.purge(wanted, budget_s=PURGE_S):
        logger.info("texts_purged", sessions=done)
    if (left := next(wanted, None)) is not None:
        try:
            purge.apply_async((left,), retry=False, priority=CHECKS)
        except (OperationalError, OSError) as error:  # then in an hour
            logger.warning("purge_not_queued", error=type(error).__name__)


@shared_task(name="streaming.tasks.keep_audit_head", ignore_result=True, expires=3_600)
def keep_audit_head() -> None:
    """Put the signed head of the audit log aside, where ``SLUICEGATE_AUDIT_HEADS_FILE`` says; every
    ``SLUICEGATE_AUDIT_HEADS_EVERY_S`` seconds and whenever a worker starts."""
    if (file := heads_file()) is None:
        return
    try:
        keep_head(file, signing_key(Purpose.AUDIT))
    except (OSError, KeyRefused) as error:
        logger.error("audit_head_not_kept", error=str(error))


@shared_task(
    name="streaming.tasks.verify_chain", acks_late=False, ignore_result=True, soft_time_limit=3_600, time_limit=3_660
)
def verify_chain(check_id: int) -> None:
    """Verify the whole audit log for the page; its row says how far it is. Never delivered twice."""
    verification.run(check_id)


def queue_chain_check(check_id: int) -> bool:
    """Hand a verification to the workers; False when they cannot be reached."""
    try:
        verify_chain.apply_async((check_id,), retry=False, priority=CHECKS)
    except (OperationalError, OSError) as error:
        logger.warning("chain_check_not_queued", error=type(error).__name__)
        return False
    return True


def queue_check(check_id: int, delay_s: float = 0.0, *, priority: int = CHECKS) -> bool:
    """Hand a check to the workers; a broker that is away is no error (False), the sweep queues it later.

    The task is named after the correlation id that is bound here, so that all lines about it lead to the call.
    """
    return _queue(check, check_id, delay_s, priority)


def queue_shadow_check(check_id: int, delay_s: float = 0.0) -> bool:
    """The same with one of a shadow, behind all that anybody waits for."""
    return _queue(shadow_check, check_id, delay_s, SHADOWS)


def _queue(task: Task[[int], None], check_id: int, delay_s: float, priority: int) -> bool:
    task_id = task_id_of(str(structlog.contextvars.get_contextvars().get("correlation_id", "")))
    try:
        task.apply_async((check_id,), task_id=task_id, retry=False, priority=priority, countdown=delay_s)
    except (OperationalError, OSError) as error:
        logger.warning("check_not_queued", check=check_id, error=type(error).__name__)
        return False
    return True


def queue_watched(check_id: int) -> bool:
    """The same before those that nobody waits for."""
    return queue_check(check_id, priority=WATCHED)


def queue_again(check_id: int, delay_s: float) -> bool:
    """The same after a while, as urgent as the task that is under way."""
    said = (check.request.delivery_info or {}).get("priority")
    return queue_check(check_id, delay_s, priority=CHECKS if said is None else int(said))


async def queue_session(session_id: str) -> None:
    """Hand all open checks of a session, and of its shadow, to the workers.

    Publishing blocks, for seconds while the broker is away: it has a thread of its own, because the one that all
    database work shares must go on.
    """
    checks = await database_sync_to_async(_open)(session_id)
    await asyncio.get_running_loop().run_in_executor(_publisher, _publish, session_id, checks)


_publisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher")
_Queued = tuple[Callable[[int], bool], int, str]


def _open(session_id: str) -> list[_Queued]:
    """How each is handed over, with the id of the call that it belongs to."""
    rows = open_checks(session_id).values_list("pk", "session__correlation_id", "session__origin")
    beside = open_shadow_checks(session_id).values_list("pk", "session__correlation_id")
    mine: list[_Queued] = [
        (queue_watched if origin in WATCHED_ORIGINS else queue_check, pk, correlation_id)
        for pk, correlation_id, origin in rows
    ]
    return [*mine, *((queue_shadow_check, pk, correlation_id) for pk, correlation_id in beside)]


def _publish(session_id: str, checks: list[_Queued]) -> None:
    for queue, check_id, correlation_id in checks:
        # A thread of its own knows nothing of the call, and a finish is another call than the one that began it all.
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id, session=session_id):
            if not queue(check_id):
                return
