"""What the pump tells, and when: through the response buffer into the session log.

Exists so that the pump is only a loop. Protects four rules: what was released is told within a tenth of a second
without another event, what was taken from the provider counts as unread until the log has what came of it, events
that are ready are appended in their order whoever found them ready, and each of them once, whoever is stopped
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from streaming.core.buffer import ResponseBuffer
from streaming.core.events import FindingEvent, GuardrailStatus, ProviderEvent, ServerEvent
from streaming.log import LogUnavailable, Sent, SessionLog
from streaming.unread import Unread

SAME_S = 0.001
"""Alarms this close are one: the loop's clock is no finer."""


class Outlet:
    """One session's way into the log. ``clock`` is in seconds; ``ms`` the time since the start; ``awake`` is called
    when something may be due.
    """

    __slots__ = (
        "_alarm", "_awake", "_buffer", "_clock", "_flushing", "_log", "_ms", "_ready", "_session_id", "_untold",
        "coming", "missed", "seq", "unread",
    )  # fmt: skip

    def __init__(
        self, log: SessionLog, session_id: str, clock: Callable[[], float], ms: Callable[[], int],
        awake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._log, self._session_id = log, session_id
        self._clock, self._ms, self._awake = clock, ms, awake
        self._buffer = ResponseBuffer()
        self.coming: list[ServerEvent] = []
        """Events that have come up, in their order: told at the end at the latest, whatever fails meanwhile."""
        self._ready: list[ServerEvent] = []
        self._untold: list[ProviderEvent] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._flushing: asyncio.TimerHandle | None = None
        self.unread = Unread()
        self.seq = 0
        self.missed: tuple[ServerEvent, ...] = ()
        """Of which it is not known whether the log has them, because it was away."""

    def offer(self, source: ProviderEvent) -> bool:
        """Take what came of ``source`` without waiting; True when it is time to ``tell``."""
        now = self._clock()
        due = self._buffer.add(self.coming, now)
        self.coming.clear()
        if (due_at := self._buffer.due_at) is not None:
            self.unread.count(source)
            self._untold.append(source)
            if not due:
                self._flush_in(due_at - now)
        return due

    def rest_s(self) -> float:
        """For how many seconds text from the provider would change nothing for the readers."""
        return self._buffer.rest(self._clock())

    def came(self, source: ProviderEvent) -> None:
        """What comes of this event, counted already, is told next."""
        self._untold.append(source)

    async def tell(self) -> None:
        """Append what is ready by now; the rest has its time. Raises ``LogUnavailable``."""
        self._pass()
        await self._append()

    async def tell_all(self) -> None:
        """Append everything, due or not. Raises ``LogUnavailable``."""
        now = self._clock()
        self._take(now)
        self._ready += self._buffer.flush(now)
        await self._append()

    async def make_good(self, lines: Mapping[str, GuardrailStatus]) -> None:
        """Tell next what the log was away for: the findings that it has not got, and their guardrails' ``lines``.

        Raises ``LogUnavailable``.
        """
        if not self.missed:
            return
        told = await self._log.read(self._session_id, self.seq)
        known = {event.get("n") for event in told if event["type"] == FindingEvent.type}
        lost = [e for e in self.missed if isinstance(e, FindingEvent) and e.finding.n not in known]
        names = dict.fromkeys(e.guardrail for e in self.missed if isinstance(e, GuardrailStatus))
        self._ready[:0] = [*lost, *(lines[name] for name in names if name in lines)]
        self.missed = ()

    def wake_in(self, seconds: float) -> None:
        """Look again then, or sooner: one alarm is enough."""
        self._alarm = self._sooner(self._alarm, seconds, self._ring)

    def close(self) -> None:
        """No more alarms."""
        for alarm in (self._alarm, self._flushing):
            if alarm is not None:
                alarm.cancel()

    def _flush_in(self, seconds: float) -> None:
        self._flushing = self._sooner(self._flushing, seconds, self._flush)

    @staticmethod
    def _sooner(alarm: asyncio.TimerHandle | None, seconds: float, ring: Callable[[], None]) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        if alarm is not None:
            if alarm.when() <= loop.time() + seconds + SAME_S:
                return alarm
            alarm.cancel()
        return loop.call_later(seconds, ring)

    def _ring(self) -> None:
        self._alarm = None
        self._awake()

    def _flush(self) -> None:
        self._flushing = None
        self._awake()

    def _take(self, now: float) -> None:
        self._ready += self._buffer.take(self.coming, now)
        self.coming.clear()

    def _pass(self) -> None:
        now = self._clock()
        self._take(now)
        if (due_at := self._buffer.due_at) is not None:
            self._flush_in(due_at - now)
        elif self._flushing is not None:  # or it would wake the process for nothing, once a flush
            self._flushing.cancel()
            self._flushing = None

    async def _append(self) -> None:
        if self._ready:
            ready, self._ready = self._ready, []
            payloads = [event.payload() for event in ready]
            # A store that came back with nothing, or with less, goes on from here: its readers have seen what was told.
            floor = self.seq
            append = self._log.append(self._session_id, payloads, ms=self._ms(), floor=floor, known=floor)
            under_way = asyncio.ensure_future(append)
            try:
                self.seq = await (under_way if isinstance(under_way, Sent) else asyncio.shield(under_way))
            except LogUnavailable:
                self.missed = (*self.missed, *ready)
                raise
            except asyncio.CancelledError:
                # These are no longer ready and not yet told; the session's last events have to come behind them.
                try:
                    self.seq = await under_way
                except LogUnavailable:
                    self.missed = (*self.missed, *ready)
                raise
        if self._untold and self._buffer.due_at is None:
            self.unread.taken(self._untold)
            self._untold = []
