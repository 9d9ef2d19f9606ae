"""What can be said of a program's rules before any text has come: what each looks at, where it begins, which of its
repeats need not be counted out.

Exists so that ``strands.py`` is about steps alone. Computed once per automaton.
"""

from __future__ import annotations

from guardrails.patterns.nfa import ASSERT, CHAR, END, REP, START, Instr, Program

_LONG_REPEAT = 4  # turns; shorter repeats are kept exact
_MANY_TURNS, _DISTINCT = 32, 2  # turns, and characters before the first of them: ``_find_gathered``


def is_long(instr: Instr) -> bool:
    """Is this a repeat whose turns are kept as an interval, or as less?"""
    return instr.op == REP and instr.high - instr.low >= _LONG_REPEAT


class Outline:
    """The rules of a program, seen from outside.

    ``looks``: per rule the bits of its sets, and the context bits that its assertions ask for, before and behind a
    character. ``care``: context bits that any rule asks for before a character. ``beginnings``: per rule the positions
    that wait for its first character, with the assertions before them. ``begins``: the rules by those assertions and
    by the set they wait for. The rest are bases of long repeats. ``leading``: a rule begins with it, anywhere.
    ``openings``: a rule begins with it behind an assertion. ``gathered``: ``_find_gathered``.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.looks = self._find_looks()
        self.care = 0
        for _, before, _ in self.looks:  # other bits would only multiply states
            self.care |= before
        self.beginnings: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        self.begins: dict[tuple[int, ...], dict[int, list[int]]] = {}
        self.leading: set[int] = set()
        self.openings: set[int] = set()
        self.gathered = self._find_gathered()
        self._canonical: dict[tuple[str, int], int] = {}
        self._find_beginnings()

    def _find_looks(self) -> list[tuple[int, int, int]]:
        before_of = {"boundary": 1, "not_boundary": 1, "line_start": START | 2, "text_start": START}
        behind_of = {"boundary": 1, "not_boundary": 1, "line_end": END | 2, "text_end": END}
        looks = [[0, 0, 0] for _ in self.program.entries]
        for instr in self.program.instrs:
            look = looks[instr.rule]
            if instr.op in (CHAR, REP):
                look[0] |= 1 << instr.set_
            elif instr.op == ASSERT:
                look[1] |= instr.bit if instr.kind == "not_after" else before_of.get(instr.kind, 0)
                look[2] |= instr.bit if instr.kind == "not_before" else behind_of.get(instr.kind, 0)
        return [(sets, before, behind) for sets, before, behind in looks]

    def _find_gathered(self) -> set[int]:
        """Long repeats whose turns are not told apart: those that text without any value in it does not get to.

        Their turns multiply with all that other rules are in the middle of, and what somebody writes who wants that
        is not prose (which goes on for ever where spaces are turns as well). The price: where a run goes on beyond the
        repeat's last turn, as much as the rule's bound stays held until the run ends, instead of nothing.
        """
        program = self.program
        spaces = program.alphabet.bits[program.alphabet.part(" ")]
        return {
            instr.base
            for instr in program.instrs
            if instr.op == REP
            and not instr.swallow
            and instr.high - instr.low >= _MANY_TURNS
            and program.depths(instr.base)[0] >= _DISTINCT
            and not spaces >> instr.set_ & 1
        }

    def _find_beginnings(self) -> None:
        """Index the rules' first positions by the conditions before them and by the set they wait for."""
        program = self.program
        for entry in program.entries:
            todo: list[tuple[tuple[int, ...], int]] = [((), entry)]
            while todo:
                conditions, at = todo.pop()
                for position in program.arrive(at)[0]:
                    instr = program.at(position)
                    if instr.op == ASSERT:
                        todo.append(((*conditions, position), instr.targets[0]))
                        continue
                    if is_long(instr) and not instr.swallow:
                        if not conditions and instr.low >= 1:
                            self.leading.add(instr.base)
                        elif conditions and instr.low <= 1:
                            self.openings.add(instr.base)
                    self.beginnings.setdefault(instr.rule, []).append((conditions, position))
                    by_set = self.begins.setdefault(self._merge(conditions), {})
                    by_set.setdefault(instr.set_, []).append(instr.rule)
        if self.leading or self.openings:  # only where every thread that gets there starts there
            self.leading -= self._reached_by(ASSERT)
            inside = self._reached_by(CHAR, REP)
            self.leading -= inside
            self.openings -= inside

    def _reached_by(self, *ops: int) -> set[int]:
        """Where threads from instructions of these kinds rest next, behind assertions as well: where an optional word
        and its word boundary lead to a repeat, not all that is in the repeat has started there.
        """
        program = self.program
        todo = [target for instr in program.instrs if instr.op in ops for target in instr.targets]
        reached: set[int] = set()
        while todo:
            for position in program.arrive(todo.pop())[0]:
                if position not in reached:
                    reached.add(position)
                    if program.at(position).op == ASSERT:
                        todo.extend(program.at(position).targets)
        return reached

    def _merge(self, conditions: tuple[int, ...]) -> tuple[int, ...]:
        """Conditions that mean the same share one key, so that 10,000 keywords are asked for once."""
        key = []
        for condition in conditions:
            instr = self.program.at(condition)
            key.append(self._canonical.setdefault((instr.kind, instr.bit), condition))
        return tuple(key)
