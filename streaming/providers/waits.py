"""The clocks of one answer: to connect, between two tokens, and for all of it.

Exists because each limit is timed by itself and on the loop's clock, not by the socket's time-outs: those start again
with every byte, so a keep-alive would keep a dead answer alive. Protects the rules that nothing hangs, and that a slow
reader is never mistaken for a silent provider: only the time that *we* wait counts as silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from streaming.providers.base import Deadline, ProviderTimeout, TimeLimits, never_rest


class Waits:
    """Wrap every wait for the provider in ``waiting``; tell it when the connection stands and when a token came.

    ``where`` is named in messages. ``whole``: the answer is not streamed, so there are no tokens to wait for.
    ``rest_s``, ``deadline``: see ``ProviderRequest``.
    """

    def __init__(
        self,
        limits: TimeLimits,
        where: str,
        *,
        whole: bool = False,
        rest_s: Callable[[], float] = never_rest,
        deadline: Deadline | None = None,
    ) -> None:
        self._rest_s = rest_s
        self._limits = limits
        self._where = where
        self._whole = whole
        self._now = asyncio.get_running_loop().time
        self._began = self._now()
        own = Deadline(self._began + limits.total_s, limits.total_s)
        self._deadline = deadline if deadline is not None and deadline.at < own.at else own
        self._connected = False
        self._since = self._began
        self._silent_s = 0.0
        self._timer: asyncio.Timeout | None = None

    def heard(self) -> None:
        """A token came."""
        self._silent_s = 0.0

    def connected(self) -> None:
        """The connection stands: from here on the provider is waited for, not the network."""
        if self._connected:
            return
        self._connected, self._silent_s, self._since = True, 0.0, self._now()
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(self._next()[0])

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[None, None]:
        """While we wait for the provider. Raises ``ProviderTimeout``."""
        self._since = self._now()
        when, message = self._next()
        if when <= self._since:  # what lies ready is taken without a wait, and would never meet the timer
            raise ProviderTimeout(message)
        self._timer = timer = asyncio.timeout_at(when)
        try:
            async with timer:
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            raise ProviderTimeout(self._next()[1]) from None
        finally:
            self._timer = None
            self._silent_s += self._now() - self._since

    async def rest(self) -> None:
        """Right before the socket is read: leave it alone for as long as nobody would be told what comes.

        We do not listen meanwhile, so only the limit for all of the answer goes on.
        """
        seconds = self._rest_s()
        if seconds <= 0:
            return
        began, timer = self._now(), self._timer
        if timer is not None and not timer.expired():
            timer.reschedule(self._deadline.at)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._since += self._now() - began
        if timer is not None and not timer.expired():
            timer.reschedule(self._next()[0])

    def _next(self) -> tuple[float, str]:
        """The limit that passes first: when, on the loop's clock, and what is said then."""
        limits = self._limits
        ends = [(self._deadline.at, self._deadline.words)]
        if not self._connected:
            said = f"no connection to the provider at {self._where} within {limits.connect_s:g} s"
            ends.append((self._began + limits.connect_s, said))
        elif not self._whole:
            said = f"the provider sent no token for {limits.token_s:g} s"
            ends.append((self._since + limits.token_s - self._silent_s, said))
        return min(ends)
