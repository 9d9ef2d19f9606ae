"""How long a text may become: the `length` kind.

Protects the rule that a limit does not wait for the end: the gate lets the first ``max_chars`` characters through and
acts at the one beyond, whatever the chunks.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from guardrails.kinds.base import Config, Example, Kind, Limit
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass


class LengthConfig(Config):
    """Parameters of the `length` kind."""

    max_chars: int = Field(ge=1, le=10_000_000, description="Characters (code points) that a text may have.")


class LengthKind(Kind[LengthConfig]):
    """An upper limit in characters."""

    name = "length"
    family = Family.LISTED
    description = "An upper limit for the length of a text, in characters."
    performance = PerformanceCharacteristics(
        PerformanceClass.FAST, 0.001, 0.01, 0.1, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = LengthConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"max_chars": 5}, hits=("123456", "äöüßéè"), passes=("12345", "")),
    )

    def limits(self) -> tuple[Limit, ...]:
        """The one limit."""
        return (Limit(self.config.max_chars),)
