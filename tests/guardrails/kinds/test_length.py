"""A limit lets through what it allows and acts at the character beyond, however the text is cut."""

from __future__ import annotations

import pytest

from guardrails.policy import Policy, PolicyError, compile_policy
from streaming.core.gate import Gate, gate_text
from tests.streaming.drive import drive

from .conftest import Hits


def limited(most: int, action: str = "redact", *more: dict[str, object], **entry: object) -> Policy:
    limit = {"name": "long", "kind": "length", "action": action, "config": {"max_chars": most}, **entry}
    return compile_policy({"policy": "p", "guardrails": [limit, *more]})


def test_it_works(hits: Hits) -> None:
    assert hits("length", "123456789", {"max_chars": 5}) == [("max_chars", "6789")]
    assert hits("length", "12345", {"max_chars": 5}) == []


@pytest.mark.parametrize("text", ["12345", "", "äöüßé", "\U0001f642" * 5, "e\u0301e\u0301e", "漢字漢字漢"])
def test_code_points_are_counted(text: str) -> None:
    policy = limited(5)
    assert drive(policy, [text]).findings == []
    got = drive(policy, list(text + "\u200b" * (6 - len(text))))
    assert [finding[:4] for finding in got.findings] == [(5, 6, "long", "max_chars")]


@pytest.mark.parametrize(
    ("action", "visible", "blocked"), [("redact", "01234[…]", False), ("block", "01234", True), ("warn", None, False)]
)
def test_each_action_at_every_cut(action: str, visible: str | None, blocked: bool) -> None:
    text = "0123456789"
    for at in range(len(text) + 1):
        got = drive(limited(5, action), [text[:at], text[at:]], visible=visible or text)
        assert (got.visible, got.blocked) == (visible or text, blocked)
        assert [finding[2:5] for finding in got.findings] == [("long", "max_chars", action)]


def test_nothing_is_held_for_it() -> None:
    gate = Gate(limited(1_000))
    for char in "a" * 999:
        gate.feed(char)
        assert gate.held == 0


def test_what_is_beyond_a_redacting_limit_stays_away_whatever_it_says() -> None:
    pii: dict[str, object] = {"name": "pii", "kind": "pii"}
    for chunks in (["123456 219-09-9999 and more", " and more"], list("123456 219-09-9999 and more and more")):
        assert drive(limited(5, "redact", pii), chunks).visible == "12345[…]"


def test_a_value_before_the_limit_is_hidden_and_counts_with_its_own_characters() -> None:
    pii: dict[str, object] = {"name": "pii", "kind": "pii"}
    for chunks in (["219-09-9999 abcdef"], list("219-09-9999 abcdef")):
        assert drive(limited(14, "redact", pii), chunks).visible == "[SSN] ab[…]"


def test_the_strictest_of_two_limits_acts_first() -> None:
    wide: dict[str, object] = {"name": "wide", "kind": "length", "action": "block", "config": {"max_chars": 8}}
    got = drive(limited(5, "warn", wide), list("0123456789"))
    assert (got.visible, got.blocked) == ("01234567", True)
    assert [finding[2] for finding in got.findings] == ["long", "wide"]


def test_in_monitor_it_only_says_what_it_would_have_done() -> None:
    (found,) = gate_text(limited(3, "block", mode="MONITOR"), "12345").findings
    assert (found.would_have, found.exposed) == ("blocked", 1)


def test_a_state_keeps_which_limits_are_still_to_come() -> None:
    policy = limited(5, "warn", {"name": "wide", "kind": "length", "action": "block", "config": {"max_chars": 8}})
    got = drive(policy, list("0123456789"), restore=True)
    assert (got.visible, [finding[2] for finding in got.findings]) == ("01234567", ["long", "wide"])


@pytest.mark.parametrize("most", [0, -1, 10_000_001, "5", None, 1.5])
def test_a_limit_that_is_none_is_refused(most: object) -> None:
    with pytest.raises(PolicyError, match="max_chars"):
        limited(most)  # type: ignore[arg-type]
