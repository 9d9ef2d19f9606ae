"""Values that were planted, in prompts and in answers: eight sorts, three dialects, every place that a dialect has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

import httpx
import pytest

from guardrails.policy import Policy, compile_policy
from streaming.core.gate import gate_text
from streaming.gateway.walker import Json
from tests.streaming.gateway import test_anthropic_sdk as anthropic
from tests.streaming.gateway import test_ollama_sdk as ollama
from tests.streaming.gateway import test_openai_sdk as openai
from tests.streaming.gateway.fake import JSON, NDJSON, Answer, sse
from tests.streaming.gateway.served import POLICIES, Gateway
from tests.streaming.gateway.test_walkers import SHAPES, openai_text
from tests.streaming.gateway.test_walkers import openai as openai_chunk
from tests.streaming.gateway.walked import OPEN, strings, walk

VALUES = {
    "ssn": "536-22-8145", "card": "4111 1111 1111 1111", "mail": "desk.seven@example.com",
    "phone": "+44 20 7946 0958", "iban": "DE89 3704 0044 0532 0130 00",
    "key": "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ip": "203.0.113.77", "code name": "Blue Heron",
}  # fmt: skip
ENCODED = {
    "ssn": "536%2D22%2D8145", "card": "4111%201111%201111%201111", "mail": "desk.seven%40example.com",
    "phone": "%2B44%2020%207946%200958", "iban": "DE89%203704%200044%200532%200130%2000",
}  # fmt: skip
NUMBER = 4111111111111111
DIALECTS = ("openai", "anthropic", "ollama")
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}


def sentence(values: dict[str, str]) -> str:
    return "; ".join(f"my {sort} is {value}" for sort, value in values.items()) + "."


def request(dialect: str, said: str) -> Json:
    """The sentence in every place that the dialect has for text, and the card as a number among arguments."""
    inner = {"note": said, "card": NUMBER, "deep": [{"as text": json.dumps({"note": said})}]}
    schema = {"type": "object", "properties": {"to": {"type": "string", "description": said, "default": said}}}
    function = {"name": "send", "description": said, "parameters": schema}
    body: Json = {"model": "echo", "metadata": {"user_id": said}, "brand_new": {"note": [said], "number": [NUMBER]}}
    if dialect == "openai":
        call = {"id": "c1", "type": "function", "function": {"name": "send", "arguments": json.dumps(inner)}}
        messages = [
            {"role": "system", "content": said},
            {"role": "user", "content": [{"type": "text", "text": said}], "name": "ann"},
            {"role": "assistant", "content": said, "tool_calls": [call], "reasoning_content": said},
            {"role": "tool", "tool_call_id": "c1", "content": json.dumps(inner)},
            {"role": "user", "content": said},
        ]
        tools: list[Json] = [{"type": "function", "function": function}]
        return body | {"messages": messages, "tools": tools, "user": said}
    if dialect == "anthropic":
        result = [{"type": "text", "text": said}, {"type": "text", "text": json.dumps(inner)}]
        source = {"type": "text", "media_type": "text/plain", "data": said}
        messages = [
            {"role": "user", "content": [{"type": "text", "text": said}, {"type": "document", "source": source}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "send", "input": inner}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": result}]},
            {"role": "user", "content": said},
        ]
        tools = [{"name": "send", "description": said, "input_schema": schema}]
        return body | {"messages": messages, "tools": tools, "system": said, "max_tokens": 50}
    messages = [
        {"role": "system", "content": said},
        {"role": "assistant", "content": said, "tool_calls": [{"function": {"name": "send", "arguments": inner}}]},
        {"role": "tool", "tool_name": "send", "content": json.dumps(inner)},
        {"role": "user", "content": said},
    ]
    return body | {"messages": messages, "tools": [{"type": "function", "function": function}]}


def last_said(body: dict[str, object]) -> str:
    messages = body["messages"]
    assert isinstance(messages, list)
    return str(messages[-1]["content"])


def echo(dialect: str, stream: bool) -> Callable[[dict[str, object]], Answer]:
    """An upstream that says what it was told last, seven characters at a time."""

    def answer(body: dict[str, object]) -> Answer:
        said = f"You said: {last_said(body)}"
        parts = [said[at : at + 7] for at in range(0, len(said), 7)]
        if dialect == "openai":
            last = openai.chunk({}, "stop")
            return Answer(sse(*(openai.chunk({"content": part}) for part in parts), last) if stream
                          else openai.whole(said), openai_type(stream))  # fmt: skip
        if dialect == "anthropic":
            block = {"type": "text", "text": said}
            message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [block],
                       "stop_reason": "end_turn", "stop_sequence": None, "usage": {}}  # fmt: skip
            pieces = anthropic.message(anthropic.text(*parts)) if stream else [json.dumps(message).encode()]
            return Answer(pieces, openai_type(stream))
        lines = [ollama.line({"content": part}) for part in parts]
        whole = [ollama.line({"content": said}, done=True, done_reason="stop")]
        return Answer([*lines, ollama.LAST], NDJSON) if stream else Answer(whole, JSON)

    return answer


def openai_type(stream: bool) -> str:
    return "text/event-stream" if stream else JSON


def text_of(dialect: str, response: httpx.Response) -> str:
    """What a client reads of the answer."""
    return "".join(_texts(dialect, response))


def _texts(dialect: str, response: httpx.Response) -> Iterator[str]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines()]
    found = [json.loads(line) for line in lines if line.startswith("{")]
    for one in found:
        if dialect == "openai":
            choice = one["choices"][0]
            yield (choice.get("delta") or choice.get("message") or {}).get("content") or ""
        elif dialect == "anthropic":
            yield one["delta"].get("text", "") if "delta" in one else "".join(b["text"] for b in one.get("content", ()))
        else:
            yield one["message"]["content"]


@pytest.mark.parametrize("written", [VALUES, ENCODED], ids=["plain", "percent-encoded"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_works(served: Gateway, dialect: str, stream: bool, written: dict[str, str]) -> None:
    """The upstream sees none of them in URL, header or body; the client gets all of them back as they were."""
    said = sentence(written)
    served.fake.answers["echo"] = echo(dialect, stream)
    before = len(served.fake.asked)
    response = httpx.post(
        served.url + PATHS[dialect],
        params={"note": said},
        headers={
            "Authorization": f"Bearer {served.keys['planted']}",
            "X-Note": written["mail"], "User-Agent": written["mail"], "OpenAI-Beta": VALUES["ip"],
            "anthropic-beta": VALUES["ssn"], "anthropic-version": VALUES["code name"], "Cookie": f"a={written['card']}",
        },
        json=request(dialect, said) | {"stream": stream},
        timeout=60,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    sent = served.fake.asked[before:]
    assert [path for path, _, _ in sent] == [PATHS[dialect]]
    for path, headers, body in sent:
        seen = "\n".join([path, *headers.values(), body.decode(), *strings(json.loads(body))])
        for sort, value in (written | {"number": str(NUMBER)}).items():
            assert value not in seen, sort
            assert value.replace(" ", "").replace("-", "") not in seen, sort
    assert text_of(dialect, response) == f"You said: {said}"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_value_where_a_model_is_named_goes_nowhere(served: Gateway, dialect: str) -> None:
    before = len(served.fake.asked)
    asked = {"model": VALUES["mail"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    bearer = {"Authorization": f"Bearer {served.keys['planted']}"}
    httpx.post(served.url + PATHS[dialect], headers=bearer, json=asked, timeout=60)
    assert VALUES["mail"] not in str(served.fake.asked[before:])


def compiled(action: str) -> Policy:
    document = next(one for one in POLICIES if one["policy"] == "planted")
    guardrails: list[dict[str, object]] = document["guardrails"]  # type: ignore[assignment]
    return compile_policy({"policy": action, "guardrails": [one | {"action": action} for one in guardrails]})


ACTIONS = {action: compiled(action) for action in ("mask", "redact", "block")}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("sort", ENCODED)
def test_a_percent_encoded_value_in_the_answer_alone_is_never_partly_sent(sort: str, action: str) -> None:
    """Cut at every place, where it is redacted; at those that matter most where it is masked or stopped."""
    said, start, end = encoded_in_a_sentence(sort)
    some = (start + 1, said.index("%") + 1, said.index("%") + 2, end - 1, end)
    percent_encoded_and_cut(sort, action, range(start + 1, end + 1) if action == "redact" else some)


@pytest.mark.long
@pytest.mark.parametrize("action", ["mask", "block"])
@pytest.mark.parametrize("sort", ENCODED)
def test_a_percent_encoded_value_that_is_masked_or_stopped_cut_anywhere(sort: str, action: str) -> None:
    _, start, end = encoded_in_a_sentence(sort)
    percent_encoded_and_cut(sort, action, range(start + 1, end + 1))


def encoded_in_a_sentence(sort: str) -> tuple[str, int, int]:
    """The sentence, and where the value begins and ends in it."""
    said = f"see ?q={ENCODED[sort]} please"
    return said, said.index(ENCODED[sort]), said.index(" please")


def percent_encoded_and_cut(sort: str, action: str, places: Iterable[int]) -> None:
    said, policy = encoded_in_a_sentence(sort)[0], ACTIONS[action]
    wanted = gate_text(policy, said).visible
    assert ENCODED[sort] not in wanted
    for shape in SHAPES:
        expected = "" if action == "block" and ("arguments" in shape or "input" in shape) else wanted
        for at in places:
            dialect, chunks = SHAPES[shape](at, said)
            assert said_in(shape, walk(dialect, chunks, policy)[0]) == expected, f"{shape} cut at {at}"


def said_in(shape: str, sent: list[Json]) -> str:
    """The text of the one channel that speaks, without what every such answer has."""
    if shape not in _around:
        known: set[str] = set()
        for said, policy in (("~", OPEN), (VALUES["card"], ACTIONS["block"])):
            dialect, chunks = SHAPES[shape](0, said)
            known |= set(strings(walk(dialect, chunks, policy)[0]))
        _around[shape] = known - {"~"}
    said = "".join(text for text in strings(sent) if text not in _around[shape])
    if said.startswith("{") and said.endswith("}"):
        return str(json.loads(said)["note"])
    return said


_around: dict[str, set[str]] = {}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("sort", VALUES)
def test_a_value_in_the_answer_alone_cut_anywhere_is_never_partly_sent(sort: str, action: str) -> None:
    said = f"pay with {VALUES[sort]} now, please"
    policy, start = ACTIONS[action], said.index(VALUES[sort])
    wanted = gate_text(policy, said).visible
    assert not set(VALUES[sort]) <= set(wanted)
    for shape in SHAPES:
        # Arguments are sent when they are complete: of those that are stopped nothing is.
        expected = "" if action == "block" and ("arguments" in shape or "input" in shape) else wanted
        for at in range(start + 1, start + len(VALUES[sort])):
            dialect, chunks = SHAPES[shape](at, said)
            assert said_in(shape, walk(dialect, chunks, policy)[0]) == expected, f"{shape} cut at {at}"


def test_a_value_split_over_two_choices_or_channels_is_shown_as_the_page_of_limits_says() -> None:
    """Nobody promises otherwise: docs/gateway-limits.md counts it as not caught."""
    first, second = VALUES["ssn"][:5], VALUES["ssn"][5:]
    two = [openai_chunk({"content": first}), openai_chunk({"content": second}, index=1), openai_chunk({}, "stop"),
           openai_chunk({}, "stop", 1)]  # fmt: skip
    channels = [*openai_text([first], "reasoning_content")[:-1], *openai_text([second])]
    for chunks in (two, channels):
        assert {first, second} <= set(strings(walk("openai", chunks, ACTIONS["redact"])[0]))
