"""A local endpoint that fails on request, in the ways in which endpoints fail."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
Json = dict[str, object]


def _openai(text: str) -> bytes:
    return b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()


def _anthropic(text: str) -> bytes:
    events: list[Json] = [
        {"type": "message_start", "message": {"model": "m"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
    ]
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)


def _ollama(text: str) -> bytes:
    return json.dumps({"model": "m", "message": {"role": "assistant", "content": text}, "done": False}).encode() + b"\n"


SAYS: dict[str, Callable[[str], bytes]] = {"openai": _openai, "anthropic": _anthropic, "ollama": _ollama}
ENDS: dict[str, bytes] = {
    "openai": b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
    "anthropic": b'data: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}\n\n'
    b'data: {"type": "message_stop"}\n\n',
    "ollama": b'{"model": "m", "done": true, "done_reason": "stop"}\n',
}
BAD_LINE = {"openai": b"data: {oops\n\n", "anthropic": b"data: {oops\n\n", "ollama": b"{oops\n"}


WHOLE: dict[str, Json] = {
    "openai": {
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "whole answer"}, "finish_reason": "stop"}],
    },
    "anthropic": {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "whole answer"}],
        "stop_reason": "end_turn",
    },
    "ollama": {
        "model": "m",
        "message": {"role": "assistant", "content": "whole answer"},
        "done": True,
        "done_reason": "stop",
    },
}
"""The answer ``fine`` where it is not streamed."""

ENDLESS = "more and " * 512
"""What an endless text repeats; it is cut between two of them."""
BOMB_MEGABYTES = 20
"""Of nothing but blanks, in some kilobytes."""
ARGUMENTS: dict[str, tuple[bytes, bytes]] = {
    "openai": (
        b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": '
        b'{"name": "calculator", "arguments": "{"}}]}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": '
        b'{"arguments": "%s"}}]}}]}\n\n' % (b"x" * 4_096),
    ),
    "anthropic": (
        b'data: {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "c", '
        b'"name": "calculator", "input": {}}}\n\n',
        b'data: {"type": "content_block_delta", "index": 1, "delta": '
        b'{"type": "input_json_delta", "partial_json": "%s"}}\n\n' % (b"x" * 4_096),
    ),
    "ollama": (
        b'{"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": [{"function": '
        b'{"name": "calculator", "arguments": {"expression": "',
        b"x" * 4_096,
    ),
}
"""The beginning of a call, and what goes on in it for ever; a call is one line of Ollama's."""
ODD_WORDS = rb'{"error": {"message": "\u0000\ud800"}}'
"""What no store takes and nothing can send."""


def status(line: str, body: bytes = b'{"error": {"message": "told"}}', *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {line}\r\n{lines}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@dataclass
class Faulty:
    """What the next connections meet. ``open``: connections that stand now."""

    url: str = ""
    open: int = 0
    served: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@asynccontextmanager
async def faulty(adapter: str, fault: str) -> AsyncIterator[Faulty]:
    """Serve one fault to everybody who asks."""
    there = Faulty()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        there.tasks.add(task)
        there.open += 1
        try:
            # A cancelled handler would be logged with its traceback, and a thousand of those look like a leak.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                asked: Json = json.loads(await reader.readexactly(length))
                there.served += 1
                if fault == "only whole" and not asked.get("stream"):
                    writer.write(status("200 OK", json.dumps(WHOLE[adapter]).encode()))
                    await writer.drain()
                else:
                    await _misbehave(adapter, fault, reader, writer)
        finally:
            there.open -= 1
            there.tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    there.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if fault == "refuses":
        server.close()
        await server.wait_closed()
    try:
        yield there
    finally:
        server.close()
        for task in tuple(there.tasks):
            task.cancel()
        await asyncio.gather(*there.tasks, return_exceptions=True)


@functools.cache
def _bomb(words: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [words, *[b" " * 1_048_576] * BOMB_MEGABYTES]
    return b"".join(map(packer.compress, parts)) + packer.flush()


async def _reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection off. Without lingering, or the system would end it in good order."""
    await writer.drain()
    await asyncio.sleep(0.01)  # the words are on their way before the reset overtakes them
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _misbehave(adapter: str, fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    say, end = SAYS[adapter], ENDS[adapter]
    body = HEAD + b"\r\n"
    match fault:
        case "fine":
            writer.write(body + say("whole ") + say("answer") + end)
        case "resets":
            writer.write(body + say("part"))
            await _reset(writer)
        case "resets mid-token":
            whole = say("lost")
            writer.write(body + say("part") + whole[: whole.index(b"lost") + 2])
            await _reset(writer)
        case "stalls":
            writer.write(body + say("part"))
            await writer.drain()
            await reader.read()
        case "silent":
            await reader.read()
        case "no newline":
            writer.write(body + (b"data: " if adapter != "ollama" else b'{"x": "'))
            for _ in range(160):
                writer.write(b"x" * 65_536)
                await writer.drain()
        case "invalid json":
            writer.write(body + say("part") + BAD_LINE[adapter] + say("s") + end)
        case "only invalid json":
            writer.write(body + BAD_LINE[adapter] * 20)
        case "429":
            writer.write(status("429 Too Many Requests", b'{"error": {"message": "told"}}', "Retry-After: 7"))
        case "500" | "only whole":
            writer.write(status("500 Internal Server Error"))
        case "500 odd words":
            writer.write(status("500 Internal Server Error", ODD_WORDS))
        case "400 odd words":
            writer.write(status("400 Bad Request", ODD_WORDS))
        case "529":
            writer.write(status("529 Overloaded", b'{"type": "error", "error": {"type": "overloaded_error"}}'))
        case "truncated gzip":
            packer = zlib.compressobj(wbits=31)
            first = packer.compress(say("part")) + packer.flush(zlib.Z_SYNC_FLUSH)
            rest = packer.compress(say("lost") + end) + packer.flush()
            writer.write(HEAD + b"Content-Encoding: gzip\r\n\r\n" + first + rest[:1])
        case "stacked gzip":
            writer.write(HEAD + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(gzip.compress(say("x") + end)))
        case "gzip bomb":
            writer.write(HEAD + b"Content-Encoding: gzip\r\n\r\n" + _bomb(say("part")))
        case "endless text":
            writer.write(body)
            while True:
                writer.write(say(ENDLESS) * 8)
                await writer.drain()
        case "endless arguments":
            begin, more = ARGUMENTS[adapter]
            writer.write(body + say("part") + begin)
            while True:
                writer.write(more * 8)
                await writer.drain()
        case "half a character":
            whole = say(" é").replace(b"\\u00e9", "é".encode())
            writer.write(body + say("part") + whole[: whole.index("é".encode()) + 1])
        case "no end":
            writer.write(body + say("part"))
        case "not http":
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        case "redirects":
            writer.write(status("307 Temporary Redirect", b"", "Location: http://127.0.0.1:1/"))
        case "nothing":
            pass
    await writer.drain()
