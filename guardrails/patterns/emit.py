"""The tree of a rule as a pattern for another engine, with every class spelled out.

Dialects disagree about ``\\s``, ``.``, ``$``, ``^``, ``(?i)`` and ``x{,2}``; a pattern emitted here uses none of
them, so Python's ``re``, RE2 and JavaScript (flag ``u``) see the same rule. Outer context (``not_after``,
``not_before``) is emitted where the engine has look-around; RE2 has not, its caller checks the neighbours.

For JavaScript a swallowing repeat is written ``x{n,m}x*``, which an engine reads as ``x{n,}`` and the browser library,
which runs these patterns as automata of its own, as "at m it has matched". No other repeat is written with ``*``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from enum import StrEnum

from guardrails.patterns.charset import Ranges
from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq

_RE2_MAX_REPEAT = 1000


class Dialect(StrEnum):
    """Engines that patterns are emitted for."""

    PYTHON = "python"
    RE2 = "re2"
    JAVASCRIPT = "javascript"


_ASSERTIONS: dict[str, dict[Dialect, str]] = {
    "text_start": {Dialect.PYTHON: r"\A", Dialect.RE2: r"\A", Dialect.JAVASCRIPT: "^"},
    "text_end": {Dialect.PYTHON: r"\Z", Dialect.RE2: r"\z", Dialect.JAVASCRIPT: "$"},
    "line_start": {Dialect.PYTHON: r"(?<![^\n])", Dialect.RE2: "(?m:^)", Dialect.JAVASCRIPT: r"(?<![^\n])"},
    "line_end": {Dialect.PYTHON: r"(?![^\n])", Dialect.RE2: "(?m:$)", Dialect.JAVASCRIPT: r"(?![^\n])"},
    "boundary": {Dialect.PYTHON: r"\b", Dialect.RE2: r"\b", Dialect.JAVASCRIPT: r"\b"},
    "not_boundary": {Dialect.PYTHON: r"\B", Dialect.RE2: r"\B", Dialect.JAVASCRIPT: r"\B"},
}


@dataclass(slots=True)
class Emitted:
    """A pattern and, per capture group of the rule, the numbers its copies got."""

    pattern: str
    groups: dict[int, list[int]] = field(default_factory=dict)


def emit(tree: Node, dialect: Dialect, *, not_after: Ranges = (), not_before: Ranges = ()) -> Emitted:
    """Write a rule's final tree in a dialect. Python's is to be compiled with ``re.ASCII``, JavaScript's with ``u``."""
    out = Emitted("")
    counter = [0]

    def write(node: Node, repeated: bool = False) -> str:
        match node:
            case Chars(ranges):
                return char_class(ranges, dialect)
            case Seq(items):
                return "".join(write(item, repeated) for item in items)
            case Alt(branches):
                return "(?:" + "|".join(write(branch, repeated) for branch in branches) + ")"
            case Group(_, body) if repeated:  # engines disagree about what it would hold; no rule may ask for it
                return f"(?:{write(body, repeated)})"
            case Group(number, body):
                counter[0] += 1
                out.groups.setdefault(number, []).append(counter[0])
                return f"({write(body)})"
            case Assert("not_after"):
                return "" if dialect is Dialect.RE2 else f"(?<!{char_class(not_after, dialect)})"
            case Assert("not_before"):
                return "" if dialect is Dialect.RE2 else f"(?!{char_class(not_before, dialect)})"
            case Assert(kind):
                return _ASSERTIONS[kind][dialect]
            case Repeat(body, low, high, greedy, swallow):
                assert high is not None
                piece = write(body, repeated or high != 1)
                if not isinstance(body, Chars | Group):
                    piece = f"(?:{piece})"
                lazy = "" if greedy else "?"
                if dialect is Dialect.RE2 and not isinstance(body, Chars) and high * _turns(body) > _RE2_MAX_REPEAT:
                    return _written_out(piece, low, high, lazy)
                if swallow and dialect is Dialect.JAVASCRIPT:
                    return f"{piece}{{{low},{high}}}{lazy}{piece}*{lazy}"
                return _repeat(piece, low, None if swallow else high, lazy, dialect)

    out.pattern = write(tree)
    return out


def _turns(node: Node) -> int:
    """The most turns of repeats within repeats, multiplied: RE2 takes at most 1,000."""
    match node:
        case Seq(items) | Alt(items):
            return max(map(_turns, items), default=1)
        case Repeat(body, low, high, _, swallow):
            return max(1, low if swallow or high is None else high) * _turns(body)
        case Group(_, body):
            return _turns(body)
        case _:
            return 1


def _written_out(piece: str, low: int, high: int, lazy: str) -> str:
    out = ""
    for _ in range(high - low):
        out = f"(?:{piece}{out})?{lazy}"
    return piece * low + out


def _repeat(piece: str, low: int, high: int | None, lazy: str, dialect: Dialect) -> str:
    limit = _RE2_MAX_REPEAT if dialect is Dialect.RE2 else None
    if limit is None or (low <= limit and (high is None or high <= limit)):
        if (low, high) == (1, 1):
            return piece
        return f"{piece}{{{low},{'' if high is None else high}}}{lazy}"
    out = f"{piece}{{{limit}}}" * (low // limit) + (f"{piece}{{{low % limit}}}" if low % limit else "")
    if high is None:
        return f"{out}{piece}*{lazy}"
    rest = high - low
    return out + f"{piece}{{0,{limit}}}{lazy}" * (rest // limit) + f"{piece}{{0,{rest % limit}}}{lazy}"


@functools.lru_cache(maxsize=512)
def char_class(ranges: Ranges, dialect: Dialect) -> str:
    """One set as a bracket expression, every member by its number."""
    if not ranges:
        return {Dialect.RE2: r"[^\x{0}-\x{10ffff}]"}.get(dialect, r"[^\s\S]")

    def one(code: int) -> str:
        if 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122:
            return chr(code)
        match dialect:
            case Dialect.PYTHON:
                return f"\\U{code:08x}"
            case Dialect.RE2:
                return f"\\x{{{code:x}}}"
            case Dialect.JAVASCRIPT:
                return f"\\u{{{code:x}}}"

    body = "".join(one(lo) if lo == hi else f"{one(lo)}-{one(hi)}" for lo, hi in ranges)
    return f"[{body}]"
