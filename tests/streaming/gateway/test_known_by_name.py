"""Values that a rule knows by the name of their field: whatever the dialect makes of the object, they stay here."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from guardrails.kinds import base
from guardrails.policy import Policy, compile_policy
from guardrails.selectors import ShadowPolicy
from streaming.gateway.by_name import by_name, without_name, written
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import Prompted, guarded
from streaming.gateway.shadow import Noted, looked
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_gives_way import others
from tests.streaming.gateway.test_prompts import user
from tests.streaming.gateway.test_told_upstream import Near
from tests.streaming.gateway.test_walkers import anthropic_block, cut, ollama_call, openai_call
from tests.streaming.gateway.walked import BLOCKING, OPEN, WALKERS, walk, walk_whole

SSN = "123456789"
POLICIES = {
    action: widened(compile_policy({"policy": action, "guardrails": [{"name": "p", "kind": "pii", "action": action}]}))
    for action in ("mask", "redact", "warn", "block")
}


def openai(arguments: object) -> Json:
    function = {"name": "f", "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}


def anthropic(arguments: object) -> Json:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": arguments}]}


def ollama(arguments: object) -> Json:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


PLACES: dict[str, tuple[Callable[[object], Json], Callable[[Json], object]]] = {
    "OpenAI's string": (
        lambda said: {"messages": [user("Hi"), openai(said)]},
        lambda body: json.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]),  # type: ignore[index]
    ),
    "Anthropic's input": (
        lambda said: {"messages": [user("Hi"), anthropic(said)]},
        lambda body: body["messages"][1]["content"][0]["input"],  # type: ignore[index]
    ),
    "Ollama's arguments": (
        lambda said: {"messages": [user("Hi"), ollama(said)]},
        lambda body: body["messages"][1]["tool_calls"][0]["function"]["arguments"],  # type: ignore[index]
    ),
    "metadata": (lambda said: {"messages": [user("Hi")], "metadata": said}, lambda body: body["metadata"]),
    "a field nobody knows": (lambda said: {"messages": [user("Hi")], "x": {"y": said}}, lambda body: body["x"]["y"]),  # type: ignore[index]
    "a field of a message that nobody knows": (
        lambda said: {"messages": [user("Hi") | {"context": said}]},
        lambda body: body["messages"][0]["context"],  # type: ignore[index]
    ),
    "a part of a message that nobody knows": (
        lambda said: {"messages": [user([{"type": "text", "text": "Hi"}, {"type": "data", "data": said}])]},
        lambda body: body["messages"][0]["content"][1]["data"],  # type: ignore[index]
    ),
    "a field of a tool that nobody knows": (
        lambda said: {"messages": [user("Hi")], "tools": [{"name": "f", "input_schema": {}, "input_examples": said}]},
        lambda body: body["tools"][0]["input_examples"],  # type: ignore[index]
    ),
    "examples of a schema": (
        lambda said: {
            "messages": [user("Hi")],
            "tools": [{"function": {"name": "f", "parameters": {"examples": said}}}],
        },
        lambda body: body["tools"][0]["function"]["parameters"]["examples"],  # type: ignore[index]
    ),
    "a message that was parsed": (
        lambda said: {"messages": [user("Hi"), {"role": "assistant", "content": "Ho", "parsed": said}]},
        lambda body: body["messages"][1]["parsed"],  # type: ignore[index]
    ),
    "a call that was parsed": (
        lambda said: {
            "messages": [
                user("Hi"),
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}", "parsed_arguments": said}}],
                },
            ]
        },
        lambda body: body["messages"][1]["tool_calls"][0]["function"]["parsed_arguments"],  # type: ignore[index]
    ),
    "a result": (
        lambda said: {"messages": [user([{"type": "tool_result", "content": [{"type": "json", "json": said}]}])]},
        lambda body: body["messages"][0]["content"][0]["content"][0]["json"],  # type: ignore[index]
    ),
}
ARGUMENTS: dict[str, object] = {
    "a string": {"ssn": SSN, "ok": True},
    "a number": {"ssn": int(SSN), "ok": True},
    "a number as one of computing": {"ssn": float(SSN), "ok": True},
    "deep": {"a": [{"b": {"ssn": int(SSN)}}], "ok": True},
    "a list": [{"ssn": SSN}, {"ok": True}],
    "arguments within": {"input": {"arguments": {"ssn": int(SSN)}}, "metadata": [{"ssn": SSN}]},
    "JSON within": {"input": json.dumps({"ssn": SSN}), "ssn": SSN},
}


async def passed(body: Json, action: str) -> Prompted:
    policy = POLICIES[action]
    masks = Masks(policy, body, caller="c")
    mask, swept, hide = masks.mask, masks.swept, masks.hidden
    return await guarded(policy, {"model": "m", **body}, media_allowed=False, mask=mask, swept=swept, hide=hide)


async def test_it_works() -> None:
    made, got = PLACES["Anthropic's input"]
    found = await passed(made({"ssn": SSN}), "redact")
    assert got(found.body) == {"ssn": "[SSN]"}
    assert [finding.category for finding in found.findings] == ["ssn"]


@pytest.mark.parametrize("action", ["mask", "redact"])
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("place", PLACES)
async def test_what_the_name_of_a_field_says_goes_upstream_nowhere(place: str, arguments: object, action: str) -> None:
    """And arguments are JSON again, in which a number that was hidden is a string."""
    made, got = PLACES[place]
    found = await passed(made(arguments), action)
    assert SSN not in json.dumps(found.body)
    said = got(found.body)
    assert isinstance(said, type(arguments))
    assert ("MASK-SSNO-" if action == "mask" else "[SSN]") in json.dumps(said)
    if isinstance(said, dict) and "ok" in said:
        assert said["ok"] is True


@pytest.mark.parametrize("place", PLACES)
async def test_it_blocks_and_is_told_once(place: str) -> None:
    made, got = PLACES[place]
    assert (await passed(made({"ssn": SSN}), "block")).blocked is not None
    mail = {"mail": "joe@b.example", "ssn": SSN}
    found = await passed(made(mail), "warn")
    assert got(found.body) == mail
    if place != "OpenAI's string":
        assert sorted(finding.category for finding in found.findings) == ["email", "ssn"]


@pytest.mark.parametrize("place", PLACES)
async def test_arguments_in_which_nothing_is_found_are_what_they_were(place: str) -> None:
    made, got = PLACES[place]
    said = {"q": 'a "b"\n\\d ☃', "n": [1, 2.5, 1e300, None, True], "deep": {"": {}}}
    assert got((await passed(made(said), "mask")).body) == said


FIELDS: dict[str, Json] = {
    "a result without parts": {"messages": [user("Hi"), {"role": "tool", "content": {"ssn": SSN}}]},
    "a message": {"messages": [user("Hi") | {"ssn": SSN}]},
    "a message, as a number": {"messages": [user("Hi") | {"ssn": int(SSN)}]},
    "a message, as a list": {"messages": [user("Hi") | {"ssn": [SSN, {"ssn": SSN}]}]},
    "a part": {"messages": [user([{"type": "text", "text": "Hi", "ssn": SSN}])]},
    "a call": {"messages": [user("Hi"), {"role": "assistant", "tool_calls": [{"function": {"ssn": SSN}}]}]},
    "the request": {"messages": [user("Hi")], "ssn": SSN},
    "a tool": {"messages": [user("Hi")], "tools": [{"name": "f", "ssn": SSN}]},
    "no schema": {"messages": [user("Hi")], "tools": [{"name": "f", "input_schema": {"properties": {"ssn": SSN}}}]},
    "the value of a schema": {"messages": [user("Hi")], "format": {"properties": {
        "ssn": {"type": "string", "default": SSN}}}},
    "the values of a schema": {"messages": [user("Hi")], "response_format": {"json_schema": {"schema": {"properties": {
        "a": {"items": {"properties": {"ssn": {"anyOf": [{"enum": [SSN, "none"]}, {"const": SSN}]}}}}}}}}},
}  # fmt: skip


@pytest.mark.parametrize("action", ["mask", "redact"])
@pytest.mark.parametrize("body", FIELDS.values(), ids=FIELDS)
async def test_what_the_name_of_a_field_says_of_one_value_goes_upstream_nowhere(body: Json, action: str) -> None:
    found = await passed(body, action)
    said = json.dumps(found.body)
    assert SSN not in said
    assert ("MASK-SSNO-" if action == "mask" else "[SSN]") in said
    assert "none" in said or "none" not in json.dumps(body)


SCHEMA: Json = {
    "type": "object",
    "properties": {
        "ssn": {"type": "string", "pattern": "[0-9]{9}", "maxLength": 123456789},
        "account number": {"type": "integer", "minimum": 10000000, "maximum": 98765432},
        "examples": {"type": "array", "items": {"$ref": "#/$defs/date of birth"}, "default": []},
        "enum": {"enum": ["a", "b", 1, None]},
    },
    "$defs": {"date of birth": {"type": "string", "format": "date", "const": "x"}, "ssn": True},
    "required": ["ssn"],
    "additionalProperties": False,
}
HONEST: dict[str, Json] = {
    "OpenAI": {
        "messages": [
            user([{"type": "text", "text": "Hi"}]),
            {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": {"id": "audio_1"},
             "tool_calls": [{"id": "c", "type": "function", "index": 0, "function": {
                 "name": "f", "arguments": '{"a": 1}', "parsed_arguments": {"a": 1, "b": [1.5, None, {}]}}}],
             "parsed": {"steps": [{"n": 1, "explanation": "x"}], "done": True}},
            {"role": "tool", "tool_call_id": "c", "content": "ok"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
        "logit_bias": {"50256": -100}, "stop": ["\n"], "metadata": {"a": "b"}, "seed": 123456789,
    },
    "Anthropic": {
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "5m"}}],
        "messages": [
            user("Hi"),
            anthropic({"a": [1, {"b": 2.0}]}),
            user([{"type": "tool_result", "tool_use_id": "t", "is_error": False, "content": [
                {"type": "text", "text": "x", "citations": [{"type": "char_location", "start_char_index": 1}]}]}]),
        ],
        "tools": [
            {"name": "f", "input_schema": SCHEMA, "input_examples": [{"account number": 1}], "strict": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5, "allowed_domains": ["example.com"],
             "user_location": {"type": "approximate", "city": "Bern", "timezone": "Europe/Zurich"}},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 2048}, "metadata": {"user_id": "u"},
    },
    "Ollama": {
        "messages": [user("Hi"), ollama({"a": 1}), {"role": "tool", "tool_name": "f", "content": "ok"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "format": SCHEMA, "options": {"num_ctx": 4096, "temperature": 0.5, "stop": ["x"]}, "keep_alive": "5m",
    },
}  # fmt: skip


@pytest.mark.parametrize("body", HONEST.values(), ids=HONEST)
async def test_a_request_in_which_nothing_is_found_goes_upstream_as_it_came(body: Json) -> None:
    for action in POLICIES:
        found = await passed(body, action)
        assert found.body == {"model": "m", **body}
        assert not found.findings
    nothing = widened(compile_policy({"policy": "n", "guardrails": []}))
    assert (await guarded(nothing, {"model": "m", **body}, media_allowed=True)).body == {"model": "m", **body}


@pytest.mark.parametrize("action", ["mask", "redact"])
async def test_a_schema_stays_one_where_a_value_of_it_is_hidden(action: str) -> None:
    rule: Json = {"id": "r", "pattern": '"?acct"?: ?.{8,40}'}
    policy = widened(compile_policy({"policy": "r", "guardrails": [
        {"name": "r", "kind": "regex", "action": action, "config": {"rules": [rule]}}]}))  # fmt: skip
    given: Json = {
        "type": "integer",
        "minimum": 10000000,
        "enum": [98765432, 98765433],
        "examples": [{"acct": 98765432}],
    }
    schema: Json = {"type": "object", "properties": {"acct": given}, "required": ["acct"]}
    body: Json = {"messages": [user("Hi")], "tools": [{"name": "f", "input_schema": schema}], "format": schema}
    masks = Masks(policy, body, caller="c")
    found = await guarded(policy, {"model": "m", **body}, media_allowed=False, mask=masks.mask, swept=masks.swept)
    assert "9876543" not in json.dumps(found.body)
    for sent in (found.body["tools"][0]["input_schema"], found.body["format"]):  # type: ignore[index]
        assert sent | {"properties": 0} == schema | {"properties": 0}
        left = sent["properties"]["acct"]
        assert left | {"enum": 0, "examples": 0} == given | {"enum": 0, "examples": 0}
        assert isinstance(left["enum"], list)
        assert isinstance(left["examples"], list)


async def test_an_object_is_no_text_that_may_be_too_long() -> None:
    length: Json = {"name": "l", "kind": "length", "action": "block", "config": {"max_chars": 100}}
    rules: Json = {"name": "p", "kind": "pii", "action": "redact"}
    policy = widened(compile_policy({"policy": "l", "guardrails": [length, rules]}))
    said = {f"field {number}": "short" for number in range(50)}
    for place in ("Anthropic's input", "Ollama's arguments", "metadata"):
        made, got = PLACES[place]
        found = await guarded(policy, {"model": "m", **made(said | {"ssn": SSN})}, media_allowed=False)
        assert found.blocked is None
        assert got(found.body) == said | {"ssn": "[SSN]"}
        record = await looked(ShadowPolicy(2, "d", policy), policy, Noted.of(found.looked), acted=True, session="s")
        assert {finding.category for finding in record.findings} == {"ssn"}


async def test_parameters_are_numbers_whatever_they_look_like() -> None:
    card = 4111111111111111
    body: Json = {"messages": [user("Hi")], "seed": card, "options": {"seed": card}}
    assert (await passed(body, "mask")).body == {"model": "m", **body}


async def test_a_rule_that_knows_a_number_by_its_not_being_a_string_hides_it() -> None:
    """What is left is no JSON then, and no number of anybody's."""
    rule = {"id": "account", "pattern": '"acct": [0-9]{8}'}
    policy = widened(compile_policy({"policy": "r", "guardrails": [
        {"name": "r", "kind": "regex", "action": "redact", "config": {"rules": [rule]}}]}))  # fmt: skip
    for place in PLACES:
        made, _ = PLACES[place]
        found = await guarded(policy, {"model": "m", **made({"acct": 98765432})}, media_allowed=False)
        assert "98765432" not in json.dumps(found.body)


async def test_large_arguments_are_looked_at_in_turns() -> None:
    fields = {f"field {number}": "word " * 10 for number in range(1_000)}
    async with others(100):
        found = await passed({"messages": [user("Hi"), anthropic(fields | {"ssn": SSN})]}, "mask")
    assert SSN not in json.dumps(found.body)


def answered(dialect: str, said: str) -> dict[str, list[Json]]:
    """Answers that call a function with these arguments, in every shape that the dialect has."""
    value = json.loads(said)
    call = {"id": "c", "type": "function", "function": {"name": "pay", "arguments": said}}
    block: Json = {"type": "tool_use", "id": "t", "name": "pay", "input": value}
    pieces: list[Json] = [{"type": "input_json_delta", "partial_json": part} for part in cut(said, 12)]
    whole: dict[str, Json] = {
        "openai": {"choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": [call]}}]},
        "anthropic": {"type": "message", "role": "assistant", "content": [block]},
        "ollama": {"message": {"content": "", "tool_calls": [{"function": {"name": "pay", "arguments": value}}]}},
    }
    streams = {
        "openai": {"streamed": openai_call(cut(said, 12))},
        "anthropic": {
            "streamed": anthropic_block(block | {"input": {}}, pieces),
            "at once": anthropic_block(block, []),
        },
        "ollama": {"streamed": ollama_call(value), "a string": ollama_call(said)},
    }
    return {"whole": [whole[dialect]], **streams[dialect]}


def arguments_in(sent: object) -> list[object]:
    """The arguments of calls, read, wherever they stand."""
    if isinstance(sent, list):
        return [found for part in sent for found in arguments_in(part)]
    if not isinstance(sent, dict):
        return []
    found = [sent[name] for name in ("arguments", "input", "partial_json") if sent.get(name)]
    return [json.loads(one) if isinstance(one, str) else one for one in found] + arguments_in(list(sent.values()))


@pytest.mark.parametrize("dialect", WALKERS)
def test_a_number_in_the_arguments_of_an_answer_is_hidden_and_the_answer_goes_on(dialect: str) -> None:
    """It becomes a string; a digit alone, a date and a sum stay numbers."""
    for said, shown in (
        (f'{{"ssn": {SSN}, "n": [1, 2.50, -3e5]}}', {"ssn": "[SSN]", "n": [1, 2.5, -3e5]}),
        (f'[{{"a": {{"ssn":{SSN}}}}}, "x"]', [{"a": {"ssn": "[SSN]"}}, "x"]),
        (f'{{"ssn": "{SSN}", "n": 1}}', {"ssn": "[SSN]", "n": 1}),
    ):
        for shape, chunks in answered(dialect, said).items():
            policy = POLICIES["redact"]
            sent = [walk_whole(dialect, chunks[0], policy)] if shape == "whole" else walk(dialect, chunks, policy)[0]
            assert SSN not in json.dumps(sent)
            assert arguments_in(sent) == [shown], shape
            told = walk_whole(dialect, chunks[0], BLOCKING) if shape == "whole" else walk(dialect, chunks, BLOCKING)[0]
            assert SSN not in json.dumps(told)
            assert arguments_in(told) == []


TWICE: dict[str, tuple[Json, int]] = {
    "two objects of a message": (
        {"messages": [user("Hi"), anthropic({"ssn": SSN}) | {"content": [
            {"type": "tool_use", "id": at, "name": "f", "input": {"ssn": SSN}} for at in "tu"]}]}, 2),
    "two fields of the request": ({"messages": [user("Hi")], "metadata": {"ssn": SSN}, "x": {"ssn": SSN}}, 2),
    "a text beside it": (
        {"messages": [user("Hi"), anthropic({"ssn": SSN}) | {"content": [
            {"type": "text", "text": f"the SSN {SSN}"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"ssn": SSN}}]}]}, 2),
    "a text within it": ({"messages": [user("Hi"), anthropic({"note": f"the SSN {SSN}", "ssn": SSN})]}, 2),
    "a text within it alone": ({"messages": [user("Hi"), anthropic({"note": f"the SSN {SSN}", "n": 1})]}, 1),
}  # fmt: skip


@pytest.mark.parametrize("action", ["mask", "redact", "warn"])
@pytest.mark.parametrize(("body", "count"), TWICE.values(), ids=TWICE)
async def test_what_stands_in_two_places_is_found_in_both(body: Json, count: int, action: str) -> None:
    found = await passed(body, action)
    assert [finding.category for finding in found.findings] == ["ssn"] * count
    assert (SSN in json.dumps(found.body)) is (action == "warn")


async def test_what_is_found_in_the_json_of_an_object_with_more_around_it_is_told_once() -> None:
    rules = {"rules": [{"id": "p", "pattern": "please.*"}]}
    policy = widened(compile_policy({"policy": "w", "guardrails": [
        {"name": "w", "kind": "regex", "action": "warn", "config": rules}]}))  # fmt: skip
    for said in ({"c": "please go", "d": "x"}, {"c": 'please "go"\n', "d": "x"}, {"c": "please", "d": "please go"}):
        body: Json = {"model": "m", "messages": [user("Hi"), anthropic(said)]}
        found = await guarded(policy, body, media_allowed=False)
        assert len(found.findings) == json.dumps(said).count("please")


QUOTED = {
    f'{{"ssn":  {SSN}}}': None,
    f'{{"ssn" : {SSN}, "n": 1}}': None,
    f'{{"ssn":\n\t{SSN}, "b": [1, {{"ssn": {SSN}}}]}}': None,
    f'{{"ssn":{SSN},"ssn":1}}': '{"ssn":"[SSN]","ssn":1}',
    f'[{{"n": 2, "ssn":{SSN}}}, "of joe@b.example", {{"ssn": {SSN}}}]': (
        '[{"n": 2, "ssn": "[SSN]"}, "of [EMAIL]", {"ssn": "[SSN]"}]'
    ),
}
"""Arguments in which a number is hidden, and what they are then."""


@pytest.mark.parametrize("action", ["mask", "redact"])
@pytest.mark.parametrize(("said", "shown"), QUOTED.items())
async def test_arguments_of_which_a_number_is_hidden_are_json(said: str, shown: str | None, action: str) -> None:
    for turn in (openai(0), user("x")):
        call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": said}}
        turn = turn | ({"content": said} if turn["role"] == "user" else {"tool_calls": [call]})
        found = await passed({"messages": [user("Hi"), turn]}, action)
        assert SSN not in json.dumps(found.body)
        last = found.body["messages"][1]  # type: ignore[index]
        sent = last["content"] if turn["role"] == "user" else last["tool_calls"][0]["function"]["arguments"]
        json.loads(sent)
        if shown is not None and action == "redact":
            assert sent == shown


async def test_a_message_that_is_json_is_asked_about_once_and_marked_where_it_was_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = f'{{"ssn": {SSN}, "b": {{"ssn":{SSN}}}, "d": "x"}}'
    monkeypatch.setattr(Near, "name", "trial_near", raising=False)
    monkeypatch.setattr(Near, "heard", [], raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_near", Near)  # type: ignore[arg-type]
    for action in ("mask", "redact"):
        rules: Json = {"name": "p", "kind": "pii", "action": action}
        near: Json = {"name": "n", "kind": "trial_near", "action": "block", "mode": "BLOCK"}
        policy = widened(compile_policy({"policy": "n", "guardrails": [rules, near]}))
        body: Json = {"model": "m", "messages": [user(said)]}
        masks = Masks(policy, body, caller="c")
        found = await guarded(policy, body, media_allowed=False, mask=masks.mask, swept=masks.swept)
        assert SSN in str(Near.heard)
        assert f'"{SSN}"' not in str(Near.heard)
        assert json.loads(found.shown)["d"] == "x"
        assert [(one.channel, said[one.start : one.end]) for one in found.findings] == [("prompt", SSN)] * 2
        assert found.raw == said
        assert len(found.redactions) == 2
        assert all(found.shown.startswith(f'"{label}"', at - 1) for at, label in found.redactions)


@pytest.mark.parametrize("dialect", WALKERS)
def test_what_nothing_is_done_about_is_told_no_oftener_where_something_else_is_hidden(dialect: str) -> None:
    policy = compile_policy({"policy": "w", "guardrails": [
        {"name": "p", "kind": "pii", "action": "redact"},
        {"name": "w", "kind": "regex", "action": "warn", "config": {"rules": [{"id": "w", "pattern": "heron"}]}},
    ]})  # fmt: skip
    counted = []
    for said in (f'{{"a": "a heron", "b": {SSN}}}', f'{{"a": "a heron", "ssn": {SSN}}}'):
        for shape, chunks in answered(dialect, said).items():
            walker = WALKERS[dialect](Gates(policy))
            for chunk in chunks:
                (walker.whole if shape == "whole" else walker.take)(chunk)
            assert ("ssn" in {f.category for f in walker.gates.findings}) is ("ssn" in said)
            counted.append(sum(finding.guardrail == "w" for finding in walker.gates.findings))
    assert len(set(counted)) == 1


def said_beside(value: object) -> dict[str, tuple[str, list[Json]]]:
    """Answers that have a value beside their text, with the dialect of each; one chunk is a whole answer."""
    function: Json = {"name": "f", "arguments": "{}", "parsed_arguments": value}
    call: Json = {"id": "c", "type": "function", "function": function}

    def openai(message: Json) -> Json:
        said: Json = {"role": "assistant", **message}
        return {"id": "1", "choices": [{"index": 0, "finish_reason": "stop", "message": said}]}

    def piece(delta: Json, reason: str | None = None, **more: object) -> Json:
        return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}

    def line(*, done: bool = False, **more: object) -> Json:
        return {"model": "m", "message": {"role": "assistant", "content": "", **more}, "done": done}

    result: Json = {"type": "tool_result", "tool_use_id": "1", "content": value}
    block: Json = {"type": "text", "text": "Hi"}
    message: Json = {"id": "1", "type": "message", "role": "assistant", "content": [block], "about": value}
    return {
        "a message that was parsed": ("openai", [openai({"content": "Hi", "parsed": value})]),
        "a part": ("openai", [openai({"content": [{"type": "data", "data": value}]})]),
        "a call that was parsed": ("openai", [openai({"tool_calls": [call]})]),
        "a choice": ("openai", [{"choices": [{"index": 0, "message": {"content": "Hi"}, "about": value}]}]),
        "a delta": ("openai", [piece({"about": value}), piece({}, "stop")]),
        "a delta's part": ("openai", [piece({"content": [{"type": "data", "data": value}]}), piece({}, "stop")]),
        "a delta's call": ("openai", [piece({"tool_calls": [{"index": 0, **call}]}), piece({}, "tool_calls")]),
        "an annotation": ("openai", [piece({"annotations": [{"type": "x", "x": value}]}), piece({}, "stop")]),
        "a chunk": ("openai", [piece({"role": "assistant"}, about=value), piece({}, "stop")]),
        "a chunk's errors": ("openai", [piece({"role": "assistant"}, error=value), piece({}, "stop")]),
        "a result": ("anthropic", anthropic_block(result, [])),
        "a piece of a block": ("anthropic", anthropic_block(block, [{"type": "x_delta", "x": value}])),
        "a citation": ("anthropic", anthropic_block(block, [{"type": "citations_delta", "citation": {"x": value}}])),
        "a message": ("anthropic", [message]),
        "a whole result": ("anthropic", [message | {"content": [result], "about": 1}]),
        "a line": ("ollama", [line(about=value), line(done=True)]),
        "a line's call": ("ollama", [line(tool_calls=[{"function": function}]), line(done=True)]),
        "one line": ("ollama", [line(done=True, about=value)]),
    }


BESIDE: dict[str, object] = {
    "a string": {"ssn": SSN, "ok": "so"},
    "a number": {"ok": "so", "ssn": int(SSN)},
    "deep": {"a": [{"b": {"ssn": int(SSN)}}], "ok": "so"},
    "with what is hidden anyway": {"mail": "joe@b.example", "ssn": SSN, "ok": "so"},
}


def sent_of(dialect: str, chunks: list[Json], policy: Policy) -> object:
    if len(chunks) == 1:
        return walk_whole(dialect, chunks[0], policy)
    return walk(dialect, chunks, policy)[0]


@pytest.mark.parametrize("value", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("place", said_beside(0))
def test_what_the_name_of_a_field_says_stands_nowhere_in_an_answer(place: str, value: object) -> None:
    """Beside the text as little as in arguments, and what nothing is hidden of is as it was."""
    dialect, chunks = said_beside(value)[place]
    sent = json.dumps(sent_of(dialect, chunks, POLICIES["redact"]))
    assert SSN not in sent
    assert "joe@" not in sent
    assert "[SSN]" in sent
    assert '"so"' in sent
    assert SSN not in json.dumps(sent_of(dialect, chunks, BLOCKING))
    assert SSN in json.dumps(sent_of(dialect, chunks, POLICIES["warn"]))


@pytest.mark.parametrize("place", said_beside(0))
def test_what_is_beside_an_answer_and_has_nothing_to_hide_is_as_it_was(place: str) -> None:
    """Counts and times too, which a rule may take for something else."""
    value: Json = {"n": [1, 2.5, None, True, {}], "account_tokens": 123456789, "created": 1764000000}
    dialect, chunks = said_beside(value)[place]
    sent = [sent_of(dialect, chunks, POLICIES[action]) for action in ("redact", "block", "warn")]
    assert all(json.dumps(value) in json.dumps(one) for one in sent)
    if len(chunks) == 1:
        assert sent[0] == sent[1] == sent[2] == sent_of(dialect, chunks, widened(OPEN))


@pytest.mark.parametrize(
    "pattern", ['"acct": [0-9]{8}', '"ok": 1, "acct": [0-9]{8}', '[0-9]{8}, "z', '"ok".*', "[{].*"]
)
@pytest.mark.parametrize("action", ["redact", "block"])
def test_what_is_hidden_across_fields_of_an_answer_leaves_an_answer(pattern: str, action: str) -> None:
    rule: Json = {"id": "account", "pattern": pattern}
    policy = widened(compile_policy({"policy": "r", "guardrails": [
        {"name": "r", "kind": "regex", "action": action, "config": {"rules": [rule]}}]}))  # fmt: skip
    parsed: Json = {"ok": 1, "acct": 98765432, "z": ["so"]}
    message: Json = {"role": "assistant", "content": "Hi", "parsed": parsed}
    for document in (
        {"id": "1", "choices": [{"index": 0, "message": message}]},
        {"id": "1", "choices": [{"index": 0, "message": {"content": "Hi"}}], "about": [parsed]},
    ):
        sent = walk_whole("openai", document, policy)
        assert "98765432" not in json.dumps(sent)
        assert isinstance(sent["choices"], list)
        if pattern.startswith('"acct"') and "about" in document:
            assert sent["id"] == "1"


def test_what_is_said_of_a_value_by_its_own_name_is_hidden() -> None:
    for message in (
        {"ssn": SSN},
        {"ssn": int(SSN)},
        {"ssn": [SSN]},
        {"function_call": {"arguments": "{}", "ssn": SSN}},
    ):
        whole: Json = {"choices": [{"index": 0, "message": message}]}
        assert SSN not in json.dumps(walk_whole("openai", whole, POLICIES["redact"]))


def test_it_is_told_once_of_an_answer() -> None:
    message: Json = {"content": "Hi", "parsed": {"mail": "joe@b.example", "a": [{"ssn": SSN}]}}
    end: Json = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    _, walker = walk("openai", [{"choices": [{"index": 0, "delta": message}]}, end], POLICIES["redact"])
    assert sorted(finding.category for finding in walker.gates.findings) == ["email", "ssn"]


def test_a_long_name_takes_no_memory_with_each_value_of_its_list() -> None:
    """The first value has all of it before it, others its end, and all of them what is left of them."""
    name, values = "x" * 99_997 + "ssn", ["one", *[SSN] * 4_999]
    named = by_name(values, name)
    assert len(written(named)) < 1_000_000
    assert isinstance(named, list)
    assert (list(named[0]), list(named[-1])) == ([name], ["x" * 97 + "ssn"])
    assert without_name(named, values, name) == values
    assert by_name([SSN, SSN], "ssn") == [{"ssn": SSN}, {"ssn": SSN}]
