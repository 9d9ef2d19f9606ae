"""A local endpoint that answers one request with given bytes, cut where the test says; for provider tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def cuts(data: bytes, seed: int, most: int = 40) -> list[bytes]:
    """The data in pieces of 1 to ``most`` bytes, the same for the same seed."""
    draw, out, at = random.Random(seed), [], 0
    while at < len(data):
        size = draw.randint(1, most)
        out.append(data[at : at + size])
        at += size
    return out


class Endpoint:
    """What was asked of the server, and whether its client went away early."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.client_gone = asyncio.Event()
        self.base_url = ""


@asynccontextmanager
async def serve(pieces: Sequence[bytes], *, head: bytes = HEAD, hang: bool = False) -> AsyncIterator[Endpoint]:
    """Serve the pieces, each in a write of its own; ``hang``: then stay silent until the client goes."""
    endpoint = Endpoint()
    handlers: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in request.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            endpoint.requests.append(request + await reader.readexactly(length))
            endpoint.asked.set()
            for piece in (head, *pieces):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if hang:
                await reader.read()
                endpoint.client_gone.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            endpoint.client_gone.set()
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(answer(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield endpoint
    finally:
        server.close()
        for task in tuple(handlers):
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()
