"""Messages, as Anthropic's published schema has the request; see ``strict``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from .strict import Dialect, Given, Json, Refusal, Schema, Strict, called, sse

KEY = "sk-strict"
Id = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class Text(Strict):
    type: Literal["text"]
    text: Annotated[str, Field(pattern=r"\S")]


class Thinking(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: Given


class ToolUse(Strict):
    type: Literal["tool_use"]
    id: Id
    name: Name
    input: Json


class ToolResult(Strict):
    type: Literal["tool_result"]
    tool_use_id: Id
    content: str = ""
    is_error: bool = False


def _blocks(content: object) -> object:
    """A string stands for one block of text. Pictures and documents are blocks as well, and not taken here."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


UserBlock = Annotated[Text | ToolResult, Field(discriminator="type")]
AssistantBlock = Annotated[Text | Thinking | ToolUse, Field(discriminator="type")]


class User(Strict):
    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_blocks), Field(min_length=1)]

    @model_validator(mode="after")
    def results_come_first(self) -> User:
        kinds = [isinstance(block, Text) for block in self.content]
        if kinds != sorted(kinds):
            raise ValueError("tool_result blocks come before any text")
        return self


class Assistant(Strict):
    role: Literal["assistant"]
    content: Annotated[list[AssistantBlock], BeforeValidator(_blocks), Field(min_length=1)]

    @model_validator(mode="after")
    def thinking_comes_first_and_calls_last(self) -> Assistant:
        order = [(Thinking, Text, ToolUse).index(type(block)) for block in self.content]
        if order != sorted(order):
            raise ValueError("thinking comes before text, text before tool_use")
        return self


class Tool(Strict):
    name: Name
    description: str = ""
    input_schema: Schema

    @model_validator(mode="after")
    def takes_an_object(self) -> Tool:
        if self.input_schema.type != "object":
            raise ValueError("input_schema.type: must be 'object'")
        return self


class ThinkingConfig(Strict):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1024)]


class Request(Strict):
    model: Given
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[
        list[Annotated[User | Assistant, Field(discriminator="role")]], Field(min_length=1, max_length=100_000)
    ]
    system: Given | list[Text] | None = None
    stream: bool = False
    thinking: ThinkingConfig | None = None
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def thinking_leaves_room_and_goes_on(self) -> Request:
        if self.thinking is None:
            return self
        if self.thinking.budget_tokens >= self.max_tokens:
            raise ValueError("max_tokens: must be greater than thinking.budget_tokens")
        for number, message in enumerate(self.messages):
            kinds = {type(block) for block in message.content}
            going_on = number == len(self.messages) - 2 and ToolUse in kinds
            if going_on and Thinking not in kinds:
                raise ValueError(f"messages.{number}.content.0.type: Expected `thinking`, but found `tool_use`")
        return self

    @model_validator(mode="after")
    def roles_take_turns(self) -> Request:
        for number, message in enumerate(self.messages):
            if message.role != ("user", "assistant")[number % 2]:
                raise ValueError(f"messages.{number}: roles must alternate, beginning with the user's")
        return self

    @model_validator(mode="after")
    def every_call_is_answered_once_and_at_once(self) -> Request:
        waiting: list[str] = []
        seen: set[str] = set()
        for number, message in enumerate(self.messages):
            answered = [block.tool_use_id for block in message.content if isinstance(block, ToolResult)]
            if sorted(answered) != sorted(waiting):
                raise ValueError(f"messages.{number}: tool_result blocks and the tool_use blocks before do not match")
            waiting = [block.id for block in message.content if isinstance(block, ToolUse)]
            if len(seen | set(waiting)) != len(seen) + len(waiting):
                raise ValueError(f"messages.{number}: tool_use ids must be unique")
            seen |= set(waiting)
        if waiting:
            raise ValueError("messages: the last tool_use blocks have no tool_result")
        return self

    @model_validator(mode="after")
    def tools_have_names_of_their_own(self) -> Request:
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: Tool names must be unique")
        return self


def _error(kind: str, message: str) -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _refusal(error: ValidationError) -> Json:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _error("invalid_request_error", f"{where}: {first['msg']}" if where else first["msg"])


def _answer(headers: Mapping[str, str], body: Json) -> bytes:
    if headers.get("x-api-key") != KEY:
        raise Refusal(401, _error("authentication_error", "invalid x-api-key"))
    for name, value in (("anthropic-version", "2023-06-01"), ("content-type", "application/json")):
        if headers.get(name) != value:
            raise Refusal(400, _error("invalid_request_error", f"{name}: header is required"))
    request = Request.model_validate(body)
    content, reason = _content(request)
    if not request.stream:
        usage = {"input_tokens": 1, "output_tokens": 1}
        whole = {"type": "message", "model": "m", "content": content, "stop_reason": reason, "usage": usage}
        return json.dumps(whole).encode()
    return sse(
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "ping"},
        *(event for index, block in enumerate(content) for event in _streamed(index, block)),
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
        named=True,
    )


def _content(request: Request) -> tuple[list[Json], str]:
    last = request.messages[-1].content[-1]
    question = last.text if isinstance(last, Text) else ""
    calls: list[Json] = [
        {"type": "tool_use", "id": id_, "name": name, "input": given}
        for id_, name, given in called(question, [tool.name for tool in request.tools or ()])
    ]
    if not calls:
        return [{"type": "text", "text": "fine"}], "end_turn"
    thought: list[Json] = [{"type": "thinking", "thinking": "Two.", "signature": "c2ln"}] if request.thinking else []
    return [*thought, *calls], "tool_use"


def _streamed(index: int, block: Json) -> list[Json]:
    """A block begins empty and is filled by deltas."""
    empty: Json
    match block["type"]:
        case "text":
            empty, deltas = {"text": ""}, [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            empty, deltas = (
                {"thinking": "", "signature": ""},
                [
                    {"type": "thinking_delta", "thinking": block["thinking"]},
                    {"type": "signature_delta", "signature": block["signature"]},
                ],
            )
        case _:
            empty, deltas = {"input": {}}, [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
    return [
        {"type": "content_block_start", "index": index, "content_block": {**block, **empty}},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


PATHS = {"/v1/messages": Dialect(_answer, _refusal)}
