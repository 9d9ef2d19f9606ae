"""What goes upstream of a request, without a network: which parts count as what, and that nothing hides in them."""

from __future__ import annotations

import json

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import Prompted, guarded
from streaming.gateway.walker import Json

CARD = "4111111111111111"
HIDDEN = CARD.replace("4", "\\u0034", 1)
PII = {"name": "pii", "kind": "pii"}
POLICIES = {
    action: widened(compile_policy({"policy": action, "guardrails": [PII | {"action": action}]}))
    for action in ("redact", "mask", "block")
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400}}


async def passed(messages: list[Json], action: str = "redact", **more: object) -> Prompted:
    """A request after its guardrails."""
    body: Json = {"model": "m", "messages": messages, **more}
    policy = POLICIES[action]
    return await guarded(policy, body, media_allowed=False, mask=Masks(policy, body, caller="c").mask)


def user(content: object) -> Json:
    return {"role": "user", "content": content}


def called(arguments: object) -> Json:
    call = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


async def test_it_works() -> None:
    found = await passed([user(f"pay with {CARD}")])
    assert found.body["messages"] == [user("pay with [CREDIT_CARD]")]


@pytest.mark.parametrize(
    "text",
    [
        f'{{"note": "pay with {HIDDEN} now", "to": ["x',
        f'{{"to": "x"}}{{"note": "pay with {HIDDEN} now"}}',
        f'{{"note": "pay with {HIDDEN} now"}} That is all.',
        f'{{"note": "pay with {HIDDEN} now", "note": "x"}}',
        f'Look: {{"note": "pay with {HIDDEN} now"}}',
    ],
    ids=["cut short", "two in a row", "text behind", "one field twice", "text before"],
)
async def test_an_escape_hides_nothing_in_json_that_no_parser_takes(text: str) -> None:
    for message in (
        called(text),
        {"role": "tool", "tool_call_id": "c1", "content": text},
        user([{"type": "text", "text": text}]),
    ):
        sent = json.dumps((await passed([user("Hi"), message])).body)
        assert "111111" not in sent
        assert (await passed([user("Hi"), message], "block")).blocked is not None


async def test_text_with_escapes_in_which_nothing_is_found_stays_as_it_was() -> None:
    text = 'In C "\\u0041" is one letter, "C:\\q" and "\\/" are what they are.'
    assert (await passed([user(text)])).body["messages"] == [user(text)]


RESULTS: dict[str, object] = {
    "tool_result": CARD,
    "mcp_tool_result": [{"type": "text", "text": CARD}],
    "web_search_tool_result": [{"type": "web_search_result", "title": CARD}],
    "web_fetch_tool_result": {"type": "web_fetch_result", "url": CARD},
    "code_execution_tool_result": {"type": "code_execution_result", "stdout": CARD},
    "bash_code_execution_tool_result": {"type": "bash_code_execution_result", "stdout": CARD},
    "text_editor_code_execution_tool_result": {"type": "text_editor_code_execution_view_result", "content": CARD},
    "brand_new_tool_result": {"said": [CARD]},
}


@pytest.mark.parametrize("kind", RESULTS)
async def test_results_of_tools_that_the_vendor_ran_are_results_of_tools(kind: str) -> None:
    only = PII | {"action": "redact", "applies_to": ["tool_result"]}
    policy = widened(compile_policy({"policy": "p", "guardrails": [only]}))
    result = {"type": kind, "tool_use_id": "t", "content": RESULTS[kind]}
    text = {"type": "text", "text": f"pay with {CARD}"}
    body: Json = {"model": "m", "messages": [user("Hi"), {"role": "assistant", "content": [result, text]}]}
    found = await guarded(policy, body, media_allowed=False)
    shown, said = found.body["messages"][1]["content"]  # type: ignore[index,call-overload]
    assert said == text
    assert json.dumps(shown) == json.dumps(result).replace(CARD, "[CREDIT_CARD]")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "tool_call_id": "c1", "content": json.dumps([{"type": "file", "name": "README.md"}])},
        called(json.dumps({"type": "image", "size": 3})),
        called({"type": "image", "images": ["one", "two"]}),
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "t", "name": "n", "input": {"type": "document", "source": {"type": "file"}}}
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {"content": [{"type": "image"}]}}],
        },
    ],
    ids=["listing of a tool", "arguments", "arguments as an object", "input", "content within an input"],
)
async def test_what_only_looks_like_a_picture_is_no_reason_to_refuse(message: Json) -> None:
    found = await passed([user("Hi"), message])
    assert found.media == ()
    assert found.body["messages"] == [user("Hi"), message]


async def test_what_looks_like_a_picture_in_arguments_is_looked_at() -> None:
    fields = {"type": "image", "images": [CARD], "alt": f"paid with {CARD}"}
    for message in (called(fields), called(json.dumps(fields))):
        assert "111111" not in json.dumps((await passed([user("Hi"), message])).body)


@pytest.mark.parametrize(
    "message",
    [
        user([PICTURE]),
        user(
            [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "image", "source": {"type": "base64", "data": "AAAA"}}],
                }
            ]
        ),
        user([{"type": "document", "source": {"type": "base64", "data": "AAAA"}}]),
        {"role": "user", "content": "Hi", "images": ["AAAA"]},
    ],
    ids=["part", "part of a result", "document", "ollama"],
)
async def test_a_picture_is_refused_wherever_the_dialect_has_one(message: Json) -> None:
    refused = (await passed([message])).refused
    assert refused is not None
    assert refused.code == "media_refused"
