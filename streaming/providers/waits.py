"""The clocks of one answer: to connect, between two tokens, and for all of it.

Exists because each limit is timed by itself and on the loop's clock, not by the socket's time-outs: those start again
with every byte, so a keep-alive would keep a dead answer alive. Protects the rules that nothing hangs, and that a slow
reader is never mistaken for a silent provider: only the time that *we* wait counts as silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

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
            self._timer.reschedule(self._next())

    def waiting(self) -> Waits:
        """While we wait for the provider; an asynchronous context, one at a time. Raises ``ProviderTimeout``."""
        return self

    async def __aenter__(self) -> None:
        # Written out, and not a generator's context: there is one for every token.
        self._since = self._now()
        when = self._next()
        if when <= self._since:  # what lies ready is taken without a wait, and would never meet the timer
            raise ProviderTimeout(self._words())
        self._timer = asyncio.timeout_at(when)
        await self._timer.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._timer
        assert timer is not None
        try:
            await timer.__aexit__(kind, error, trace)
        except TimeoutError:
            raise ProviderTimeout(self._words()) from None
        finally:
            self._timer = None
            self._silent_s += self._now() - self._since
        if isinstance(error, TimeoutError) and timer.expired():
            raise ProviderTimeout(self._words()) from None

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
            timer.reschedule(self._next())

    def _next(self) -> float:
        """When the limit passes that passes first, on the loop's clock."""
        at = self._deadline.at
        if not self._connected:
            return min(at, self._began + self._limits.connect_s)
        return at if self._whole else min(at, self._since + self._limits.token_s - self._silent_s)

    def _words(self) -> str:
        """What is said then."""
        if self._next() == self._deadline.at:
            return self._deadline.words
        if not self._connected:
            return f"no connection to the provider at {self._where} within {self._limits.connect_s:g} s"
        return f"the provider sent no token for {self._limits.token_s:g} s"
