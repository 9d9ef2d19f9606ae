"""Connections that tell an HTTP/2 peer when an answer is not wanted any more.

Exists because httpcore forgets a stream that is closed early and says nothing to the peer, which then goes on writing
(and, as nobody takes its data, uses up the flow window that all answers on the connection share). Over HTTP/1.1 closing
the connection says it. Protects the rule that an answer nobody wants ends at once, over either protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import cast

import httpcore
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from httpcore._async.connection import AsyncHTTPConnection  # the one place where a stream can be ended
from httpcore._async.http2 import AsyncHTTP2Connection, HTTP2ConnectionByteStream

RESET_S = 1.0
"""Seconds that telling it may take; a peer that does not even read is as good as gone."""

_Trace = Callable[[str, Mapping[str, object]], Awaitable[None]]


class TellingPool(httpcore.AsyncConnectionPool):
    """httpcore's pool of such connections."""

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        """See httpcore."""
        return _Telling(super().create_connection(origin))

    def _assign_requests_to_connections(self) -> list[httpcore.AsyncConnectionInterface]:
        """What httpcore's does with one look at each connection; returns those that are to be closed.

        Its own looks at all of them for each that is idle, at the beginning and at the end of every request, and takes
        the number of all for that of the idle ones: with more answers under way than are kept, none would be.
        """
        closing: list[httpcore.AsyncConnectionInterface] = []
        idle: list[httpcore.AsyncConnectionInterface] = []
        for connection in tuple(self._connections):
            if connection.is_closed():
                self._connections.remove(connection)
            elif connection.has_expired():
                self._connections.remove(connection)
                closing.append(connection)
            elif connection.is_idle():
                idle.append(connection)
        for connection in idle[: max(0, len(idle) - self._max_keepalive_connections)]:
            self._connections.remove(connection)
            closing.append(connection)
            idle.remove(connection)
        for request in [one for one in self._requests if one.is_queued()]:
            origin = request.request.url.origin
            free = (one for some in (idle, self._connections) for one in some if one.is_available())
            found = next((one for one in free if one.can_handle_request(origin)), None)
            if found is None:
                if len(self._connections) >= self._max_connections:
                    if not idle:
                        continue
                    closing.append(idle.pop(0))
                    self._connections.remove(closing[-1])
                found = self.create_connection(origin)
                self._connections.append(found)
            elif found in idle:
                idle.remove(found)
            request.assign_to_connection(found)
        return closing


class _Telling(httpcore.AsyncConnectionInterface):
    """A connection of httpcore's."""

    def __init__(self, inner: httpcore.AsyncConnectionInterface) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        stream_id: int | None = None
        told = cast("_Trace | None", request.extensions.get("trace"))

        async def trace(name: str, info: Mapping[str, object]) -> None:
            nonlocal stream_id
            if isinstance(found := info.get("stream_id"), int):
                stream_id = found
            if told is not None:
                await told(name, info)

        async def reset() -> None:
            if stream_id is not None:
                await self._reset(stream_id, request)

        request.extensions = {**request.extensions, "trace": trace}
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException:
            await reset()
            raise
        if isinstance(response.stream, HTTP2ConnectionByteStream):
            response.stream = _Body(response.stream, reset)
        return response

    async def _reset(self, stream_id: int, request: httpcore.Request) -> None:
        made = self._inner._connection if isinstance(self._inner, AsyncHTTPConnection) else None
        if not isinstance(made, AsyncHTTP2Connection) or made.is_closed():
            return
        # A stream that is over by now has nothing to be told of, and a connection that breaks tells it by itself.
        with suppress(ProtocolError, TimeoutError, OSError, httpcore.NetworkError, httpcore.ProtocolError):
            made._h2_state.reset_stream(stream_id, error_code=ErrorCodes.CANCEL)
            async with asyncio.timeout(RESET_S):
                await made._write_outgoing_data(request)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def info(self) -> str:
        return self._inner.info()

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return self._inner.can_handle_request(origin)

    def is_available(self) -> bool:
        return self._inner.is_available()

    def has_expired(self) -> bool:
        return self._inner.has_expired()

    def is_idle(self) -> bool:
        return self._inner.is_idle()

    def is_closed(self) -> bool:
        return self._inner.is_closed()


class _Body:
    """A body of HTTP/2. ``reset`` is called when it is closed before its end."""

    def __init__(self, inner: HTTP2ConnectionByteStream, reset: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._reset = reset
        self._over = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            yield part
        self._over = True

    async def aclose(self) -> None:
        if not self._over:
            self._over = True
            await self._reset()
        await self._inner.aclose()
