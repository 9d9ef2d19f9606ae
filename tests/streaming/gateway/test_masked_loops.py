"""Masked values through a conversation: told, passed to a tool, named in its result, answered, asked about again.

With each vendor's own library, streamed and not. What the client sees is its own words; the upstream sees placeholders
in everything that comes back to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import anthropic
import ollama
import pytest

from streaming.gateway.walker import Json
from tests.streaming.gateway import test_anthropic_sdk as anthropic_answers
from tests.streaming.gateway import test_ollama_sdk as ollama_answers
from tests.streaming.gateway.fake import JSON, NDJSON, SSE, Answer, sse
from tests.streaming.gateway.served import OPENED, Gateway
from tests.streaming.gateway.test_masked import PLACEHOLDER, SAID, VALUES
from tests.streaming.gateway.test_openai_sdk import chunk, client, whole

MAIL = VALUES["mail"]
ARGUMENTS: Json = {"type": "object", "properties": {"to": {"type": "string"}}}
FUNCTION: Json = {"name": "send_mail", "description": "Sends a mail.", "parameters": ARGUMENTS}
RESULT = f"A mail to {MAIL} was sent."
AGAIN = "Which address was it?"
NAME = re.compile(r"MASK-MAIL-[A-Z]{5}-[A-Z]{5}-[A-Z]{5}-[A-Z]{3}")


def openai_upstream(body: Json) -> Answer:
    name, answered, streaming = state(body)
    function = {"name": "send_mail", "arguments": json.dumps({"to": name})}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    if streaming:
        return Answer(sse(*(chunk({"content": part}) for part in halves(name)), chunk({}, "stop")) if answered
                      else sse(chunk({"tool_calls": [call]}), chunk({}, "tool_calls")))  # fmt: skip
    return Answer(whole(f"It went to {name}.") if answered else whole("", tool_calls=[call]), JSON)


def anthropic_upstream(body: Json) -> Answer:
    name, answered, streaming = state(body)
    use: Json = {"type": "tool_use", "id": "toolu_1", "name": "send_mail", "input": {}}
    if streaming:
        piece = {"type": "input_json_delta", "partial_json": json.dumps({"to": name})}
        block = anthropic_answers.text(*halves(name)) if answered else anthropic_answers.block(0, use, piece)
        return Answer(anthropic_answers.message(block, reason="end_turn" if answered else "tool_use"), SSE)
    said = {"type": "text", "text": f"It went to {name}."} if answered else {**use, "input": {"to": name}}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [said],
               "stop_reason": "end_turn", "stop_sequence": None,
               "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
    return Answer([json.dumps(message).encode()], JSON)


def ollama_upstream(body: Json) -> Answer:
    name, answered, streaming = state(body)
    call = {"function": {"name": "send_mail", "arguments": {"to": name}}}
    if streaming:
        lines = [ollama_answers.line({"content": part}) for part in halves(name)]
        return Answer([*(lines if answered else [ollama_answers.line({"content": "", "tool_calls": [call]})]),
                       ollama_answers.LAST], NDJSON)  # fmt: skip
    said = {"content": f"It went to {name}."} if answered else {"content": "", "tool_calls": [call]}
    return Answer([ollama_answers.line(said, done=True, done_reason="stop")], JSON)


def state(body: Json) -> tuple[str, bool, bool]:
    """The name of the address, whether its tool has answered, and whether the answer is to be streamed."""
    said = json.dumps(body["messages"])
    return NAME.findall(said)[0], "was sent" in said, bool(body.get("stream"))


def halves(name: str) -> tuple[str, str]:
    return f"It went to {name[:9]}", f"{name[9:]}."


def with_openai(served: Gateway, streaming: bool) -> list[str]:
    ours = client(served, "masking")
    messages: list[Json] = [{"role": "user", "content": SAID}]
    tools = [{"type": "function", "function": FUNCTION}]

    def ask() -> tuple[str, list[Json]]:
        if not streaming:
            made = ours.chat.completions.create(model="loop", messages=messages, tools=tools)  # type: ignore[call-overload]
            said = made.choices[0].message
            return said.content or "", [one.model_dump() for one in said.tool_calls or ()]
        with ours.chat.completions.create(model="loop", messages=messages, tools=tools, stream=True) as got:  # type: ignore[call-overload]
            deltas = [one.choices[0].delta for one in got]
        calls = [call.model_dump(exclude={"index"}) for delta in deltas for call in delta.tool_calls or ()]
        return "".join(delta.content or "" for delta in deltas), calls

    _, (call,) = ask()
    messages += [{"role": "assistant", "content": None, "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": call["id"], "content": RESULT}]  # fmt: skip
    first, _ = ask()
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": AGAIN}]
    return [json.loads(call["function"]["arguments"])["to"], first, ask()[0]]  # type: ignore[index]


def with_anthropic(served: Gateway, streaming: bool) -> list[str]:
    ours = anthropic.Anthropic(api_key=served.keys["masking"], base_url=served.url, max_retries=0)
    OPENED.append(ours.close)
    messages: list[Json] = [{"role": "user", "content": SAID}]
    asked = {"model": "loop", "max_tokens": 50, "tools": [{"name": "send_mail", "input_schema": ARGUMENTS}]}

    def ask() -> list[Json]:
        if not streaming:
            return [one.model_dump() for one in ours.messages.create(messages=messages, **asked).content]  # type: ignore[call-overload]
        with ours.messages.stream(messages=messages, **asked) as got:  # type: ignore[arg-type]
            return [{k: v for k, v in one.model_dump().items() if k in ("type", "id", "name", "input", "text")}
                    for one in got.get_final_message().content]  # fmt: skip

    (use,) = ask()
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": RESULT}]}
    messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    (first,) = ask()
    messages += [{"role": "assistant", "content": [first]}, {"role": "user", "content": AGAIN}]
    (second,) = ask()
    return [use["input"]["to"], str(first["text"]), str(second["text"])]  # type: ignore[index]


def with_ollama(served: Gateway, streaming: bool) -> list[str]:
    ours = ollama.Client(host=served.url, headers={"Authorization": f"Bearer {served.keys['masking']}"})
    OPENED.append(ours._client.close)
    messages: list[Json] = [{"role": "user", "content": SAID}]

    def ask() -> tuple[str, list[Json]]:
        got = ours.chat(
            model="loop", messages=messages, tools=[{"type": "function", "function": FUNCTION}], stream=streaming
        )  # type: ignore[call-overload]
        lines = [one.message for one in got] if streaming else [got.message]
        calls = [call.model_dump() for one in lines for call in one.tool_calls or ()]
        return "".join(one.content or "" for one in lines), calls

    _, (call,) = ask()
    messages += [{"role": "assistant", "content": "", "tool_calls": [call]},
                 {"role": "tool", "tool_name": "send_mail", "content": RESULT}]  # fmt: skip
    first, _ = ask()
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": AGAIN}]
    return [call["function"]["arguments"]["to"], first, ask()[0]]  # type: ignore[index]


LOOPS: dict[str, tuple[Callable[[Json], Answer], Callable[[Gateway, bool], list[str]]]] = {
    "openai": (openai_upstream, with_openai),
    "anthropic": (anthropic_upstream, with_anthropic),
    "ollama": (ollama_upstream, with_ollama),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", LOOPS)
def test_it_works(served: Gateway, dialect: str, streaming: bool) -> None:
    answers, talk = LOOPS[dialect]
    served.fake.answers["loop"] = answers
    before = len(served.fake.asked)
    heard = talk(served, streaming)
    assert heard == [MAIL, f"It went to {MAIL}.", f"It went to {MAIL}."]
    sent = [body.decode() for _, _, body in served.fake.asked[before:]]
    assert len(sent) == 3
    for body in sent:
        assert not [sort for sort, value in VALUES.items() if value in body]
    assert len({*NAME.findall(sent[2])}) == 1, "the same value has the same name in every turn"
    assert len({*PLACEHOLDER.findall(sent[2])}) == len(VALUES)
