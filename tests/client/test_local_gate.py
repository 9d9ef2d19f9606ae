"""The local gate decides as the server's: 10,000 texts in pieces, and all that the ready-made policies know."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page

from guardrails import services
from guardrails.policy import compile_policy
from tests.client.cases import Case, cut, judged, random_cases
from tests.client.rules import Json, client_rules

SCRIPT = Path(__file__).with_name("parity.js").read_text("utf-8")
CASES = 10_000
AT_ONCE = 400  # groups of one evaluation


@dataclass(frozen=True, slots=True)
class Gated:
    """What the browser made of a case."""

    painted: list[str]
    findings: list[list[object]]
    blocked: bool


def in_browser(tab: Page, groups: Sequence[tuple[Json, list[Case]]]) -> Iterator[tuple[Case, Gated, Json]]:
    for first in range(0, len(groups), AT_ONCE):
        part = groups[first : first + AT_ONCE]
        answers = tab.evaluate(SCRIPT, [[rules, [case.pieces for case in cases]] for rules, cases in part])
        for (rules, cases), said in zip(part, answers, strict=True):
            for case, one in zip(cases, said, strict=True):
                yield case, Gated(**one), rules


def compare(case: Case, gated: Gated, rules: Json) -> None:
    so_far = ""
    for text in gated.painted:
        so_far += text
        assert case.visible.startswith(so_far), (rules, case)
    assert so_far == case.visible, (rules, case)
    assert gated.blocked is case.blocked, (rules, case)
    assert sorted(gated.findings, key=str) == sorted(case.findings, key=str), (rules, case)


def policy(*guardrails: Json) -> Json:
    entries = [{"name": f"g{n}", **guardrail} for n, guardrail in enumerate(guardrails)]
    return client_rules(compile_policy({"policy": "t", "guardrails": entries}))


def painted(tab: Page, rules: Json, *pieces: str) -> list[str]:
    said: list[str] = tab.evaluate(SCRIPT, [[rules, [list(pieces)]]])[0][0]["painted"]
    return said


SSN: Json = {"kind": "pii", "action": "redact", "config": {"entities": {"ssn": True}}}


def test_it_works(tab: Page) -> None:
    assert painted(tab, policy(SSN), "My number is 12", "3-45-678", "9, thanks") == [
        "My number is ", "", "[SSN], thanks", "",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [7, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 17))])
def test_ten_thousand_texts_come_out_as_on_the_server(tab: Page, seed: int) -> None:
    groups = random_cases(seed, CASES)
    hits = blocks = 0
    for case, gated, rules in in_browser(tab, groups):
        compare(case, gated, rules)
        hits += bool(case.findings)
        blocks += case.blocked
    assert sum(len(cases) for _, cases in groups) >= CASES
    assert hits > CASES // 3
    assert blocks > CASES // 50


def test_a_rule_that_swallows_hides_all_of_it_however_long(tab: Page) -> None:
    rules = policy({"kind": "secrets", "action": "redact", "config": {"assignments": False, "private_keys": False,
                    "disable": ["authorization_header", "url_password"]}})  # fmt: skip
    key = "sk-proj-" + "aB3" * 700
    out = painted(tab, rules, "use ", key[:700], key[700:], " now")
    assert "".join(out) == "use [API_KEY] now"


def test_listed_words_end_where_words_of_all_scripts_end(tab: Page) -> None:
    document = {"policy": "t", "guardrails": [
        {"kind": "keywords", "action": "redact", "config": {"keywords": ["über", "acme corp", "漢"]}},
        {"kind": "keywords", "name": "plain", "action": "redact", "config": {"keywords": ["heron"], "fold": False}},
    ]}  # fmt: skip
    words = compile_policy(document)
    texts = ["das ist über alles", "überall", "асme  corp, ACME CORP漢字", "漢 字 漢字", "ubér", "🙂über🙂",
             "\u1e9eüber", "heron hérons heron\u0301", "heron字"]  # fmt: skip
    cases = [judged(words, list(text)) for text in texts]
    for case, gated, rules in in_browser(tab, [(client_rules(words), cases)]):
        compare(case, gated, rules)
    assert sum(bool(case.findings) for case in cases) > 5


def test_no_half_of_a_pair_is_ever_let_through(tab: Page) -> None:
    out = painted(tab, policy(SSN), "🙂", "🙂1", "2", "🙂")
    assert "".join(out) == "🙂🙂12🙂"
    assert all(text.encode("utf-16", "strict") is not None for text in out)


CONTROL = """async ([rules, pieces]) => {
  const { Gate, compile, foldingOf } = await import("/static/client/src/gate.js");
  const entries = compile(rules);
  return pieces.map((piece) => new Gate(entries, new Map()).feed(piece, true).text).join("");
}"""


def test_a_gate_that_looks_at_each_piece_alone_leaks_here(tab: Page) -> None:
    """The control: were the comparison blind, this would pass as well."""
    assert tab.evaluate(CONTROL, [policy(SSN), ["123-45-", "6789"]]) == "123-45-6789"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a", "at 0 of"),
        ("[a]+", "at 3 of"),
        ("(?=[a])", "at 0 of"),
        ("[a]*", "at 4 of"),
        ("([a]", "at 4 of"),
        ("[a]{1,2}[b]*", "at 12"),
    ],
)
def test_a_pattern_that_the_servers_emitter_does_not_write_is_refused(tab: Page, pattern: str, why: str) -> None:
    rules = policy({"kind": "regex", "action": "redact", "config": {"rules": [{"id": "r", "pattern": "a"}]}})
    rules["guardrails"][0]["rules"][0]["pattern"] = pattern  # type: ignore[index]
    refused = f"(groups) => ({SCRIPT})(groups).then(() => '', (error) => `${{error}}`)"
    said = tab.evaluate(refused, [[rules, [["x"]]]])
    assert why in said


SEEDS = (
    "SSN 123-45-6789", "ssn is 078051120", "4111 1111 1111 1111 12/27", "2223 0031 2200 3222", "joe.bloggs@example.com",
    "(212) 555-0123", "call me at 0171 234 56 78", "+49 171 2345678", "10.0.0.1", "fe80::1:2", "::ffff:10.1.2.3",
    "1:2:3:4:5:6:7:8", "12:34:56", "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "passport no. X1234567",
    "driver's license D1234567", "account number: 12345678", "account 2024-11-21", "born 21 March 1984",
    "date of birth: 31.12.1999", "sk-proj-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW", "AKIAQ4XYZ7LMNOP2RSTU",
    "ghp_a1B2c3D4a1B2c3D4a1B2c3D4a1B2c3D4a1B2c3D4", "api_key = 'q8Zr4Lw9Xb2Nc7Vd1Km5'",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END PRIVATE KEY-----",
    "api_key = 'your_api_key_goes_here_1'", "The password is hunter2!", "password: aaaaaa", "postgres://app:s3cr3t-pw@db/x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdef", "Plain words, and some more of them.", "project blue heron",
)  # fmt: skip


def test_the_ready_made_rules_come_out_as_on_the_server(tab: Page) -> None:
    chance = random.Random(11)
    document = json.loads((Path(services.__file__).parent / "starters" / "basic.json").read_text("utf-8"))
    basic = compile_policy(document)
    cases = [judged(basic, cut(text_of(chance), chance)) for _ in range(600)]
    groups = [(client_rules(basic), cases[n : n + 50]) for n in range(0, len(cases), 50)]
    rules_hit = set()
    for case, gated, rules in in_browser(tab, groups):
        compare(case, gated, rules)
        rules_hit |= {finding[1] for finding in case.findings}
    assert len(rules_hit) > 15


def text_of(chance: random.Random) -> str:
    text = ""
    for _ in range(chance.randint(1, 5)):
        piece = chance.choice(SEEDS)
        if chance.random() < 0.4:
            at = chance.randrange(len(piece))
            piece = piece[:at] + chance.choice(["", "0", "9", "x", "\u200b", "１", "-", "🙂"]) + piece[at + 1 :]
        text += piece + chance.choice([" ", ", ", "", "\n", "a"])
    return text
