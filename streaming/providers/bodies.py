"""The body of an answer over HTTP: as it comes, its beginning, or whole; within limits of time and size.

Exists because adapters and the gateway's upstreams read the same bodies under the same rules. Protects them: nothing is
waited for beyond the limits (see ``waits``), nothing is kept beyond a size, and a connection that breaks is told as
what it means (see ``failures``). What is compressed, which nobody asked for, grows a little at a time, so that the
limits of size are looked at before a few kilobytes have become a gigabyte.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import httpx

from streaming.providers import base
from streaming.providers.failures import cut_off
from streaming.providers.waits import Waits

MAX_ERROR_BYTES = 65_536
MAX_WHOLE_BYTES = 16 * 1024 * 1024
"""An answer that is not streamed and larger than this is not an answer."""
MAX_STREAM_BYTES = 64 * 1024 * 1024
"""A streamed one has some hundred bytes around each token."""
MAX_PIECE_BYTES = 65_536
"""Of what is decompressed at a time."""
MAX_GROWTH = 200
"""Times as large as it was sent. Chunks of a stream are much alike and grow tenfold or more; what grows like this was
made to cost time and memory."""
GROWS_FREELY_BYTES = 4 * MAX_PIECE_BYTES
"""So much may grow as it likes."""
_GZIP, _DEFLATE = ("gzip", "x-gzip"), "deflate"
_COMPRESSED = (*_GZIP, _DEFLATE, "br", "zstd", "compress", "x-compress")


async def pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes; a generator, so that it can be closed. Raises ``StreamCutOff``, ``ProviderProtocolError``
    where it cannot be decompressed."""
    unpacker = _unpacker(response)
    try:
        async for data in response.aiter_raw():
            if unpacker is None:
                yield data
                continue
            for piece in unpacker.feed(data):
                yield piece
                await asyncio.sleep(0)  # a small read may be a large text: others have their turn meanwhile
    except httpx.TransportError as error:
        if (meant := cut_off(error)) is None:
            raise
        raise meant from None


async def beginning(response: httpx.Response, waits: Waits) -> bytes:
    """The first ``MAX_ERROR_BYTES`` or so of an error's body; less where it breaks off or cannot be read, because its
    status says what matters."""
    raw = bytearray()
    async with aclosing(pieces(response)) as body:
        while len(raw) < MAX_ERROR_BYTES:
            try:
                async with waits.waiting():
                    data = await anext(body, None)
            except (base.StreamCutOff, base.ProviderProtocolError, httpx.RemoteProtocolError):
                break
            if data is None:
                break
            raw += data
    return bytes(raw)


async def whole(response: httpx.Response, waits: Waits) -> bytes:
    """All of it. Raises ``StreamCutOff``, and ``ProviderProtocolError`` above ``MAX_WHOLE_BYTES``."""
    raw = bytearray()
    async with aclosing(pieces(response)) as body:
        while True:
            async with waits.waiting():
                data = await anext(body, None)
            if data is None:
                return bytes(raw)
            raw += data
            if len(raw) > MAX_WHOLE_BYTES:
                raise base.ProviderProtocolError(f"the answer is larger than {MAX_WHOLE_BYTES:,} bytes")


def _unpacker(response: httpx.Response) -> _Unpacker | None:
    """None where the body is as it is; a coding that nobody knows says nothing of the bytes."""
    said = response.headers.get("content-encoding", "").split(",")
    codings = [coding for word in said if (coding := word.strip().lower()) in _COMPRESSED]
    if not codings:
        return None
    if len(codings) > 1:
        raise base.ProviderProtocolError("the endpoint's answer is compressed more than once")
    if codings[0] not in (*_GZIP, _DEFLATE):
        raise base.ProviderProtocolError(f"the endpoint's answer is compressed ({codings[0]}), which was not asked for")
    return _Unpacker(codings[0])


class _Unpacker:
    """Decompresses ``MAX_PIECE_BYTES`` at most at a time. An end that is missing is for the dialect to notice."""

    def __init__(self, coding: str) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16) if coding in _GZIP else None
        self._head = b""
        self._taken = self._given = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the bytes complete. Raises ``ProviderProtocolError``."""
        if self._zlib is None:
            self._head += data
            if len(self._head) < 2:
                return
            self._zlib, data = zlib.decompressobj(_window(self._head)), self._head
        while not self._zlib.eof:
            try:
                piece = self._zlib.decompress(data, MAX_PIECE_BYTES)
            except zlib.error:
                raise base.ProviderProtocolError("the endpoint's answer could not be decompressed") from None
            self._taken += len(data) - len(self._zlib.unconsumed_tail)
            self._given += len(piece)
            if self._given > max(GROWS_FREELY_BYTES, self._taken * MAX_GROWTH):
                raise base.ProviderProtocolError("the endpoint's answer is compressed beyond all measure")
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail
            if not data and len(piece) < MAX_PIECE_BYTES:
                return


def _window(head: bytes) -> int:
    """How ``deflate`` is to be read: some servers leave out the frame that the coding has (RFC 1950)."""
    framed = head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0
    return zlib.MAX_WBITS if framed else -zlib.MAX_WBITS
