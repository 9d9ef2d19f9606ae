"""How much of what the provider sent is still on our hands: not looked at, or not yet taken by the session log.

Exists because a provider can be faster than the guardrails and the log. Protects the memory of the process: with
``MAX_UNREAD`` bytes between provider and log the provider's socket is not read any further.
"""

from __future__ import annotations

from collections.abc import Iterable

from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.wake import Wake

MAX_UNREAD = 1_000_000
"""Bytes of UTF-8: text in any script weighs what it weighs on its way."""


class Unread:
    """How much of what the provider sent is on its way to the log; at ``MAX_UNREAD`` bytes the provider waits."""

    __slots__ = ("_held", "_room")

    def __init__(self) -> None:
        self._held = 0
        self._room = Wake(is_set=True)

    async def put(self, event: ProviderEvent) -> None:
        """Wait for room, and count the event."""
        await self._room.wait()
        self.count(event)

    @property
    def full(self) -> bool:
        """Whether the provider has to wait."""
        return self._held >= MAX_UNREAD

    def count(self, event: ProviderEvent) -> None:
        """Count an event that has been taken from the provider."""
        self._held += size(event)
        if self._held >= MAX_UNREAD:
            self._room.clear()

    def taken(self, events: Iterable[ProviderEvent]) -> None:
        """The loop has taken the events, and the log what came of them."""
        self._held -= sum(map(size, events))
        if self._held < MAX_UNREAD:
            self._room.set()


def size(event: ProviderEvent) -> int:
    """Bytes of the text in a provider's event."""
    match event:
        case TextDelta(text) | ThinkingDelta(text):
            return _bytes(text)
        case ToolCallDelta():
            return _bytes(event.arguments)
        case ProviderToolResult():
            return _bytes(event.result) + _bytes(event.error)
    return 0


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
