"""A network between clients and a server that fails by script: a proxy on a socket of its own.

Each client talks to an address of its own (a first part of the path), so that its failures are its own whatever the
others do. Failures are met in the order of the script; when it is over, everything passes. Nothing here waits for time
to pass: what is late comes when the client has given it up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

PASSES = "passes"
CALLS: dict[str, str] = {
    "refused": "the connection is reset before anything is read",
    "lost request": "the server never sees the call",
    "lost answer": "the server acts, the connection is reset",
    "cut answer": "the server acts, half of the answer arrives",
    "twice": "two copies reach the server at the same time, one answer arrives",
    "out of order": "the call is cut off, and its copy reaches the server behind later calls",
    "late": "the call reaches the server after the client's time limit",
    "half open": "the server acts, nothing ever comes, and the connection stays",
}
"""How a call fails."""
EVENTS: dict[str, str] = {
    "events cut": "the connection is reset in the middle of the events",
    "events silent": "nothing comes any more, and the connection stays",
}
"""How a stream of events fails."""
ANSWERED = frozenset({PASSES, "twice"})
"""What a client gets an answer to."""
LATER = 2
"""A copy that is out of order comes behind so many calls of the same client, at most."""


def script(draw: Random, calls: int, failures: int) -> list[str]:
    """So many failures that a client which has to get ``calls`` answers meets all of them."""
    met = draw.choices(list(CALLS), k=failures)
    while met.count("twice") > calls:
        met[met.index("twice")] = "lost answer"
    met += [PASSES] * (calls - met.count("twice"))
    draw.shuffle(met)
    last = max(n for n, what in enumerate(met) if what in ANSWERED)
    met.append(met.pop(last))
    return met


@dataclass
class Line:
    """One client's way to the server."""

    draw: Random
    calls: deque[str]
    events: deque[str]
    held: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class FailingNetwork:
    """``met``: failures so far, by name."""

    server: tuple[str, int]
    url: str = ""
    met: Counter[str] = field(default_factory=Counter)
    _lines: dict[str, Line] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def line(self, name: str, draw: Random, calls: list[str], events: list[str]) -> str:
        """The address at which a client meets these failures."""
        self._lines[name] = Line(draw, deque(calls), deque(events))
        return f"{self.url}/{name}"

    async def deliver_all(self, name: str) -> None:
        """What is still held reaches the server now, long after the client's last call."""
        line = self._lines[name]
        for _, request in line.held:
            await self._ask(request)
        line.held.clear()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                head = await reader.readuntil(b"\r\n\r\n")
                name, request, length = _readdressed(head)
                request += await reader.readexactly(length)
                line = self._lines[name]
                if b"/v1/stream/events" in head.split(b"\r\n", 1)[0]:
                    await self._events(line, request, reader, writer)
                else:
                    await self._call(line, request, reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _call(
        self, line: Line, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        what = line.calls.popleft() if line.calls else PASSES
        if what != PASSES:
            self.met[what] += 1
        match what:
            case "refused" | "lost request":
                writer.transport.abort()
                return
            case "out of order":
                line.held.append((line.draw.randint(1, LATER), request))
                writer.transport.abort()
                return
            case "late":
                await reader.read()
                await self._ask(request)
                return
            case "twice":
                answer, _ = await asyncio.gather(self._ask(request), self._ask(request))
            case _:
                answer = await self._ask(request)
        if what == "half open":
            await reader.read()
        elif what == "lost answer":
            writer.transport.abort()
        else:
            writer.write(answer[: len(answer) // 2] if what == "cut answer" else answer)
            await writer.drain()
        due = [held for left, held in line.held if left <= 1]
        line.held = [(left - 1, held) for left, held in line.held if left > 1]
        for held in due:
            await self._ask(held)

    async def _events(
        self, line: Line, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        what = line.events.popleft() if line.events else PASSES
        left = line.draw.randint(1, 600) if what != PASSES else None
        async with self._server() as (answers, asks):
            asks.write(request)
            head = await answers.readuntil(b"\r\n\r\n")
            writer.write(head)
            gone = asyncio.ensure_future(reader.read())  # the client sends nothing more; it can only go
            try:
                while left is None or left > 0:
                    coming = asyncio.ensure_future(answers.read(left or 65_536))
                    await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        coming.cancel()
                        return
                    if not (data := coming.result()):
                        return
                    left = None if left is None else left - len(data)
                    writer.write(data)
                    await writer.drain()
                self.met[what] += 1
                if what == "events silent":
                    await gone
                else:
                    writer.transport.abort()
            finally:
                gone.cancel()

    async def _ask(self, request: bytes) -> bytes:
        async with self._server() as (answers, asks):
            asks.write(request)
            return await answers.read()

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self.server)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def close(self) -> None:
        """Everything that is under way ends."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _readdressed(head: bytes) -> tuple[str, bytes, int]:
    """Who asks, the head as the server shall see it, and how long the body is."""
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    method, target, version = first.split(b" ")
    _, name, rest = target.split(b"/", 2)
    length = 0
    kept = []
    for line in lines:
        field_name, _, value = line.partition(b":")
        if field_name.lower() == b"content-length":
            length = int(value)
        if field_name.lower() != b"connection":
            kept.append(line)
    asked = [b" ".join((method, b"/" + rest, version)), *kept, b"Connection: close"]
    return name.decode(), b"\r\n".join(asked) + b"\r\n\r\n", length


@asynccontextmanager
async def failing_network(host: str, port: int) -> AsyncIterator[FailingNetwork]:
    """The network before a server, for as long as this is open."""
    network = FailingNetwork((host, port))
    take: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]] = network.take
    server = await asyncio.start_server(take, "127.0.0.1", 0)
    network.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield network
    finally:
        server.close()
        await network.close()
        await server.wait_closed()
