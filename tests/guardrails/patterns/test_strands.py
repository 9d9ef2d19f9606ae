"""Strands against every thread there is: merged, dropped and rounded threads never leak and never miss a match."""

from __future__ import annotations

import os
import random

import pytest

from guardrails.patterns.automaton import Scanner
from guardrails.patterns.compiler import CompiledRule, compile_rule
from guardrails.patterns.errors import PatternError
from guardrails.patterns.nfa import ASSERT, END, START, Program
from guardrails.patterns.rule import Rule
from guardrails.patterns.strands import Strands
from tests.streaming import generate

CLASSES = ["a", "b", "1", "-", "[ab]", "[ab1]", "[a-b-]", r"\w", r"\d", ".", "[^a]", "[^-]", "(?i:b)", r"[\w-]", "[^ ]"]
REPEATS = ["{0,4}", "{1,5}", "{2,10}", "{0,12}", "{1,33}", "{3,40}", "+", "*", "{2,}", "{3,}", "{1,3}", "?", "{5}"]
AROUND = ["+", "*", "{1,3}", "{0,4}", "{2,}", "{0,9}", "?"]
ASSERTIONS = [r"\b", r"\B", "^", "$", "(?m:^)", "(?m:$)"]
EXAMPLES = int(os.environ.get("GATE_EXAMPLES", "2000")) // 5


class Threads:
    """Every live thread of one rule: where it rests, and how many characters ago the oldest one there started."""

    def __init__(self, program: Program) -> None:
        self._program, self._prev = program, START
        self._entry = program.arrive(program.entries[0])[0]
        self._resting: dict[int, int] = {}

    def step(self, char: str) -> bool:
        """One more folded character; whether the rule has accepted by it."""
        program, alphabet = self._program, self._program.alphabet
        part = alphabet.part(char)
        todo = [*self._resting.items(), *((position, 0) for position in self._entry)]
        waiting: dict[int, int] = {}
        fired = False
        while todo:
            position, age = todo.pop()
            instr = program.at(position)
            if instr.op != ASSERT:
                waiting[position] = max(age, waiting.get(position, 0))
            elif program.holds(instr, self._prev, alphabet.masks[part]):
                there, accepted = program.arrive(instr.targets[0])
                fired = fired or bool(accepted and age)
                todo.extend((other, age) for other in there)
        self._resting, self._prev = {}, alphabet.masks[part]
        for position, age in waiting.items():
            if alphabet.bits[part] >> program.waits_for(position) & 1:
                there, accepted = program.arrive(program.consume(position))
                fired = fired or bool(accepted)
                for other in there:
                    self._resting[other] = max(age + 1, self._resting.get(other, 0))
        return fired

    @property
    def age(self) -> int:
        """Of the oldest one that may still become a match."""
        return max((age for position, age in self._resting.items() if not self._program.is_sure(position)), default=0)

    def accept_at_end(self) -> bool:
        """Whether the rule accepts because the text ends here."""
        pending = [position for position in self._resting if self._program.at(position).op == ASSERT]
        return bool(self._program.resolve(pending, self._prev, END)[1])


def pattern(chance: random.Random, depth: int = 3) -> str:
    """A random pattern that is full of long repeats, beside, behind and within each other."""
    pick = chance.random()
    if depth == 0 or pick < 0.2:
        return chance.choice(CLASSES)
    if pick < 0.45:
        return chance.choice(CLASSES) + chance.choice(REPEATS)
    if pick < 0.7:
        return "".join(pattern(chance, depth - 1) for _ in range(chance.randint(2, 4)))
    if pick < 0.8:
        return f"(?:{pattern(chance, depth - 1)}){chance.choice(AROUND)}"
    if pick < 0.84:
        word = pattern(chance, depth - 1) + chance.choice(ASSERTIONS)
        return f"{chance.choice(ASSERTIONS)}(?:{word})?{chance.choice(CLASSES)}{chance.choice(REPEATS)}"
    if pick < 0.92:
        return f"(?:{pattern(chance, depth - 1)}|{pattern(chance, depth - 1)})"
    return chance.choice(ASSERTIONS) + pattern(chance, depth - 1)


def rules(chance: random.Random) -> list[CompiledRule]:
    """Up to three that are small enough; all fold, or none does."""
    folds, out = chance.random() < 0.5, []
    for i in range(chance.choice((1, 1, 3))):
        written = f"{chance.choice(('', '', '', *ASSERTIONS))}{pattern(chance)}"
        cap, context = chance.choice((3, 5, 8, 20, 40, 64)), chance.choice(("", "", "", "0-9", "a", r"\w"))
        behind = chance.choice(("", "", "", "0-9", "b"))
        rule = Rule(f"r{i}", written, cap=cap, fold=folds, not_after=context, not_before=behind)
        try:
            compiled = compile_rule(rule)
        except PatternError:
            continue
        if compiled.own_program().size < 3_000:
            out.append(compiled)
    return out


def text(chance: random.Random, known: list[CompiledRule]) -> str:
    out = ""
    for _ in range(chance.randint(1, 6)):
        if chance.random() < 0.5:
            part = generate.piece(chance.choice(known).tree, chance)
            part = part[: chance.randint(0, len(part))] if chance.random() < 0.5 else part
        elif chance.random() < 0.5:
            part = chance.choice("ab1-") * chance.choice((3, 5, 8, 12, 34, 50))
        else:
            part = "".join(chance.choices("aabb1-", k=chance.choice((2, 6, 15, 40))))
        out += part + chance.choice(("", "", "", " ", "\n", *generate.NOISE))
    return out[:160]


def compare(known: list[CompiledRule], chance: random.Random, budget: int) -> None:
    """Every rule by itself after every character: its age, and whether it has accepted."""
    scan = Scanner([rule.source for rule in known], folds=known[0].folds, budget=budget)
    written, true = text(chance, known), [Threads(rule.own_program()) for rule in known]
    state, folded = scan.start, ""
    for n, char in enumerate(written, start=1):
        case = [rule.rule.pattern for rule in known], written[:n]
        state = state[char]
        before, folded = folded, known[0].fold(written[:n]).text
        new = folded[len(before) :]
        accepted = {rule for seen in new for rule, threads in enumerate(true) if threads.step(seen)}
        assert accepted <= set(state.seen), ("missed", *case)
        for rule, threads in enumerate(true):
            age = max((strand.age for strand in state.strands if strand.rule == rule), default=0)
            assert threads.age <= age, ("leaks", rule, *case)
            assert age <= known[rule].bound.characters, ("holds beyond its bound", rule, *case)
        state = scan.unmark(state)
    ends = {rule for rule, threads in enumerate(true) if threads.accept_at_end()}
    assert ends <= set(scan.accepts_at_end(state)), ("missed at the end", *case)


def some(first: int, count: int) -> None:
    for seed in range(first, first + count):
        chance = random.Random(seed)
        if known := rules(chance):
            compare(known, chance, budget=chance.choice((1 << 30, 1 << 30, 20_000)))


def test_it_works() -> None:
    compiled = compile_rule(Rule("r", r"\b[ab]{1,5}-1"))
    threads = Threads(compiled.own_program())
    assert [(threads.step(char), threads.age) for char in "ab-1 "] == [
        (False, 1), (False, 2), (False, 3), (True, 0), (False, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "subject"),
    [
        (r"^(?:abcdefgh\b)?[a-z-]{0,12}12", "abcdefgh-----------12"),  # the repeat is not where all its threads start
        (r"(?:(?i:b)-b|(?:-|1))(?:\w11){2,}(?:(?:[^a])+)+", "B-b1111111\nb1BB1b 1B11111 1\n"),  # most turns, younger
        (r"b+[ab][ab1][ab1]b*", "bbbaabbbbbb "),  # the oldest swallows, those behind it do not
        (r"\b(?:[a-z-]{1,8}(?m:^)|=)", "ab-cd-efghij"),  # who has taken the last turn rests there no longer
    ],
)
def test_a_merged_thread_is_as_old_as_the_oldest_in_it(written: str, subject: str) -> None:
    compiled = compile_rule(Rule("r", written, cap=5))
    scan, threads = Scanner([compiled.source], folds=compiled.folds), Threads(compiled.own_program())
    state = scan.start
    for char in subject:
        state = state[char]
        accepted = threads.step(char.lower() if compiled.folds and not char.isascii() else char)
        assert threads.age <= state.age <= compiled.bound.characters
        assert accepted <= bool(state.seen)
        state = scan.unmark(state)


def test_no_thread_of_any_rule_is_lost_or_taken_for_younger() -> None:
    some(0, EXAMPLES)


@pytest.mark.parametrize("forgotten", ["_merge_turns", "_keep_between"])
def test_control_strands_that_forget_what_they_merge_are_found_out(
    forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = Strands._merge_turns

    def keep_no_age(strands: Strands, reached: dict[int, int]) -> None:
        before = reached.copy()
        merge(strands, reached)
        reached.update((position, before.get(position, 1)) for position in reached)

    by_name = {"_merge_turns": keep_no_age, "_keep_between": lambda *_: None}
    monkeypatch.setattr(Strands, forgotten, by_name[forgotten])
    with pytest.raises(AssertionError, match=r"leaks|missed"):
        some(0, 400)


@pytest.mark.long
def test_no_thread_of_many_more_rules_is_lost_or_taken_for_younger() -> None:
    some(1_000_000, 20_000)
