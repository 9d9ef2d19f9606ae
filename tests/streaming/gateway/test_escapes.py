"""Escapes in texts that no parser takes: whatever their quotes say, a value hides behind none of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from guardrails.findings import Action, Finding, Mode
from guardrails.policy import Policy, compile_policy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.loose_json import laid_open
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import guarded
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_odd_arguments import sent_of
from tests.streaming.gateway.test_walkers import openai
from tests.streaming.gateway.walked import REDACTING, WALKERS, walk_whole

TOKEN = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
GUARDRAILS: list[Json] = [
    {"name": "pii", "kind": "pii", "action": "mask"},
    {"name": "secrets", "kind": "secrets", "action": "mask"},
    {"name": "names", "kind": "keywords", "action": "mask", "config": {"keywords": ["Blue Heron", "Zoë"]}},
]
POLICY = widened(compile_policy({"policy": "p", "guardrails": GUARDRAILS}))
HIDDEN = {
    "an address of a machine": (r"\n203.0.113.77", "203.0.113.77"),
    "a token": (rf"\n{TOKEN}", TOKEN[4:]),
    "an account": (r"\nDE89370400440532013000", "DE8937040044"),
    "a code name": (r"\nBlue Heron", "Heron"),
    "a code name with an escape in it": (r"\tBlue\u0020Heron", "Heron"),
    "a code name by its letters": (r"\u005ao\u00eb is", r"\u00eb is"),
    "a worded number": (r"ssn:\n123456789", "123456789"),
    "a number behind two line ends": (r"ssn:\n\n\n123456789", "123456789"),
    "a mail address": (r"\njoe\u0040example.com", "example"),
    "a mail address in JSON within JSON": (r"\\\"m\\\":\\\"j\\u006fe\\u0040example.com\\\"", "example"),
    "a card by numbers of code": (r"4111\x201111\x201111\x201111", "1111"),
}
AROUND = {
    "cut short": '{"a": "x ~", "b": [',
    "lines": '{"a": 1}\n{"a": "~"}\n',
    "behind a word": 'Result: {"a": "~"}',
    "code": "print('~')  # \\d+ and \\n",
    "odd quotes": '5" wide, {"a": "~"}',
    "a line of a log": "12:00:01 WARN said=~\\n",
}


async def sent(*texts: object, policy: Policy = POLICY) -> tuple[Json, Masks]:
    body: Json = {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}
    masks = Masks(policy, body, caller="c")
    prompted = await guarded(policy, body, media_allowed=False, mask=masks.mask, swept=masks.swept)
    return prompted.body, masks


def contents(body: Json) -> list[str]:
    return [str(message["content"]) for message in body["messages"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("how", HIDDEN)
async def test_it_works(how: str, around: str) -> None:
    written, value = HIDDEN[how]
    text = AROUND[around].replace("~", written)
    body, masks = await sent(text)
    (upstream,) = contents(body)
    assert value not in upstream
    assert masks.masked >= 1


async def test_escapes_that_hide_nothing_stay_as_they_are() -> None:
    code = r'print("a\nb\t\u00e9", re.sub(r"\d+", "\\x41", s))' + "\n" + r'x = "5\" wide"; y = C:\new\table'
    assert contents((await sent(code))[0]) == [code]
    body, _ = await sent(code + " # joe@example.com and " + r"'\nghp" + TOKEN[3:] + "'")
    (upstream,) = contents(body)
    assert upstream.startswith(code + " # MASK-MAIL-")
    assert r"'\nMASK-" in upstream, "what stands before a value that is found as it is stays an escape"


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("written", [r"\n123456789", r"\\n12345\u0036789", r"\u0031\x32345678\u0039"])
async def test_a_value_that_is_known_from_another_text_is_found_behind_escapes(written: str, around: str) -> None:
    body, _ = await sent("my ssn is 123456789", AROUND[around].replace("~", f"noted {written} so"))
    upstream = contents(body)[1]
    assert "345" not in upstream
    assert "MASK-SSNO-" in upstream


@pytest.mark.parametrize(
    "name", [r"a\njoe\u0040example.com", '{"m": "joe\\u0040example.com"}', r'5" {"ssn": "my ssn:\n123456789"}']
)
async def test_names_of_fields_that_are_json_or_have_escapes_hide_nothing(name: str) -> None:
    body: Json = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "metadata": {name: 1}}
    masks = Masks(POLICY, body, caller="c")
    prompted = await guarded(POLICY, body, media_allowed=False, mask=masks.mask, swept=masks.swept)
    for said in (
        json.dumps(prompted.body["metadata"]),
        json.dumps(walk_whole("openai", answered({"new": {name: 1}}), REDACTING)),
    ):
        assert "example" not in said
        assert "123456789" not in said


def answered(more: Json) -> Json:
    message = {"role": "assistant", "content": "Hi."}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_arguments_hide_nothing_behind_the_parity_of_their_quotes(around: str) -> None:
    said = sent_of(AROUND[around].replace("~", r"pay with 4111\x201111\x201111\x201111"), REDACTING)
    assert "1111" not in said
    assert "[CREDIT_CARD]" in said


def test_json_within_a_string_of_the_arguments_hides_nothing() -> None:
    inner = json.dumps({"note": 'x" {"m": "joe\\u0040example.com"'})
    assert "example" not in sent_of(json.dumps({"text": inner}), REDACTING)


def test_a_stream_of_json_as_text_hides_nothing_at_any_cut() -> None:
    text = r'{"a":"x\n203.0.113.77","m":"joe\u0040example.com","n":"\u002d\n123-45-6789"}'
    for at in range(len(text) + 1):
        walker = WALKERS["openai"](Gates(REDACTING))
        out = ""
        for part, reason in ((text[:at], None), (text[at:], "stop")):
            walker.take(openai({"content": part}, reason))
            out += json.dumps(walker.drain())
        walker.finish()
        out += json.dumps(walker.drain())
        assert not {"203.0", "113.77", "example", "joe", "6789"} & {
            part for part in ("203.0", "113.77", "example", "joe", "6789") if part in out
        }, at


def test_a_text_with_nothing_in_it_costs_no_look() -> None:
    looks: list[str] = []

    def looked(text: str) -> list[object]:
        looks.append(text)
        return []

    assert laid_open("no escapes", looked) == "no escapes"  # type: ignore[arg-type]
    assert laid_open("a \\d that is none", looked) == "a \\d that is none"  # type: ignore[arg-type]
    assert looks == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("before", ["", r"\n", r"\ud83d"])
def test_a_million_backslashes_that_are_no_escape_cost_what_the_text_costs(before: str) -> None:
    text = before + "\\" * 1_000_000 + " so"
    assert laid_open(text, lambda text: []) == text


@pytest.mark.parametrize("how_often", [1, 2, 3, 4, 9])
def test_an_escape_that_was_escaped_any_number_of_times_is_read(how_often: int) -> None:
    by, looks = "\\" * how_often, list[str]()

    def looked(text: str) -> list[Finding]:
        looks.append(text)
        return []

    written = f"a{by}n{by}u0041{by}x42{by}'c{by}ud83d{by}ude00{by}ud83d{by}d{by}"
    assert laid_open(written, looked) == written
    assert looks == [f"a\nAB'c\U0001f600\ufffd{by}d{by}"]


def finds(**rules: tuple[str, Action]) -> Callable[[str], list[Finding]]:
    """What looks at a text with regular expressions: a rule's name, its pattern and what it does."""
    return lambda text: [
        Finding("g", "regex", rule, "", match.start(), match.end(), Mode.BLOCK, action)
        for rule, (pattern, action) in rules.items()
        for match in re.finditer(pattern, text)
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("between", [r"\n", r"\x2d"])
def test_many_values_between_many_escapes_cost_what_the_text_costs(between: str) -> None:
    """3,000 addresses: no pairs of findings are compared, and no list of escapes is made for each."""
    people = [f"p{number}@example.com" for number in range(3_000)]
    text = between.join(people)
    mail = (r"[a-z0-9]+@[a-z.]+com", Action.MASK)
    assert laid_open(text, finds(mail=mail)) == text, "each is found as it is"
    opened = laid_open(text + r" joe\u0040example.com", finds(mail=mail))
    assert opened.endswith(r" joe@example.com")
    assert opened.startswith(between.join(people[:2_900])), "far from what was hidden all stays"
    hidden = between.join(person.replace("@", r"\u0040") for person in people)
    assert laid_open(hidden, finds(mail=mail)).count("@") == len(people)


@pytest.mark.timeout(60)
def test_findings_that_are_as_long_as_the_text_cost_no_more() -> None:
    text = r"a\n" * 10_000

    def looked(said: str) -> list[Finding]:
        kind, action = ("text", Action.WARN) if "\\" in said else ("read", Action.MASK)
        return [Finding("g", "regex", kind, "", 0, len(said), Mode.BLOCK, action)] * 10_000

    assert laid_open(text, looked) == "a\n" * 10_000


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_what_is_opened_for_one_value_hides_no_other(order: tuple[int, int]) -> None:
    code: Json = {"name": "code", "kind": "keywords", "action": "block", "config": {"keywords": [r"ACME\finance"]}}
    rules = widened(compile_policy({"policy": "p", "guardrails": [*GUARDRAILS, code]}))
    parts = (r"ACME\finance", r"4111\x2d1111\x2d1111\x2d1111")
    for between in (" ", " and a long way from there on to the next of the two, which is some way off: " * 2, r"\n"):
        text = between.join(parts[at] for at in order)
        body: Json = {"model": "m", "messages": [{"role": "user", "content": text}]}
        masks = Masks(rules, body, caller="c")
        prompted = await guarded(rules, body, media_allowed=False, mask=masks.mask, swept=masks.swept)
        assert prompted.blocked is not None, text


MASKED_CARD = (r"\b\d{4}(?:-\d{4}){3}\b", Action.MASK)
CARD = r"4111\x2d1111\u002d1111\x2d1111"


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        (r"ACME\\finance", r"ACME\finance"), (r"\bnothing\b", r"C:\nothing"), (r"code:\\", r"code:\"x"),
        (r"\bfoo\b", r"foo\x41"), (r"\bu0041cme\b", r"\u0041cme"), (r"a\\nb\\nc", r"a\nb\nc"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["~ {card}", "{card} ~", "~ {card} ~", "a\\t ~ and ~ {card} \\/ ~"])
def test_an_escape_in_a_value_that_is_found_as_it_is_stays(text: str, pattern: str, kept: str) -> None:
    rules = finds(kept=(pattern, Action.BLOCK), card=MASKED_CARD)
    said = laid_open(text.replace("~", kept).format(card=CARD), rules)
    assert [f.rule for f in rules(said)].count("kept") == text.count("~")
    assert "4111-1111-1111-1111" in said


def test_it_stays_too_where_all_others_are_opened() -> None:
    """A rule that needs words from far away: every escape is opened but the one that another value needs."""
    rules = finds(kept=(r"ACME\\finance", Action.BLOCK), far=(r"card\tis[^\\]{80,}\d{4}-\d{4}", Action.MASK))
    text = r"ACME\finance card\tis " + "x" * 80 + r" 4111\x2d1111"
    assert laid_open(text, rules) == r"ACME\finance card" + "\tis " + "x" * 80 + " 4111-1111"
    behind = (r"(?<=card\tis" + "x" * 80 + r")\d{4}", Action.MASK)
    far = finds(kept=(r"ACME\\finance", Action.BLOCK), far=behind)
    text = r"ACME\finance card\tis" + "x" * 80 + "4111"
    assert laid_open(text, far) == r"ACME\finance card" + "\tis" + "x" * 80 + "4111", "none of them near the value"


def test_an_escape_that_two_values_share_is_for_the_one_that_does_more() -> None:
    mail, host = r"joe@[a-z.]+", r"u0040[a-z.]+"
    text = r"joe\u0040example.com"
    for action, said in (
        (Action.WARN, "joe@example.com"), (Action.MASK, "joe@example.com"), (Action.BLOCK, text),
    ):  # fmt: skip
        assert laid_open(text, finds(mail=(mail, Action.MASK), host=(host, action))) == said
    assert laid_open(text, finds(mail=(mail, Action.BLOCK), host=(host, Action.BLOCK))) == "joe@example.com"
