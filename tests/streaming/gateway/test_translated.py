"""What a client says is told to an upstream of another dialect, or refused by its name: nothing of it gets lost."""

from __future__ import annotations

import pytest

from streaming.gateway.prompt import BadRequest
from streaming.gateway.walker import Json
from streaming.providers.base import Provider
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from tests.streaming.gateway.test_sampling import UNDERSTOOD

NOWHERE = "http://127.0.0.1:9"
FUNCTION: Json = {"name": "pay", "description": "Pay.", "parameters": {"type": "object"}}
CALL: Json = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
USE: Json = {"type": "tool_use", "id": "t", "name": "pay", "input": {}}
RESULT: Json = {"role": "tool", "tool_call_id": "c1", "name": "pay", "content": "ok"}
TEXT: Json = {"type": "text", "text": "Hi"}


def behind(dialect: str) -> Provider:
    return OllamaProvider(NOWHERE) if dialect != "ollama" else OpenAIProvider(NOWHERE)


def asking(*messages: Json, **more: object) -> Json:
    return {"model": "m", "messages": [*messages, {"role": "user", "content": "Hello"}], **more}


def assistant(**more: object) -> Json:
    return {"role": "assistant", "content": "Yes.", **more}


def tool(**more: object) -> Json:
    return {"type": "function", "function": FUNCTION | more}


REFUSED: list[tuple[str, Json, str]] = [
    ("openai", asking(parallel_tool_calls=False), "parallel_tool_calls"),
    *(("openai", asking(n=wrong), "n") for wrong in (2, 0, -1, "1", 1.0, True, [1])),
    ("openai", asking({"role": "user", "content": "Hi", "name": "ann"}), "messages[0].name"),
    ("openai", asking(assistant(function_call={"name": "f", "arguments": "{}"})), "messages[0].function_call"),
    ("openai", asking(assistant(audio={"id": "a"})), "messages[0].audio"),
    ("openai", asking(assistant(tool_calls=[{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}])),
     "messages[0].tool_calls[0]"),
    ("openai", asking(assistant(tool_calls=[CALL | {"extra_content": {"google": {}}}])),
     "messages[0].tool_calls[0].extra_content"),
    ("openai", asking(assistant(tool_calls=["x"])), "messages[0].tool_calls[0]"),
    ("openai", asking({"role": "user", "content": [TEXT | {"brand_new": 1}]}), "messages[0].content[0].brand_new"),
    ("openai", asking(tools=[tool(strict=True)]), "tools[0].function.strict"),
    ("openai", asking(tools=[{"type": "custom", "custom": {"name": "f"}}]), "tools[0]"),
    ("openai", asking(tools=["x"]), "tools[0]"),
    ("openai", asking(tools={"a": 1}), "tools"),
    ("anthropic", asking({"role": "user", "content": "Hi", "brand_new": 1}), "messages[0].brand_new"),
    ("anthropic", asking({"role": "user", "content": [TEXT | {"brand_new": 1}]}), "messages[0].content[0].brand_new"),
    ("anthropic", asking({"role": "user", "content": ["Hi"]}), "messages[0].content[0]"),
    ("anthropic", asking({"role": "assistant", "content": [USE | {"caller": {"type": "code"}}]}),
     "messages[0].content[0].caller"),
    ("anthropic", asking({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}),
     "messages[0].content[0]"),
    ("anthropic", asking(tools=[{"name": "pay", "input_schema": {}, "strict": True}]), "tools[0].strict"),
    ("anthropic", asking(tool_choice={"type": "any"}), "tool_choice"),
    ("anthropic", asking(tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
     "tool_choice.disable_parallel_tool_use"),
    ("anthropic", asking(system=[TEXT | {"brand_new": 1}]), "system[0].brand_new"),
    ("ollama", asking(think=False), "think"),
    ("ollama", asking(think=True), "think"),
    ("ollama", asking(format="json"), "format"),
    ("ollama", asking({"role": "user", "content": "Hi", "name": "ann"}), "messages[0].name"),
    ("ollama", asking(assistant(tool_calls=[{"function": {"name": "f", "arguments": {}, "brand_new": 1}}])),
     "messages[0].tool_calls[0].function.brand_new"),
    ("ollama", asking(tools=[tool(strict=True)]), "tools[0].function.strict"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "body", "field"), REFUSED, ids=[f"{d}-{f}" for d, _, f in REFUSED])
def test_it_works(dialect: str, body: Json, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        UNDERSTOOD[dialect](body, behind(dialect), "m")
    assert refused.value.field == field


CARRIED: list[tuple[str, Json]] = [
    ("openai", asking(assistant(refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None))),
    ("openai", asking(assistant(tool_calls=[CALL]), RESULT)),
    ("openai", asking({"role": "user", "content": [TEXT | {"cache_control": {"type": "ephemeral"}}]})),
    ("openai", asking(tools=[tool(strict=False)], logprobs=False, store=False, n=1, tool_choice="auto")),
    ("anthropic", asking(tool_choice={"type": "auto", "disable_parallel_tool_use": False})),
    ("anthropic", asking({"role": "user", "content": [TEXT | {"cache_control": {"type": "ephemeral"}}]},
                         {"role": "assistant", "content": [TEXT | {"citations": [{"type": "x"}]}, USE]},
                         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]},
                         tools=[{"name": "pay", "input_schema": {}, "cache_control": {"type": "ephemeral"}}])),
    ("ollama", asking(assistant(thinking="Hm.", tool_calls=[{"id": "x", "function": {"name": "pay", "arguments": {}}}]),
                      {"role": "tool", "tool_name": "pay", "content": "ok"}, tools=[tool()])),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "body"), CARRIED, ids=[f"{d}-{n}" for n, (d, _) in enumerate(CARRIED)])
def test_what_changes_nothing_in_the_answer_is_no_reason_to_refuse(dialect: str, body: Json) -> None:
    asked = UNDERSTOOD[dialect](body, behind(dialect), "m")
    assert asked.messages[-1].text == "Hello"


def test_thinking_goes_on_and_a_refusal_stays_said() -> None:
    body = asking(assistant(reasoning_content="Hm."), {"role": "assistant", "content": None, "refusal": "No."})
    first, second, _ = UNDERSTOOD["openai"](body, behind("openai"), "m").messages
    assert (first.text, first.thinking) == ("Yes.", "Hm.")
    assert second.text == "No."


def test_a_result_answers_the_call_whose_id_it_names() -> None:
    calls = [{"id": id_, "function": {"name": "pay", "arguments": {}}} for id_ in ("one", "two")]
    body = asking(assistant(tool_calls=calls), {"role": "tool", "tool_call_id": "one", "content": "ok"})
    asked = UNDERSTOOD["ollama"](body, behind("ollama"), "m").messages
    assert [call.id for call in asked[0].tool_calls] == ["one", "two"]
    assert asked[1].tool_call_id == "one"
