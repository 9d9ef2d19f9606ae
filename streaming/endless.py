"""How much one answer may say, over all its rounds, choices and channels.

Exists because an endpoint that never stops is neither silent nor slow, so that no limit of time ends it before the
memory does. What is dropped and told instead (a call that nobody may make) counts as what is told. Protects it: what
was said until then stands, and the rest is a failure of the endpoint like any other.
"""

from __future__ import annotations

from streaming.core.events import (
    ProviderEvent,
    ProviderNotice,
    ProviderToolResult,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from streaming.providers.base import ProviderProtocolError

MAX_ANSWER_CHARS = 4_000_000
"""Several times what the largest models can say in one answer. Arguments of calls that are too long count as well."""


class Measure:
    """One answer, event by event."""

    __slots__ = ("_chars",)

    def __init__(self) -> None:
        self._chars = 0

    def add(self, event: ProviderEvent) -> None:
        """Count an event before it is taken. Raises ``ProviderProtocolError``."""
        match event:
            case TextDelta(text):
                self._chars += len(text)
            case ThinkingDelta(text, signature=signature):
                self._chars += len(text) + len(signature)
            case ToolCallDelta(arguments=arguments):
                self._chars += len(arguments)
            case ProviderToolResult(_, result, error):
                self._chars += len(result) + len(error)
            case ProviderNotice(message=message):
                self._chars += len(message)
        if self._chars > MAX_ANSWER_CHARS:
            raise ProviderProtocolError(f"the answer has more than {MAX_ANSWER_CHARS:,} characters")
