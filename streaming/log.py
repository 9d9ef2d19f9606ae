"""The session's event log: writers append, readers read on from any seq, in any process.

Exists because the pump belongs to the session and not to the socket: pump and workers write here, sockets and SSE
read here, and nothing travels only by a channel-layer group (the channel layer merely wakes readers early).
Protects the order of events: ``seq`` is given atomically with the append, so two writers never share one.

    LogUnavailable     the store cannot be reached now
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice, takewhile
from typing import Protocol

from streaming.core.events import stamp
from streaming.wake import Wake

Payload = Mapping[str, object]


class LogUnavailable(Exception):
    """The session log cannot be reached. Whether an append under way was made is not known."""

    code = "log_unavailable"


class Sent(asyncio.Future[int]):
    """An append that is on its way: nothing calls it off. Whoever waits for it is cancelled when it has its answer."""

    __slots__ = ()

    def cancel(self, msg: object = None) -> bool:
        """It cannot be."""
        return False


class SessionLog(Protocol):
    """What writers and readers need of a log. Every method but the two contexts raises ``LogUnavailable``."""

    def append(
        self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
    ) -> Awaitable[int]:
        """Append the payloads in order; returns the seq of the last one.

        ``ms`` is the time since the session's start. Seqs go on from the last one, or from ``floor`` where the
        store's is below ``known``, the least that it has been: one that has lost everything, or was put back to an
        older state, must not give seqs again that readers have seen.
        """

    async def read(self, session_id: str, after: int, count: int = 500) -> list[dict[str, object]]:
        """Stamped events with a seq above ``after``, oldest first, at most ``count``."""

    def attend(self, session_id: str) -> AbstractAsyncContextManager[Wake]:
        """A reader is there, which keeps the session from being abandoned; appends set the event."""

    def run(self, session_id: str) -> AbstractAsyncContextManager[Wake]:
        """The caller runs the session; ``interrupt`` from any process sets the event."""

    async def attended(self, session_id: str) -> bool:
        """Whether any process has a reader of this session."""

    async def interrupt(self, session_id: str) -> None:
        """Ask whichever process runs the session to stop it."""

    async def interrupted(self, session_id: str) -> bool:
        """Whether somebody asked: what the running process looks at in case the wake was lost."""

    async def say_alive(self, session_id: str) -> None:
        """The running process cannot tell the database that it is there."""

    async def alive(self, session_id: str) -> bool:
        """Whether it has said so lately."""


class LocalEvents:
    """The events of readers and pumps of this process, by session; both logs lean on it."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Wake, ...]] = {}

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._waiting

    def sessions(self) -> list[str]:
        """Sessions that somebody here waits for."""
        return list(self._waiting)

    def alone(self, session_id: str) -> bool:
        """Whether only one here waits for the session."""
        return len(self._waiting.get(session_id, ())) == 1

    def add(self, session_id: str) -> Wake:
        """A new event for this session."""
        event = Wake()
        self._waiting[session_id] = (*self._waiting.get(session_id, ()), event)
        return event

    def remove(self, session_id: str, event: Wake) -> bool:
        """Forget the event; True when it was the session's last one here."""
        if left := tuple(other for other in self._waiting[session_id] if other is not event):
            self._waiting[session_id] = left
            return False
        del self._waiting[session_id]
        return True

    def set(self, session_id: str) -> bool:
        """Wake everybody here who waits for the session; False when nobody does."""
        waiting = self._waiting.get(session_id, ())
        for event in waiting:
            event.set()
        return bool(waiting)


class MemoryLog:
    """A log for one process and one event loop: the terminal client, and tests."""

    def __init__(self, max_events: int = 20_000) -> None:
        self._events: dict[str, deque[dict[str, object]]] = defaultdict(lambda: deque(maxlen=max_events))
        self._seq: dict[str, int] = {}
        self._readers, self._runners = LocalEvents(), LocalEvents()
        self._stopped: set[str] = set()

    async def append(
        self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
    ) -> int:
        """See ``SessionLog``."""
        seq = self._seq.get(session_id, 0)
        if seq < known:
            seq = floor
        for payload in payloads:
            seq += 1
            self._events[session_id].append(stamp(payload, seq=seq, session_id=session_id, ms=ms))
        self._seq[session_id] = seq
        self._readers.set(session_id)
        return seq

    async def read(self, session_id: str, after: int, count: int = 500) -> list[dict[str, object]]:
        """See ``SessionLog``."""
        events = self._events[session_id]
        # Seqs only go up, so what is later stands at the end: a reader that keeps up looks at what is new alone.
        later = sum(1 for _ in takewhile(lambda event: int(str(event["seq"])) > after, reversed(events)))
        return list(islice(reversed([*islice(reversed(events), later)]), count))

    @asynccontextmanager
    async def attend(self, session_id: str) -> AsyncIterator[Wake]:
        """See ``SessionLog``."""
        event = self._readers.add(session_id)
        try:
            yield event
        finally:
            self._readers.remove(session_id, event)

    @asynccontextmanager
    async def run(self, session_id: str) -> AsyncIterator[Wake]:
        """See ``SessionLog``."""
        event = self._runners.add(session_id)
        try:
            yield event
        finally:
            self._runners.remove(session_id, event)

    async def attended(self, session_id: str) -> bool:
        """See ``SessionLog``."""
        return session_id in self._readers

    async def interrupt(self, session_id: str) -> None:
        """See ``SessionLog``."""
        self._stopped.add(session_id)
        self._runners.set(session_id)

    async def interrupted(self, session_id: str) -> bool:
        """See ``SessionLog``."""
        return session_id in self._stopped

    async def say_alive(self, session_id: str) -> None:
        """See ``SessionLog``: nobody but this process asks."""

    async def alive(self, session_id: str) -> bool:
        """See ``SessionLog``."""
        return session_id in self._runners
