"""How much of what the provider sent nobody has looked at yet.

Exists because a provider can be faster than the guardrails. Protects the memory of the process: with ``MAX_UNREAD``
characters in the pump's inbox the provider's socket is not read any further.
"""

from __future__ import annotations

import asyncio

from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta, ToolCallDelta

MAX_UNREAD = 1_000_000
"""Characters."""


class Unread:
    """How much of what the provider sent lies in the inbox; with ``MAX_UNREAD`` characters there the provider waits."""

    def __init__(self) -> None:
        self._chars = 0
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, event: ProviderEvent) -> None:
        """Wait for room, and count the event."""
        await self._room.wait()
        self._chars += size(event)
        if self._chars >= MAX_UNREAD:
            self._room.clear()

    def taken(self, event: ProviderEvent) -> None:
        """The loop has taken the event."""
        self._chars -= size(event)
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
