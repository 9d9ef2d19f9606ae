"""The shadow of one session: a second version's guardrails in MONITOR on the text that the active version looks at.

Exists apart from the answer so that there is no way from here to a reader: it is told what arrived, makes no event, and
is read once, at the end. Protects three rules. The active version's text and events are the same with and without it.
Whatever fails in here (a version that does not load, a gate, a guardrail) ends the shadow and nothing else, is logged,
and stands in the session's record. And what it may cost is bounded: its gates look at each character once, few of its
checks run at a time in a process, few sentences may wait, and the end waits ``GRACE_S`` at most for what they say.
Texts are read to their end, because nobody would read them later; that takes what the active version's own look took.

IMMEDIATE and BATCHED guardrails run here; DEFERRED ones, and what BATCHED ones have not said by then, are left to
workers (``streaming.shadow.asked``).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog

from guardrails.findings import AppliesTo, Finding
from guardrails.kinds.base import CheckRequest, Turn
from guardrails.policy import Policy
from guardrails.selectors import ShadowPolicy
from streaming.answer import Answer
from streaming.beside import Beside
from streaming.checks import Looked, run_check
from streaming.core import gate as gates
from streaming.core.events import ProviderEvent, TextDelta, ThinkingDelta
from streaming.core.gate import Gate, SentenceCheck
from streaming.providers.base import ChatMessage
from streaming.sessions import DeferredText
from streaming.shadow.asked import Late
from streaming.shadow.record import ShadowRecord, exposure, recorded, stops, with_exposure

logger = structlog.get_logger(__name__)

GRACE_S = 0.1
"""How long the end of a session waits for verdicts that a shadow still lacks. All text is out by then, and what is not
there in time is asked by a worker."""
MAX_WAITING = 200
"""Texts of one session that may wait for verdicts here; further sentences are left to workers."""
AT_ONCE = 2
"""Checks of shadows under way in one event loop, over all sessions."""
SLICE = 4_096
"""Characters of a whole text that are looked at in one go; then others have their turn."""

Key = tuple[str, int]
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


@dataclass(slots=True)
class _Lane:
    """One channel of one choice, or (``looked``) one whole text."""

    gate: Gate
    turns: tuple[Turn, ...]
    looked: Looked | None = None
    found: list[Finding] = field(default_factory=list)
    read: bool = False
    """Of a whole text: all of it."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What the active version did, and what workers may be asked about when the answer is over.

    ``acted``: whether it hid anything. ``texts``: prompt and answer, for DEFERRED guardrails of the shadow; ``asked``:
    what workers are asked for the active version. ``released``: characters of the answer that were shown.
    """

    policy: Policy
    acted: bool
    texts: tuple[DeferredText, ...] = ()
    asked: tuple[DeferredText, ...] = ()
    released: int = 0


class Shadow:
    """``take`` and ``look`` while the session goes on, ``record`` once at its end. None of them ever raises."""

    def __init__(
        self,
        which: ShadowPolicy,
        *,
        session_id: str,
        conversation: Sequence[Turn] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._which = which
        self._policy: Policy | None = which.policy
        self._paid = which.paid
        self._session_id = session_id
        self._turns = tuple(conversation)
        self._clock = clock
        self._lanes: dict[Key, _Lane] = {}
        self._wholes: list[_Lane] = []
        self._beside = None if which.policy is None else Beside(which.policy, monitor=True)
        self._open: dict[tuple[int, int], tuple[_Lane, SentenceCheck, set[str]]] = {}
        self._readings: set[asyncio.Task[None]] = set()
        self._verdicts: set[asyncio.Task[None]] = set()
        self._failures: Counter[str] = Counter()
        self._error = which.reason
        self._spent_s = 0.0

    # -- what arrives -------------------------------------------------------------------------------------------

    def take(self, event: ProviderEvent, active: Answer) -> None:
        """A provider event that the active version has taken."""
        with self._alone():
            match event:
                case TextDelta(text, choice):
                    self._feed(("text", choice), AppliesTo.RESPONSE, text, active)
                case ThinkingDelta(text, choice) if text:
                    self._feed(("thinking", choice), AppliesTo.THINKING, text, active)

    def look(self, looked: Looked) -> None:
        """A whole text that the active version has looked at."""
        with self._alone():
            if looked.applies_to is AppliesTo.PROMPT:
                self._spare([looked])
            if self._beside is not None:
                self._beside.look(looked)
            self._look(looked)

    def given(self, texts: Sequence[Looked], messages: Sequence[ChatMessage]) -> None:
        """What the session begins with, looked at: the prompt, and messages that a client hands over."""
        with self._alone():
            self._spare(texts)
            if self._beside is not None:
                self._beside.given(texts, messages)
            for looked in texts:
                self._look(looked)

    def _spare(self, texts: Sequence[Looked]) -> None:
        """What the active version lets go nowhere, no guardrail over the network is told either."""
        if any(stops(looked.findings) for looked in texts):
            self._paid = False

    def thought(self, text: str, shown: int) -> None:
        """All of the first choice's thinking, and how many characters of it were shown."""
        if self._beside is not None:
            self._beside.add(AppliesTo.THINKING, text, shown)

    def _look(self, looked: Looked) -> None:
        if self._policy is not None and looked.text:
            gate = Gate(self._policy, looked.applies_to, looked.channel, monitor=True)
            lane = _Lane(gate, looked.conversation, looked)
            self._wholes.append(lane)
            self._start(self._whole(lane, looked.text), self._readings)

    def _feed(self, key: Key, applies_to: AppliesTo, text: str, active: Answer) -> None:
        if self._policy is None:
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(Gate(self._policy, applies_to, key[0], monitor=True), self._turns)
        if (end := active.stopped_at(key)) is not None:
            # What came in the same piece behind the match is nobody's: it must not matter how the text was cut.
            text = text[: max(0, end - lane.gate.counters.chars_in)]
        self._effects(lane, lane.gate.feed(text))

    def _effects(self, lane: _Lane, effects: list[gates.Effect]) -> None:
        for effect in effects:
            if effect[0] == gates.FOUND:
                lane.found.append(effect[1])
            elif effect[0] == gates.CHECK and self._policy is not None:
                check = effect[1]
                self._open[id(lane), check.id] = lane, check, set(check.guardrails)
                if len(self._verdicts) < MAX_WAITING:
                    self._start(self._judge(lane, check, self._policy), self._verdicts)

    # -- what takes time ----------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._apart(work))
        among.add(task)
        task.add_done_callback(among.discard)

    async def _apart(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            self._failed(error)
        finally:
            work.close()  # one that was cancelled while it waited for its turn

    async def _judge(self, lane: _Lane, check: SentenceCheck, policy: Policy) -> None:
        for name in check.guardrails:
            guardrail = policy.guardrail(name)
            if guardrail.impl.performance.network and not self._paid:
                continue
            turns = lane.turns if guardrail.impl.wants_conversation else ()
            request = CheckRequest(check.text, lane.gate.applies_to, turns, guardrail.time_limit_s)
            async with _slot():
                checked = await run_check(guardrail, request, self._clock)
            if checked.verdict.error is not None:
                self._failures[name] += 1
            left = self._open[id(lane), check.id][2]
            left.discard(name)
            if not left:
                del self._open[id(lane), check.id]
            with self._alone():
                self._effects(lane, lane.gate.verdict(check.id, name, checked.verdict))

    async def _whole(self, lane: _Lane, text: str) -> None:
        for at in range(0, len(text), SLICE):
            with self._alone():
                self._effects(lane, lane.gate.feed(text[at : at + SLICE]))
            await asyncio.sleep(0)
        with self._alone():
            self._effects(lane, lane.gate.finish())
        lane.read = True

    # -- the end ------------------------------------------------------------------------------------------------

    async def record(self, active: Answer | None, beside: Compared, *, grace_s: float | None = None) -> ShadowRecord:
        """What it came to. ``active``: the active version's answer, if there was one.

        ``grace_s``: how long it may wait for verdicts instead of ``GRACE_S``.
        """
        with self._alone():
            for lane in self._lanes.values():
                self._effects(lane, lane.gate.finish())
        await self._waited(GRACE_S if grace_s is None else grace_s)
        findings: list[Finding] = []
        with self._alone():
            for lane in self._wholes:
                if lane.looked is not None:
                    findings += with_exposure(lane.found, lane.looked.findings, lane.looked.released)
            for key, lane in self._lanes.items():
                findings += _compared_lane(key, lane, active)
        late: Late | None = None
        with self._alone():
            late = self._left(active, beside)
        return recorded(
            version=self._which.version,
            digest=self._which.digest,
            policy=self._which.policy,
            active_acted=beside.acted,
            findings=findings,
            error=self._error,
            unanswered=sum(not lane.read for lane in self._wholes) + (late.missed if late else 0),
            failures=self._failures,
            not_run=late.not_run if late else (),
            late=late.checks if late else (),
            shared=late.shared if late else (),
            ms=self._spent_s * 1000,
        )

    def _left(self, active: Answer | None, beside: Compared) -> Late | None:
        """What workers are to be asked."""
        if self._policy is None or self._beside is None:
            return None
        late = Late(self._policy, paid=self._paid)
        late.wholes([*beside.texts, *self._beside.deferred()], beside.policy, beside.asked, beside.released)
        keys = {id(lane): key for key, lane in self._lanes.items()}
        shown: dict[int, Callable[[int, int], int]] = {}
        for (of, _), (lane, check, names) in self._open.items():
            end = active.stopped_at(keys[of]) if active is not None and lane.looked is None else None
            if of not in shown:
                found: Sequence[Finding] = ()
                released = 0
                if lane.looked is not None:
                    found, released = lane.looked.findings, lane.looked.released
                elif active is not None:
                    found, released = active.shown(keys[of])
                shown[of] = exposure(found, released)
            if end is None or check.start < end:
                exposed = shown[of](check.start, check.end)
                for guardrail in map(self._policy.guardrail, sorted(names)):
                    if late.asks(guardrail):
                        late.sentence(guardrail, lane.gate.applies_to, lane.gate.channel, check, exposed, lane.turns)
        return late

    async def _waited(self, grace_s: float) -> None:
        """Let all texts be read, and open checks end; those that have not when the time is over are cancelled."""
        await asyncio.gather(*self._readings)
        await asyncio.sleep(0)  # one that was never begun could not end what it was given
        until = time.monotonic() + grace_s
        while self._verdicts and (left := until - time.monotonic()) > 0:
            await asyncio.wait(self._verdicts, timeout=left)
        late = tuple(self._verdicts)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    # -- keeping it to itself -----------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nothing that goes wrong in here gets out; the time is counted."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._failed(error)
        finally:
            self._spent_s += time.perf_counter() - started

    def _failed(self, error: Exception) -> None:
        """The shadow is over; what it found before stands."""
        if not self._error:
            logger.error("shadow_failed", session=self._session_id, version=self._which.version, exc_info=error)
            self._error = f"the shadow failed ({type(error).__name__})"
        self._policy = None


def _compared_lane(key: Key, lane: _Lane, active: Answer | None) -> list[Finding]:
    """The lane's findings up to where the active version stopped the text."""
    if active is None:
        return lane.found
    end = active.stopped_at(key)
    found = [finding for finding in lane.found if end is None or finding.start < end]
    return with_exposure(found, *active.shown(key))


def _slot() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    if loop not in _slots:
        _slots[loop] = asyncio.Semaphore(AT_ONCE)
    return _slots[loop]
