"""A connection that is left alone while nobody would be told what comes over it.

Exists because being woken for every token costs more than all that is done with it, while readers are told twenty
times a second (docs/adr/0203). The rest is taken right before the socket is read: what has been read is taken without
any, and while it lasts the kernel collects what comes. Protects the rule that a rest is nobody's silence: the limits
of ``waits`` do not count it.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpcore
import httpx
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from httpcore._backends.anyio import AnyIOStream  # the one place where a stream can be put below TLS

from streaming.providers.waits import Waits

Resolves = Callable[[str, int], Awaitable[str]]
"""Host and port -> the address to connect to. Raises ``ProviderError``."""


class PacedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over such connections. ``tls`` None: for addresses without TLS."""

    def __init__(self, waits: Waits, tls: ssl.SSLContext | None, resolves: Resolves | None = None) -> None:
        # Not the constructor of the class above: all that it makes is another pool, and a TLS context for it.
        self._pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=_Backend(waits, resolves))


class CheckedBackend(httpcore.AnyIOBackend):
    """Connections to the address that ``resolves`` gives for a host; TLS is still about the host's name."""

    def __init__(self, resolves: Resolves | None) -> None:
        self._resolves = resolves

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore."""
        if self._resolves is not None:
            host = await self._resolves(host, port)
        opened = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _Untimed(opened._stream) if isinstance(opened, AnyIOStream) else opened


class _Untimed(AnyIOStream):
    """httpcore's, for clients without time limits of its own: it begins and ends one for every piece that it reads,
    which costs more than the reading."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See httpcore."""
        if timeout is not None:
            return await super().read(max_bytes, timeout)
        try:
            return await self._stream.receive(max_bytes)
        except EndOfStream:
            return b""
        except (BrokenResourceError, ClosedResourceError) as error:
            raise httpcore.ReadError(str(error)) from error

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore."""
        opened = await super().start_tls(ssl_context, server_hostname, timeout)
        return _Untimed(opened._stream) if isinstance(opened, AnyIOStream) else opened


class _Backend(CheckedBackend):
    def __init__(self, waits: Waits, resolves: Resolves | None) -> None:
        super().__init__(resolves)
        self._waits = waits

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore."""
        opened = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _Untimed(_Paced(opened._stream, self._waits)) if isinstance(opened, AnyIOStream) else opened


class _Paced(ByteStream):
    """A byte stream of which no more is read while the answer rests. anyio's reads the socket only while it is asked
    to, and pauses its transport in between.
    """

    def __init__(self, inner: ByteStream, waits: Waits) -> None:
        self._inner, self._waits = inner, waits

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """See anyio."""
        await self._waits.rest()
        return await self._inner.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """See anyio."""
        await self._inner.send(item)

    async def send_eof(self) -> None:
        """See anyio."""
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """See anyio."""
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See anyio, whose signature this is."""
        return self._inner.extra_attributes
