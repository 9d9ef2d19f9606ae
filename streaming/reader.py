"""Reading a session's events, from any seq, until the session is COMPLETE.

Exists so that sockets and SSE read in the same way. Protects three rules: a lost wake-up is no hang (the log is also
polled), a reader that is told nothing asks the database before it waits on (a lost log is no hang either), and a
reader that comes too late for the log still learns how the session ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from channels.db import database_sync_to_async

from streaming import selectors
from streaming.conf import Conf
from streaming.core.buffer import coalesce_stamped
from streaming.core.events import ErrorEvent, ServerEvent, stamp
from streaming.log import SessionLog
from streaming.models import AuditSession

State = AuditSession.State
Batch = list[dict[str, object]]
Over = Callable[[str], Awaitable[tuple[State, Sequence[ServerEvent]]]]

over: Over = database_sync_to_async(selectors.session_over)
LOST = ErrorEvent("events_lost", "Some events are no longer stored; what follows is complete again.", recoverable=True)


async def follow(
    log: SessionLog,
    session_id: str,
    after: int,
    settings: Conf,
    *,
    resumed: bool = False,
    told: bool = False,
    session_over: Over = over,
) -> AsyncGenerator[Batch, None]:
    """Batches of stamped events with seqs above ``after``; ends after the event that says COMPLETE.

    ``resumed``: look into the database at once when the log has nothing. ``told``: the reader knows already how the
    answer ended (the session may still be MONITORING). Raises ``LogUnavailable``, and
    ``AuditSession.DoesNotExist`` when there is no such session.
    """
    quiet = settings.idle_check_s if resumed else 0.0
    async with log.attend(session_id) as wake:
        while True:
            wake.clear()
            events = await log.read(session_id, after)
            if events:
                if int(str(events[0]["seq"])) > after + 1 and not told:
                    yield [from_database(LOST, session_id)]
                after, quiet = int(str(events[-1]["seq"])), 0.0
                yield coalesce_stamped(events)
                if any(event["type"] == "state" and event["state"] == State.COMPLETE for event in events):
                    return
                continue
            if quiet >= settings.idle_check_s:
                quiet = 0.0
                state, said = await session_over(session_id)
                if state is State.COMPLETE and not await log.read(session_id, after, 1):
                    # The last step was taken but never told, or the log is gone: the database tells it.
                    yield [from_database(event, session_id) for event in said]
                    return
                if said and not told and not await log.read(session_id, 0, 1):
                    told = True
                    yield [from_database(event, session_id) for event in said]
                continue
            try:
                async with asyncio.timeout(settings.log_poll_s):
                    await wake.wait()
            except TimeoutError:
                quiet += settings.log_poll_s


def from_database(event: ServerEvent, session_id: str) -> dict[str, object]:
    """An event that stands in no log: its seq is 0, so that it never hides one that does."""
    return stamp(event.payload(), seq=0, session_id=session_id, ms=0)
