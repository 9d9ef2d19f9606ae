"""Group commit: what waits for the database in one process goes into one transaction, under one lock of the log's head.

Exists because one thread of a process writes to the database at a time, and a transaction ends with a flush of the
disk: sessions that begin or end at the same time would wait for one flush each. Nobody waits for company: what comes
alone goes alone, and only what came while the thread was busy goes together. Protects two rules: a job stands or falls
with its own entries of the audit log, whatever becomes of the others; and what cannot be done together is done one by
one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import structlog
from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import DatabaseError, OperationalError, transaction

from streaming.audit.services import gathered
from streaming.database import in_database

logger = structlog.get_logger(__name__)
R = TypeVar("R")
MOST = 32
"""Jobs of one transaction: on SQLite everybody else waits for all of them."""


_LEAD = object()
"""Said to one who waits: the next ones are yours to do."""


@dataclass(frozen=True, slots=True)
class _Job:
    do: Callable[[], object]
    context: Context
    done: asyncio.Future[object]


@dataclass(slots=True)
class _Queue:
    """What waits in one event loop, and who sees to it."""

    waiting: deque[_Job] = field(default_factory=deque)
    busy: bool = False


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()


async def together(do: Callable[[], R]) -> R:
    """Run ``do`` in the database's thread, in a transaction that others may share. Raises what it raises.

    ``do`` may be run a second time when a transaction came to nothing; it does no other lasting work.
    """
    if _holds_the_shared_thread():
        return cast("R", _come_to(await in_database(in_one_transaction)([do])))
    loop = asyncio.get_running_loop()
    queue = _queues.setdefault(loop, _Queue())
    job = _Job(do, copy_context(), loop.create_future())
    queue.waiting.append(job)
    if queue.busy:
        try:
            said = await job.done
        except asyncio.CancelledError:
            if job.done.done() and not job.done.cancelled() and job.done.result() is _LEAD:
                _hand_on(queue)
            raise
        if said is not _LEAD:
            return cast("R", said)
    # In the context of one who waits: a request's database thread ends with it, and others' jobs would end there too.
    queue.busy = True
    jobs = [queue.waiting.popleft() for _ in range(min(MOST, len(queue.waiting)))]
    return cast("R", await asyncio.shield(loop.create_task(_work(queue, jobs), name="group-commit")))


async def _work(queue: _Queue, jobs: list[_Job]) -> object:
    """Do all of them; what the first one, whose task this is, returned."""
    try:
        results = await in_database(in_one_transaction)([_in_its_context(job) for job in jobs])
    except BaseException as error:
        for job in jobs[1:]:
            if not job.done.done():
                job.done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
        raise
    finally:
        _hand_on(queue)
    for job, result in zip(jobs[1:], results[1:], strict=True):
        if job.done.done():  # whoever asked is gone
            continue
        if isinstance(result, Exception):
            job.done.set_exception(result)
        else:
            job.done.set_result(result)
    return _come_to(results)


def _come_to(results: Sequence[object]) -> object:
    """What the first job returned. Raises what it raised."""
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def _holds_the_shared_thread() -> bool:
    """Does somebody in the database's shared thread wait for this task? Then it must not wait for those who need it.

    So it is where synchronous code calls asynchronous code and no request has a thread of its own: a synchronous
    middleware under a server that opens no ``ThreadSensitiveContext``. Django's ASGI handler opens one.
    """
    return bool(getattr(AsyncToSync.executors, "current", None)) and not SyncToAsync.thread_sensitive_context.get(None)


def _hand_on(queue: _Queue) -> None:
    """Whoever waits longest does the next ones."""
    while queue.waiting:
        if not queue.waiting[0].done.done():
            queue.waiting[0].done.set_result(_LEAD)
            return
        queue.waiting.popleft()  # whoever asked is gone
    queue.busy = False


def _in_its_context(job: _Job) -> Callable[[], object]:
    # What is logged inside leads to the call that asked, not to the one that was first.
    return lambda: job.context.run(job.do)


def in_one_transaction(jobs: Sequence[Callable[[], object]]) -> list[object]:
    """What each job returned or raised; one that raises leaves nothing behind and the others as they are."""
    if len(jobs) > 1:
        try:
            return _all_at_once(jobs)
        except (DatabaseError, ValueError) as error:  # a deadlock, say, or what no entry can carry: whose is not known
            logger.warning("stored_one_by_one", jobs=len(jobs), error=type(error).__name__)
    return [_alone(job) for job in jobs]


def _all_at_once(jobs: Sequence[Callable[[], object]]) -> list[object]:
    results: list[object] = []
    with transaction.atomic(), gathered() as drafts:
        for job in jobs:
            before = len(drafts)
            try:
                with transaction.atomic():
                    results.append(job())
            except OperationalError:
                raise
            except Exception as error:
                del drafts[before:]
                results.append(error)
    return results


def _alone(job: Callable[[], object]) -> object:
    try:
        return job()
    except Exception as error:
        return error
