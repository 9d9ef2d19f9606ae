"""Random rules, texts and cuts against the whole-text check; promises 1-3 on every emission, 4 and 5 on every step."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guardrails.patterns.folding import trailing_ignorables
from guardrails.patterns.nfa import REP
from guardrails.policy import Policy, PolicyError, compile_policy
from streaming.core.gate import Gate
from tests.streaming import generate
from tests.streaming.drive import drive, random_cut
from tests.streaming.oracle import expected
from tests.streaming.seeds import LeftOut, Seeds

EXAMPLES = int(os.environ.get("GATE_EXAMPLES", "2000"))
PART = 1000
seeds = pytest.mark.parametrize("seeds", [Seeds(first, PART) for first in range(0, EXAMPLES, PART)], ids=str)


ACTIONS = ("redact", "redact", "mask", "block", "warn")
CHECKS: tuple[dict[str, object], ...] = (
    {}, {}, {}, {},
    {"entropy": 0.9},
    {"keywords": ["A1", "b"]},
    {"validator": "luhn"},
    {"allow": [{"stopwords": ["ab"]}]},
    {"allow": [{"regexes": ["^a|b$"], "target": "match"}]},
    {"allow": [{"regexes": ["1"], "stopwords": ["a"], "require_all": True}]},
)  # fmt: skip


def random_policy(chance: random.Random, actions: tuple[str, ...] = ACTIONS) -> Policy:
    """Up to four random rules with mixed actions, caps, folding, edges, secret groups and checks; rules that are
    refused are left out.
    """
    guardrails = []
    for i in range(chance.randint(1, 4)):
        pattern, group = random_pattern(chance)
        rule: dict[str, object] = {
            "id": f"r{i}",
            "pattern": pattern,
            "secret_group": group,
            "placeholder": f"[{i}]",
            "cap": chance.choice([3, 5, 512]),
            "fold": chance.random() < 0.7,
            "not_after": chance.choice(["", "", "", "a", "0-9"]),
            "not_before": chance.choice(["", "", "", "b", r"\w"]),
            **chance.choice(CHECKS),
        }
        guardrail = {
            "name": f"g{i}", "kind": "regex", "action": chance.choice(actions), "config": {"rules": [rule]},
        }  # fmt: skip
        try:
            compile_policy({"policy": "t", "guardrails": [guardrail]})
        except PolicyError:
            continue
        guardrails.append(guardrail)
    return compile_policy({"policy": "t", "guardrails": guardrails})


def random_pattern(chance: random.Random) -> tuple[str, int | None]:
    """A pattern and the group that carries its secret: none, one in its middle, or the first that holds something."""
    pattern = generate.pattern(chance)
    pick = chance.random()
    if pick < 0.7:
        return pattern, chance.choice((None, None, 0))
    before, behind = generate.pattern(chance, 1), generate.pattern(chance, 1)
    if pick < 0.9:
        return f"{before}({pattern}){behind}", 1
    return f"{before}(?:({pattern})|({generate.pattern(chance, 2)})){behind}", -1


def sample(seed: int) -> tuple[Policy, str, random.Random]:
    chance = random.Random(seed)
    policy = random_policy(chance)
    trees = [compiled.tree for guardrail in policy.guardrails for compiled in guardrail.rules]
    return policy, generate.text(trees, chance) if trees else "ab1", chance


@contextmanager
def within_reason() -> Iterator[None]:
    """Leave an example out if the oracle takes more than ten seconds of CPU: ``re`` tries every way, and with some
    rules there are more ways than anybody can wait for.
    """

    def too_slow(*_: object) -> None:
        raise LeftOut("the oracle takes too long")

    before = signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def result(driven) -> tuple:
    return driven.visible, driven.findings, driven.blocked


def test_it_works() -> None:
    policy, text, _ = sample(1)
    assert drive(policy, [text]).visible == expected(policy, text).visible


def test_a_check_that_fails_names_its_seed() -> None:
    seen: list[int] = []

    def fails_in_the_end(seed: int) -> None:
        seen.append(seed)
        assert len(seen) < 9

    with pytest.raises(AssertionError) as caught:
        Seeds(0, 20).each(fails_in_the_end)
    assert caught.value.__notes__ == [f"seed {seen[-1]}"]


def test_a_check_that_leaves_out_most_is_no_check() -> None:
    def says_nothing(seed: int) -> None:
        raise LeftOut

    with pytest.raises(AssertionError, match="20 of 20"):
        Seeds(0, 20).each(says_nothing)


def every_cut_gives_the_whole_text_verdict_and_never_shows_more(seed: int) -> None:
    policy, text, chance = sample(seed)
    with within_reason():
        want = expected(policy, text)
    for chunks in ([text], list(text), random_cut(text, chance.getrandbits(32), 5)):
        got = drive(policy, chunks, visible=want.visible)
        assert result(got) == (want.visible, want.findings, want.blocked), chunks


def state_survives_every_code_point(seed: int) -> None:
    policy, text, _ = sample(seed)
    with within_reason():
        want = expected(policy, text)
    got = drive(policy, list(text), visible=want.visible, restore=True)
    assert result(got) == (want.visible, want.findings, want.blocked)


def never_holds_more_than_the_stated_bound(seed: int) -> None:
    policy, text, chance = sample(seed)
    bound = policy.bound("response")  # type: ignore[arg-type]
    got = drive(policy, random_cut(text, chance.getrandbits(32), 5))
    assert max(got.held, default=0) <= bound.with_ignorables


def a_hold_says_how_much_and_names_a_rule_that_decides(seed: int) -> None:
    """Before and after a restart. Which of two rules is named may differ then: ages are rounded, a replay is exact."""
    policy, text, chance = sample(seed)
    rules = {(g.name, compiled.rule.id) for g in policy.guardrails if g.decides for compiled in g.rules}
    gate = Gate(policy)
    for chunk in random_cut(text, chance.getrandbits(32), 5):
        gate.feed(chunk)
        held = gate.held
        for same in (gate, Gate.restore(policy, gate.state())):
            hold = same.hold
            assert same.held == held
            assert (hold is None) is (held == 0)
            if hold is not None:
                assert hold.chars == held
                assert (hold.guardrail, hold.rule) in rules
            gate = same


def holds_only_what_a_live_thread_may_have_started(seed: int) -> None:
    """Promise 4, exactly: brute force over every start says which characters may still become a violation.

    Long repeats are taken for a little more than they are; they have the test below.
    """
    policy, text, _ = sample(seed)
    if has_long_repeats(policy):
        raise LeftOut("a long repeat")
    for read, held, least in holds(policy, text):
        assert held <= least, read


@seeds
def test_every_cut_gives_the_whole_text_verdict_and_never_shows_more(seeds: Seeds) -> None:
    seeds.each(every_cut_gives_the_whole_text_verdict_and_never_shows_more)


@seeds
def test_state_survives_every_code_point(seeds: Seeds) -> None:
    seeds.each(state_survives_every_code_point)


@seeds
def test_never_holds_more_than_the_stated_bound(seeds: Seeds) -> None:
    seeds.each(never_holds_more_than_the_stated_bound)


@seeds
def test_a_hold_says_how_much_and_names_a_rule_that_decides(seeds: Seeds) -> None:
    seeds.each(a_hold_says_how_much_and_names_a_rule_that_decides)


@seeds
def test_holds_only_what_a_live_thread_may_have_started(seeds: Seeds) -> None:
    seeds.each(holds_only_what_a_live_thread_may_have_started)


def test_long_repeats_hold_hardly_more_than_is_needed() -> None:
    held_in_all = excess = over = steps = 0
    for seed in range(EXAMPLES):
        policy, text, _ = sample(seed)
        for _, held, least in holds(policy, text) if has_long_repeats(policy) else ():
            held_in_all += held
            excess += max(0, held - least)
            over += held > least
            steps += 1
    assert steps > EXAMPLES / 2
    assert over <= steps / 200
    assert excess <= held_in_all / 300


def has_long_repeats(policy: Policy) -> bool:
    """Is there a repeat whose turns the automaton does not tell apart, or one behind which it rounds ages?"""
    for guardrail in policy.guardrails:
        for compiled in guardrail.rules:
            program = compiled.own_program()
            for instr in program.instrs:
                least, most = program.depths(instr.base)
                if most - least > 8 or (instr.op == REP and instr.high - instr.low >= 4):
                    return True
    return False


def holds(policy: Policy, text: str) -> Iterator[tuple[str, int, int]]:
    """After every character: what was read, how much is held, and the least that can be.

    A mark behind a match that swallows is undecided as well: it is hidden or shown with what comes next.
    """
    gate = Gate(policy)
    for n, char in enumerate(text, start=1):
        gate.feed(char)
        if gate.blocked:
            break
        read = text[:n]
        yield read, gate.held, max(n - oldest_live_start(policy, read), trailing_ignorables(read))


def oldest_live_start(policy: Policy, text: str) -> int:
    """The first start from which a deciding rule, tried alone from there, is still undecided."""
    oldest = len(text)
    for guardrail in policy.guardrails:
        for compiled in guardrail.rules if guardrail.decides else ():
            folded = compiled.fold(text)
            for i in range(len(folded.text)):
                state = compiled.matcher.start(folded.text[i - 1] if i else "")
                for char in folded.text[i:]:
                    state = state[char]
                    if state.dead:
                        break
                else:
                    if not state.only_sure:
                        oldest = min(oldest, folded.start(i))
                        break
    return oldest
