"""A session's events as Server-Sent Events.

Exists beside the sockets for clients that only read: EventSource, curl, back ends. Protects two rules: a connection on
which nothing happens is kept alive and found dead in time, and a reader whose log goes away is told so and sent back
with the place it had reached (an event that stands in no log carries no id).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from streaming.conf import Conf
from streaming.core.events import ErrorEvent
from streaming.core.wire import HEARTBEAT, to_sse
from streaming.log import LogUnavailable, SessionLog
from streaming.reader import follow, from_database

logger = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0


async def event_stream(
    log: SessionLog,
    session_id: str,
    after: int,
    settings: Conf,
    *,
    correlation_id: str,
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncGenerator[bytes, None]:
    """Frames of every event above ``after`` until the session is COMPLETE, with a comment every ``heartbeat_s``."""
    batches = follow(log, session_id, after, settings, correlation_id=correlation_id, resumed=True)
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
                    yield b"".join(to_sse(event) for event in batch)
                    next_batch = asyncio.ensure_future(anext(batches, None))
            finally:
                # A generator that somebody still waits for cannot be closed.
                next_batch.cancel()
                await asyncio.wait({next_batch})
    except LogUnavailable as error:
        said = "The session log cannot be reached now; read on in a moment."
        yield to_sse(from_database(ErrorEvent(error.code, said, True), session_id, correlation_id))
    except Exception:
        logger.exception("reader_failed", session=session_id, correlation_id=correlation_id)
        said = "Something went wrong on the server."
        yield to_sse(from_database(ErrorEvent("internal", said, recoverable=True), session_id, correlation_id))
