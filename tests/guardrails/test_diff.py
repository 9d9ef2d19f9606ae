"""A diff names every rule that differs, and nothing that does not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from guardrails.diff import changes
from guardrails.policy import normalise


def policy(*guardrails: dict[str, Any], **more: Any) -> dict[str, object]:
    return normalise({"policy": "p", "guardrails": list(guardrails), **more})


def rules(*written: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "codes", "kind": "regex", "config": {"rules": list(written)}, **more}


def words(*written: str, **more: Any) -> dict[str, Any]:
    return {"name": "words", "kind": "keywords", "config": {"keywords": list(written), **more}}


def said(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [str(change) for change in changes(before, after)]


A = {"id": "a", "pattern": "a1"}
B = {"id": "b", "pattern": "b2"}


def test_it_works() -> None:
    before = policy(rules(A, B), words("acme", "heron"), description="one")
    after = policy(
        rules({**A, "pattern": "a9"}, {"id": "c", "pattern": "c3"}), words("heron", "newt"), description="two"
    )
    found = said(before, after)
    assert found[:2] == ['~ policy: description: "one" -> "two"', found[1]]
    assert '~ codes/a: pattern: "a1" -> "a9"' in found
    assert any(line.startswith('- codes/b: {"id": "b"') for line in found)
    assert any(line.startswith('+ codes/c: {"id": "c"') for line in found)
    assert '- words/acme: "acme"' in found
    assert '+ words/newt: "newt"' in found
    assert len(found) == 6


def test_equal_documents_do_not_differ() -> None:
    document = policy(rules(A, B), words("acme"))
    assert changes(document, policy(rules(A, B), words("acme"))) == ()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (policy(rules(A)), policy(rules(A), words("x")), "+ words: "),
        (policy(rules(A), words("x")), policy(rules(A)), "- words: "),
        (policy(rules(A)), policy(rules(A, client=True)), "~ codes: client: false -> true"),
        (policy(rules(A)), policy(rules(A, mode="DISABLED")), '~ codes: mode: "BLOCK" -> "DISABLED"'),
        (policy(rules(A)), policy(rules({**A, "cap": 9})), "~ codes/a: cap: 512 -> 9"),
        (policy(words("x")), policy(words("x", whole_word=False)), "~ words: whole_word: true -> false"),
        (policy(words("x", "y")), policy(words("y", "x")), '~ words: keywords: ["x", "y"] -> ["y", "x"]'),
        (policy({"kind": "pii"}), policy({"kind": "pii", "entities": {"ssn": True}}), "~ pii: entities: "),
    ],
    ids=range(8),
)
def test_one_change_is_one_line(before: dict[str, object], after: dict[str, object], expected: str) -> None:
    (found,) = said(before, after)
    assert found.startswith(expected)


def test_order_of_rules_and_guardrails_is_a_change() -> None:
    assert said(policy(rules(A, B)), policy(rules(B, A))) == ["~ codes/b: place 2 -> 1", "~ codes/a: place 1 -> 2"]
    assert said(policy(rules(A), words("x")), policy(words("x"), rules(A))) == [
        "~ words: place 2 -> 1",
        "~ codes: place 1 -> 2",
    ]


def test_no_difference_is_left_out() -> None:
    """Random documents: changes are empty exactly when the documents are equal."""
    chance = random.Random(3)

    def guardrail(n: int) -> dict[str, Any]:
        if chance.random() < 0.5:
            texts = chance.sample(["x", "y", "z"], chance.randint(1, 3))
            return {**words(*texts, whole_word=chance.random() < 0.5), "name": f"g{n}"}
        picked = chance.sample([A, B, {"id": "c", "pattern": "c", "cap": chance.choice([5, 6])}], chance.randint(1, 3))
        return rules(*picked, client=chance.random() < 0.5) | {"name": f"g{n}"}

    equal = 0
    documents = [policy(*(guardrail(n) for n in range(chance.randint(1, 2)))) for _ in range(120)]
    for before in documents[:40]:
        for after in documents:
            assert (changes(before, after) == ()) is (before == after)
            equal += before == after
    assert equal > 40
