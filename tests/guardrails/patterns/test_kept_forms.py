"""What is kept of a pattern that was compiled before changes neither what a rule finds nor how long it may take."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from guardrails.patterns import compiler
from guardrails.patterns.compiler import compile_rule
from guardrails.patterns.deadline import limited
from guardrails.patterns.errors import SlowError
from guardrails.patterns.rule import Rule

RULE = Rule("a", r"(key)=(v[0-9]{3})", not_after="0-9", not_before="a-z")


def test_rules_written_alike_are_two_rules() -> None:
    first, second = compile_rule(RULE), compile_rule(replace(RULE, id="b"))
    assert (first.rule.id, second.rule.id) == ("a", "b")
    assert first.matcher is not second.matcher
    assert first != second


@pytest.mark.parametrize(
    "change",
    [{"ignore_case": True}, {"secret_group": 2}, {"fold": False}, {"cap": 7}, {"not_after": ""}, {"not_before": ""},
     {"pattern": "key=v"}, {"escaped": "%20key"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_decides_the_form_makes_another(change: dict[str, object]) -> None:
    rule = replace(RULE, pattern="(key)=(v[0-9]+)")
    before, kept = compile_rule(rule), compiler._kept_form.cache_info().currsize
    after = compile_rule(replace(rule, **change))  # type: ignore[arg-type]
    compiler._kept_form.cache_clear()
    anew = compile_rule(replace(rule, **change))  # type: ignore[arg-type]
    assert kept
    assert (after.tree, after.folds, after.source, after.bound) == (anew.tree, anew.folds, anew.source, anew.bound)
    assert (before.tree, before.folds, before.source, before.matcher._groups) != (
        after.tree, after.folds, after.source, after.matcher._groups
    )  # fmt: skip


def test_what_has_a_time_limit_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a rule that takes too long would be published because somebody had tried it before."""
    compile_rule(RULE)
    real = compiler.parse

    def slow(pattern: str, *, ignore_case: bool = False) -> object:
        time.sleep(0.02)
        return real(pattern, ignore_case=ignore_case)

    monkeypatch.setattr(compiler, "parse", slow)
    with limited(0.01), pytest.raises(SlowError):
        compile_rule(RULE)
    compile_rule(RULE)
