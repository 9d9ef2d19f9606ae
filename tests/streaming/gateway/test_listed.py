"""Values in lists that stand under the name of a field: the name says of each what it is."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.by_name import by_name, written
from streaming.gateway.gates import Gates, widened
from streaming.gateway.listed import listed, unlisted
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import Prompted, guarded
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_known_by_name import (
    PLACES,
    POLICIES,
    SSN,
    answered,
    arguments_in,
    passed,
    said_beside,
    sent_of,
)
from tests.streaming.gateway.test_prompts import user
from tests.streaming.gateway.walked import BLOCKING, WALKERS

LISTS: dict[str, object] = {
    "a list": {"ssn": [SSN], "ok": "so"},
    "numbers": {"ok": "so", "ssn": [1, int(SSN), None, True]},
    "behind others": {"a": [{"ssn": ["none", "", SSN]}], "ok": "so"},
    "lists in a list": {"ssn": [["none"], [1, [SSN]]], "ok": "so"},
    "a list of lists": [["so"], [{"ssn": [[SSN]]}]],
}


async def test_it_works() -> None:
    made, got = PLACES["Anthropic's input"]
    found = await passed(made({"ssn": [SSN, "none"], "n": [987654321]}), "redact")
    assert got(found.body) == {"ssn": ["[SSN]", "none"], "n": [987654321]}
    assert [finding.category for finding in found.findings] == ["ssn"]


@pytest.mark.parametrize("action", ["mask", "redact"])
@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("place", PLACES)
async def test_what_is_in_a_list_under_a_name_goes_upstream_nowhere(place: str, value: object, action: str) -> None:
    made, got = PLACES[place]
    found = await passed(made(value), action)
    said = got(found.body)
    assert SSN not in json.dumps(found.body)
    assert ("MASK-SSNO-" if action == "mask" else "[SSN]") in json.dumps(said)
    assert '"so"' in json.dumps(said)
    assert type(said) is type(value)


@pytest.mark.parametrize("place", PLACES)
async def test_it_blocks_a_request(place: str) -> None:
    found = await passed(PLACES[place][0]({"ssn": [[SSN]]}), "block")
    assert found.blocked is not None


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("place", said_beside(0))
def test_what_is_in_a_list_under_a_name_stands_nowhere_in_an_answer(place: str, value: object) -> None:
    dialect, chunks = said_beside(value)[place]
    sent = json.dumps(sent_of(dialect, chunks, POLICIES["redact"]))
    assert SSN not in sent
    assert "[SSN]" in sent
    assert '"so"' in sent
    assert SSN not in json.dumps(sent_of(dialect, chunks, BLOCKING))
    assert json.dumps(value) in json.dumps(sent_of(dialect, chunks, POLICIES["warn"]))


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("dialect", WALKERS)
def test_nor_does_it_in_the_arguments_of_a_call(dialect: str, value: object) -> None:
    shown = json.loads(json.dumps(value).replace(f'"{SSN}"', '"[SSN]"').replace(SSN, '"[SSN]"'))
    for shape, chunks in answered(dialect, json.dumps(value)).items():
        for policy in (POLICIES["redact"], POLICIES["warn"]):
            walker = WALKERS[dialect](Gates(policy))
            for chunk in chunks:
                (walker.whole if shape == "whole" else walker.take)(json.loads(json.dumps(chunk)))
            walker.finish()
            assert (shown if policy is POLICIES["redact"] else value) in arguments_in(walker.drain()), shape


async def test_a_value_that_is_found_by_itself_is_told_once() -> None:
    policy = widened(compile_policy({"policy": "w", "guardrails": [{"name": "p", "kind": "pii", "action": "warn"}]}))
    mails: Json = {"a": {"mails": ["joe@b.example", "joe@b.example"]}, "ssn": [SSN], "more": [[SSN], {"ssn": [[SSN]]}]}
    for body in ({"metadata": mails}, {"messages": [user("Hi"), user(json.dumps(mails))]}):
        found = await passed({"messages": [user("Hi")], **body}, "warn")
        told = Counter(finding.category for finding in found.findings)
        assert told["email"] == (2 if "metadata" in body else 4)  # JSON that is a string is two texts
        assert told["ssn"] == 2
    message: Json = {"content": "Hi", "parsed": mails}
    for action, ssn in (("warn", 0), ("redact", 2)):
        walker = WALKERS["openai"](Gates(policy if action == "warn" else POLICIES[action]))
        walker.whole({"id": "1", "choices": [{"index": 0, "message": message}]})
        told = Counter(finding.category for finding in walker.gates.findings)
        assert (told["email"], told["ssn"]) == (2, ssn)


def test_a_list_without_a_name_and_what_says_nothing_is_looked_at_no_oftener() -> None:
    for value in ([["a long text"]], {"tokens": [1, 22, 333], "vector": [0.5, -0.25], "x": ["", "ab", None, True]}):
        assert listed(value) == []


def test_what_is_in_lists_comes_back_in_its_order() -> None:
    value = {"a": ["one", {"b": [["two"], 1]}, 2]}
    assert listed(value) == [("a", "one"), ("b", "two")]
    assert unlisted(value, ["one", "two"]) == value
    assert unlisted(value, ["", "[X]"]) == {"a": ["", {"b": [["[X]"], 1]}, 2]}
    assert unlisted(["one", 2], ["[X]"], "a") == ["[X]", 2]


def test_of_a_long_name_its_end_is_what_counts() -> None:
    name = "x" * 100_000 + "ssn"
    found = listed({name: ["one", "two"]})
    assert [(len(said), said[-3:]) for said, _ in found] == [(100, "ssn")] * 2
    assert len(written(by_name(["one"] * 1_000, name))) < 1_000 * 200


OTHER = "987654321"
RULES: Json = {"rules": [{"id": "s", "pattern": "ssn[^a-z0-9]{1,8}[0-9]{9}"}]}
"""What is found has the name in it, and goes on into a list."""
BY_NAME = {
    action: widened(
        compile_policy(
            {"policy": action, "guardrails": [{"name": "p", "kind": "regex", "action": action, "config": RULES}]}
        )
    )
    for action in ("mask", "redact", "warn", "block")
}
BESIDE: Json = {"tags": ["alpha", "beta"], "n": [1234567], "more": {"x": ["gamma", 7654321]}}
NAMED: dict[str, Json] = {
    "two": {"ssn": [SSN, OTHER], **BESIDE},
    "behind another": {**BESIDE, "ssn": ["none", SSN, OTHER]},
    "numbers": {"ssn": [int(SSN), int(OTHER)], **BESIDE},
    "lists in a list": {**BESIDE, "ssn": [[SSN], ["none", [OTHER]]]},
}


async def _passed(body: Json, action: str) -> Prompted:
    policy = BY_NAME[action]
    masks = Masks(policy, body, caller="c")
    return await guarded(
        policy, {"model": "m", **body}, media_allowed=False, mask=masks.mask, swept=masks.swept, hide=masks.hidden
    )


@pytest.mark.parametrize("action", ["mask", "redact"])
@pytest.mark.parametrize("value", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("place", PLACES)
async def test_a_hit_that_includes_the_name_hides_its_value_and_nothing_else(
    place: str, value: Json, action: str
) -> None:
    made, got = PLACES[place]
    found = await _passed(made(value), action)
    said = json.dumps(found.body)
    assert SSN not in said
    assert OTHER not in said
    shown = got(found.body)
    assert isinstance(shown, dict)
    assert {name: shown[name] for name in BESIDE} == BESIDE
    assert ("none" in json.dumps(shown)) == ("none" in json.dumps(value))
    assert len(shown["ssn"]) == len(value["ssn"])  # type: ignore[arg-type]
    assert len(found.findings) == 2


@pytest.mark.parametrize("value", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("place", PLACES)
async def test_each_value_is_told_once_where_nothing_is_hidden(place: str, value: Json) -> None:
    made, got = PLACES[place]
    found = await _passed(made(value), "warn")
    assert got(found.body) == value
    assert len(found.findings) == 2
    one = await _passed(made({**BESIDE, "ssn": [SSN]}), "warn")
    assert len(one.findings) == 1
    assert (await _passed(made({**BESIDE, "ssn": ["none", SSN]}), "block")).blocked is not None


async def test_a_field_by_itself_that_is_a_list_loses_what_was_hit_alone() -> None:
    body: Json = {"messages": [user("Hi") | {"ssn": ["none", SSN, 1, OTHER]}]}
    found = await _passed(body, "redact")
    said = found.body["messages"][0]["ssn"]  # type: ignore[index]
    assert (said[0], said[2], len(said)) == ("none", 1, 4)
    assert SSN not in json.dumps(said)
    assert OTHER not in json.dumps(said)
    assert len((await _passed(body, "warn")).findings) == 2


async def test_many_values_are_told_once_and_so_is_one_beside_them() -> None:
    many = [str(100_000_000 + number) for number in range(200)]
    for value in ({"ssn": many}, {"ssn": many[:1], "deep": {"ssn": many[0]}}, [{"ssn": [one]} for one in many]):
        count = json.dumps(value).count("1000")
        for body in ({"metadata": value}, {"messages": [user("Hi"), user(json.dumps(value))]}):
            found = await _passed({"messages": [user("Hi")], **body}, "warn")
            assert len(found.findings) == count


async def test_what_the_last_message_says_is_told_where_it_stands() -> None:
    text = json.dumps({"ssn": [SSN, OTHER]})
    found = await _passed({"messages": [user(text)]}, "warn")
    marks = [one for one in found.findings if one.channel == "prompt"]
    assert [text[one.start : one.end] for one in marks] == [f'ssn": ["{SSN}']
    assert len(found.findings) == 2


@pytest.mark.parametrize("value", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("place", said_beside(0))
def test_a_hit_that_includes_the_name_takes_nothing_else_from_an_answer(place: str, value: Json) -> None:
    dialect, chunks = said_beside(value)[place]
    for action in ("redact", "block"):
        sent = json.dumps(sent_of(dialect, chunks, BY_NAME[action]))
        assert SSN not in sent
        assert OTHER not in sent
        for part in BESIDE.values():
            assert action == "block" or json.dumps(part) in sent
    assert json.dumps(value) in json.dumps(sent_of(dialect, chunks, BY_NAME["warn"]))


@pytest.mark.parametrize("value", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("dialect", WALKERS)
def test_nor_from_the_arguments_of_a_call(dialect: str, value: Json) -> None:
    for shape, chunks in answered(dialect, json.dumps(value)).items():
        for action in ("redact", "warn", "block"):
            walker = WALKERS[dialect](Gates(BY_NAME[action]))
            for chunk in chunks:
                (walker.whole if shape == "whole" else walker.take)(json.loads(json.dumps(chunk)))
            walker.finish()
            sent = walker.drain()
            if action == "block":
                assert walker.gates.blocked is not None
                continue
            shown = next(one for one in arguments_in(sent) if isinstance(one, dict))
            assert {name: shown[name] for name in BESIDE} == BESIDE, shape
            assert action == "redact" or shown == value
            assert (SSN in json.dumps(sent)) == (action == "warn")
            assert (OTHER in json.dumps(sent)) == (action == "warn")
