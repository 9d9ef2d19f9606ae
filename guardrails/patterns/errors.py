"""The refusals of this package, as a tree.

    PatternError            a rule that is not accepted; names construct and position
    ├── PatternSyntaxError  not a regular expression
    ├── UnsupportedError    outside the accepted subset (look-around, back-references, …)
    ├── UnboundedError      no useful hold bound can be proven, or the rule is too large
    └── SlowError           it was ended, because it took too long to compile

All but the last are permanent: the same rule is refused again.
"""

from __future__ import annotations


class PatternError(ValueError):
    """A refused rule. ``position`` is the offset in the pattern in code points, or None for the whole rule."""

    permanent = True

    def __init__(self, reason: str, position: int | None = None, construct: str = "") -> None:
        self.reason = reason
        self.position = position
        self.construct = construct
        where = "" if position is None else f" at position {position}"
        what = f" ({construct})" if construct else ""
        super().__init__(f"{reason}{what}{where}")


class PatternSyntaxError(PatternError):
    """Not a well-formed pattern."""


class UnsupportedError(PatternError):
    """Well-formed elsewhere, but outside the subset that means the same in every engine."""


class UnboundedError(PatternError):
    """Matches the empty string, or would need more positions than a rule may have."""


class SlowError(PatternError):
    """Compiling took longer than it may, and was ended."""

    permanent = False
