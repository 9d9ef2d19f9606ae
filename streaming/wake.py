"""A flag and a line that can be waited for, and that weigh next to nothing.

Exists because a thousand open streams hold thousands of them: an ``asyncio.Event`` makes room for 64 waiters before
there is one, an ``asyncio.Queue`` four times that. Protects the rule that what came while nobody looked is seen by
whoever looks next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Call = Callable[[], object] | asyncio.Future[None]


class Wake:
    """Set, cleared and waited for in one event loop."""

    __slots__ = ("_calls", "_set")

    def __init__(self, *, is_set: bool = False) -> None:
        self._set = is_set
        self._calls: tuple[Call, ...] = ()

    def is_set(self) -> bool:
        """Whether it has been set and not cleared."""
        return self._set

    def set(self) -> None:
        """Set it; everybody who waits goes on."""
        self._set = True
        calls, self._calls = self._calls, ()
        for call in calls:
            if isinstance(call, asyncio.Future):
                _end(call)
            else:
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
        waiter: asyncio.Future[None] = loop.create_future()
        self._calls = (*self._calls, waiter)
        timer = loop.call_later(limit_s, _end, waiter) if limit_s is not None else None
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            came = waiter not in self._calls
            if not came:
                self._calls = _without(self._calls, waiter)
        return came


def _without(calls: tuple[Call, ...], waiter: asyncio.Future[None]) -> tuple[Call, ...]:
    """Not said where it is needed: who waits would keep a cell for it."""
    return tuple(call for call in calls if call is not waiter)


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Line(Generic[T]):
    """Items in the order in which they came, for one taker. Short: taking the first one moves the others."""

    __slots__ = ("_items", "_waiter")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._waiter: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        """Whether nothing is there to be taken."""
        return not self._items

    def qsize(self) -> int:
        """How many items are there to be taken."""
        return len(self._items)

    def put_nowait(self, item: T) -> None:
        """Add an item; who waits for one goes on."""
        self._items.append(item)
        if (waiter := self._waiter) is not None and not waiter.done():
            waiter.set_result(None)

    def get_nowait(self) -> T:
        """The first item, there must be one."""
        return self._items.pop(0)

    def get_all(self, most: int | None = None) -> list[T]:
        """All items that are there, or the first of them."""
        items, self._items = self._items, []
        if most is not None:
            items, self._items = items[:most], items[most:]
        return items

    def filled(self) -> asyncio.Future[None]:
        """Done when there is something to be taken. No coroutine: the taker waits for it and for nothing around it."""
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        if self._items:
            waiter.set_result(None)
        return waiter

    async def get(self) -> T:
        """The first item, as soon as there is one."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.get_nowait()
