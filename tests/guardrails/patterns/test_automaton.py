"""The scanner: lazy, bounded, and the same after it has forgotten everything."""

from __future__ import annotations

import random

from guardrails.patterns.automaton import Scanner
from guardrails.patterns.compiler import compile_rule
from guardrails.patterns.grouping import SPLIT_ABOVE, group_of, groups
from guardrails.patterns.rule import Rule

PATTERNS = [r"[\w.+-]{1,64}@[\w-]{1,20}\.com", r"\b\d{3}-\d{2}-\d{4}\b", "sk-[a-z0-9]{20,}", "(?i)project blue"]


def scanner(patterns: list[str], budget: int = 1 << 30) -> Scanner:
    return Scanner([compile_rule(Rule(f"r{i}", p)).source for i, p in enumerate(patterns)], folds=True, budget=budget)


def trace(scan: Scanner, text: str) -> list[tuple[int, tuple[int, ...]]]:
    state, out = scan.start, []
    for char in text:
        state = state[char]
        out.append((state.age, state.seen))
        state = scan.unmark(state)
    return out


def noise(seed: int, length: int) -> str:
    chance = random.Random(seed)
    return (
        "".join(chance.choice("abc123-@. sk\u200bß漢") for _ in range(length))
        + " a.b@c.com 219-09-9999 sk-"
        + "a1" * 40
    )


def test_it_works() -> None:
    assert trace(scanner(PATTERNS), "x 219-09-9999,")[-1] == (0, (1,))
    assert trace(scanner(PATTERNS), "ab ")[-1] == (0, ())


def test_forgetting_every_state_changes_nothing_and_bounds_memory() -> None:
    text = noise(1, 4000)
    free, tight = scanner(PATTERNS), scanner(PATTERNS, budget=60_000)
    assert trace(free, text) == trace(tight, text)
    assert tight.flushes > 3
    assert tight.used <= 60_000 + 5_000


def test_a_hundred_thousand_different_characters_make_no_hundred_thousand_edges() -> None:
    scan = scanner(PATTERNS)
    state = scan.start
    for code in range(0x80, 0x80 + 100_000):
        if not 0xD800 <= code <= 0xDFFF:
            state = scan.unmark(state[chr(code)])
    states = scan.states()
    assert sum(map(len, states)) < 60 * 200
    assert scan.used < 4_000_000


def test_a_long_run_needs_no_state_per_subset() -> None:
    scan = scanner([r"[a-z][a-z0-9.-]{0,63}@x", r"[a-z]+-[a-z]+!"])
    chance = random.Random(5)
    trace(scan, "".join(chance.choice("ab1.-") for _ in range(20_000)))
    assert len(scan.states()) < 3_000


def test_rules_that_live_on_prose_get_an_automaton_of_their_own() -> None:
    named = {
        r"[\w.+-]{1,64}@x": "words",
        r"\d{3,9}-\d": "digits",
        "sk-ant-[a-z]{5}": "rare",
        "key[ a-z]{0,20}=[a-z]{10}": "gap",
    }
    for pattern, want in named.items():
        compiled = compile_rule(Rule("r", pattern))
        assert group_of(compiled.tree, compiled.own_program) == want, pattern


def test_small_sets_stay_together_and_every_rule_is_in_one_group() -> None:
    compiled = [compile_rule(Rule(f"r{i}", p)) for i, p in enumerate((PATTERNS * 10)[: SPLIT_ABOVE + 6])]
    pairs = [(rule.tree, rule.own_program) for rule in compiled]
    assert groups(pairs[:SPLIT_ABOVE]) == [list(range(SPLIT_ABOVE))]
    split = groups(pairs)
    assert len(split) > 1
    assert sorted(index for part in split for index in part) == list(range(len(pairs)))
