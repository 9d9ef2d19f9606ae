"""Trimmed and bounded: the tree that is the rule, in every engine and in the oracle."""

from __future__ import annotations

import pytest

from guardrails.lint import spans_in
from guardrails.patterns.compiler import CompiledRule, compile_rule
from guardrails.patterns.errors import UnboundedError, UnsupportedError
from guardrails.patterns.rule import PEM_CAP, Candidate, Rule


def rule(pattern: str, **more: object) -> CompiledRule:
    return compile_rule(Rule("r", pattern, **more))  # type: ignore[arg-type]


def spans(compiled: CompiledRule, text: str) -> list[tuple[int, int]]:
    return list(spans_in(compiled, text))


def test_it_works() -> None:
    compiled = rule(r"[\w.-]{0,50}?(?:adobe)[0-9]")
    assert (compiled.trimmed_width, compiled.bound.characters) == (50, 6)
    assert spans(compiled, "my-adobe7") == [(3, 9)]


@pytest.mark.parametrize(
    ("pattern", "width"),
    [
        (r"\s*foo", 512),
        ("(?:x)?foo", 1),
        ("x{0,3}y?foo", 4),
        ("(?:a*b|c?d)", 512),
        ("(?:x?(?:y*foo))", 513),
        ("foo", 0),
    ],
)
def test_leading_nullable_pieces_are_cut_off(pattern: str, width: int) -> None:
    assert rule(pattern).trimmed_width == width


@pytest.mark.parametrize("pattern", [r"(\s*foo)bar", "(x?)foo", "(a*b|c)d", "(?:(x)?)foo"])
def test_a_capture_group_is_never_trimmed(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match="would be trimmed"):
        rule(pattern, secret_group=1)
    rule(pattern)  # not asked for, it may go


def test_a_missing_group_and_one_in_a_repeat_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no group 2"):
        rule("(a)b", secret_group=2)
    with pytest.raises(UnsupportedError, match="inside a repeat"):
        rule("(?:(a)b){2}", secret_group=1)


@pytest.mark.parametrize(
    ("pattern", "cap", "bound"),
    [("ab", 512, 2), ("a{2,5}b", 512, 6), ("a+b", 512, 513), ("a+b", 20, 21), (r"ab\b", 512, 3), ("ab$", 512, 3),
     (r"\bab", 512, 2), ("(?:ab|cde)f", 512, 4), ("(?:ab)+c", 512, 513), ("-[a-z]{64,}-", PEM_CAP, PEM_CAP + 2)],
)  # fmt: skip
def test_every_rule_carries_its_bound(pattern: str, cap: int, bound: int) -> None:
    compiled = rule(pattern, cap=cap, fold=False)
    assert compiled.bound.characters == bound
    assert compiled.bound.with_ignorables == bound


def test_ignorables_count_when_the_rule_folds() -> None:
    assert rule("abc").bound.with_ignorables == 3 * 17


def test_nested_open_repeats_are_turns_of_64() -> None:
    assert rule(r"(?:[a-z]+\.)+com").bound.characters == 64 * 65 + 3


@pytest.mark.parametrize("length", [19, 20, 511, 512, 513, 700, 2000])
@pytest.mark.parametrize("tail", ["", r"\b", "$", "={0,2}"])
def test_a_match_that_reaches_the_cap_is_a_match_and_swallows_the_rest(length: int, tail: str) -> None:
    found = spans(rule("sk-[a-z]{20,}" + tail), "sk-" + "a" * length)
    assert found == ([(0, length + 3)] if length >= 20 else [])


def test_an_inner_repeat_does_not_swallow() -> None:
    compiled = rule("k[a-z]{3,}z!", cap=10)
    assert spans(compiled, "k" + "a" * 9 + "z!") == [(0, 12)]
    assert spans(compiled, "k" + "a" * 20 + "z!") == []


def test_the_waived_edge_is_still_asked_for_below_the_cap() -> None:
    compiled = rule(r"sk-[a-f]{4,}\b", cap=10)
    assert spans(compiled, "sk-abcdefz") == []
    assert spans(compiled, "sk-" + "abcdef" * 3 + "z") == [(0, 21)]


def test_allow_lists_see_the_trimmed_width_in_front_of_the_match() -> None:
    seen: list[str] = []

    def note(candidate: Candidate) -> bool:
        seen.append(candidate.context)
        return True

    compiled = rule(r"[a-z_]{0,4}key=([0-9]+)", secret_group=1, validator=note)
    assert spans(compiled, "primary_key=12") == [(12, 14)]
    assert seen == ["ary_key=12"]


def test_first_non_empty_group_is_the_secret_of_an_imported_rule() -> None:
    compiled = rule("k:(?:'([a-z]+)'|([0-9]+))", secret_group=-1)
    assert spans(compiled, "k:'abc' k:123") == [(3, 6), (10, 13)]


def test_a_rule_too_large_says_how_large() -> None:
    with pytest.raises(UnboundedError, match="1,020,101 positions"):
        rule("((a{1,100}){1,100}){1,100}")
