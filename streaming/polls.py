"""What is looked for in the store now and then: asked about all sessions of a process at once.

Exists because a wake-up may be lost, so that every pump and every reader looks by itself once in a while: with a
thousand silent streams that were fifteen hundred calls a second. Protects two rules: what one is told is never older
than ``EVERY_S``, and while the store is away everybody hears of it who asks.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from streaming.log import LogUnavailable

EVERY_S = 1.0
"""Seconds between two calls about all sessions."""

Ask = Callable[[Sequence[str]], Awaitable[object]]
"""What the store has under each of the sessions, in their order."""


class Polls:
    """One thing that is looked for. ``sessions``: those of this process that somebody may ask about."""

    __slots__ = ("_ask", "_asked_at", "_clock", "_said", "_sessions")

    def __init__(
        self, ask: Ask, sessions: Callable[[], list[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._sessions, self._clock = ask, sessions, clock
        self._said: dict[str, bytes | None] = {}
        self._asked_at = float("-inf")

    async def about(self, session_id: str) -> bytes | None:
        """What the store has for this session, or had a moment ago. Raises ``LogUnavailable``."""
        now = self._clock()
        due = now - self._asked_at >= EVERY_S
        if due or session_id not in self._said:
            sessions = list({session_id: None, **dict.fromkeys(self._sessions())}) if due else [session_id]
            if due:
                self._asked_at = now  # who asks meanwhile is told what was found the last time
            try:
                found = cast("Sequence[bytes | None]", await self._ask(sessions))
            except LogUnavailable:
                self._said = {}
                raise
            said = dict(zip(sessions, found, strict=True))
            if due:
                self._said = said
            else:
                self._said |= said
        return self._said.get(session_id)
