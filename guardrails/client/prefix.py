"""What may still become a match: the pattern of all beginnings of a rule's matches.

A client that has only a part of the text anchors it at the end of what it has: what stands before the leftmost start
cannot be part of a match that is yet to come and may be shown. Assertions at the very end are left out, because the
character that they look at is not there yet.
"""

from __future__ import annotations

from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq, seq


def beginnings(node: Node) -> Node | None:
    """The non-empty beginnings of the node's matches, whole matches among them; None if it takes no character.

    Open repeats stay open. Groups are gone: nobody asks what a beginning captures.
    """
    match node:
        case Chars():
            return node
        case Assert():
            return None
        case Group(_, body):
            return beginnings(body)
        case Alt(branches):
            return _either([beginnings(branch) for branch in branches])
        case Seq(items):
            rest: Node | None = None
            for item in reversed(items):
                first = beginnings(item)
                rest = _either([first, None if rest is None else seq(_plain(item), rest)])
            return rest
        case Repeat(body, _, high, _, swallow):
            assert high is not None
            turn = beginnings(body)
            if turn is None:
                return None
            before = max(1, high - 1) if swallow else high - 1
            return turn if before < 1 else seq(Repeat(_plain(body), 0, before, True, swallow), turn)


def _either(nodes: list[Node | None]) -> Node | None:
    known = [node for node in nodes if node is not None]
    if len(known) < 2:
        return known[0] if known else None
    return Alt(tuple(known))


def _plain(node: Node) -> Node:
    """The node without its groups."""
    match node:
        case Group(_, body):
            return _plain(body)
        case Seq(items):
            return seq(*map(_plain, items))
        case Alt(branches):
            return Alt(tuple(map(_plain, branches)))
        case Repeat(body, low, high, greedy, swallow):
            return Repeat(_plain(body), low, high, greedy, swallow)
        case _:
            return node
