"""A session's events as Server-Sent Events.

Exists beside the sockets for clients that only read: EventSource, curl, back ends. Protects two rules: a connection on
which nothing happens is kept alive and found dead in time, and a reader whose log goes away is told so and sent back
with the place it had reached (an event that stands in no log carries no id). An end that the database tells has a place
of its own, so that whoever was told it is not told for ever. A reader ends with its key, or with its token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import structlog

from streaming import away
from streaming.access import Refused
from streaming.conf import Conf
from streaming.core.events import ErrorEvent, ServerEvent
from streaming.core.wire import HEARTBEAT, to_sse
from streaming.database import AWAY
from streaming.frames import MAX_SEQ
from streaming.key_watch import look
from streaming.log import LogUnavailable, SessionLog
from streaming.reader import State, follow, from_database, over

logger = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0
ENDED = MAX_SEQ
"""The place of a reader who was told by the database how its session ended: behind every event of a log."""
_PLACE = b"id: %d\n" % ENDED


async def event_stream(
    log: SessionLog,
    session_id: str,
    after: int,
    settings: Conf,
    *,
    correlation_id: str,
    heartbeat_s: float = HEARTBEAT_S,
    key: str = "",
    until: float | None = None,
) -> AsyncGenerator[bytes, None]:
    """Frames of every event above ``after`` until the session is COMPLETE, with a comment every ``heartbeat_s``.

    ``key``: the prefix of the API key that has to stand and to have the scope ``stream`` meanwhile. ``until``: when a
    token ends, seconds since 1970.
    """

    async def ended(name: str) -> tuple[State, Sequence[ServerEvent]]:
        await look(key, "stream", until=until)
        return await over(name)

    batches = follow(
        log, session_id, after, settings, correlation_id=correlation_id, resumed=True, session_over=ended
    )  # fmt: skip
    try:
        async with aclosing(batches):
            next_batch = asyncio.ensure_future(anext(batches, None))
            try:
                while True:
                    arrived, _ = await asyncio.wait({next_batch}, timeout=heartbeat_s)
                    if not arrived:
                        yield HEARTBEAT
                        continue
                    if (batch := next_batch.result()) is None:
                        return
                    await look(key, "stream", until=until)
                    yield b"".join(_PLACE + to_sse(event) if _tells_end(event) else to_sse(event) for event in batch)
                    next_batch = asyncio.ensure_future(anext(batches, None))
            finally:
                # A generator that somebody still waits for cannot be closed.
                next_batch.cancel()
                await asyncio.wait({next_batch})
    except Refused as error:
        yield to_sse(from_database(ErrorEvent(error.code, str(error), False), session_id, correlation_id))
    except LogUnavailable as error:
        said = "The session log cannot be reached now; read on in a moment."
        yield to_sse(from_database(ErrorEvent(error.code, said, True), session_id, correlation_id))
    except AWAY as error:
        said_away = away.noted(error, session=session_id, correlation_id=correlation_id)
        yield to_sse(from_database(said_away, session_id, correlation_id))
    except Exception:
        logger.exception("reader_failed", session=session_id, correlation_id=correlation_id)
        said = "Something went wrong on the server."
        yield to_sse(from_database(ErrorEvent("internal", said, recoverable=True), session_id, correlation_id))


def _tells_end(event: Mapping[str, object]) -> bool:
    """Whether the database has said with this that the session is COMPLETE."""
    return (event["seq"], event["type"], event.get("state")) == (0, "state", State.COMPLETE)
