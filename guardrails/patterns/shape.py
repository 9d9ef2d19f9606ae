"""Trimming and bounding: from the tree as written to the tree that *is* the rule.

Protects promise 5 (every rule carries a proven bound) and the figures behind it: a leading nullable piece makes
every position of a text live, an open repeat makes a hold endless. Both are removed here, once, at publication, and
what comes out is the rule in every engine and in the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.patterns.deadline import in_time
from guardrails.patterns.errors import UnboundedError, UnsupportedError
from guardrails.patterns.tree import (
    EMPTY,
    Alt,
    Assert,
    Chars,
    Group,
    Node,
    Repeat,
    Seq,
    groups,
    max_width,
    min_width,
    seq,
)

NESTED_TURNS = 64
"""Turns of an open repeat that stands in, or around, another open repeat (512 turns of 512 would bound nothing)."""

MAX_POSITIONS = 40_000
"""Automaton positions one rule may need when its repeats are written out."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """A rule's final tree. ``trimmed_width``: characters the cut pieces could have taken (0: nothing was cut)."""

    tree: Node
    trimmed_width: int
    positions: int


def shape(tree: Node, *, cap: int, secret_group: int | None) -> Shaped:
    """Cap open repeats, trim leading nullable pieces, make trailing repeats swallow.

    Raises ``UnboundedError`` if the rule matches the empty string or is too large, ``UnsupportedError`` if the
    group whose text is the finding would be cut or stands inside a repeat.
    """
    if min_width(tree) == 0:
        raise UnboundedError("the rule matches the empty string")
    _check_size(tree, cap)
    wanted = {number for number, _ in groups(tree)} if secret_group == -1 else {secret_group or 0} - {0}
    if missing := wanted - {number for number, _ in groups(tree)}:
        raise UnsupportedError(f"there is no group {min(missing)}")
    capped = _cap(tree, cap)
    trimmed, width = _trim(capped, wanted)
    if min_width(trimmed) == 0:  # cannot happen while trimming only cuts nullable pieces; cheap to be sure
        raise UnboundedError("the rule matches the empty string")
    final = _swallow(trimmed)
    repeated = {number for number, inside in groups(final) if inside}
    if secret_group != -1 and wanted & repeated:
        raise UnsupportedError(f"group {min(wanted & repeated)} stands inside a repeat")
    return Shaped(final, width, _positions(final))


def _check_size(node: Node, cap: int) -> None:
    """Refuse by arithmetic, before anything is written out."""
    if (needed := _positions(_cap(node, cap))) > MAX_POSITIONS:
        raise UnboundedError(f"the rule needs {needed:,} positions written out, more than {MAX_POSITIONS:,}")


def _positions(node: Node) -> int:
    in_time()
    match node:
        case Chars() | Assert():
            return 1
        case Seq(items) | Alt(items):
            return sum(map(_positions, items)) + 1
        case Repeat(Chars(), _, high):
            return (high or 0) + 2
        case Repeat(body, _, high):
            return (high or 0) * _positions(body) + 1
        case Group(_, body):
            return _positions(body)


def _has_open(node: Node) -> bool:
    match node:
        case Seq(items) | Alt(items):
            return any(map(_has_open, items))
        case Repeat(body, _, high):
            return high is None or _has_open(body)
        case Group(_, body):
            return _has_open(body)
        case _:
            return False


def _cap(node: Node, cap: int) -> Node:
    """Give every open repeat its cap, in characters (nested ones: in turns). Marks it as having been open."""
    match node:
        case Seq(items):
            return Seq(tuple(_cap(item, cap) for item in items))
        case Alt(branches):
            return Alt(tuple(_cap(branch, cap) for branch in branches))
        case Group(number, body):
            return Group(number, _cap(body, cap))
        case Repeat(body, low, None, greedy):
            if isinstance(body, Chars):
                return Repeat(body, low, max(low, cap), greedy, swallow=True)
            if _has_open(body):
                return Repeat(_cap(body, NESTED_TURNS), low, max(low, min(cap, NESTED_TURNS)), greedy)
            turns = min(cap // max(1, min_width(body)), 8 * cap // max(1, max_width(body)))
            return Repeat(body, low, max(low, 1, turns), greedy)
        case Repeat(body, low, high, greedy):
            return Repeat(_cap(body, cap), low, high, greedy)
        case _:
            return node


def _trim(node: Node, wanted: set[int]) -> tuple[Node, int]:
    """Cut leading nullable pieces; returns the rest and the width of what was cut."""
    match node:
        case Seq(items):
            width, at = 0, 0
            while at < len(items) and not isinstance(items[at], Assert) and min_width(items[at]) == 0:
                if lost := wanted & {number for number, _ in groups(items[at])}:
                    raise UnsupportedError(f"group {min(lost)} would be trimmed: it starts the rule and may be empty")
                width += max_width(items[at])
                at += 1
            if at == len(items):
                return EMPTY, width
            head, more = _trim(items[at], wanted)
            return seq(head, *items[at + 1 :]), width + more
        case Alt(branches):
            parts = [_trim(branch, wanted) for branch in branches]
            return Alt(tuple(part for part, _ in parts)), max(width for _, width in parts)
        case Group(number, body):
            inner, width = _trim(body, wanted)
            if width and number in wanted:
                raise UnsupportedError(f"group {number} would be trimmed: what it starts with may be empty")
            return Group(number, inner), width
        case _:
            return node, 0


def _swallow(node: Node) -> Node:
    """Keep ``swallow`` only where nothing that takes a character must follow, and make it explicit there.

    ``x{20,}\\b`` becomes ``x{20,511}\\b | x{512} and all x behind``: a match that reaches the cap is a match.
    """
    match node:
        case Repeat(Chars(), low, high, _, True) if high is not None and low <= high:
            return node
        case Group(number, body):
            return Group(number, _swallow(body))
        case Alt(branches):
            return Alt(tuple(map(_swallow, branches)))
        case Seq(items) if items:
            at = len(items) - 1
            while at > 0 and min_width(items[at]) == 0 and not _ends_open(items[at]):
                at -= 1
            head = tuple(map(_plain, items[:at]))
            tail = items[at + 1 :]
            if not tail:
                return seq(*head, _swallow(items[at]))
            if not _ends_open(items[at]):
                return seq(*head, _plain(items[at]), *map(_plain, tail))
            short = seq(_shorter(items[at]), *map(_plain, tail))
            return seq(*head, Alt((short, _only_at_cap(items[at]))))
        case _:
            return _plain(node)


def _ends_open(node: Node) -> bool:
    """Does the node end in an open single-character repeat?"""
    match node:
        case Repeat(Chars(), _, _, _, swallow):
            return swallow
        case Group(_, body):
            return _ends_open(body)
        case Alt(branches):
            return any(map(_ends_open, branches))
        case Seq(items):
            return bool(items) and _ends_open(items[-1])
        case _:
            return False


def _plain(node: Node) -> Node:
    """The node with no swallowing repeat in it."""
    match node:
        case Seq(items):
            return Seq(tuple(map(_plain, items)))
        case Alt(branches):
            return Alt(tuple(map(_plain, branches)))
        case Group(number, body):
            return Group(number, _plain(body))
        case Repeat(body, low, high, greedy):
            return Repeat(_plain(body), low, high, greedy)
        case _:
            return node


def _shorter(node: Node) -> Node:
    """The node with its last open repeat kept one below the cap (what follows it still has to hold)."""
    match node:
        case Repeat(Chars() as body, low, high, greedy, True) if high is not None:
            return Repeat(body, low, max(low, high - 1), greedy)
        case Group(number, body):
            return Group(number, _shorter(body))
        case Alt(branches):
            return Alt(tuple(map(_shorter, branches)))
        case Seq(items) if items:
            return seq(*map(_plain, items[:-1]), _shorter(items[-1]))
        case _:
            return _plain(node)


def _only_at_cap(node: Node) -> Node:
    """The node with its last open repeat at the cap and beyond (what follows is waived)."""
    match node:
        case Repeat(Chars() as body, _, high, greedy, True) if high is not None:
            return Repeat(body, high, high, greedy, swallow=True)
        case Group(number, body):
            return Group(number, _only_at_cap(body))
        case Alt(branches):
            return Alt(tuple(_only_at_cap(branch) for branch in branches if _ends_open(branch)))
        case Seq(items) if items:
            return seq(*map(_plain, items[:-1]), _only_at_cap(items[-1]))
        case _:
            return _plain(node)
