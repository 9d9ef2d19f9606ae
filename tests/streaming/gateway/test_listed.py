"""Values in lists that stand under the name of a field: the name says of each what it is."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.listed import listed, unlisted
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


def test_what_a_list_becomes_that_is_none_any_more_is_nothing() -> None:
    value = {"a": ["one", {"b": [["two"], 1]}, 2]}
    assert listed(value) == [{"a": "one"}, {"b": "two"}]
    assert unlisted(value, listed(value)) == value
    assert unlisted(value, "[X]") == {"a": ["", {"b": [[""], 1]}, 2]}
