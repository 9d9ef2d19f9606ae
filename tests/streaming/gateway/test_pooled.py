"""Connections to upstreams are used again: the answer's end is not the end of what HTTP says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaming.gateway.upstream import DONE, Passing, chunks, close_pool
from streaming.providers.openai import OpenAIProvider

LIMIT_S = 20
EVENTS = b'data: {"choices": [{"index": 0, "delta": {"content": "Good."}}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BEHIND = b"0\r\n\r\n"


@asynccontextmanager
async def upstream(
    behind: bytes | None, more: bytes = b"", heads: list[bytes] | None = None
) -> AsyncIterator[tuple[str, list[int]]]:
    """Its URL, and how many requests came over each connection. ``behind`` None: it never says that it is over.

    ``more``: headers that it answers with; ``heads``: what it was asked with goes there.
    """
    came: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(0)
        number = len(came) - 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if heads is not None:
                    heads.append(head)
                (length,) = [
                    int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"content-length" in line.lower()
                ]
                await reader.readexactly(length)
                came[number] += 1
                writer.write(HEAD[:-2] + more + b"\r\n" + b"%x\r\n%s\r\n" % (len(EVENTS), EVENTS))
                await writer.drain()
                if behind is not None:
                    writer.write(behind)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", came
        await close_pool()


async def asked(url: str) -> list[object]:
    provider = OpenAIProvider(url, "k", "m")
    async with asyncio.timeout(LIMIT_S):
        return [chunk async for chunk in chunks(provider, Passing({"model": "m"}, True, {}), "openai")]


async def test_it_works() -> None:
    async with upstream(BEHIND) as (url, came):
        for _ in range(3):
            said = await asked(url)
            assert said[-1] == DONE
            assert len(said) == 2
        assert came == [3]


async def test_what_an_upstream_gives_to_one_caller_comes_with_no_other_ones_request() -> None:
    """Callers share the connections; by a cookie it could tell that, and whose request came before."""
    heads: list[bytes] = []
    async with upstream(BEHIND, b"Set-Cookie: who=one; Path=/\r\n", heads) as (url, _):
        for _ in range(2):
            await asked(url)
    assert len(heads) == 2
    assert not [head for head in heads if b"cookie" in head.lower()]


async def test_an_upstream_that_never_says_that_it_is_over_keeps_nobody_waiting() -> None:
    async with upstream(None) as (url, came):
        for _ in range(2):
            assert (await asked(url))[-1] == DONE
        assert came == [1, 1]
