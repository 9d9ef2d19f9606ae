"""The body of an answer over HTTP: as it comes, its beginning, or whole; within limits of time and size.

Exists because adapters and the gateway's upstreams read the same bodies under the same rules. Protects them: nothing is
waited for beyond the limits (see ``waits``), nothing is kept beyond a size, and a connection that breaks is told as
what it means (see ``failures``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx

from streaming.providers import base
from streaming.providers.failures import cut_off
from streaming.providers.waits import Waits

MAX_ERROR_BYTES = 65_536
MAX_WHOLE_BYTES = 16 * 1024 * 1024
"""An answer that is not streamed and larger than this is not an answer."""


async def pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes; a generator, so that it can be closed. Raises ``StreamCutOff``."""
    try:
        async for data in response.aiter_bytes():
            yield data
    except httpx.TransportError as error:
        if (meant := cut_off(error)) is None:
            raise
        raise meant from None


async def beginning(response: httpx.Response, waits: Waits) -> bytes:
    """The first ``MAX_ERROR_BYTES`` or so of a body; less when it breaks off."""
    raw = bytearray()
    async with aclosing(pieces(response)) as body:
        while len(raw) < MAX_ERROR_BYTES:
            try:
                async with waits.waiting():
                    data = await anext(body, None)
            except base.StreamCutOff:
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
