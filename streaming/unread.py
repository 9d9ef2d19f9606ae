"""How much of what the provider sent is still on our hands: not looked at, or not yet taken by the session log.

Exists because a provider can be faster than the guardrails and the log. Protects the memory of the process: with
``MAX_UNREAD`` characters between provider and log the provider's socket is not read any further.
"""

from __future__ import annotations

from collections.abc import Iterable

from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.wake import Wake

MAX_UNREAD = 1_000_000
"""Characters."""


class Unread:
    """How much of what the provider sent is on its way to the log; at ``MAX_UNREAD`` characters the provider waits."""

    def __init__(self) -> None:
        self._chars = 0
        self._room = Wake(is_set=True)

    async def put(self, event: ProviderEvent) -> None:
        """Wait for room, and count the event."""
        await self._room.wait()
        self.count(event)

    @property
    def full(self) -> bool:
        """Whether the provider has to wait."""
        return self._chars >= MAX_UNREAD

    def count(self, event: ProviderEvent) -> None:
        """Count an event that has been taken from the provider."""
        self._chars += size(event)
        if self._chars >= MAX_UNREAD:
            self._room.clear()

    def taken(self, events: Iterable[ProviderEvent]) -> None:
        """The loop has taken the events, and the log what came of them."""
        self._chars -= sum(map(size, events))
        if self._chars < MAX_UNREAD:
            self._room.set()


def size(event: ProviderEvent) -> int:
    """Characters of a provider's event."""
    match event:
        case TextDelta(text) | ThinkingDelta(text):
            return len(text)
        case ToolCallDelta():
            return len(event.arguments)
        case ProviderToolResult():
            return len(event.result) + len(event.error)
    return 0
