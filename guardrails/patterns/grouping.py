"""Which rules share an automaton.

States of one automaton are combinations of what its rules are in the middle of. Rules that ordinary text keeps alive
(an e-mail address: every word may begin one) multiply each other's states; side by side in automata of their own they
add up. So a large rule set is split by what keeps its rules alive: words, digits, a common word with a gap behind it,
or hardly anything. The split is a function of the rules alone, the same in every process.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Sequence

from guardrails.patterns.charset import Ranges, contains
from guardrails.patterns.nfa import ASSERT, Program
from guardrails.patterns.tree import Assert, Chars, Node, Seq

SPLIT_ABOVE = 24
"""Rules up to which one automaton is tried first: a split costs one more look-up per character."""

_DEPTH = 40
_ALIVE = 0.5  # characters that a thread lives on average, per start
_LINGERS = 1e-4  # the same, counting only what lives beyond three characters


def _share(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {char: weight / total for char, weight in weights.items()}


_PROSE = _share(
    dict.fromkeys(string.ascii_lowercase, 4.0)
    | dict.fromkeys(string.ascii_uppercase, 0.3)
    | dict.fromkeys(string.digits, 0.2)
    | {" ": 18.0, ".": 1.0, ",": 1.0, "'": 0.5, '"': 0.5, "-": 0.5, "\n": 1.0}
)
_DIGITS = _share(dict.fromkeys(string.digits, 10.0) | {" ": 8.0, "-": 6.0, ".": 3.0, ",": 1.0, "/": 1.0, ":": 1.0})
_TOKENS = _share(dict.fromkeys(string.ascii_letters + string.digits, 1.0) | dict.fromkeys("+/_-", 0.7))


@functools.lru_cache(maxsize=4096)
def _weights(ranges: Ranges) -> tuple[float, float, float]:
    """The share of characters of each kind of text that a set takes."""
    prose, digits, tokens = (
        sum(share for char, share in model.items() if contains(ranges, ord(char)))
        for model in (_PROSE, _DIGITS, _TOKENS)
    )
    return prose, digits, tokens


def _lifetime(program: Program, model: int) -> tuple[float, float]:
    """Expected characters a thread lives per start in a kind of text: in all, and beyond its third character."""
    weights = [_weights(ranges)[model] for ranges in program.sets]
    alive = dict.fromkeys(program.arrive(program.entries[0])[0], 1.0)
    total = late = 0.0
    for depth in range(_DEPTH):
        reached: dict[int, float] = {}
        todo = list(alive.items())
        while todo:
            position, chance = todo.pop()
            instr = program.at(position)
            if instr.op == ASSERT:
                todo.extend((there, chance / 2) for there in program.arrive(instr.targets[0])[0])
                continue
            chance *= weights[instr.set_]
            if chance > 1e-7:
                for there in program.arrive(program.consume(position))[0]:
                    reached[there] = min(1.0, reached.get(there, 0.0) + chance)
        if not reached:
            break
        best = max(reached.values())
        total += best
        late += best if depth >= 3 else 0.0
        alive = reached
    return total, late


def _rare(tree: Node) -> bool:
    """Does the rule begin with a literal that ordinary text hardly contains? (Cheap, for lists of many words.)"""
    chance = 1.0
    for node in tree.items if isinstance(tree, Seq) else (tree,):
        if isinstance(node, Assert):
            continue
        if not isinstance(node, Chars):
            return False
        chance *= max(_weights(node.ranges))
        if chance < 1e-8:
            return True
    return False


def group_of(tree: Node, program_of: Callable[[], Program]) -> str:
    """What keeps a rule's threads alive: ``words``, ``digits``, ``gap`` or ``rare``."""
    if _rare(tree):
        return "rare"
    program = program_of()
    total, late = _lifetime(program, 0)
    if total >= _ALIVE:
        return "words"
    if max(_lifetime(program, 1)[0], _lifetime(program, 2)[0]) >= _ALIVE:
        return "digits"
    return "gap" if late >= _LINGERS else "rare"


def groups(rules: Sequence[tuple[Node, Callable[[], Program]]]) -> list[list[int]]:
    """Indices of rules that share an automaton, in rule order within each group."""
    if len(rules) <= SPLIT_ABOVE:
        return [list(range(len(rules)))] if rules else []
    by_name: dict[str, list[int]] = {}
    for index, (tree, program_of) in enumerate(rules):
        by_name.setdefault(group_of(tree, program_of), []).append(index)
    return [by_name[name] for name in sorted(by_name)]
