"""A corpus of planted values: every two-way split, one character at a time, 1,000 seeded random splits of each text."""

from __future__ import annotations

from functools import cache

import pytest

from guardrails.policy import Policy, compile_policy
from streaming.core.gate import gate_text
from tests.streaming.drive import drive, random_cut
from tests.streaming.oracle import expected

SPLITS = 1_000
PLANTED = {
    "ssn": "219-09-9999",
    "card": "4111 1111 1111 1111",
    "amex": "3782-822463-10005",
    "mail": "jo.doe+news@mail.example.org",
    "phone": "(415) 555-0134",
    "iban": "DE89 3704 0044 0532 0130 00",
    "ip": "192.168.14.201",
    "github": "ghp_" + "a1B2c3D4e5F6" * 3,
    "aws": "AKIAIOSFODNN7EXAMPL3",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
}
HIDDEN = {
    "ssn": "[SSN]", "card": "[CREDIT_CARD]", "amex": "[CREDIT_CARD]", "mail": "[EMAIL]", "phone": "[PHONE]",
    "iban": "[IBAN]", "ip": "[IP_ADDRESS]", "github": "[API_KEY]", "aws": "[API_KEY]", "jwt": "[TOKEN]",
}  # fmt: skip
TEXTS = [
    "Her number is {ssn}, card {card} 12/27, mail {mail}.",
    "{card} {ssn} {iban}\n{phone}; {ip}:8080 and {amex}!",
    "key={github} id={aws} token {jwt} end",
    "漢字{mail}漢字 {ssn}\U0001f642{card}\u200b\U0001f642{ip}",
    "{ssn}-1 2 {card} x {mail} y {ssn}",
    "call {phone} or {mail}, never {jwt} {aws}",
    "\u200b{iban}\u200b {github}\u200b\n{amex}",
]
# Where values run into each other there is no right answer, so the verdict is written down: a digit that adjoins a
# number says that it is a part of a longer one (folding takes a zero-width character away, so it is no border), and
# what continues a mail address or a token belongs to it.
AMBIGUOUS = [
    ("{card}{ssn} {iban}", "{card}{ssn} [IBAN]"),
    ("{ssn}\U0001f642{card}\u200b{ip} {mail}", "[SSN]\U0001f642{card}\u200b{ip} [EMAIL]"),
    ("2{card} x{mail}y {ssn}", "2{card} [EMAIL] [SSN]"),
    ("{phone} {jwt}{aws}", "[PHONE] [TOKEN]"),
]


@cache
def policy() -> Policy:
    return compile_policy({"policy": "corpus", "guardrails": [{"kind": "pii"}, {"kind": "secrets"}]})


def planted(template: str) -> str:
    return template.format(**PLANTED)


def test_it_works() -> None:
    shown = gate_text(policy(), planted(TEXTS[0])).visible
    assert shown == "Her number is [SSN], card [CREDIT_CARD] 12/27, mail [EMAIL]."


def test_every_planted_value_stands_in_a_text_where_it_must_be_hidden() -> None:
    assert {name for name in PLANTED if any(f"{{{name}}}" in text for text in TEXTS)} == set(HIDDEN) == set(PLANTED)


@pytest.mark.parametrize("template", TEXTS)
def test_no_split_shows_a_planted_value(template: str) -> None:
    check(planted(template), template.format(**HIDDEN))


@pytest.mark.parametrize(("template", "verdict"), AMBIGUOUS)
def test_values_that_run_into_each_other_get_one_verdict_from_every_split(template: str, verdict: str) -> None:
    check(planted(template), verdict.format(**PLANTED))


def check(text: str, visible: str) -> None:
    """The visible text is written by hand; the findings are those of the oracle. Neither is asked of the gate."""
    want = expected(policy(), text)
    assert want.visible == visible
    assert len(want.findings) >= 1
    two_way = [[text[:at], text[at:]] for at in range(len(text) + 1)]
    for chunks in (*two_way, list(text), *(random_cut(text, seed) for seed in range(SPLITS))):
        got = drive(policy(), chunks, visible=visible)
        assert got.visible == visible, chunks
        assert got.findings == want.findings, chunks
        assert not any(f[5] for f in got.findings), "a hidden span has no exposed character"
