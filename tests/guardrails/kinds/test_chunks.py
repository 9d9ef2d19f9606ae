"""The kinds' rules under every way of cutting a text: same visible text, and no character of a value ever shown."""

from __future__ import annotations

import random
from functools import cache

import pytest

from guardrails.policy import Policy, compile_policy
from streaming.core.cases import Case, run_case

HEX = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
PLANTED = {
    "pii": [
        "123-45-6789", "4111 1111 1111 1111", "joe.bloggs@mail.example.com", "(212) 555-0123", "+44 20 7946 0958",
        "DE89 3704 0044 0532 0130 00", "10.20.30.40", "2001:db8::ff00:42:8329", "４１１１１１１１１１１１１１１１",
    ],
    "secrets": [
        "sk-proj-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW", f"ghp_{HEX}aBcD", "AKIAQ4XYZ7LMNOP2RSTU", f"SK{HEX}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----",
    ],
}  # fmt: skip
AROUND = ["~", "a ~ b", "~.", "好~好", "~\U0001f600", "2 ~ 12/27", "~ ~", "(~)", "\u200b~\u200b", "x\n~\ny"]


@cache
def policy() -> Policy:
    return compile_policy({"policy": "p", "guardrails": [{"kind": "pii"}, {"kind": "secrets"}]})


def visible(chunks: tuple[str, ...]) -> tuple[str, list[object]]:
    result = run_case(policy(), Case(1, chunks))
    assert result["visible"] is not None
    found: list[object] = [(f["rule"], f["start"], f["end"], f["exposed"]) for f in result["findings"]]
    return result["visible"], found


def cut(text: str, rng: random.Random) -> tuple[str, ...]:
    chunks, at = [], 0
    while at < len(text):
        size = rng.randint(1, 6)
        chunks.append(text[at : at + size])
        at += size
    return tuple(chunks)


@pytest.mark.parametrize("value", [value for values in PLANTED.values() for value in values])
@pytest.mark.parametrize("around", AROUND)
def test_every_split_shows_the_same_and_never_the_value(value: str, around: str) -> None:
    text = around.replace("~", value)
    whole = visible((text,))
    assert value not in whole[0]
    assert whole[1], "the value is found"
    assert all(entry[3] == 0 for entry in whole[1])  # type: ignore[index]
    assert visible(tuple(text)) == whole
    for at in range(1, len(text)):
        assert visible((text[:at], text[at:])) == whole
    for seed in range(20):
        assert visible(cut(text, random.Random(seed))) == whole


def test_it_works() -> None:
    assert visible(("mail jo", "e@exam", "ple.com now"))[0] == "mail [EMAIL] now"


def test_ignorable_characters_do_not_make_the_gate_hold_for_ever() -> None:
    text = "4" + "\u200b" * 200_000 + "111 1111 1111 1111"
    result = run_case(policy(), Case(1, (text[:100], text[100:], "end")))
    assert result["visible"] == text + "end"
    assert max(result["held"]) < 20_000


@pytest.mark.parametrize("text", ["这是一个没有空格的很长的句子" * 200, "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 100])
def test_text_without_spaces_still_flows(text: str) -> None:
    result = run_case(policy(), Case(1, tuple(text[at : at + 5] for at in range(0, len(text), 5))))
    assert result["visible"] == text
    assert max(result["held"]) <= 600
