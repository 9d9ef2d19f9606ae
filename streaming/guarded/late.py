"""The newest state of a stream reaches the database also when no call comes any more.

Exists because a call writes through only what is due by then: after a burst and a pause the last deltas would stand in
the store alone, and be missing from the record if it were lost. Protects the rule that the database is two seconds
behind at most: whoever leaves something unwritten has it written when that time is over. A process that dies in between
leaves it to the sweep. Both write by the state's number, so twice or too late changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from datetime import datetime, timedelta

import structlog

from streaming.conf import Conf
from streaming.database import AWAY, in_database
from streaming.guarded import rows
from streaming.guarded.record import RecordBroken, unsealed
from streaming.guarded.store import Store
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog

logger = structlog.get_logger(__name__)

AT_ONCE = 500
"""Streams that are looked at together."""


def call_later(seconds: float, do: Callable[[], None], context: Context) -> asyncio.TimerHandle:
    """The running loop's own."""
    return asyncio.get_running_loop().call_later(seconds, do, context=context)


class Late:
    """What one event loop has left unwritten: a timer for each stream, until it is over or was written."""

    def __init__(self, log: RedisLog) -> None:
        self._store = Store(log)
        self._due: dict[str, asyncio.TimerHandle] = {}
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def due(self) -> list[str]:
        """Streams that wait for their time."""
        return list(self._due)

    def leave(self, session_id: str, seconds: float) -> None:
        """The store has a state that the database has not; it gets it in so many seconds."""
        if session_id in self._due:
            return  # whatever is the newest then is written
        context = Context()  # not the call's: it would keep the whole request for as long as this waits
        context.run(structlog.contextvars.bind_contextvars, **structlog.contextvars.get_contextvars())
        self._due[session_id] = call_later(seconds, lambda: self._begin(session_id), context)

    def written(self, session_id: str) -> None:
        """The database has all that there is."""
        if timer := self._due.pop(session_id, None):
            timer.cancel()

    async def settle(self) -> None:
        """Wait for what is being written now."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def aclose(self) -> None:
        """Stop: what is not written yet is left to the sweep."""
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()
        for task in tuple(self._writing):
            task.cancel()
        await self.settle()

    def _begin(self, session_id: str) -> None:
        self._due.pop(session_id, None)
        task = asyncio.get_running_loop().create_task(self._write(session_id), name=f"write-through-{session_id}")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, session_id: str) -> None:
        try:
            await write(self._store, session_id)
        except (LogUnavailable, *AWAY) as error:
            logger.warning("stream_not_written_through", session=session_id, error=type(error).__name__)


async def write(store: Store, session_id: str) -> bool:
    """Bring the database to the store's state. Raises ``LogUnavailable`` and the database's errors."""
    found = await store.read(session_id)
    if found is None:
        return False
    try:
        record = unsealed(found.blob, session_id)
    except RecordBroken as error:
        logger.warning("stream_not_written_through", session=session_id, error=str(error))
        return False
    if record.over:
        return False
    if await in_database(rows.write_through)(record=record, blob=found.blob):
        await store.kept(session_id)  # else the store was put back to an older state: the next call is to see that
    return True


async def catch_up(
    log: RedisLog, settings: Conf, now: datetime, alone: Callable[[], AbstractContextManager[None]] = nullcontext
) -> list[str]:
    """Write through what processes that died have left; the streams' ids. ``now`` by the database's clock.

    All open streams are looked at, most of which have nothing left to write. ``alone`` is around each that has, so that
    one that fails may be passed over. Raises ``LogUnavailable``.
    """
    store, done = Store(log), []
    before, behind = now - timedelta(seconds=2 * settings.write_through_s), ""
    while found := await in_database(rows.unheard)(before, AT_ONCE, behind):
        for (session_id, rev), newest in zip(found, await store.revs([name for name, _ in found]), strict=True):
            if newest is not None and newest > rev:
                with alone():
                    if await write(store, session_id):
                        done.append(session_id)
        behind = found[-1][0]
    return done
