"""Local endpoints that take a request as strictly as the vendors' published schemas write it, and answer briefly.

A request that is not of the form gets the vendor's own 400 with the field's name: these fakes can fail.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Json = dict[str, object]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Schema(BaseModel):
    """A JSON schema of type object, as all three want a tool's parameters."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["object"]
    properties: dict[str, Json]


Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


# -- OpenAI ---------------------------------------------------------------------------------------------------------


class OpenAIFunction(Strict):
    name: Name
    description: str | None = None
    parameters: Schema


class OpenAITool(Strict):
    type: Literal["function"]
    function: OpenAIFunction


class OpenAICalled(Strict):
    name: Name
    arguments: str


class OpenAICall(Strict):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: OpenAICalled


class OpenAIMessage(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None
    tool_calls: Annotated[list[OpenAICall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def whole(self) -> OpenAIMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("content: only an assistant's message with calls may have none")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id: belongs to tool messages, and to all of them")
        return self


class OpenAIOptions(Strict):
    include_usage: bool


class OpenAIRequest(Strict):
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[OpenAIMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: OpenAIOptions | None = None
    tools: Annotated[list[OpenAITool], Field(min_length=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def answered(self) -> OpenAIRequest:
        open_calls: set[str] = set()
        for message in self.messages:
            if message.role == "tool":
                if message.tool_call_id not in open_calls:
                    raise ValueError("messages: a tool message answers no call before it")
                open_calls.discard(message.tool_call_id or "")
            elif open_calls:
                raise ValueError("messages: a call has no answer")
            open_calls |= {call.id for call in message.tool_calls or ()}
        if open_calls:
            raise ValueError("messages: a call has no answer")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream")
        return self


# -- Anthropic ------------------------------------------------------------------------------------------------------


class TextBlock(Strict):
    type: Literal["text"]
    text: Annotated[str, Field(pattern=r"\S")]


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: Annotated[str, Field(min_length=1)]


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: Name
    input: Json


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    content: str
    is_error: bool = False


class AnthropicMessage(Strict):
    role: Literal["user", "assistant"]
    content: Annotated[
        list[Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]],
        Field(min_length=1),
    ]


class AnthropicTool(Strict):
    name: Name
    description: str | None = None
    input_schema: Schema


class AnthropicRequest(Strict):
    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: Annotated[str, Field(min_length=1)] | None = None
    stream: bool = False
    tools: Annotated[list[AnthropicTool], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def in_turn(self) -> AnthropicRequest:
        calls: set[str] = set()
        for number, message in enumerate(self.messages):
            if message.role != ("assistant" if number % 2 else "user"):
                raise ValueError("messages: roles must alternate, the user first")
            answered = {block.tool_use_id for block in message.content if isinstance(block, ToolResultBlock)}
            if answered != calls:
                raise ValueError("messages: tool_use ids were found without tool_result blocks right behind them")
            kinds = [block.type for block in message.content]
            if "thinking" in kinds and kinds[0] != "thinking":
                raise ValueError("messages: thinking comes first")
            calls = {block.id for block in message.content if isinstance(block, ToolUseBlock)}
        return self


# -- Ollama ---------------------------------------------------------------------------------------------------------


class OllamaCalled(Strict):
    name: Name
    arguments: Json


class OllamaCall(Strict):
    function: OllamaCalled


class OllamaMessage(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def whole(self) -> OllamaMessage:
        if (self.role == "tool") != (self.tool_name is not None):
            raise ValueError("tool_name: belongs to tool messages, and to all of them")
        return self


class OllamaOptions(Strict):
    num_predict: int | None = None


class OllamaChat(Strict):
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[OllamaMessage], Field(min_length=1)]
    stream: bool = True
    tools: list[OpenAITool] | None = None
    options: OllamaOptions | None = None


class OllamaGenerate(Strict):
    model: Annotated[str, Field(min_length=1)]
    prompt: Annotated[str, Field(min_length=1)]
    system: str | None = None
    stream: bool = True
    options: OllamaOptions | None = None


# -- the servers ----------------------------------------------------------------------------------------------------


@dataclass
class Vendor:
    """A running fake: its address, and the requests that it took."""

    base_url: str = ""
    taken: list[Json] = field(default_factory=list)


def _openai(path: str, headers: dict[str, str], body: Json) -> bytes:
    request = OpenAIRequest.model_validate(body)
    if headers.get("authorization") != "Bearer sk-strict":
        raise PermissionError
    said = {"role": "assistant", "content": "fine"}
    if not request.stream:
        choices = [{"index": n, "message": said, "finish_reason": "stop"} for n in range(request.n)]
        return json.dumps(
            {"model": "m", "choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        ).encode()
    chunks: list[Json] = [{"choices": [{"index": n, "delta": said}]} for n in range(request.n)]
    chunks += [{"choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]} for n in range(request.n)]
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _anthropic(path: str, headers: dict[str, str], body: Json) -> bytes:
    request = AnthropicRequest.model_validate(body)
    if headers.get("x-api-key") != "sk-strict" or headers.get("anthropic-version") != "2023-06-01":
        raise PermissionError
    if not request.stream:
        content = [{"type": "text", "text": "fine"}]
        return json.dumps(
            {"type": "message", "model": "m", "content": content, "stop_reason": "end_turn",
             "usage": {"input_tokens": 1, "output_tokens": 1}}
        ).encode()  # fmt: skip
    events: list[Json] = [
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "fine"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %s\ndata: %s\n\n" % (str(e["type"]).encode(), json.dumps(e).encode()) for e in events)


def _ollama(path: str, headers: dict[str, str], body: Json) -> bytes:
    last: Json = {"model": "m", "done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}
    request: OllamaChat | OllamaGenerate
    if path == "/api/generate":
        request, said = OllamaGenerate.model_validate(body), Json(response="fine")
    else:
        request, said = OllamaChat.model_validate(body), Json(message={"role": "assistant", "content": "fine"})
    if not request.stream:
        return json.dumps({**last, **said}).encode()
    return json.dumps({"model": "m", "done": False, **said}).encode() + b"\n" + json.dumps(last).encode() + b"\n"


PATHS: dict[str, Callable[[str, dict[str, str], Json], bytes]] = {
    "/v1/chat/completions": _openai,
    "/v1/messages": _anthropic,
    "/api/chat": _ollama,
    "/api/generate": _ollama,
}


@asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    """All three vendors at one address."""
    fake, tasks = Vendor(), set[asyncio.Task[None]]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body: Json = json.loads(await reader.readexactly(int(headers["content-length"])))
        path = first.split(" ")[1]
        try:
            status, said = "200 OK", PATHS[path](path, headers, body)
            fake.taken.append(body)
        except ValidationError as error:
            where = error.errors()[0]
            field = ".".join(str(part) for part in where["loc"]) or where["msg"]
            status, said = "400 Bad Request", json.dumps({"error": {"message": f"{field}: {where['msg']}"}}).encode()
        except PermissionError:
            status, said = "401 Unauthorized", b'{"error": {"message": "key"}}'
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n".encode() + said)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        fake.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield fake
        await asyncio.gather(*tasks)
