"""Trees as automaton positions: what a thread may wait for, and where it goes.

One ``Program`` holds any number of rules. A *position* is an int; a thread rests on a position that waits for a
character (``CHAR``, one turn of a ``REP``) or for the character after it to be known (``ASSERT``). Repeats of one
character class are not written out: turn ``k`` of a repeat is position ``base + k``, so a PEM block of 16,384
characters costs one instruction. Everything is acyclic but the last turn of a swallowing repeat.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from guardrails.patterns import charset
from guardrails.patterns.charset import Ranges
from guardrails.patterns.deadline import in_time
from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq

CHAR, REP, SPLIT, ASSERT, ACCEPT = range(5)
START = 1 << 62
END = 1 << 63
_WORD, _NEWLINE = 1, 2  # bits of the two context sets every alphabet has


@dataclass(frozen=True, slots=True)
class Source:
    """A rule as a program takes it: final tree and the sets that ``not_after`` / ``not_before`` assertions mean."""

    tree: Node
    not_after: Ranges = ()
    not_before: Ranges = ()


@dataclass(slots=True)
class Instr:
    """One instruction. ``set_``: index of the character set; ``bit``: context bit of an assertion."""

    op: int
    base: int
    rule: int
    targets: tuple[int, ...] = ()
    set_: int = -1
    low: int = 0
    high: int = 0
    swallow: bool = False
    kind: str = ""
    bit: int = 0


class Alphabet:
    """Partition of the code points by the character sets of a program; edges are kept per part, not per character."""

    def __init__(self, sets: Sequence[Ranges], context: Sequence[Ranges]) -> None:
        cuts = {0}
        for ranges in (*sets, *context):
            for lo, hi in ranges:
                cuts.add(lo)
                cuts.add(hi + 1)
        cuts.add(charset.MAX + 1)
        self._cuts = sorted(cuts)
        bits = [0] * len(self._cuts)
        masks = [0] * len(self._cuts)
        for out, group in ((bits, sets), (masks, context)):
            for index, ranges in enumerate(group):
                for lo, hi in ranges:
                    for i in range(bisect_right(self._cuts, lo) - 1, bisect_right(self._cuts, hi)):
                        out[i] |= 1 << index
        part_of: dict[tuple[int, int], int] = {}
        self._part = [part_of.setdefault(pair, len(part_of)) for pair in zip(bits, masks, strict=True)]
        self.bits = [pair[0] for pair in part_of]
        self.masks = [pair[1] for pair in part_of]
        self.sets = [tuple(i for i in range(len(sets)) if pair[0] >> i & 1) for pair in part_of]
        self._ascii = [self._find(code) for code in range(128)]

    def _find(self, code: int) -> int:
        return self._part[bisect_right(self._cuts, code) - 1]

    def page(self, first: int, count: int) -> array[int]:
        """Parts of ``count`` characters from code point ``first`` on, whole ranges at a time."""
        out = array("h")
        index = bisect_right(self._cuts, first) - 1
        at, end = first, first + count
        while at < end:
            until = min(end, self._cuts[index + 1]) if index + 1 < len(self._cuts) else end
            out.extend(array("h", [self._part[index]]) * (until - at))
            at, index = until, index + 1
        return out

    def part(self, char: str) -> int:
        """The part of the alphabet a character belongs to."""
        code = ord(char)
        return self._ascii[code] if code < 128 else self._find(code)


_INSTR_COST, _POSITION_COST = 255, 8  # bytes, measured on CPython 3.11


class Program:
    """Rules compiled side by side into one set of positions."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.instrs: list[Instr] = []
        self._instr_of: list[int] = []
        self._sets: dict[Ranges, int] = {}
        self._context: dict[Ranges, int] = {charset.WORD: 0, charset.NEWLINE: 1}
        self.entries: list[int] = []
        self.first_position: list[int] = []
        for rule, source in enumerate(sources):
            self.first_position.append(len(self._instr_of))
            accept = self._add(Instr(ACCEPT, 0, rule))
            self.entries.append(self._emit(source.tree, accept, accept, rule, source))
        self.sets = list(self._sets)
        self.alphabet = Alphabet(self.sets, list(self._context))
        self.size = len(self._instr_of)
        self._arrivals: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._shallowest, self._deepest = self._depths()

    @property
    def weight(self) -> int:
        """What it takes in memory, in bytes: it stands as long as its rules do, whatever text comes."""
        return _INSTR_COST * len(self.instrs) + _POSITION_COST * self.size

    # -- building -----------------------------------------------------------------------------------------------

    def _add(self, instr: Instr, width: int = 1) -> int:
        instr.base = len(self._instr_of)
        self._instr_of.extend([len(self.instrs)] * width)
        self.instrs.append(instr)
        return instr.base

    def _set(self, ranges: Ranges) -> int:
        return self._sets.setdefault(ranges, len(self._sets))

    def _emit(self, node: Node, follow: int, accept: int, rule: int, source: Source) -> int:
        """Positions for a node that is followed by position ``follow``; returns its entry."""
        in_time()
        match node:
            case Chars(ranges):
                return self._add(Instr(CHAR, 0, rule, (follow,), self._set(ranges)))
            case Seq(items):
                for item in reversed(items):
                    follow = self._emit(item, follow, accept, rule, source)
                return follow
            case Alt(branches):
                entries = tuple(self._emit(branch, follow, accept, rule, source) for branch in branches)
                return self._add(Instr(SPLIT, 0, rule, entries))
            case Group(_, body):
                return self._emit(body, follow, accept, rule, source)
            case Assert(kind):
                return self._add(Instr(ASSERT, 0, rule, (follow,), kind=kind, bit=self._bit(kind, source)))
            case Repeat(Chars(ranges), low, high, _, swallow):
                assert high is not None
                targets = (follow, accept)
                instr = Instr(REP, 0, rule, targets, self._set(ranges), low, high, swallow)
                return self._add(instr, high + 1)
            case Repeat(body, low, high):
                assert high is not None
                entry = follow
                for turn in range(high, 0, -1):
                    inner = self._emit(body, entry, accept, rule, source)
                    entry = inner if turn <= low else self._add(Instr(SPLIT, 0, rule, (inner, follow)))
                return entry

    def _bit(self, kind: str, source: Source) -> int:
        ranges = {"not_after": source.not_after, "not_before": source.not_before}.get(kind)
        return 0 if ranges is None else 1 << self._context.setdefault(ranges, len(self._context))

    def _depths(self) -> tuple[list[int], list[int]]:
        """Per instruction the shortest and the longest way from a start to its base, in characters.

        Positions are made from the end of a rule to its start, so going through them backwards meets every
        instruction after all that lead to it.
        """
        deepest = [0] * len(self.instrs)
        shallowest = [1 << 30] * len(self.instrs)
        for entry in self.entries:
            shallowest[self._instr_of[entry]] = 0
        for index in range(len(self.instrs) - 1, -1, -1):
            instr = self.instrs[index]
            longest = deepest[index] + {CHAR: 1, REP: instr.high}.get(instr.op, 0)
            shortest = shallowest[index] + {CHAR: 1, REP: instr.low}.get(instr.op, 0)
            for target in instr.targets:
                there = self._instr_of[target]
                deepest[there] = max(deepest[there], longest)
                shallowest[there] = min(shallowest[there], shortest)
        return shallowest, deepest

    def depths(self, position: int) -> tuple[int, int]:
        """The least and the most characters a thread that rests here can have taken."""
        index = self._instr_of[position]
        turn = position - self.instrs[index].base
        return self._shallowest[index] + turn, self._deepest[index] + turn

    # -- asking -------------------------------------------------------------------------------------------------

    def at(self, position: int) -> Instr:
        """The instruction a position belongs to."""
        return self.instrs[self._instr_of[position]]

    def rule_of(self, position: int) -> int:
        """Index of the rule a position belongs to."""
        return bisect_right(self.first_position, position) - 1

    def arrive(self, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where a thread that gets to ``position`` rests, and which rules accept by that (both without assertions)."""
        known = self._arrivals.get(position)
        if known is None:
            rest: list[int] = []
            accepts: list[int] = []
            todo, seen = [position], set[int]()
            while todo:
                at = todo.pop()
                if at in seen:
                    continue
                seen.add(at)
                instr = self.at(at)
                if instr.op in (CHAR, ASSERT):
                    rest.append(at)
                elif instr.op == SPLIT:
                    todo.extend(instr.targets)
                elif instr.op == ACCEPT:
                    accepts.append(instr.rule)
                else:
                    turn = at - instr.base
                    if turn < instr.high or instr.swallow:
                        rest.append(at)
                    if instr.swallow and turn == instr.high:
                        todo.append(instr.targets[1])
                    elif turn >= instr.low:
                        todo.append(instr.targets[0])
            known = self._arrivals[position] = (tuple(sorted(rest)), tuple(sorted(set(accepts))))
        return known

    def is_sure(self, position: int) -> bool:
        """Has a thread here matched already, whatever comes? (It swallows.)"""
        instr = self.at(position)
        return instr.op == REP and instr.swallow and position - instr.base == instr.high

    def consume(self, position: int) -> int:
        """Where a thread goes from here when the character it waits for has come."""
        instr = self.at(position)
        if instr.op == CHAR:
            return instr.targets[0]
        return min(position + 1, instr.base + instr.high)

    def waits_for(self, position: int) -> int:
        """The index of the set a resting thread waits for, or -1 if it waits for context."""
        return self.at(position).set_

    @staticmethod
    def holds(instr: Instr, before: int, after: int) -> bool:
        """Does an assertion hold between two characters, given their context masks?"""
        match instr.kind:
            case "text_start":
                return bool(before & START)
            case "line_start":
                return bool(before & (START | _NEWLINE))
            case "text_end":
                return bool(after & END)
            case "line_end":
                return bool(after & (END | _NEWLINE))
            case "boundary":
                return bool(before & _WORD) != bool(after & _WORD)
            case "not_boundary":
                return bool(before & _WORD) == bool(after & _WORD)
            case "not_after":
                return not before & instr.bit
            case _:
                return not after & instr.bit

    def resolve(self, pending: Iterable[int], before: int, after: int) -> tuple[list[int], list[int]]:
        """Assertions whose context is now known: positions that then wait for a character, and rules that accept."""
        rest: list[int] = []
        accepts: list[int] = []
        todo = list(pending)
        while todo:
            instr = self.at(todo.pop())
            if self.holds(instr, before, after):
                there, accepted = self.arrive(instr.targets[0])
                accepts.extend(accepted)
                for position in there:
                    (rest if self.at(position).op != ASSERT else todo).append(position)
        return rest, accepts
