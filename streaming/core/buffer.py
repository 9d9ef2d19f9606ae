"""Coalescing: neighbouring releases of one channel become one event, and are told at a pace that a reader can paint.

Exists because a reader gains nothing from five frames where one says the same, and because a token must not cost a
round trip to the session log. Protects order: only *neighbouring* chunks of the same message, channel and choice are
joined, so a redaction or a hold between two chunks stays between them. Protects promptness as well: what
``ResponseBuffer`` keeps back, it keeps for a tenth of a second at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streaming.core.events import MessageStream, ServerEvent

MAX_CHUNK = 4_096
"""Characters a joined chunk may have; longer ones would delay the first paint of a reader that catches up."""

ENOUGH_CHARS = 10
"""Pending characters from which a flush is worth a frame, once ``PACE_S`` has passed since the last one."""

MANY_CHARS = 256
"""More pending characters than this are a fast model: ``FAST_PACE_S`` applies."""

PACE_S = 0.050
FAST_PACE_S = 0.020
LATEST_S = 0.100
"""No released character waits longer than this, however few there are."""

REST_SLACK_S = 0.002
"""A rest ends so much after the next flush may be due: what was flushed was flushed a moment after it was ready."""


def joinable(first: MessageStream, second: MessageStream) -> bool:
    """Whether ``second`` only continues ``first``."""
    return (
        not first.is_final
        and not second.is_final
        and first.message_id == second.message_id
        and first.channel == second.channel
        and first.choice == second.choice
        and len(first.chunk) + len(second.chunk) <= MAX_CHUNK
    )


def coalesce(events: Iterable[ServerEvent]) -> list[ServerEvent]:
    """The same events with neighbouring releases joined."""
    out: list[ServerEvent] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, MessageStream) and isinstance(last, MessageStream) and joinable(last, event):
            out[-1] = MessageStream(last.message_id, last.channel, last.choice, last.chunk + event.chunk)
        else:
            out.append(event)
    return out


def coalesce_stamped(events: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """The same on stamped events, for a reader that catches up: a joined event has the *last* seq and ms.

    A reader that has seen seq n has seen everything up to n, so a later resume from n misses nothing.
    """
    out: list[dict[str, object]] = []
    for event in events:
        last = out[-1] if out else None
        if last is not None and _continues(last, event):
            out[-1] = {**event, "chunk": f"{last['chunk']}{event['chunk']}"}
        else:
            out.append(event)
    return out


def _continues(first: dict[str, object], second: dict[str, object]) -> bool:
    if first["type"] != "message_stream" or second["type"] != "message_stream":
        return False
    if first["is_final"] or second["is_final"]:
        return False
    same = all(first[key] == second[key] for key in ("message_id", "channel", "choice"))
    return same and len(str(first["chunk"])) + len(str(second["chunk"])) <= MAX_CHUNK


class ResponseBuffer:
    """An answer's events on their way to the log: told when events come, asked when the next flush is due.

    Sans-IO: ``now`` is any clock in seconds that never goes back. Returned events are in the order in which they came,
    each exactly once, with neighbours joined as ``coalesce`` does.

        the first text of a channel     at once
        text after that                 with 10 characters pending 50 ms after the last flush (with more than 256
                                        pending 20 ms after it), and 100 ms after it came at the latest
        anything else                   at once, behind what is pending

    Between two flushes nobody is told anything, whatever text comes: so long may the source ``rest``. What it finds
    then counts as having come when the rest began.
    """

    __slots__ = ("_begun", "_chars", "_flushed_at", "_flushed_chars", "_pending", "_rested_since", "_since", "_urgent")

    def __init__(self) -> None:
        self._pending: list[ServerEvent] = []
        self._urgent = 0
        self._chars = self._flushed_chars = 0
        self._since = 0.0
        self._rested_since: float | None = None
        self._flushed_at = 0.0
        self._begun: tuple[tuple[str, str, int], ...] = ()

    def take(self, events: Sequence[ServerEvent], now: float) -> list[ServerEvent]:
        """Take events in order; returns what is to be told now."""
        if not self.add(events, now):
            return []
        if not self._urgent:
            return self.flush(now)
        later = self._pending[self._urgent :]
        del self._pending[self._urgent :]
        out = self.flush(now)
        self._pending, self._since = later, now
        self._chars = sum(len(event.chunk) for event in later if isinstance(event, MessageStream))
        return out

    def add(self, events: Sequence[ServerEvent], now: float) -> bool:
        """Take events in order; True when something is to be told now: the next ``take`` returns it."""
        pending = self._pending
        for event in events:
            if not pending:
                # What is found soon after a rest may have lain there since it began; what is found later has not.
                rested = self._rested_since
                self._since = now if rested is None or now - rested >= LATEST_S else rested
            pending.append(event)
            if not isinstance(event, MessageStream) or event.is_final or self._begins(event):
                self._urgent = len(pending)
            else:
                self._chars += len(event.chunk)
        return bool(self._urgent) or self.due(now)

    def rest(self, now: float) -> float:
        """For how many seconds the source of the text need not be asked, because no text would be told sooner.

        Zero before the first flush, and once a flush may come with the very next character. A model that is fast is
        asked again when its faster pace may apply.
        """
        ready = bool(self._urgent) or self.due(now)
        chars, last = (self._chars, now) if ready else (self._flushed_chars, self._flushed_at)
        fast = chars > MANY_CHARS * FAST_PACE_S / PACE_S
        wait = last + (FAST_PACE_S if fast else PACE_S + REST_SLACK_S) - now
        if wait <= 0 or not self._begun:
            self._rested_since = None
            return 0.0
        self._rested_since = now
        return wait

    @property
    def due_at(self) -> float | None:
        """When to ``flush``; None while nothing is pending."""
        if not self._pending:
            return None
        latest = self._since + LATEST_S
        if self._chars < ENOUGH_CHARS:
            return latest
        return min(latest, self._flushed_at + (FAST_PACE_S if self._chars > MANY_CHARS else PACE_S))

    def due(self, now: float) -> bool:
        """Whether a flush is due."""
        return (at := self.due_at) is not None and now >= at

    def flush(self, now: float) -> list[ServerEvent]:
        """All that is pending."""
        if not self._pending:
            return []
        out = coalesce(self._pending)
        self._flushed_chars = self._chars
        self._pending, self._urgent, self._chars, self._flushed_at = [], 0, 0, now
        return out

    def _begins(self, event: MessageStream) -> bool:
        """Whether this is the first text of its channel."""
        lane = (event.message_id, event.channel, event.choice)
        if lane in self._begun:
            return False
        self._begun = (*self._begun, lane)
        return True
