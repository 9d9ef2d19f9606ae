"""A rule whose validator fails: loud, and as its guardrail's on_error says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guardrails.findings import OnError
from guardrails.policy import Policy
from streaming.core.gate import Gate
from tests.streaming.drive import drive, every_cut, regex_policy


def failing(on_error: OnError) -> Policy:
    """A redacting rule whose validator raises on candidates that contain a 3, next to one that works."""

    def validator(candidate) -> bool:
        if "3" in candidate.secret:
            raise RuntimeError("secret 123 in the message")
        return True

    policy = regex_policy(("redact", [("digits", r"\d{3}")]), ("redact", [("word", "abc")]))
    first, second = policy.guardrails
    broken = replace(first.rules[0].rule, validator=validator)
    compiled = replace(first.rules[0], rule=broken)
    compiled.matcher.validator = validator
    return replace(policy, guardrails=(replace(first, on_error=on_error, rules=(compiled,)), second), _plans={})


def test_it_works() -> None:
    assert drive(failing(OnError.BLOCK), ["a 124 b"]).visible == "a [digits] b"


@pytest.mark.parametrize("chunks", list(every_cut("x 123 abc")))
def test_block_stops_the_answer_where_the_rule_could_not_judge(chunks) -> None:
    got = drive(failing(OnError.BLOCK), chunks)
    assert (got.visible, got.blocked) == ("x ", True)
    assert got.findings == [(2, 3, "g0", "error", "block", 0)]


@pytest.mark.parametrize("on_error", [OnError.WARN, OnError.ALLOW])
def test_warn_and_allow_let_the_text_through_and_say_so(on_error) -> None:
    for chunks in every_cut("x 123 abc"):
        got = drive(failing(on_error), chunks, restore=True)
        assert (got.visible, got.blocked) == ("x 123 [word]", False)
        assert (2, 3, "g0", "error", "warn", 1) in got.findings


def test_the_log_names_rule_and_error_but_no_text(caplog) -> None:
    Gate(failing(OnError.BLOCK)).feed("x 123 abc")
    assert "RuntimeError" in caplog.text
    assert "123" not in caplog.text
