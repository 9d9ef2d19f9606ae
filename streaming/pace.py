"""What an answer's timeline comes to: how long its first token took, and how long text was held at most.

Exists so that many sessions can be counted without reading the timeline of each. Protects the rule that such a figure
is a copy: it is made from ``timing``, which the audit record commits to, and from nothing else. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Milliseconds, None where nothing was measured; tool calls that ended well and badly."""

    first_token_ms: int | None = None
    hold_ms: int | None = None
    tools_ok: int = 0
    tools_failed: int = 0

    @classmethod
    def of(cls, timing: Mapping[str, object]) -> Pace:
        """From the ``timing`` of a session."""
        arrivals, releases = points(timing.get("arrivals")), points(timing.get("releases"))
        return cls(
            first_token_ms=arrivals[0][0] if arrivals else None,
            hold_ms=longest_wait(arrivals, releases),
            tools_ok=_number(timing.get("tools_ok")),
            tools_failed=_number(timing.get("tools_failed")),
        )


def points(value: object) -> list[tuple[int, int]]:
    """[milliseconds, characters] pairs in order; what is something else is left out."""
    if not isinstance(value, list | tuple):
        return []
    return [(_number(item[0]), _number(item[1])) for item in value if isinstance(item, list | tuple) and len(item) == 2]


def longest_wait(arrivals: Points, releases: Points) -> int | None:
    """The longest time between a character's arrival and when it was settled (shown, or hidden for good).

    None: none was. Characters are settled in the order they came in.
    """
    longest: int | None = None
    coming = iter(arrivals)
    at, left = next(coming, (0, 0))
    for ms, chars in releases:
        while chars > 0:
            if left <= 0:
                if (found := next(coming, None)) is None:
                    return longest
                at, left = found
                continue
            longest = max(longest or 0, ms - at)
            taken = min(chars, left)
            chars, left = chars - taken, left - taken
    return longest


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
