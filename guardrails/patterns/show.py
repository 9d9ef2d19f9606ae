"""A rule's final tree, written for people.

Exists because a trimmed rule *is* the rule: an author must see what is left of the pattern. The other engines' forms
(``emit.py``) spell every class out by number and are not meant to be read.
"""

from __future__ import annotations

from guardrails.patterns import charset
from guardrails.patterns.charset import Ranges
from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq

_NAMED: dict[Ranges, str] = {
    charset.DIGIT: r"\d",
    charset.negate(charset.DIGIT): r"\D",
    charset.WORD: r"\w",
    charset.negate(charset.WORD): r"\W",
    charset.SPACE: r"\s",
    charset.negate(charset.SPACE): r"\S",
    charset.DOT: ".",
    charset.ANY: r"[\s\S]",
}
_ASSERTIONS = {
    "text_start": r"\A",
    "text_end": r"\z",
    "line_start": "(?m:^)",
    "line_end": "(?m:$)",
    "boundary": r"\b",
    "not_boundary": r"\B",
}
_ESCAPES = {9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r"}


def readable(node: Node) -> str:
    """The tree as a pattern. ``not_after`` and ``not_before`` conditions are left out: they are shown beside it."""
    match node:
        case Chars(ranges):
            return _class(ranges)
        case Seq(items):
            return "".join(map(readable, items))
        case Alt(branches):
            return "(?:" + "|".join(map(readable, branches)) + ")"
        case Group(_, body):
            return f"({readable(body)})"
        case Assert(kind):
            return _ASSERTIONS.get(kind, "")
        case Repeat(body, low, high, greedy, swallow):
            piece = readable(body)
            if not isinstance(body, Chars | Group | Alt):
                piece = f"(?:{piece})"
            return piece + _times(low, None if swallow else high) + ("" if greedy else "?")


def _times(low: int, high: int | None) -> str:
    short = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((low, high))
    if short:
        return short
    return f"{{{low}}}" if low == high else f"{{{low},{'' if high is None else high}}}"


def _class(ranges: Ranges) -> str:
    if named := _NAMED.get(ranges):
        return named
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char(ranges[0][0], r"\.^$*+?{}[]|()")
    negated = charset.negate(ranges)
    invert = len(negated) < len(ranges)
    body = "".join(
        _char(lo, r"\]^-[") if lo == hi else f"{_char(lo, chr(92) + ']^-[')}-{_char(hi, chr(92) + ']^-[')}"
        for lo, hi in (negated if invert else ranges)
    )
    return f"[{'^' if invert else ''}{body}]"


def _char(code: int, special: str) -> str:
    char = chr(code)
    if code in _ESCAPES:
        return _ESCAPES[code]
    if not char.isprintable():
        return f"\\x{{{code:x}}}"
    return "\\" + char if char in special else char
