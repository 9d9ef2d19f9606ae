"""A corpus of planted values: every two-way split, one character at a time, 1,000 seeded random splits of each text."""

from __future__ import annotations

from functools import cache

import pytest

from guardrails.policy import Policy, compile_policy
from streaming.core.gate import gate_text
from tests.streaming.drive import drive, random_cut

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
TEXTS = [
    "Her number is {ssn}, card {card} 12/27, mail {mail}.",
    "{card}{ssn} {iban}\n{phone}; {ip}:8080 and {amex}!",
    "key={github} id={aws} token {jwt} end",
    "漢字{mail}漢字 {ssn}\U0001f642{card}\u200b{ip}",
    "{ssn}-1 2{card} x{mail}y {ssn}",
    "call {phone} or {mail}, never {jwt}{aws}",
]


@cache
def policy() -> Policy:
    return compile_policy({"policy": "corpus", "guardrails": [{"kind": "pii"}, {"kind": "secrets"}]})


def planted(template: str) -> str:
    return template.format(**PLANTED)


def test_it_works() -> None:
    shown = gate_text(policy(), planted(TEXTS[0])).visible
    assert shown == "Her number is [SSN], card [CREDIT_CARD] 12/27, mail [EMAIL]."


@pytest.mark.parametrize("template", TEXTS)
def test_every_split_shows_the_same_and_no_more(template: str) -> None:
    text = planted(template)
    want = gate_text(policy(), text, applies_to="response")  # type: ignore[arg-type]
    findings = [(f.start, f.end, f.rule) for f in want.findings]
    assert len(findings) >= 2
    two_way = [[text[:at], text[at:]] for at in range(len(text) + 1)]
    for chunks in (*two_way, list(text), *(random_cut(text, seed) for seed in range(SPLITS))):
        got = drive(policy(), chunks, visible=want.visible)
        assert got.visible == want.visible, chunks
        assert [(f[0], f[1], f[3]) for f in got.findings] == sorted(findings), chunks
        assert not any(f[5] for f in got.findings), "a hidden span has no exposed character"
