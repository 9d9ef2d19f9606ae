"""One connection to the store on which the writers' appends go one behind the other, without waiting for one another.

Exists because a process that is woken for a flush pays more for the client library's way to send a command (a pool, a
retry, a task, a coroutine for every layer, six turns of the event loop) than for gate and pump. Here a call is one
write, and its answer is handed on in the same turn in which it was read. The library still makes the connection:
addresses, TLS, passwords and databases are its business.

Protects two rules: a call that may have been made is not made again, and no answer is taken for another call's. So
whatever goes wrong ends the connection and with it every call under way; the library's client serves until there is
another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

import hiredis
import structlog
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError, ResponseError

from streaming.log import LogUnavailable

logger = structlog.get_logger(__name__)

AGAIN_S = 1.0
"""Seconds between two tries to connect."""
OPEN_LIMIT_S = 5.0
"""So long one takes."""

Then = Callable[[object], None]
"""Given what the store has answered, or a ``LogUnavailable``. Called once, outside of any task; must not raise."""


class Pipe(asyncio.Protocol):
    """``send`` while it is ``ready``. Answers come in the order of the calls. ``aclose`` when it is not needed."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._answers = _answers()
        self._calls: deque[tuple[Then, float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._opened_at = -AGAIN_S

    @property
    def ready(self) -> bool:
        """Whether a call can be sent now."""
        return self._transport is not None

    def open_soon(self) -> None:
        """Connect beside the caller, unless that was tried a moment ago."""
        now = asyncio.get_running_loop().time()
        if self._transport is None and self._opening is None and now - self._opened_at >= AGAIN_S:
            self._opened_at = now
            self._opening = asyncio.create_task(self._open(), name="log-pipe")

    def send(self, command: Sequence[str | float | bytes], then: Then, limit_s: float) -> None:
        """Make a call; without an answer after ``limit_s`` seconds the connection ends. Call it only when ``ready``.

        Raises ``TypeError`` or ``UnicodeEncodeError`` for what no command can carry; then there was no call.
        """
        assert self._transport is not None, "nobody sends before it is ready"
        packed = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub: one element
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        self._calls.append((then, until))
        if self._watch is None:  # one alarm for all of them: it is set anew at most once in a time limit
            self._watch = loop.call_at(until, self._look)
        self._transport.write(packed)

    async def aclose(self) -> None:
        """End the connection; calls under way fail."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        self._end("closed")
        await self._drop()

    # -- what the transport tells ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Hand the answers on."""
        try:
            self._answers.feed(data)
            while (answer := self._answers.gets()) is not False:
                if isinstance(answer, hiredis.PushNotification):
                    continue  # nobody has called for it
                then, _ = self._calls.popleft()
                then(_unavailable(answer) if isinstance(answer, Exception) else answer)
        except (hiredis.HiredisError, IndexError):  # this is no store, or not ours
            self._end("ProtocolError")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody else will be answered."""
        self._end(type(exc).__name__ if exc is not None else "ConnectionError")

    # -- small things ---------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            await self._drop()
            self._connection = connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            async with asyncio.timeout(OPEN_LIMIT_S):  # a store that takes connections and says nothing is none
                await connection.connect()
            # The library has no public place for the transport; tests fail when it is no longer here.
            if (writer := connection._writer) is None:
                return
            transport = writer.transport
            self._answers = _answers()
            transport.set_protocol(self)
            if not transport.is_closing():
                self._transport = transport
        except (RedisError, OSError, TimeoutError) as error:
            logger.debug("log_pipe_not_opened", error=type(error).__name__)
        finally:
            self._opening = None

    def _look(self) -> None:
        """Is anybody waiting for too long?"""
        self._watch = None
        if not self._calls:
            return
        loop, (_, until) = asyncio.get_running_loop(), self._calls[0]
        if until <= loop.time():
            self._end("TimeoutError")
        else:
            self._watch = loop.call_at(until, self._look)

    def _end(self, why: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        calls, self._calls = self._calls, deque()
        for then, _ in calls:
            then(LogUnavailable(f"the session log cannot be reached ({why})"))

    async def _drop(self) -> None:
        """Let the library tidy up after a connection that has ended."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


def _answers() -> hiredis.Reader:
    return hiredis.Reader(replyError=ResponseError)


def _unavailable(error: Exception) -> LogUnavailable:
    made = LogUnavailable(f"the session log has refused a call ({error})")
    made.__cause__ = error
    return made
