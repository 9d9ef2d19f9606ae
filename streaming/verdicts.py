"""What is remembered of a guardrail between its checks: verdicts, who is under way, and how long they took.

Exists beside ``checks`` because it outlives a check and a session. Protects three rules: the same text is not judged
twice within the time that its kind says a verdict keeps (found by the text's hash; no text is kept); no more than a few
checks of one guardrail run at once in a process, the rest wait, and their time limits begin when it is their turn; and
a guardrail that breaks the class it declares is seen to (``demotion`` draws the conclusion).

Everything hangs on the compiled guardrail's ``impl``: another version of a policy starts with nothing remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from guardrails.findings import Verdict
from guardrails.kinds.base import CheckRequest, Config, Kind
from guardrails.performance import CLASS_LIMITS_MS

MAX_VERDICTS = 1_000
"""Verdicts kept of one guardrail; the least recently used one goes first."""
MAX_TIMES = 200
TIMES_S = 3_600.0
"""The window of measurements: the newest ``MAX_TIMES``, none older than so many seconds."""
ENOUGH_TIMES = 20
"""Measurements before a guardrail may be called slower than it declares."""
AT_ONCE = 16
"""Checks of one guardrail under way in one event loop; of a kind that computes, ``AT_ONCE_COMPUTING``."""
AT_ONCE_COMPUTING = 2
COMPUTING = 1
"""Checks that compute, of all guardrails of a process: more would share one interpreter lock, none would be sooner, and
each of them would let the event loop wait once more."""

Clock = Callable[[], float]


@dataclass(slots=True)
class _Slots:
    """What one event loop may ask of one guardrail at once. ``users``: checks that hold or await a slot."""

    free: asyncio.Semaphore
    users: int = 0


@dataclass(slots=True)
class Book:
    """What is remembered of one guardrail. Times are milliseconds."""

    kind: Kind[Config]
    verdicts: OrderedDict[str, tuple[float, Verdict]] = field(default_factory=OrderedDict)
    times: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_TIMES))
    """When, in seconds of the clock, and how many ms."""
    slots: dict[asyncio.AbstractEventLoop, _Slots] = field(default_factory=dict)

    def remembered(self, request: CheckRequest, clock: Clock) -> Verdict | None:
        """A verdict on the same question that still holds."""
        found = self.verdicts.get(key := _key(request))
        if found is None or found[0] <= clock():
            return None
        self.verdicts.move_to_end(key)
        return found[1]

    def remember(self, request: CheckRequest, verdict: Verdict, clock: Clock) -> None:
        """Keep a verdict as long as its kind says; a failure is never kept."""
        seconds = self.kind.performance.cache_seconds
        if not self.kind.performance.cacheable or not seconds or verdict.error is not None:
            return
        self.verdicts[_key(request)] = (clock() + seconds, verdict)
        while len(self.verdicts) > MAX_VERDICTS:
            self.verdicts.popitem(last=False)

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None, None]:
        """Held while a check is under way. A loop is remembered for as long as it has a check, and not beyond."""
        loop = asyncio.get_running_loop()
        if (slots := self.slots.get(loop)) is None:
            asks = self.kind.performance.network or not (self.kind.computes or self.kind.rules() or self.kind.limits())
            slots = self.slots[loop] = _Slots(asyncio.Semaphore(AT_ONCE if asks else AT_ONCE_COMPUTING))
        slots.users += 1
        try:
            async with slots.free:
                yield
        finally:
            slots.users -= 1
            if not slots.users:  # its semaphore knows the loop, and would keep it
                del self.slots[loop]

    def measured(self, took_ms: float, clock: Clock) -> None:
        """One more measurement."""
        now = clock()
        self.times.append((now, took_ms))
        self._forget_old(now)

    def measured_p95(self, clock: Clock) -> float | None:
        """95th percentile of the window as it is now; None while too little was measured to say anything."""
        self._forget_old(clock())
        return self.p95_ms if len(self.times) >= ENOUGH_TIMES else None

    def _forget_old(self, now: float) -> None:
        with contextlib.suppress(IndexError):  # another thread may have forgotten it
            while self.times[0][0] < now - TIMES_S:
                self.times.popleft()

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of the last measurements; None while there are none."""
        took = sorted(ms for _, ms in tuple(self.times))
        return took[int(len(took) * 0.95)] if took else None

    @property
    def slower_than_declared(self) -> bool:
        """Measured often enough, and above what its class allows."""
        p95 = self.p95_ms
        most = CLASS_LIMITS_MS[self.kind.performance.performance_class][1]
        return p95 is not None and len(self.times) >= ENOUGH_TIMES and p95 >= most


class _Places:
    """How much may compute in this process. ``left``: threads that nobody waits for any more.

    Not a loop's own: a worker has a loop for each of its tasks, and what a task leaves behind outlives its loop. The
    threads are its own: in those that a loop lends to everybody a check would stand behind name servers.
    """

    __slots__ = ("_free", "_lock", "_waiting", "left", "threads")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = COMPUTING
        self._waiting: dict[Computing, None] = {}
        self.left = 0
        self.threads = ThreadPoolExecutor(COMPUTING, thread_name_prefix="computing")

    def take(self) -> bool:
        """Whether there was a place; it is the caller's then."""
        with self._lock:
            taken = self._free > 0
            self._free -= taken
        return taken

    def give_back(self) -> None:
        """Its owner has done."""
        self._change(free=1)

    def leave(self) -> None:
        """Its owner is gone, its thread is not: whoever waits is timed from now on."""
        self._change(left=1)

    def left_is_done(self, _: Future[Verdict]) -> None:
        """That thread is done. Called in it: its owner's loop may be closed."""
        self._change(free=1, left=-1)

    def wait(self, who: Computing) -> None:
        """Tell ``who`` of every change from now on, until it says ``go``."""
        with self._lock:
            self._waiting[who] = None

    def go(self, who: Computing) -> None:
        """It waits no more."""
        with self._lock:
            self._waiting.pop(who, None)

    def _change(self, *, free: int = 0, left: int = 0) -> None:
        with self._lock:
            self._free += free
            self.left += left
            waiting = tuple(self._waiting)
        for who in waiting:  # each in its loop; those of a loop take the place in the order in which they came
            try:
                who.loop.call_soon_threadsafe(who.changed.set)
            except RuntimeError:  # the loop was closed with somebody in it
                self.go(who)


_places = _Places()


def _anew() -> None:
    """A process that was forked has none of the threads."""
    global _places
    _places = _Places()


os.register_at_fork(after_in_child=_anew)


class Computing:
    """A place among what computes in this process, to be entered before ``run``.

    A thread cannot be stopped. So the place is free when its thread is done, not when nobody waits for it any more:
    else every check that meets its time limit would leave one more thread behind. ``limit_s``: seconds that a place is
    waited for behind such a thread, then entering raises ``TimeoutError``; one that never ends must not hold up all.
    What waits for work that goes on waits.
    """

    def __init__(self, limit_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self._limit_s, self._places = limit_s, _places
        self._work: Future[Verdict] | None = None

    async def __aenter__(self) -> Computing:
        if not self._places.take():
            async with asyncio.timeout(None) as limit:
                self._places.wait(self)
                try:
                    while not self._places.take():
                        self._time(limit)
                        await self.changed.wait()
                        self.changed.clear()
                finally:
                    self._places.go(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._work is None or self._work.done():
            self._places.give_back()
        else:
            self._places.leave()
            self._work.add_done_callback(self._places.left_is_done)

    def _time(self, limit: asyncio.Timeout) -> None:
        """Begin to time the wait for a place, or end it: it is timed while a thread is left, and only then."""
        if not self._places.left:
            limit.reschedule(None)
        elif limit.when() is None:
            limit.reschedule(self.loop.time() + self._limit_s)

    async def run(self, work: Callable[[], Verdict]) -> Verdict:
        """What ``work`` returns, made in a thread; whoever is cancelled leaves it to its end."""
        self._work = self._places.threads.submit(copy_context().run, work)
        return await asyncio.shield(asyncio.wrap_future(self._work))


_books: WeakKeyDictionary[Kind[Config], Book] = WeakKeyDictionary()


def book(kind: Kind[Config]) -> Book:
    """What is remembered of this guardrail in this process."""
    found = _books.get(kind)
    if found is None:
        found = _books[kind] = Book(kind)
    return found


def _key(request: CheckRequest) -> str:
    """A hash of all that a verdict may depend on."""
    turns = (part for turn in request.conversation for part in (turn.role, turn.text))
    digest = hashlib.sha256()
    for part in (request.applies_to.value, request.text, *turns):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()
