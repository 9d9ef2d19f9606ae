"""Values that a rule knows by the words around them: masked once, they go upstream nowhere else in the request."""

from __future__ import annotations

import json

import pytest

from guardrails.findings import Action, Finding, Mode
from guardrails.masking import Masker
from guardrails.policy import compile_policy
from streaming.gateway.gates import widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import guarded
from streaming.gateway.walker import Json

POLICY = widened(compile_policy({"policy": "p", "guardrails": [{"name": "pii", "kind": "pii", "action": "mask"}]}))
WORDED = {
    "ssn": ("my ssn is 123456789", "123456789"),
    "passport": ("my passport no. X1234567", "X1234567"),
    "driver_license": ("driver's license D1234567", "D1234567"),
    "bank_account": ("account number: 98765432", "98765432"),
    "date_of_birth": ("date of birth: 21 March 1984", "21 March 1984"),
    "phone": ("call me at 2125550123", "2125550123"),
}


async def sent(*messages: Json, **more: object) -> tuple[Json, Masks]:
    body: Json = {"model": "m", "messages": list(messages), **more}
    masks = Masks(POLICY, body, caller="c")
    prompted = await guarded(POLICY, body, media_allowed=False, mask=masks.mask, swept=masks.swept)
    assert prompted.blocked is None
    return prompted.body, masks


def user(said: object) -> Json:
    return {"role": "user", "content": said}


def assistant(said: object, **more: object) -> Json:
    return {"role": "assistant", "content": said, **more}


@pytest.mark.parametrize("kind", WORDED)
async def test_it_works(kind: str) -> None:
    """Turn 2: the answer of turn 1, in which the client got the value back, is part of what is sent."""
    said, value = WORDED[kind]
    upstream, masks = await sent(user(said), assistant(f"Noted {value}."), user("And now?"))
    first, second, _ = upstream["messages"]  # type: ignore[misc]
    assert value not in json.dumps(upstream)
    placeholder = str(second["content"]).removeprefix("Noted ").removesuffix(".")  # type: ignore[index]
    assert placeholder in str(first["content"])  # type: ignore[index]
    assert masks.masked == 1


@pytest.mark.parametrize("kind", WORDED)
async def test_arguments_that_were_restored_for_a_tool_are_masked_in_the_next_turn(kind: str) -> None:
    said, value = WORDED[kind]
    escaped = json.dumps({"to": value, "ok": True}).replace(value[-1], f"\\u{ord(value[-1]):04x}")
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "send", "arguments": text}}
        for n, text in enumerate((json.dumps({"to": value}), escaped, json.dumps([json.dumps({"to": value})])))
    ]
    calls += [
        {"id": "c", "function": {"name": "x", "arguments": text}} for text in (escaped + "}", escaped[:-1], escaped * 2)
    ]
    upstream, _ = await sent(user(said), assistant(None, tool_calls=calls), user("And now?"))
    seen = json.dumps(upstream)
    assert value not in seen
    assert value[:-1] not in seen
    (call, other, *_) = upstream["messages"][1]["tool_calls"]  # type: ignore[index,call-overload]
    assert set(json.loads(call["function"]["arguments"])) == {"to"}
    assert json.loads(other["function"]["arguments"])["ok"] is True


async def test_numbers_and_names_of_fields_are_looked_at_and_parameters_stay() -> None:
    block: Json = {
        "type": "tool_use",
        "id": "t",
        "name": "send",
        "input": {"123456789": [123456789, 5], "n": "123456789"},
    }
    upstream, _ = await sent(user("my ssn is 123456789"), assistant([block]), user("Go."), seed=123456789)
    assert "123456789" not in json.dumps(upstream["messages"])
    assert upstream["seed"] == 123456789


async def test_a_value_further_down_is_masked_above_as_well() -> None:
    upstream, _ = await sent(
        user("noted 123456789"), assistant("Yes?"), user("my ssn is 123456789"), system="123456789?"
    )
    assert "123456789" not in json.dumps(upstream)


async def test_its_percent_encoded_form_is_masked_and_a_longer_number_is_not() -> None:
    upstream, _ = await sent(user("date of birth: 21 March 1984"), user("?q=21%20March%201984&n=1121 March 1984"))
    said = str(upstream["messages"][1]["content"])  # type: ignore[index,call-overload]
    assert "21%20March" not in said
    assert "1121 March 1984" in said


async def test_the_message_in_the_record_is_what_went_upstream() -> None:
    body: Json = {"model": "m", "messages": [user("my ssn is 123456789"), assistant("?"), user("that is 123456789")]}
    masks = Masks(POLICY, body, caller="c")
    prompted = await guarded(POLICY, body, media_allowed=False, mask=masks.mask, swept=masks.swept)
    assert "123456789" not in prompted.shown
    assert prompted.raw == "that is 123456789"


async def redacted(*messages: Json, guardrails: list[Json] | None = None, **more: object) -> Json:
    rules: list[Json] = guardrails or [{"name": "pii", "kind": "pii", "action": "redact"}]
    policy = widened(compile_policy({"policy": "r", "guardrails": rules}))
    body: Json = {"model": "m", "messages": list(messages), **more}
    masks = Masks(policy, body, caller="c")
    prompted = await guarded(
        policy, body, media_allowed=False, mask=masks.mask, swept=masks.swept, masked=masks.swept_of_masked
    )
    assert masks.masked == 0
    return prompted.body


@pytest.mark.parametrize("kind", WORDED)
async def test_what_was_redacted_in_one_text_is_redacted_in_every_other(kind: str) -> None:
    said, value = WORDED[kind]
    block: Json = {"type": "tool_use", "id": "t", "name": "send", "input": {value: [value], "n": json.dumps([value])}}
    upstream = await redacted(user(said), assistant(f"Noted {value}."), assistant([block]), user("And now?"))
    assert value not in json.dumps(upstream)
    label = str(upstream["messages"][1]["content"]).removeprefix("Noted ").removesuffix(".")  # type: ignore[index,call-overload]
    assert label == f"[{kind.upper()}]"
    assert label in str(upstream["messages"][0]["content"])  # type: ignore[index,call-overload]


async def test_what_was_redacted_stays_where_the_dialect_wants_a_name_or_a_number() -> None:
    """Else the request is another one: another model, a tool that there is not, a schema that is none."""
    more: Json = {
        "model": "m-12345678", "logit_bias": {"12345678": -1}, "user": "12345678",
        "tools": [{"type": "web_search_12345678", "name": "s", "input_schema": {"type": "object", "properties": {
            "n": {"type": "integer", "maximum": 12345678, "description": "not 12345678"}}}}],
    }  # fmt: skip
    call = {"id": "call_12345678", "type": "function", "function": {"name": "f", "arguments": '{"n": 12345678}'}}
    results = [
        assistant(None, tool_calls=[call]),
        {"role": "tool", "tool_call_id": "call_12345678", "content": '{"12345678": 1, "87654321": 2}'},
    ]
    said = [user("account number: 12345678"), user("account number: 87654321")]
    upstream = await redacted(*said, *results, **more)
    assert [upstream[name] for name in ("model", "logit_bias")] == [more[name] for name in ("model", "logit_bias")]
    assert upstream["user"] == "[BANK_ACCOUNT]"
    (tool,) = upstream["tools"]  # type: ignore[misc]
    wanted: Json = {"type": "integer", "maximum": 12345678, "description": "not [BANK_ACCOUNT]"}
    assert (tool["type"], tool["input_schema"]["properties"]["n"]) == ("web_search_12345678", wanted)
    *_, asked, told = upstream["messages"]  # type: ignore[misc]
    (made,) = asked["tool_calls"]
    assert (made["id"], told["tool_call_id"]) == ("call_12345678", "call_12345678")
    assert "12345678" not in made["function"]["arguments"]
    assert sorted(json.loads(told["content"]).values()) == [1, 2], "names that become the same stay apart"
    assert "87654321" not in told["content"]


async def test_what_was_redacted_stays_where_it_is_part_of_a_longer_number_or_has_four_characters() -> None:
    code: Json = {"name": "c", "kind": "regex", "action": "redact", "config": {"rules": [
        {"id": "c", "pattern": "(?:code: )(?P<secret>[0-9]{4,9})"}]}}  # fmt: skip
    noted = user("noted 1234567890 and 1234")
    upstream = await redacted(user("code: 123456789"), user("code: 1234"), noted, guardrails=[code])
    assert "1234" not in json.dumps(upstream["messages"][:2])  # type: ignore[index]
    assert upstream["messages"][2] == noted  # type: ignore[index,call-overload]


async def test_a_text_that_was_redacted_for_its_length_is_no_value() -> None:
    long = "some words and then many more words"
    length: Json = {"name": "l", "kind": "length", "action": "redact", "config": {"max_chars": 20}}
    rules: Json = {"name": "p", "kind": "pii", "action": "redact"}
    short = user(long[20:])
    upstream = await redacted(user(long), short, guardrails=[length, rules])
    assert upstream["messages"][1] == short  # type: ignore[index,call-overload]


def test_who_is_asked_is_told_what_was_redacted() -> None:
    """Only what is masked is hidden from guardrails over the network."""
    masker = Masker([b"a key of this installation, long enough"], caller="c", conversation="d")
    finding = Finding("g", "regex", "r", "c", 6, 15, Mode.BLOCK, Action.REDACT, "prompt")
    shown = masker.mask("code: 123456789", [finding], [(6, "[C]")], redacting=frozenset({"g"}))
    assert shown == "code: [C]"
    assert masker.swept("noted 123456789") == "noted [C]"
    assert masker.swept("noted 123456789", redacted=False) == "noted 123456789"
    assert not len(masker)
