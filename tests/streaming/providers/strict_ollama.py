"""Chat and generate, as Ollama's published schema has the requests; see ``strict``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from .strict import Dialect, Given, Json, Parameters, Strict, called


class Function(Strict):
    name: Given
    description: str = ""
    parameters: Parameters


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Called(Strict):
    name: Given
    arguments: Json


class Call(Strict):
    function: Called


class Options(Strict):
    num_predict: Annotated[int, Field(ge=1)]


class Message(Strict):
    """Pictures would stand in ``images``; they are not taken here."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    thinking: str | None = None
    tool_calls: Annotated[list[Call], Field(min_length=1)] | None = None
    tool_name: Given | None = None

    @model_validator(mode="after")
    def fields_fit_the_role(self) -> Message:
        if (self.role == "tool") != (self.tool_name is not None):
            raise ValueError("tool_name: belongs to tool messages, and to all of them")
        if self.role != "assistant" and (self.tool_calls is not None or self.thinking is not None):
            raise ValueError("tool_calls and thinking: belong to the assistant's messages")
        return self


class Chat(Strict):
    model: Given
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = True
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    options: Options | None = None

    @model_validator(mode="after")
    def every_call_is_answered_once_and_at_once(self) -> Chat:
        waiting: list[str] = []
        for message in self.messages:
            if message.tool_name is not None:
                if message.tool_name not in waiting:
                    raise ValueError(f"messages: tool_name {message.tool_name!r} answers no call right before it")
                waiting.remove(message.tool_name)
                continue
            if waiting:
                break
            waiting = [call.function.name for call in message.tool_calls or ()]
        if waiting:
            raise ValueError(f"messages: no tool message answers the calls of {waiting}")
        return self


class Generate(Strict):
    model: Given
    prompt: Given
    system: Given | None = None
    stream: bool = True
    options: Options | None = None


_LAST: Json = {"model": "m", "done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}


def _refusal(error: ValidationError) -> Json:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return {"error": f"invalid request: {where}: {first['msg']}"}


def _said(said: Json, *, stream: bool) -> bytes:
    if not stream:
        return json.dumps({**_LAST, **said}).encode()
    empty = {key: {"role": "assistant", "content": ""} if key == "message" else "" for key in said}
    lines: tuple[Json, ...] = ({"model": "m", "done": False, **said}, {**_LAST, **empty})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _chat(headers: Mapping[str, str], body: Json) -> bytes:
    request = Chat.model_validate(body)
    said: Json = {"role": "assistant", "content": "fine"}
    names = [tool.function.name for tool in request.tools or ()]
    if asked := called(request.messages[-1].content, names):
        calls = [{"function": {"name": name, "arguments": arguments}} for _, name, arguments in asked]
        said = {"role": "assistant", "content": "", "thinking": "Two.", "tool_calls": calls}
    return _said({"message": said}, stream=request.stream)


def _generate(headers: Mapping[str, str], body: Json) -> bytes:
    return _said({"response": "fine"}, stream=Generate.model_validate(body).stream)


PATHS = {"/api/chat": Dialect(_chat, _refusal), "/api/generate": Dialect(_generate, _refusal)}
