"""An upstream that costs next to nothing: answers of OpenAI's dialect over plain sockets, as many and as fast as asked.

Run as ``python -m tests.bench.upstream_child``; prints its port and serves until its standard input ends. The last
message of a request says "TOKENS RATE": how many, and how many a second (0: as fast as they go).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

_WORDS = "The lock fills from above , so boats rise slowly while both gates stay shut and nobody has to hurry at all"
TOKENS = tuple(f"{word} " for word in _WORDS.split())
AT_ONCE = 50
"""Tokens that are written together where no rate is asked for."""
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")


def event(text: str, reason: str | None = None) -> bytes:
    """A chunk of a chat completion as an event in an HTTP chunk of its own."""
    delta = {"role": "assistant", "content": text} if text else {}
    data = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }  # fmt: skip
    return chunk(f"data: {json.dumps(data)}\n\n".encode())


def chunk(data: bytes) -> bytes:
    """An HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


_TOKENS = tuple(event(token) for token in TOKENS)
_END = event("", "stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: request after request."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = json.loads(await reader.readexactly(int(length[1]) if length else 0))
            tokens, rate = body["messages"][-1]["content"].split()
            writer.write(_HEAD)
            await _answer(writer, int(tokens), float(rate))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _answer(writer: asyncio.StreamWriter, tokens: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(tokens):
        if rate:
            await asyncio.sleep(began + number / rate - loop.time())
        writer.write(_TOKENS[number % len(_TOKENS)])
        if rate or number % AT_ONCE == AT_ONCE - 1:
            await writer.drain()
    writer.write(_END)
    await writer.drain()


async def main() -> None:
    """Serve until nobody wants it any more."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1_000)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
