"""Items that are due one after the other, as a socket would have them.

Exists so that providers without a network behave like those with one. Protects the rule that a provider's pace is its
own: what became due while nobody asked is there at once when somebody does, and nobody makes it late by resting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]


class Schedule:
    """``await after(pause_s)`` for each item. ``rest_s``: see ``ProviderRequest``. ``clock`` and ``sleep``: seconds."""

    def __init__(
        self, rest_s: Callable[[], float], sleep: Sleep = asyncio.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rest_s, self._sleep, self._clock = rest_s, sleep, clock
        self._due = clock()

    async def after(self, pause_s: float) -> None:
        """Return once the item is due: so many seconds after the one before it was, whenever that was asked for."""
        self._due += pause_s
        wait = self._due - self._clock()
        if wait > 0:
            await self._sleep(max(wait, self._rest_s()))
