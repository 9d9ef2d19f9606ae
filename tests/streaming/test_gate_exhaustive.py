"""Small alphabets, everything: random examples alone miss leaky gates."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.streaming.drive import drive, every_cut, random_cut, regex_policy
from tests.streaming.oracle import Finder, expected

RULES = [
    "aa", "ab", "aba", "ab?c", "a[ab]c", "(?:ab)+c", "a.c", "ab*", "[ab]{2,3}c", "bc|abcb", r"\bab", r"c\b", "^a", "b$",
    "a(?:b|ca)b",
]  # fmt: skip
ACTIONS = ["redact", "block", "warn"]
SYMBOLS = "abc"


def texts(longest: int) -> list[str]:
    return ["".join(t) for n in range(2, longest + 1) for t in itertools.product(SYMBOLS, repeat=n)]


@pytest.fixture(scope="module")
def spans() -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Spans of every rule in every text, found once by the oracle."""
    out: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for pattern in RULES:
        finder = Finder(regex_policy(("redact", [(pattern_id(pattern), pattern)])).guardrails[0].rules[0])
        out[pattern_id(pattern)] = {text: finder.spans(text) for text in texts(6)}
    return out


def pattern_id(pattern: str) -> str:
    return f"r{RULES.index(pattern)}"


def policy_of(patterns: tuple[str, ...], seed: int):
    chance = random.Random(seed)
    return regex_policy(*((chance.choice(ACTIONS), [(pattern_id(p), p)]) for p in patterns))


def check(policy, text, spans, cuts) -> None:
    want = expected(policy, text, {rule: by_text[text] for rule, by_text in spans.items()})
    for chunks in cuts:
        got = drive(policy, chunks, visible=want.visible)
        assert (got.visible, got.findings, got.blocked) == (want.visible, want.findings, want.blocked), chunks


def test_it_works(spans) -> None:
    check(policy_of(("aba",), 1), "cabac", spans, every_cut("cabac"))


def test_pairs_in_every_short_text_and_every_cut(spans) -> None:
    for seed, pair in enumerate(itertools.combinations(RULES, 2)):
        policy = policy_of(pair, seed)
        for text in texts(4):
            check(policy, text, spans, every_cut(text))


def test_triples_in_every_text_of_up_to_three_and_every_cut(spans) -> None:
    """To length 6 it is the long test below."""
    for seed, triple in enumerate(itertools.combinations(RULES, 3)):
        policy = policy_of(triple, seed)
        for text in texts(3):
            check(policy, text, spans, every_cut(text))


def test_triples_in_longer_texts(spans) -> None:
    chance = random.Random(7)
    longer = [text for text in texts(6) if len(text) > 4]
    for seed, triple in enumerate(itertools.combinations(RULES, 3)):
        policy = policy_of(triple, seed)
        for text in chance.sample(longer, 40):
            check(policy, text, spans, ([text], list(text), random_cut(text, seed, 3)))


def test_state_survives_every_character(spans) -> None:
    chance = random.Random(11)
    for seed, pair in enumerate(itertools.combinations(RULES, 2)):
        policy = policy_of(pair, seed)
        for text in chance.sample(texts(6), 12):
            want = expected(policy, text, {rule: by_text[text] for rule, by_text in spans.items()})
            got = drive(policy, list(text), visible=want.visible, restore=True)
            assert (got.visible, got.findings, got.blocked) == (want.visible, want.findings, want.blocked), text


@pytest.mark.long
def test_every_pair_and_triple_in_every_text_and_every_cut(spans) -> None:
    for size in (2, 3):
        for seed, chosen in enumerate(itertools.combinations(RULES, size)):
            policy = policy_of(chosen, seed)
            for text in texts(6):
                check(policy, text, spans, every_cut(text))
