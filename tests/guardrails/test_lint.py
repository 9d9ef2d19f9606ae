"""Lint answers what a rule costs and whether it does what its author says."""

from __future__ import annotations

import re

import pytest

from guardrails.document import PolicyError
from guardrails.findings import AppliesTo
from guardrails.lint import examine, lint_document, spans_in
from guardrails.patterns.compiler import compile_rule
from guardrails.patterns.errors import PatternError
from guardrails.patterns.rule import Rule
from guardrails.patterns.show import readable
from guardrails.policy import compile_policy
from streaming.core.gate import Gate


def document(**rule: object) -> dict[str, object]:
    return {"policy": "p", "guardrails": [{"name": "g", "kind": "regex", "config": {"rules": [{"id": "r", **rule}]}}]}


def test_it_works() -> None:
    report = lint_document(document(pattern="[0-9]{3}-[0-9]{2}", must_match=["123-45"], must_not_match=["12-34"]))
    (guardrail,) = report.guardrails
    assert (guardrail.name, guardrail.performance_class, guardrail.checkpoint) == ("g", "INSTANT", "IMMEDIATE")
    assert guardrail.rules[0].holds == 6
    assert report.failures == ()
    assert report.bounds["response"] == "at most 6 characters, 102 with ignorable ones between them"


def test_the_bound_in_words_is_one_that_a_session_keeps() -> None:
    """Ignorable characters are held with what they stand between: only the second number is true of raw text."""
    policy = compile_policy(document(pattern="[0-9]{3}-[0-9]{2}"))
    gate = Gate(policy)
    held = []
    for char in ("\u200b" * 16).join("123-45") + "\u200b" * 16:
        gate.feed(char)
        held.append(gate.held)
    bound = policy.bound(AppliesTo.RESPONSE)
    assert 6 < max(held) <= bound.with_ignorables == 102
    assert "102 with ignorable ones" in str(bound)
    unfolded = compile_policy(document(pattern="[0-9]{3}-[0-9]{2}", fold=False))
    assert str(unfolded.bound(AppliesTo.RESPONSE)) == "at most 6 characters"
    mixed = {"policy": "p", "guardrails": [
        {"name": "raw", "kind": "regex", "config": {"rules": [{"id": "r", "pattern": "a[0-9]{29}", "fold": False}]}},
        {"name": "folded", "kind": "regex", "config": {"rules": [{"id": "r", "pattern": "b[0-9]{9}"}]}}]}  # fmt: skip
    assert str(compile_policy(mixed).bound(AppliesTo.RESPONSE)) == (
        "at most 30 characters, 170 with ignorable ones between them"
    )


def test_an_example_that_comes_out_wrong_is_named() -> None:
    report = lint_document(document(pattern="a", must_match=["a", "b"], must_not_match=["a", "b"]))
    assert report.failures == (
        "guardrails[0].config.rules[0].must_match[1]: g/r must match, but does not: 'b'",
        "guardrails[0].config.rules[0].must_not_match[0]: g/r must pass, but does not: 'a'",
    )


def test_what_was_trimmed_is_shown() -> None:
    rule = examine(Rule("r", r"(?i)[\w.-]{0,50}?(?:adobe)[ =]{1,3}([a-f0-9]{32})", secret_group=1))
    assert rule.trimmed_width == 50
    assert rule.trimmed == "[Aa][Dd][Oo][Bb][Ee][ =]{1,3}([0-9A-Fa-f]{32})"
    assert examine(Rule("r", "abc")).trimmed == ""


def test_a_long_hold_and_an_override_are_remarked() -> None:
    report = lint_document(document(pattern="a[^b]*b", cap=4096))
    assert report.guardrails[0].remarks == ("rule r may hold 4,098 characters",)
    held = lint_document({"policy": "p", "guardrails": [{"kind": "ai_judge", "mode": "BLOCK", "rubric": "r"}]})
    assert "whole answer" in held.guardrails[0].remarks[0]
    assert "the whole answer" in held.bounds["response"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(", "missing"), ("(?=a)b", "look-ahead"), (r"(a)\1", "back-reference"), ("a*", "empty"),
     (r"\p{L}", "Unicode class"),
     ("((a{1,100}){1,100}){1,100}", "positions"), ("(a*)+b|", "empty"), ("a**", "repeat")],
)  # fmt: skip
def test_what_cannot_be_bounded_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(reason)) as refused:
        lint_document(document(pattern=pattern))
    assert refused.value.path.startswith("guardrails[0].config.rules[0]")


def test_a_trimmed_secret_group_is_refused() -> None:
    with pytest.raises(PatternError, match="trimmed"):
        examine(Rule("r", "(a{0,3})b", secret_group=1))


@pytest.mark.parametrize(
    "pattern",
    [
        r"a\.b[^\n]x",
        r"[\w-]{2,5}\s+\d*?",
        r"(?:ab|c)?d",
        r"\bx\B",
        r"(?m)^a$",
        r"[\]\\^-]",
        r"\x{1f600}\t",
        r"(ab){2,3}",
        r"[^a-c]",
    ],
)
def test_the_readable_form_means_the_same(pattern: str) -> None:
    first = compile_rule(Rule("r", pattern, fold=False))
    again = compile_rule(Rule("r", readable(first.tree), fold=False))
    for text in (
        "a.bqx",
        "ab--  12",
        "abd",
        "d",
        "x",
        "xy x",
        "\na\n",
        "]\\^-",
        "\U0001f600\t",
        "abababab",
        "zz",
        "ca",
    ):
        assert spans_in(first, text) == spans_in(again, text), text
