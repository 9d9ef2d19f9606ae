"""How much one answer may say that passes through the gateway.

Exists because an upstream that never stops is neither silent nor slow, and much of what it says is kept until the
answer is over: texts for the record and for guardrails, arguments until they are complete. Protects the memory: all of
it is counted while it comes, and what was said until then stands. Pure.
"""

from __future__ import annotations

from streaming import endless
from streaming.providers.reading import MAX_CALLS, MAX_CHOICES

MAX_CHANNELS = 10_000
"""Texts of one answer that have a gate each: blocks, fields, arguments."""


class Endless(ValueError):
    """The answer says more than one may."""


class Measure:
    """What one answer has said so far. Each verb raises ``Endless`` where it is too much."""

    __slots__ = ("_calls", "_channels", "_chars")

    def __init__(self) -> None:
        self._chars = self._calls = self._channels = 0

    def said(self, chars: int) -> None:
        """More characters of any text, before they are taken."""
        self._chars += chars
        if self._chars > endless.MAX_ANSWER_CHARS:
            raise Endless(f"the answer has more than {endless.MAX_ANSWER_CHARS:,} characters")

    def call(self) -> None:
        """One more call of a tool."""
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise Endless(f"the endpoint began more than {MAX_CALLS:,} tool calls")

    def channel(self) -> None:
        """One more text with a gate of its own."""
        self._channels += 1
        if self._channels > MAX_CHANNELS:
            raise Endless(f"the answer has more than {MAX_CHANNELS:,} texts")


def numbered(index: object) -> int:
    """The number of a choice. Raises ``Endless``."""
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        return 0
    if index >= MAX_CHOICES:
        raise Endless(f"the endpoint sent more than {MAX_CHOICES:,} choices")
    return index


class Pieces:
    """A call's arguments while they come; they count for the answer, too."""

    __slots__ = ("_measure", "_parts", "chars")

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._parts: list[str] = []
        self.chars = 0

    def add(self, text: str) -> None:
        """Raises ``Endless``."""
        self._measure.said(len(text))
        self.chars += len(text)
        self._parts.append(text)

    def taken(self) -> str:
        """All of them, for a gate, which counts them itself."""
        self._measure.said(-self.chars)
        return "".join(self._parts)
