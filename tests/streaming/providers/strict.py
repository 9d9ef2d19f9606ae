"""Local endpoints that take a request as strictly as the vendors' published schemas write it, and answer briefly.

A request that is not of the form gets the vendor's own 400 that names the field: these fakes can fail. A dialect is one
module beside this one (``strict_openai``, ``strict_anthropic``, ``strict_ollama``). Fields that a vendor knows and our
adapters never send are left out on purpose, so that beginning to send one is noticed here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Json = dict[str, object]
Given = Annotated[str, Field(min_length=1)]

CALL_ME = "Use a tool."
"""A question that the fakes answer with two calls of the first tool offered, if any is: one that it can run, and one
whose arguments it will not take."""
CALL_STRANGERS = "Use a tool that nobody has."
"""A question that the fakes answer with a call of each of ``STRANGERS``."""
STRANGERS = ("", "x" * 200, "y" * 201, "multi_tool_use.parallel", "Wetter in Köln", "\t")
"""Names that models make up, and that no vendor takes back: it refuses the request that repeats one."""


def called(question: str, tools: Sequence[str]) -> list[tuple[str, str, Json]]:
    """Id, name and arguments of the calls that answer a question; ``tools``: the names of those offered."""
    if tools and question == CALL_ME:
        return [("call_a", tools[0], {"expression": "6 * 7"}), ("call_b", tools[0], {"nonsense": 1})]
    if tools and question == CALL_STRANGERS:
        return [(f"call_{n}", name, {}) for n, name in enumerate(STRANGERS)]
    return []


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Schema(BaseModel):
    """A JSON schema, as far as tools' parameters need one; other keywords are taken as they are."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["object", "array", "string", "number", "integer", "boolean", "null"] | None = None
    description: str | None = None
    properties: dict[str, Schema] | None = None
    required: list[str] = []
    items: Schema | None = None
    enum: Annotated[list[object], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def required_is_known(self) -> Schema:
        if unknown := set(self.required) - set(self.properties or ()):
            raise ValueError(f"required names {sorted(unknown)}, which are no properties")
        return self


class Parameters(Schema):
    """The schema of a tool's arguments: an object, with its properties said."""

    type: Literal["object"]
    properties: dict[str, Schema]


class Refusal(Exception):
    """An answer of the vendor's that is not 200."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Dialect:
    """How a vendor answers at its path: ``answer`` may raise ``Refusal`` or pydantic's error, told by ``refusal``."""

    answer: Callable[[Mapping[str, str], Json], bytes]
    refusal: Callable[[ValidationError], Json]


@dataclass
class Vendor:
    """The running fakes: their address, and the requests that they took."""

    base_url: str = ""
    taken: list[Json] = field(default_factory=list)


def sse(*events: Json, named: bool = False) -> bytes:
    """Events of a stream; ``named``: with their type in front."""
    return b"".join(
        (b"event: %s\n" % str(event["type"]).encode() if named else b"") + b"data: %s\n\n" % json.dumps(event).encode()
        for event in events
    )


def _reply(dialect: Dialect | None, headers: Mapping[str, str], raw: bytes, taken: list[Json]) -> tuple[int, bytes]:
    if dialect is None:
        return 404, b"404 page not found"
    try:
        body: Json = json.loads(raw)
        said = dialect.answer(headers, body)
    except ValidationError as error:
        return 400, json.dumps(dialect.refusal(error)).encode()
    except Refusal as refusal:
        return refusal.status, json.dumps(refusal.body).encode()
    taken.append(body)
    return 200, said


@asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    """All three vendors at one address, each at its own paths."""
    from . import strict_anthropic, strict_ollama, strict_openai

    paths = strict_openai.PATHS | strict_anthropic.PATHS | strict_ollama.PATHS
    fake, tasks = Vendor(), set[asyncio.Task[None]]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        raw = await reader.readexactly(int(headers["content-length"]))
        method, path, _ = first.split(" ")
        status, said = _reply(paths.get(path) if method == "POST" else None, headers, raw, fake.taken)
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n".encode() + said)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        fake.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield fake
        await asyncio.gather(*tasks)
