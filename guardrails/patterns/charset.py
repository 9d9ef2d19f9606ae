"""Sets of code points as sorted ranges.

Exists because every engine has its own idea of ``\\s`` or ``.``: here a set is always spelled out, so that a rule
has one meaning. The alphabet is U+0000 to U+10FFFE; U+10FFFF (a noncharacter) is the *sentinel* that ends every
thread after a run of ignorable characters (folding) and therefore belongs to no set, not even to a negated one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, non-adjacent inclusive ranges."""

MAX = 0x10FFFE
SENTINEL = "\U0010ffff"


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sort and merge; the sentinel is cut away."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        hi = min(hi, MAX)
        if lo > hi:
            continue
        if out and lo <= out[-1][1] + 1:
            if hi > out[-1][1]:
                out[-1] = (out[-1][0], hi)
        else:
            out.append((lo, hi))
    return tuple(out)


def negate(ranges: Ranges) -> Ranges:
    """Everything in the alphabet that is not in ``ranges``."""
    out: list[tuple[int, int]] = []
    at = 0
    for lo, hi in ranges:
        if lo > at:
            out.append((at, lo - 1))
        at = hi + 1
    if at <= MAX:
        out.append((at, MAX))
    return tuple(out)


def contains(ranges: Ranges, code: int) -> bool:
    """Is the code point in the set?"""
    i = bisect_right(ranges, (code, MAX + 1)) - 1
    return i >= 0 and code <= ranges[i][1]


def size(ranges: Ranges) -> int:
    """How many code points the set has."""
    return sum(hi - lo + 1 for lo, hi in ranges)


def ascii_case(ranges: Ranges) -> Ranges:
    """The set with the ASCII case partner of each ASCII letter (``(?i)`` folds ASCII and nothing else)."""
    extra: list[tuple[int, int]] = []
    for lo, hi in ranges:
        for a, z, shift in ((65, 90, 32), (97, 122, -32)):
            s, e = max(lo, a), min(hi, z)
            if s <= e:
                extra.append((s + shift, e + shift))
    return normal((*ranges, *extra)) if extra else ranges


DIGIT: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACE: Ranges = ((9, 13), (32, 32))
NEWLINE: Ranges = ((10, 10),)
ANY: Ranges = ((0, MAX),)
DOT: Ranges = negate(NEWLINE)
POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": SPACE,
    "upper": ((65, 90),),
    "word": WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
"""POSIX classes of RE2 (syntax page of the RE2 project), spelled out."""
