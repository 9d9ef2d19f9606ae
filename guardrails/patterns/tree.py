"""The tree of a rule: what is left of a pattern when every dialect's habit has been spelled out.

Trees are immutable and hashable; everything downstream (trimming, widths, automaton, emission) is a function of
the tree alone, which is how one rule keeps one meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from guardrails.patterns.charset import Ranges


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Seq:
    """One thing after another; empty for the empty string."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several, first preferred (which only matters for what a group captures)."""

    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``body`` at least ``low`` and at most ``high`` times; ``high`` None is an open repeat, not yet capped.

    ``swallow``: reaching ``high`` is a match, and what continues ``body`` (a ``Chars``) behind it belongs to it.
    """

    body: Node
    low: int
    high: int | None
    greedy: bool = True
    swallow: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Capture group ``number`` (numbering of the pattern as written)."""

    number: int
    body: Node


@dataclass(frozen=True, slots=True)
class Assert:
    """A zero-width condition: text_start, line_start, text_end, line_end, boundary, not_boundary."""

    kind: str


Node: TypeAlias = Chars | Seq | Alt | Repeat | Group | Assert
EMPTY = Seq(())


def min_width(node: Node) -> int:
    """The least number of characters a match of the node takes."""
    match node:
        case Chars():
            return 1
        case Seq(items):
            return sum(map(min_width, items))
        case Alt(branches):
            return min(map(min_width, branches))
        case Repeat(body, low):
            return low * min_width(body) if low else 0
        case Group(_, body):
            return min_width(body)
        case Assert():
            return 0


def max_width(node: Node) -> int:
    """The greatest number of characters a match takes; every repeat must be capped. Swallowed text is not counted."""
    match node:
        case Chars():
            return 1
        case Seq(items):
            return sum(map(max_width, items))
        case Alt(branches):
            return max(map(max_width, branches))
        case Repeat(body, _, high):
            if high is None:
                raise ValueError("open repeat: cap it first")
            return high * max_width(body)
        case Group(_, body):
            return max_width(body)
        case Assert():
            return 0


def groups(node: Node, inside_repeat: bool = False) -> list[tuple[int, bool]]:
    """Capture groups in order of appearance, with whether each stands inside a repeat of more than one turn."""
    match node:
        case Seq(items):
            return [g for item in items for g in groups(item, inside_repeat)]
        case Alt(branches):
            return [g for branch in branches for g in groups(branch, inside_repeat)]
        case Repeat(body, _, high):
            return groups(body, inside_repeat or high != 1)
        case Group(number, body):
            return [(number, inside_repeat), *groups(body, inside_repeat)]
        case _:
            return []


def seq(*items: Node) -> Node:
    """A flat sequence; one item stays itself."""
    flat: list[Node] = []
    for item in items:
        if isinstance(item, Seq):
            flat.extend(item.items)
        else:
            flat.append(item)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))
