"""Personal data that is percent-encoded is caught like plain, wherever the text is cut, and all of it is hidden."""

from __future__ import annotations

from itertools import pairwise
from urllib.parse import quote

import pytest

from guardrails.findings import AppliesTo
from guardrails.patterns.behind import found_behind
from guardrails.patterns.rule import Rule
from guardrails.patterns.syntax import MAX_LENGTH
from guardrails.policy import Policy, compile_policy
from streaming.core.effects import REDACTED, RELEASE
from streaming.core.gate import Gate, gate_text
from tests.guardrails.kinds.conftest import Hits, build

PII = compile_policy(
    {"policy": "p", "guardrails": [{"name": "pii", "kind": "pii", "applies_to": ["prompt", "response"]}]}
)

VALUES = [
    ("", "joe@example.com", "email"),
    ("", "joe.o-neil+tag@mail.example.co.uk", "email"),
    ("", "123-45-6789", "ssn"),
    ("", "123 45 6789", "ssn"),
    ("my ssn is ", "123456789", "ssn"),
    ("", "4111 1111 1111 1111", "credit_card"),
    ("", "4111-1111-1111-1111", "credit_card"),
    ("", "4111111111111111", "credit_card"),
    ("", "3782 822463 10005", "credit_card"),
    ("", "(212) 555-0123", "phone"),
    ("", "212 555 0123", "phone"),
    ("", "+1 212-555-0123", "phone"),
    ("", "+44 (0)20 7946 0958", "phone"),
    ("call me at ", "07700 900123", "phone"),
    ("", "10.0.0.1", "ip_address"),
    ("", "DE89 3704 0044 0532 0130 00", "iban"),
    ("", "GB82-WEST-1234-5698-7654-32", "iban"),
    ("passport no. ", "X1234567", "passport"),
    ("my driver's license is ", "D123-4567-8901", "driver_license"),
    ("account number: ", "12 34 56 78", "bank_account"),
    ("date of birth: ", "21 March 1984", "date_of_birth"),
    ("born on ", "1984-03-21", "date_of_birth"),
]
"""What stands before the value, the value, its rule."""


def encoded(text: str, *, hyphens: bool, lower: bool = False) -> str:
    out = quote(text, safe=".'()" if lower else "")
    out = out.replace("-", "%2D") if hyphens else out
    return out.replace("%2D", "%2d") if lower else out


def stream(policy: Policy, text: str, *places: int) -> str:
    gate = Gate(policy, AppliesTo.RESPONSE)
    edges = [0, *places, len(text)]
    effects = [e for a, b in pairwise(edges) for e in gate.feed(text[a:b])] + gate.finish()
    return "".join(e[1] for e in effects if e[0] in (RELEASE, REDACTED))


def test_it_works(hits: Hits) -> None:
    assert hits("pii", "to joe%40example.com, 123%2D45%2D6789") == [
        ("email", "joe%40example.com"), ("ssn", "123%2D45%2D6789")]  # fmt: skip


@pytest.mark.parametrize("hyphens", [True, False], ids=["hyphens", "plain hyphens"])
@pytest.mark.parametrize("lower", [True, False], ids=["lower case", "upper case"])
@pytest.mark.parametrize(("before", "value", "rule"), VALUES, ids=[f"{rule} {value}" for _, value, rule in VALUES])
def test_each_form_is_found_whole(before: str, value: str, rule: str, lower: bool, hyphens: bool) -> None:
    said = encoded(before, hyphens=False, lower=lower) + encoded(value, hyphens=hyphens, lower=lower)
    for text in (
        said,
        f"a={said}&b=1" if rule != "email" else f"a {said}&b=1",
        f"see%20{said}%20and",
        f"5%20{said}%20.",
    ):
        for applies_to in (AppliesTo.PROMPT, AppliesTo.RESPONSE):
            found = gate_text(PII, text, applies_to=applies_to).findings
            assert [finding.rule for finding in found] == [rule], text
            end = text.index(said) + len(said)
            start = end - len(encoded(value, hyphens=hyphens, lower=lower))
            assert found[0].start <= start
            assert found[0].end == end
            assert found[0].start == start or rule == "email", "what is glued to a mail address is hidden with it"


@pytest.mark.parametrize(("before", "value", "rule"), VALUES, ids=[f"{rule} {value}" for _, value, rule in VALUES])
def test_every_cut_hides_all_of_it(before: str, value: str, rule: str) -> None:
    text = f"see%20{quote(before, safe='')}{encoded(value, hyphens=True)}%20end"
    expected = stream(PII, text)
    assert encoded(value, hyphens=True)[:4] not in expected.replace(quote(before, safe=""), "")
    for at in range(len(text) + 1):
        assert stream(PII, text, at) == expected
    assert stream(PII, text, *range(len(text))) == expected


@pytest.mark.parametrize(
    "text",
    ["100%20of%2020%20people", "123%2D45%2E6789", "4111%201111%201111%201112", "000%2D12%2D3456", "%20%20%20",
     "50%-60%",     "a%40b", "%E2%82%AC%20100", "10%2C000%20-%2012%2C000", "21%2041%2012345678", "order%202125550123x"],
)  # fmt: skip
def test_what_is_no_value_passes(hits: Hits, text: str) -> None:
    assert hits("pii", text) == []


def test_the_digits_of_an_escape_are_none_of_the_value(hits: Hits) -> None:
    only = {"entities": {"credit_card": True}}
    assert hits("pii", "4111%201111%201111%201111", only) == [("credit_card", "4111%201111%201111%201111")]
    assert hits("pii", "%204111111111111111%20", only) == [("credit_card", "4111111111111111")]


def test_what_a_rule_may_hold_stays_small() -> None:
    holds = {rule.rule.id: rule.bound.characters for guardrail in PII.guardrails for rule in guardrail.rules}
    assert max(bound for rule, bound in holds.items() if rule != "email") <= 145
    assert holds["email"] <= 490


EVERYTHING = compile_policy(
    {
        "policy": "p",
        "guardrails": [
            {"name": "pii", "kind": "pii", "action": "redact"},
            {"name": "secrets", "kind": "secrets", "action": "redact"},
            {"name": "names", "kind": "keywords", "action": "redact", "config": {"keywords": ["Blue Heron"]}},
            {"name": "topics", "kind": "topics", "action": "redact", "config": {"deny": ["gambling"]}},
        ],
    }
)
TOKENS = [
    ("", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "github_token"),
    ("", "sk-proj-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW", "openai_api_key"),
    ("", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "jwt"),
    ("", "Blue Heron", "Blue Heron"),
    ("", "casino", "gambling"),
]
ESCAPES = ["\\n", "\\r", "\\t", "\\b", "\\f", "\\u0020", "\\u000A", "\\r\\n", "\\\\n", "\\\\u00a0"]


@pytest.mark.parametrize(("before", "value", "rule"), VALUES + TOKENS, ids=[f"{r} {v}" for _, v, r in VALUES + TOKENS])
def test_a_value_right_behind_an_escape_of_json_is_hidden_and_the_escape_stays(
    before: str, value: str, rule: str
) -> None:
    for escape in ESCAPES:
        text = f'{{"m": "seen{escape}{before}{value}\\tand more"}}'
        found = gate_text(EVERYTHING, text, applies_to=AppliesTo.RESPONSE).findings
        assert [(f.rule, text[f.start : f.end]) for f in found] == [(rule, value)], text
    text = f"seen\\n{before}{value}\\nmore"
    expected = stream(EVERYTHING, text)
    assert expected.startswith(f"seen\\n{before}[")
    assert expected.endswith("]\\nmore")
    for at in range(len(text) + 1):
        assert stream(EVERYTHING, text, at) == expected
    assert stream(EVERYTHING, text, *range(len(text))) == expected


def test_signs_of_a_value_that_json_escapes_hide_it_as_well(hits: Hits) -> None:
    for text, value, rule in (
        (r'{"m":"joe\u0040example.com"}', r"joe\u0040example.com", "email"),
        (r"no \u0022123\u002d45\u002d6789", r"123\u002d45\u002d6789", "ssn"),
        (r"4111\u00201111\u00a01111 1111", r"4111\u00201111\u00a01111 1111", "credit_card"),
        (r"ssn:\n123456789", "123456789", "ssn"),
    ):
        found = hits("pii", text)
        assert found == [(rule, value)] or rule == "credit_card", text
    assert hits("pii", r"4111\u00201111\u00201111\u00201111") == [
        ("credit_card", r"4111\u00201111\u00201111\u00201111")
    ]


@pytest.mark.parametrize(
    "text", [r"C:\new heron", r"a regex \d{3}-\d\d", r"\u12345-67", "\\nblue herons", r"\tcasinos"]
)
def test_what_stands_behind_a_backslash_and_is_no_value_passes(text: str) -> None:
    assert gate_text(EVERYTHING, text, applies_to=AppliesTo.RESPONSE).findings == []


def test_a_list_of_very_many_words_is_not_looked_for_behind_escapes() -> None:
    words = [f"word{number}x" for number in range(501)]
    for count, expected in ((500, ["word3x"]), (501, [])):
        listed = {"name": "n", "kind": "keywords", "action": "redact", "config": {"keywords": words[:count]}}
        policy = compile_policy({"policy": "p", "guardrails": [listed]})
        for text, found in ((r"a\nword3x", expected), ("a word3x", ["word3x"])):
            assert [f.rule for f in gate_text(policy, text, applies_to=AppliesTo.RESPONSE).findings] == found


PATHS = [r"C:\bin", r"CORP\bwilson", r"C:\bell", r"C:\bob", r"\b", r"\\b\bb", r"D:\boot\old\enum", r"[\b]", r"a\bé"]


@pytest.mark.parametrize("kind", ["keywords", "topics"])
def test_a_word_with_a_backslash_before_a_b_is_a_word_like_any_other(hits: Hits, kind: str) -> None:
    for word in PATHS:
        config: dict[str, object] = {"keywords": [word]} if kind == "keywords" else {"topics": {"t": [word, "xyzzy"]}}
        config |= {"deny": ["t"]} if kind == "topics" else {}
        for before in ("", "see ", r"\n", "%20"):
            found = [said for _, said in hits(kind, f"{before}{word} is it", config)]
            assert found == [word], (before, word)
        plain = word.replace("\\b", "")
        if plain != word:
            assert hits(kind, f"see {plain} there", config) == []


def test_a_border_goes_and_what_looks_like_one_stays() -> None:
    made = found_behind(Rule("r", r"\bx\\b\\\b[\b\]\b]\b[^]\b]\[\b"))
    assert made.escaped.endswith(r"(x\\b\\[\b\]\b][^]\b]\[)")


@pytest.mark.parametrize(
    "terms",
    [
        [f"{'weather' * 2}{n:03d}x" for n in range(800)],
        [f"прогноз погоды на завтра {'абвгдежзиклмнопрстуф'[n % 20]}{n}" for n in range(200)],
        [f"word{n:05d}x" for n in range(1_300)],
    ],
    ids=["phrases", "cyrillic", "words"],
)
def test_a_topic_that_is_too_long_for_two_forms_has_the_first(hits: Hits, terms: list[str]) -> None:
    config = {"deny": ["own"], "topics": {"own": terms}}
    assert hits("topics", f"On {terms[-1]}, as ever.", config) == [("own", terms[-1])]
    assert hits("topics", rf"On \n{terms[-1]}, as ever.", config) == []
    (rule,) = build("topics", config).rules()
    assert MAX_LENGTH * 0.7 < len(rule.pattern) <= MAX_LENGTH
    assert not rule.escaped


def test_a_topic_that_just_fits_twice_has_both_forms(hits: Hits) -> None:
    terms = [f"word{n:05d}x" for n in range(825)]
    config = {"deny": ["own"], "topics": {"own": terms}}
    assert hits("topics", rf"On \n{terms[-1]}, as ever.", config) == [("own", terms[-1])]
