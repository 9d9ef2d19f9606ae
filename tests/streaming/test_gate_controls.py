"""Controls: four gates that look right and are not. The proof that passes ours must fail each of them, every run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest

from guardrails.policy import compile_policy
from streaming.core.gate import gate_text
from tests.streaming.drive import drive, every_cut, regex_policy

CARD = r"(?:\d[ -]?){13,19}"
Matcher = Callable[[Iterable[str], list[tuple[str, str]]], list[str]]


def per_chunk(chunks: Iterable[str], rules: list[tuple[str, str]]) -> list[str]:
    """Checks every chunk by itself."""
    return [redact(chunk, rules) for chunk in chunks]


def carry_over(chunks: Iterable[str], rules: list[tuple[str, str]], keep: int = 8) -> list[str]:
    """Re-reads the last characters with every chunk: finds what is split, but has sent its head already."""
    out, seen = [], ""
    for chunk in chunks:
        joined = seen + chunk
        new = chunk
        for name, pattern in rules:
            for found in re.finditer(pattern, joined):
                if found.end() > len(seen):
                    start = max(0, found.start() - len(seen))
                    new = new[:start] + f"[{name}]" + joined[found.end() :]
        out.append(new)
        seen = joined[-keep:]
    return out


def forced_cuts(chunks: Iterable[str], rules: list[tuple[str, str]], keep: int = 4) -> list[str]:
    """Holds the last characters, cuts there when the buffer is long enough and matches what is left again."""
    out, held = [], ""
    for chunk in chunks:
        held += chunk
        if len(held) > keep:
            out.append(redact(held[:-keep], rules))
            held = held[-keep:]
    return [*out, redact(held, rules)]


def redact(text: str, rules: list[tuple[str, str]]) -> str:
    spans = sorted((m.start(), m.end(), n) for n, p in rules for m in re.finditer(p, text))
    out, at = "", 0
    for start, end, name in spans:
        if start >= at:
            out += text[at:start] + f"[{name}]"
        at = max(at, end)
    return out + text[at:]


def luhn(text: str) -> bool:
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [d if i % 2 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits), start=1)]
    return sum(doubled) % 10 == 0


def greedy_only(chunks: Iterable[str], _: list[tuple[str, str]]) -> list[str]:
    """Asks the validator about the engine's one greedy match."""
    text = "".join(chunks)
    return [re.sub(CARD, lambda m: "[card]" if luhn(m[0]) else m[0], text)]


def honest(rules: list[tuple[str, str]], text: str) -> str:
    return gate_text(regex_policy(("redact", rules)), text, applies_to="response").visible  # type: ignore[arg-type]


def proof(matcher: Matcher, rules: list[tuple[str, str]], text: str) -> None:
    """What our own gate passes: one visible text for every cut, and every emission a prefix of it."""
    want = honest(rules, text)
    for chunks in every_cut(text):
        shown = ""
        for piece in matcher(chunks, rules):
            shown += piece
            assert want.startswith(shown), f"{chunks}: {shown!r} is not a prefix of {want!r}"
        assert shown == want, chunks


RULES = [("ssn", r"\d{2}-\d{2}")]


def ours(chunks: Iterable[str], rules: list[tuple[str, str]]) -> list[str]:
    return [drive(regex_policy(("redact", rules)), chunks).visible]


def test_it_works() -> None:
    """The proof itself can be passed."""
    for rules, text in ((RULES, "a 12-34 b"), ([("r", "1a"), ("s", "11")], "11a")):
        proof(ours, rules, text)


@pytest.mark.parametrize(
    ("matcher", "rules", "text"),
    [
        (per_chunk, RULES, "a 12-34 b"),
        (carry_over, RULES, "a 12-34 b"),
        (forced_cuts, [("r", "1a"), ("s", "11")], "x11a11ax"),
    ],
)
def test_control_fails_the_proof(matcher: Matcher, rules: list[tuple[str, str]], text: str) -> None:
    with pytest.raises(AssertionError, match="prefix"):
        proof(matcher, rules, text)


@pytest.mark.parametrize("text", ["4111 1111 1111 1111 12/27", "2024-11-21 4111111111111111"])
def test_validator_on_the_greedy_match_only_leaks_the_card(text: str) -> None:
    policy = compile_policy({"policy": "p", "guardrails": [{"name": "pii", "kind": "pii"}]})
    shown = gate_text(policy, text).visible
    assert "1111" not in shown
    assert "1111" in greedy_only([text], [])[0]
