"""Values that a rule knows by the name of their field: whatever the dialect makes of the object, they stay here."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from guardrails.kinds import base
from guardrails.policy import compile_policy
from guardrails.selectors import ShadowPolicy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import Prompted, guarded
from streaming.gateway.shadow import Noted, looked
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_gives_way import others
from tests.streaming.gateway.test_prompts import user
from tests.streaming.gateway.test_told_upstream import Near
from tests.streaming.gateway.test_walkers import anthropic_block, cut, ollama_call, openai_call
from tests.streaming.gateway.walked import BLOCKING, WALKERS, walk, walk_whole

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
