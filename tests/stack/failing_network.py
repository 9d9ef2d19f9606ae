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
    "busy": "something before the server answers 503 with a page of its own",
    "bad gateway": "the server acts, something before it answers 502 with a page of its own",
}
"""How a call fails."""
HAS = "X-Has"
"""A header in which a test's client says the seq of the last event that it has, beside what it asks for with it."""
EVENTS: dict[str, str] = {
    "events cut": "the connection is reset in the middle of the events",
    "events silent": "nothing comes any more, and the connection stays",
}
"""How a stream of events fails."""
ANSWERED = frozenset({PASSES, "twice"})
"""What a client gets an answer to."""
PAGES = {
    "busy": b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 13\r\n\r\n<h1>Busy</h1>",
    "bad gateway": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 12\r\n\r\n<h1>Bad</h1>",
}
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""What an answer in chunks ends with, if it comes to its end."""
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
    events_within: int = 600
    """A failure of the events comes after so many bytes at most."""
    held: list[tuple[int, bytes]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class FailingNetwork:
    """``met``: failures so far, by name. ``cut``: connections to the server that ended before its answer did: it was
    killed. ``ended``: streams of events that the server ended itself."""

    server: tuple[str, int]
    url: str = ""
    met: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    ended: int = 0
    _over: bool = False
    _awaited: list[tuple[int, asyncio.Event]] = field(default_factory=list)
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
            await self._deliver(request)
        line.held.clear()

    def spared(self, name: str) -> bool:
        """Whether a failure of this client's events is still to come: its reader went, or had all, before that."""
        return bool(self._lines[name].events)

    def asked(self, name: str) -> list[tuple[str, str]]:
        """Of each time that this client asked for events: its ``Last-Event-ID``, and what it says that it has."""
        return list(self._lines[name].asked)

    async def reached(self, failures: int) -> bool:
        """Wait until so many have been met; False when they never will be, because nobody calls any more."""
        event = asyncio.Event()
        if not self._over:
            self._awaited.append((failures, event))
            await event.wait()
        return self.met.total() >= failures

    def over(self) -> None:
        """All clients have done what they came for."""
        self._over = True
        for _, event in self._awaited:
            event.set()

    def _meet(self, what: str) -> None:
        self.met[what] += 1
        for failures, event in self._awaited:
            if self.met.total() >= failures:
                event.set()

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
            self._meet(what)
        match what:
            case "busy":
                writer.write(PAGES[what])
                await writer.drain()
                return
            case "refused" | "lost request":
                writer.transport.abort()
                return
            case "out of order":
                line.held.append((line.draw.randint(1, LATER), request))
                writer.transport.abort()
                return
            case "late":
                await reader.read()
                await self._deliver(request)
                return
            case "twice":
                answer, _ = await asyncio.gather(self._ask(request), self._ask(request))
            case _:
                answer = await self._ask(request)
        if what == "half open":
            await reader.read()
        elif what == "lost answer" or not answer:
            writer.transport.abort()
        else:
            writer.write(PAGES.get(what, answer[: len(answer) // 2] if what == "cut answer" else answer))
            await writer.drain()
        due = [held for left, held in line.held if left <= 1]
        line.held = [(left - 1, held) for left, held in line.held if left > 1]
        for held in due:
            await self._deliver(held)

    async def _events(
        self, line: Line, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        left = line.draw.randint(1, line.events_within) if line.events else None
        line.asked.append((_header(request, "Last-Event-ID"), _header(request, HAS)))
        line.events_within = 60  # whoever comes again has read some; the last event is longer than this
        async with self._server() as (answers, asks):
            asks.write(request)
            gone = asyncio.ensure_future(reader.read())  # the client sends nothing more; it can only go
            try:
                if await self._pass_on(answers, writer, gone, left):
                    # It stood in the script until now: whoever asks what was spared a client, or reads in its place,
                    # may be here before this connection has seen that the client is gone.
                    what = line.events.popleft() if line.events else PASSES
                    if what != PASSES:
                        self._meet(what)
                    if what == "events silent":
                        await gone
                    else:
                        writer.transport.abort()
            finally:
                gone.cancel()

    async def _pass_on(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Future[bytes], left: int | None
    ) -> bool:
        """Pass events on until ``left`` bytes of them are through; False when one of the two sides has gone before."""
        head = asyncio.ensure_future(answers.readuntil(b"\r\n\r\n"))
        await asyncio.wait({head, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not head.done():
            head.cancel()
            return False
        try:
            first, tail = head.result(), b""
        except (OSError, asyncio.IncompleteReadError):
            self.cut += 1
            return False
        writer.write(first)
        while left is None or left > 0:
            coming = asyncio.ensure_future(answers.read(left or 65_536))
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return False
            if coming.exception() is not None or not (data := coming.result()):
                whole = b"chunked" not in first.lower() or tail == LAST_CHUNK
                self.ended, self.cut = self.ended + whole, self.cut + (not whole)
                return False
            tail = (tail + data)[-len(LAST_CHUNK) :]
            left = None if left is None else left - len(data)
            writer.write(data)
            await writer.drain()
        return True

    async def _ask(self, request: bytes) -> bytes:
        """The server's answer; nothing when it dies before it has one."""
        answer = b""
        with contextlib.suppress(OSError):
            async with self._server() as (answers, asks):
                asks.write(request)
                answer = await answers.read()
        self.cut += not answer
        return answer

    async def _deliver(self, request: bytes) -> None:
        """A copy whose answer nobody waits for any more."""
        await self._ask(request)

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


def _header(request: bytes, name: str) -> str:
    """One header of a request; empty when it has none of this name."""
    head, _, _ = request.partition(b"\r\n\r\n")
    found = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return next((value.strip().decode() for key, _, value in found if key.decode().lower() == name.lower()), "")


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
