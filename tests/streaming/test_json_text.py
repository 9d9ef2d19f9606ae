"""Tool arguments stay JSON, are matched as what they say, and give values back only where they may."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from guardrails.findings import AppliesTo
from guardrails.masking import Masker
from guardrails.policy import Policy, compile_policy
from streaming.core.effects import Effect
from streaming.core.gate import Gate
from streaming.core.json_text import JsonChannel, TooBig, walk_strings, with_strings
from streaming.core.snapshot import StateError
from tests.streaming.seeds import Seeds

MASKER = Masker([b"a key of this installation, long enough"], caller="alice", conversation="c")
ADDRESS = 'ann"é😀\\@example.com'
P = MASKER.placeholder(ADDRESS, "email")
EMPTY = compile_policy({"policy": "empty", "guardrails": []})
PII = compile_policy({"policy": "p", "guardrails": [
    {"name": "pii", "kind": "pii", "applies_to": ["tool_arguments"], "action": "redact",
     "config": {"entities": ["email", "credit_card", "ssn"]}},
    {"name": "frame", "kind": "regex", "applies_to": ["tool_arguments"], "action": "redact",
     "config": {"rules": [{"id": "frame", "pattern": "heron\": *\"[a-z]+", "placeholder": "[FRAME]"},
                          {"id": "list", "pattern": "7, *8, *9", "placeholder": "[LIST]"}]}}]})  # fmt: skip
STOP = compile_policy({"policy": "p", "guardrails": [
    {"name": "pii", "kind": "pii", "applies_to": ["tool_arguments"], "action": "block"}]})  # fmt: skip


def through(text: str, policy: Policy, *places: int, masker: Masker | None = None, store: bool = False) -> str:
    gate, channel = Gate(policy, AppliesTo.TOOL_ARGUMENTS), JsonChannel(masker)
    out = ""
    edges = [0, *places, len(text)]
    for a, b in itertools.pairwise(edges):
        out += channel.encode(gate.feed(channel.decode(text[a:b])))
        if store:
            channel = JsonChannel.restore(json.loads(json.dumps(channel.state())), masker)
            gate = Gate.restore(policy, json.loads(json.dumps(gate.state())))
    effects: list[Effect] = [*gate.feed(channel.decode_rest()), *gate.finish()]
    return out + channel.encode(effects) + ("" if gate.blocked else channel.finish())


def every_cut(text: str, policy: Policy, masker: Masker | None = None) -> str:
    expected = through(text, policy, masker=masker)
    for at in range(len(text) + 1):
        assert through(text, policy, at, masker=masker) == expected
    assert through(text, policy, *range(len(text)), masker=masker, store=True) == expected
    return expected


def test_it_works() -> None:
    arguments = r'{"to": "joe\u0040example.com", "card": 4111111111111111, "n": 1.5e3, "ok": [true, null]}'
    assert json.loads(every_cut(arguments, PII)) == {
        "to": "[EMAIL]", "card": "[CREDIT_CARD]", "n": 1500.0, "ok": [True, None]}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    ["{}", "[]", '""', "1", '{"a": "\\u00e9\\ud83d\\ude00\\n\\"\\\\\\/"}', '{"": [[], {}, "", -0.5, false]}',
     ' { "a" : 1 } ', '{"é": "ü😀", "b": {"c": [1, 2, {"d": "x"}]}}'],
)  # fmt: skip
def test_without_rules_the_arguments_say_the_same(arguments: str) -> None:
    assert json.loads(every_cut(arguments, EMPTY)) == json.loads(arguments)
    assert json.loads(every_cut(arguments, EMPTY, MASKER)) == json.loads(arguments)


@pytest.mark.parametrize(
    "spelled",
    ["joe@example.com", "joe\\u0040example.com", "\\u006a\\u006F\\u0065@example\\u002ecom", "joe@ex\\u0061mple.com"],
)
def test_however_a_value_is_spelled_it_is_hidden(spelled: str) -> None:
    shown = every_cut(f'{{"a": "to {spelled} now", "b": ["{spelled}"]}}', PII)
    assert json.loads(shown) == {"a": "to [EMAIL] now", "b": ["[EMAIL]"]}


def test_numbers_keys_and_words_of_which_something_is_hidden_become_strings() -> None:
    assert every_cut("[4111111111111111]", PII) == '["[CREDIT_CARD]"]'
    assert every_cut("4111111111111111", PII) == '"[CREDIT_CARD]"'
    assert json.loads(every_cut('{"joe@example.com": 1}', PII)) == {"[EMAIL]": 1}
    assert json.loads(every_cut('{"a": [7, 8, 9], "b": 7}', PII)) == {"a": ["[LIST]", "", ""], "b": 7}


def test_a_match_across_quotes_leaves_the_quotes() -> None:
    assert json.loads(every_cut('{"heron": "blue bird"}', PII)) == {"[FRAME]": " bird"}


def test_not_a_character_of_a_blocked_value_comes_out() -> None:
    for text in (r'{"a": 1, "to": "joe\u0040example.com"}', '{"a": 1, "card": 4111111111111111}'):
        for at in range(len(text) + 1):
            shown = through(text, STOP, at)
            assert shown in ('{"a": 1, "to": "', '{"a": 1, "card": ')


@pytest.mark.parametrize(
    "text",
    ['{"a": "x', '{"a": "\\', '{"a": "\\u00', '{"a": "\\ud83d', '{"a": "\\ud83d\\n', "not json joe@example.com",
     '"\\q"', '{"a": \\u0040}', '"\\udc00\\ud800x"', '{"a": "joe\\u0040example.co', '"\\u0000\\ud800\\ud800"',
     '"\\u+123"'],
)  # fmt: skip
def test_what_is_no_json_passes_the_gate_all_the_same(text: str) -> None:
    shown = every_cut(text, PII)
    assert "joe" not in shown
    shown.encode()


def test_values_come_back_in_json_only_for_a_tool_that_gets_them() -> None:
    text = json.dumps({"to": f"Ann: {P}", "url": f"http://evil.example/?q={P}"})
    assert json.loads(every_cut(text, EMPTY)) == {"to": f"Ann: {P}", "url": f"http://evil.example/?q={P}"}
    shown = json.loads(every_cut(text, EMPTY, MASKER))
    assert shown == {"to": f"Ann: {ADDRESS}", "url": f"http://evil.example/?q={P}"}


def test_the_gate_judges_what_the_model_wrote_and_never_the_value() -> None:
    text = json.dumps([P, "joe@example.com", P.lower()])
    assert json.loads(every_cut(text, PII, MASKER)) == [ADDRESS, "[EMAIL]", ADDRESS]


def test_strings_do_not_see_each_other() -> None:
    text = json.dumps(["<a href=", P, "http://evil.example/", P])
    assert json.loads(every_cut(text, EMPTY, MASKER)) == ["<a href=", ADDRESS, "http://evil.example/", ADDRESS]


def random_json(chance: random.Random, depth: int = 0) -> object:
    texts = ["", "x", "é😀\n", '"', "\\", "joe@example.com", P, f"{P}, ok", "4111111111111111", "a\u2028b", "\x7f"]
    match chance.randrange(8 if depth < 3 else 5):
        case 0:
            return chance.choice([True, False, None])
        case 1:
            return chance.choice([0, -12, 3.5, 4111111111111111, 123456])
        case 2 | 3 | 4:
            return chance.choice(texts)
        case 5 | 6:
            return [random_json(chance, depth + 1) for _ in range(chance.randrange(4))]
        case _:
            return {f"{chance.choice(texts)}!{i}": random_json(chance, depth + 1) for i in range(chance.randrange(4))}


def expected(value: object, back: bool) -> object:
    if isinstance(value, dict):
        return {expected(key, back): expected(item, back) for key, item in value.items()}
    if isinstance(value, list):
        return [expected(item, back) for item in value]
    if value == 4111111111111111:
        return "[CREDIT_CARD]"
    if not isinstance(value, str):
        return value
    value = value.replace("joe@example.com", "[EMAIL]").replace("4111111111111111", "[CREDIT_CARD]")
    return value.replace(P, ADDRESS) if back else value


def test_random_arguments_cut_anywhere() -> None:
    def check(seed: int) -> None:
        chance = random.Random(seed)
        value = {"a": random_json(chance), "b": random_json(chance)}
        text = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1]))
        places = sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(8)))
        for masker in (None, MASKER):
            shown = through(text, PII, *places, masker=masker, store=seed % 4 == 0)
            wanted = expected(value, back=masker is not None)
            assert json.loads(shown) == json.loads(json.dumps(wanted)), text

    Seeds(3, 400).each(check)


def test_state_of_another_format_is_refused() -> None:
    state = JsonChannel().state()
    state["format"] = 0
    with pytest.raises(StateError, match="state format 0"):
        JsonChannel.restore(state)


def test_every_string_of_a_request_is_found_and_can_be_replaced() -> None:
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": "a", "n": 3}],
        "x": {"y": [["b"], 1.5, None, True]},
    }
    found = walk_strings(request)
    assert [text for _, text in found] == ["m", "user", "a", "b"]
    assert found[2][0] == ("messages", 0, "content")
    upper = with_strings(request, {path: text.upper() for path, text in found})
    loud = {"role": "USER", "content": "A", "n": 3}
    assert upper == {"model": "M", "messages": [loud], "x": {"y": [["B"], 1.5, None, True]}}
    assert request["model"] == "m"
    assert with_strings(request, {}) is request
    assert with_strings("a", {(): "b"}) == "b"
    assert [text for _, text in walk_strings([1, 2.5, True, None], numbers=True)] == ["1", "2.5"]
    assert with_strings([1], {(0,): "[X]"}) == ["[X]"]
    with pytest.raises(KeyError):
        with_strings([1], {(0, "a"): "x"})


def test_too_much_is_refused_before_it_is_read_to_the_end() -> None:
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TooBig, match="more than 64 levels"):
        walk_strings(deep)
    with pytest.raises(TooBig, match="more than 3 strings"):
        walk_strings(["x"] * 4, max_strings=3)
    with pytest.raises(TooBig, match="more than 10 characters") as refused:
        walk_strings(["x" * 11], max_chars=10)
    assert refused.value.what == "characters"
