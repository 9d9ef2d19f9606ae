"""Chat completions, as OpenAI's published schema has the request; see ``strict``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from .strict import Dialect, Given, Json, Parameters, Refusal, Strict, called, sse

KEY = "sk-strict"
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Strict):
    type: Literal["text"]
    text: str


def _parts(content: object) -> object:
    """A string stands for one part of text. Pictures and sound are parts as well, and not taken here."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Content = Annotated[list[TextPart], BeforeValidator(_parts), Field(min_length=1)]


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: Parameters


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Called(Strict):
    name: Name
    arguments: str


class Call(Strict):
    id: Given
    type: Literal["function"]
    function: Called


class System(Strict):
    role: Literal["system", "developer"]
    content: Content


class User(Strict):
    role: Literal["user"]
    content: Content


class Assistant(Strict):
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[Call], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def says_something(self) -> Assistant:
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is required unless tool_calls is given")
        return self


class Result(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Given


Message = Annotated[System | User | Assistant | Result, Field(discriminator="role")]


class StreamOptions(Strict):
    include_usage: bool


class Request(Strict):
    model: Given
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def every_call_is_answered_once_and_at_once(self) -> Request:
        waiting: set[str] = set()
        for message in self.messages:
            if isinstance(message, Result):
                if message.tool_call_id not in waiting:
                    raise ValueError(f"messages: tool_call_id {message.tool_call_id!r} answers no call right before it")
                waiting.remove(message.tool_call_id)
                continue
            if waiting:
                break
            calls = message.tool_calls or [] if isinstance(message, Assistant) else []
            waiting = {call.id for call in calls}
            if len(waiting) < len(calls):
                raise ValueError("messages: two tool_calls have one id")
        if waiting:
            raise ValueError(f"messages: no tool message answers the tool_call_ids {sorted(waiting)}")
        return self

    @model_validator(mode="after")
    def options_belong_to_streams(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is enabled")
        return self


def _refusal(error: ValidationError) -> Json:
    """The vendor writes ``messages[0].content`` and has no parts for its variants of a message."""
    first = error.errors()[0]
    path = ""
    for depth, part in enumerate(first["loc"]):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (depth == 2 and first["loc"][0] == "messages"):
            path += f".{part}" if path else part
    param = path or first["msg"].removeprefix("Value error, ").partition(":")[0]
    message = f"Invalid value for '{param}': {first['msg']}"
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


def _said(request: Request) -> tuple[Json, str]:
    last = request.messages[-1]
    question = last.content[-1].text if isinstance(last, User) else ""
    calls = [
        {"index": n, "id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (id_, name, arguments) in enumerate(
            called(question, [tool.function.name for tool in request.tools or ()])
        )
    ]
    if not calls:
        return {"role": "assistant", "content": "fine"}, "stop"
    return {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"


def _answer(headers: Mapping[str, str], body: Json) -> bytes:
    if headers.get("authorization") != f"Bearer {KEY}":
        raise Refusal(401, {"error": {"message": "Incorrect API key provided", "type": "invalid_request_error"}})
    if headers.get("content-type") != "application/json":
        raise Refusal(415, {"error": {"message": "Content-Type: application/json is expected"}})
    request = Request.model_validate(body)
    said, reason = _said(request)
    if not request.stream:
        choices = [{"index": n, "message": said, "finish_reason": reason} for n in range(request.n)]
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return json.dumps({"model": "m", "choices": choices, "usage": usage}).encode()
    chunks: list[Json] = [{"model": "m", "choices": [{"index": n, "delta": said}]} for n in range(request.n)]
    chunks += [{"choices": [{"index": n, "delta": {}, "finish_reason": reason}]} for n in range(request.n)]
    if request.stream_options is not None and request.stream_options.include_usage:
        chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    return sse(*chunks) + b"data: [DONE]\n\n"


PATHS = {"/v1/chat/completions": Dialect(_answer, _refusal)}
