"""What is remembered of a guardrail between its checks: verdicts, who is under way, and how long they took.

Exists beside ``checks`` because it outlives a check and a session. Protects three rules: the same text is not judged
twice within the time that its kind says a verdict keeps (found by the text's hash; no text is kept); no more than a few
checks of one guardrail run at once in a process, the rest wait within their own time limits; and a guardrail that
breaks the class it declares is seen to (``demotion`` draws the conclusion).

Everything hangs on the compiled guardrail's ``impl``: another version of a policy starts with nothing remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
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
"""Checks that compute, of all guardrails of an event loop: more would share one interpreter lock, none would be sooner,
and each of them would let the event loop wait once more."""

Clock = Callable[[], float]


@dataclass(slots=True)
class Book:
    """What is remembered of one guardrail. Times are milliseconds."""

    kind: Kind[Config]
    verdicts: OrderedDict[str, tuple[float, Verdict]] = field(default_factory=OrderedDict)
    times: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_TIMES))
    """When, in seconds of the clock, and how many ms."""
    slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = field(default_factory=WeakKeyDictionary)

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

    def slot(self) -> asyncio.Semaphore:
        """To be held while a check is under way."""
        loop = asyncio.get_running_loop()
        if loop not in self.slots:
            asks = self.kind.performance.network or not (self.kind.computes or self.kind.rules() or self.kind.limits())
            self.slots[loop] = asyncio.Semaphore(AT_ONCE if asks else AT_ONCE_COMPUTING)
        return self.slots[loop]

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


_computing: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def computing() -> asyncio.Semaphore:
    """To be held while anything computes beside the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _computing:
        _computing[loop] = asyncio.Semaphore(COMPUTING)
    return _computing[loop]


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
