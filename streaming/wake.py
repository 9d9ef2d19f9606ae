"""A flag that can be waited for, and that weighs next to nothing.

Exists because a thousand open streams hold thousands of them, and an ``asyncio.Event`` makes room for 64 waiters before
there is one. Protects the rule that a flag which was set while nobody looked is seen by whoever looks next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Wake:
    """Set, cleared and waited for in one event loop."""

    __slots__ = ("_calls", "_set")

    def __init__(self, *, is_set: bool = False) -> None:
        self._set = is_set
        self._calls: tuple[Callable[[], object], ...] = ()

    def is_set(self) -> bool:
        """Whether it has been set and not cleared."""
        return self._set

    def set(self) -> None:
        """Set it; everybody who waits goes on."""
        self._set = True
        calls, self._calls = self._calls, ()
        for call in calls:
            call()

    def clear(self) -> None:
        """Who waits from now on waits for the next ``set``."""
        self._set = False

    def then(self, call: Callable[[], object]) -> None:
        """Make this call once, when the flag is set; at once if it is."""
        if self._set:
            call()
        else:
            self._calls = (*self._calls, call)

    async def wait(self, limit_s: float | None = None) -> bool:
        """Wait until it is set, ``limit_s`` seconds at most; False when it was not."""
        if self._set:
            return True
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def end() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._calls = (*self._calls, end)
        timer = loop.call_later(limit_s, end) if limit_s is not None else None
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            came = end not in self._calls
            if not came:
                self._calls = tuple(call for call in self._calls if call is not end)
        return came
