"""What workers are asked to do; thin, the work is in ``deferred`` and ``sweep``.

Only ids travel through the broker, never text. Acknowledged late, so that a worker that dies leaves its task to
another one; that a task may therefore run twice is what ``deferred`` is built for.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from asgiref.sync import async_to_sync
from celery import current_task, shared_task
from channels.db import database_sync_to_async
from django.conf import settings
from django.utils import timezone
from kombu.exceptions import OperationalError

from guardrails.keys import signing_key
from guardrails.signing import KeyRefused, Purpose
from streaming import cohorts
from streaming.audit import retention, verification
from streaming.audit.verify import keep_head
from streaming.correlation import correlation_in, task_id_of
from streaming.database_clock import database_now
from streaming.deferred import run_deferred
from streaming.log_redis import own_log
from streaming.selectors import open_checks
from streaming.sweep import sweep as sweep_once
from streaming.workers import workers_alive

logger = structlog.get_logger(__name__)

__all__ = ["check", "keep_audit_head", "purge", "queue_chain_check", "queue_check", "queue_session", "sweep",
           "verify_chain", "watch_rollouts", "workers_alive"]  # fmt: skip


CHECKS = 5
"""Priority of checks, 0 first: the sweep, which repairs, must not wait behind a thousand of them."""


@shared_task(name="streaming.tasks.check", acks_late=True, ignore_result=True)
def check(check_id: int) -> None:
    """Make one deferred check."""
    asked_by = correlation_in(str(current_task.request.id)) if current_task else ""
    with structlog.contextvars.bound_contextvars(**({"correlation_id": asked_by} if asked_by else {})):
        async_to_sync(_check)(check_id)


async def _check(check_id: int) -> None:
    async with own_log() as log:
        await run_deferred(check_id, log, again=queue_again)


@shared_task(name="streaming.tasks.sweep", ignore_result=True, expires=30)
def sweep() -> None:
    """Repair what dead processes left behind; runs every 10 s and whenever a worker starts."""
    async_to_sync(_sweep)()


async def _sweep() -> None:
    async with own_log() as log:
        done = await sweep_once(await database_sync_to_async(database_now)(), log, queue_check)
    if done.lost or done.requeued or done.expired:
        logger.info("swept", lost=len(done.lost), requeued=len(done.requeued), expired=len(done.expired))


@shared_task(name="streaming.tasks.watch_rollouts", ignore_result=True, expires=30)
def watch_rollouts() -> None:
    """Roll back versions that left the limits of their rollout; runs every half a minute."""
    cohorts.watch()


@shared_task(name="streaming.tasks.purge", ignore_result=True, expires=3_600)
def purge() -> None:
    """Remove texts that have been kept long enough; runs every hour."""
    done = retention.purge(retention.due(timezone.now(), retention.configured()))
    if done:
        logger.info("texts_purged", sessions=done)


@shared_task(name="streaming.tasks.keep_audit_head", ignore_result=True, expires=3_600)
def keep_audit_head() -> None:
    """Put the signed head of the audit log aside, where ``SLUICEGATE_AUDIT_HEADS_FILE`` says; runs every hour."""
    if not (name := settings.SLUICEGATE_AUDIT_HEADS_FILE):
        return
    try:
        keep_head(Path(name), signing_key(Purpose.AUDIT))
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


def queue_check(check_id: int, delay_s: float = 0.0) -> bool:
    """Hand a check to the workers; a broker that is away is no error (False), the sweep queues it later.

    The task is named after the correlation id that is bound here, so that all lines about it lead to the call.
    """
    task_id = task_id_of(str(structlog.contextvars.get_contextvars().get("correlation_id", "")))
    try:
        check.apply_async((check_id,), task_id=task_id, retry=False, priority=CHECKS, countdown=delay_s)
    except (OperationalError, OSError) as error:
        logger.warning("check_not_queued", check=check_id, error=type(error).__name__)
        return False
    return True


def queue_again(check_id: int, delay_s: float) -> bool:
    """The same after a while."""
    return queue_check(check_id, delay_s)


async def queue_session(session_id: str) -> None:
    """Hand all open checks of a session to the workers.

    Publishing blocks, for seconds while the broker is away: it has a thread of its own, because the one that all
    database work shares must go on.
    """
    checks = await database_sync_to_async(
        lambda: list(open_checks(session_id).values_list("pk", "session__correlation_id"))
    )()
    await asyncio.get_running_loop().run_in_executor(_publisher, _publish, session_id, checks)


_publisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher")


def _publish(session_id: str, checks: list[tuple[int, str]]) -> None:
    for check_id, correlation_id in checks:
        # A thread of its own knows nothing of the call, and a finish is another call than the one that began it all.
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id, session=session_id):
            if not queue_check(check_id):
                return
