"""An answer's timeline, and what it comes to: how long its first token took, and how long text was held at most.

Exists so that many sessions can be counted without reading the timeline of each. Protects the rule that such a figure
is a copy: it is made from ``timing``, which the audit record commits to, and from nothing else. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[int, int]]
MAX_POINTS = 2_000
"""Points of a timeline that are kept; beyond that neighbours are merged, so that a long answer stays small."""
BY_CLIENT = "paced_by_client"
"""Says in ``timing`` that the text came when its client sent it: such times are no figures of a provider or a gate."""
RELAYED = "through_gateway"
"""Says in ``timing`` that an upstream answered a client of the gateway, in pieces or at once, as that one asked."""


class Timeline:
    """[ms, characters] points, merged pairwise when they become too many. ``count``: how often something was added."""

    __slots__ = ("_most", "count", "points")

    def __init__(self, points: Iterable[tuple[int, int]] = (), most: int = MAX_POINTS) -> None:
        self.points = list(points)
        self.count = 0
        self._most = most

    def add(self, ms: int, chars: int) -> None:
        """``chars`` more characters at ``ms``; points of the same millisecond are one."""
        self.count += 1
        if self.points and self.points[-1][0] == ms:
            self.points[-1] = (ms, self.points[-1][1] + chars)
            return
        self.points.append((ms, chars))
        if len(self.points) > self._most:
            pairs = zip(self.points[::2], [*self.points[1::2], (0, 0)], strict=False)
            self.points = [(first[0], first[1] + second[1]) for first, second in pairs]


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
        if timing.get(BY_CLIENT) or timing.get(RELAYED):
            arrivals = releases = []
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
