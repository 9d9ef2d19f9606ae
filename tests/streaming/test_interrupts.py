"""An interrupt on a real socket, whatever the answer waits for: over within a tenth of a second, and the provider left.

Measured where a client does: from its frame to the ``done`` event, and to the moment when the endpoint's connections
are closed, whichever comes later.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from streaming.agent import NOT_OVER
from tests.streaming.real_server import Served, served
from tests.streaming.test_real_sockets import Client, Event, connected

WAIT_S = 120.0
"""Generous: the machine may be busy. What is promised is in the assertions."""
PROMPT_S = 0.1
TRIES = 12
"""Cores are shared: the best of so many counts."""
OPENAI = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
PROMPT = "hello"
HIT = json.dumps({"score": 1, "text_sha256": hashlib.sha256(PROMPT.encode()).hexdigest()}).encode()
JUDGED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(HIT), HIT)
BUSY = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def said(delta: dict[str, object], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({"model": "m-1", "choices": [choice]}).encode() + b"\n\n"


def counting() -> bytes:
    """A call of the slow tool, which tells its progress once a second."""
    call = {"name": "slow_count", "arguments": json.dumps({"steps": 20, "seconds": 20})}
    return said({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": call}]})


@dataclass(frozen=True, slots=True)
class Case:
    """What the endpoint says, the event at which the client has had enough, and what stays of the answer.

    ``requests``: how many have been made by then, the web hook's among them. ``connected``: the provider has not ended
    its answer. ``aside``: the web hook is asked about the prompt, in MONITOR, and goes on after the end.
    """

    says: bytes
    enough: Event
    final: str = ""
    policy: str = "basic"
    requests: int = 1
    connected: bool = True
    aside: bool = False


CASES = {
    "token": Case(OPENAI + said({"content": "Well. "}), {"type": "message_stream"}, "Well. "),
    "tool": Case(
        OPENAI + said({"content": "I count. "}) + counting() + said({}, "tool_calls") + b"data: [DONE]\n\n",
        {"type": "tool_progress"},
        "I count. ",
        connected=False,
    ),
    "sentence": Case(
        OPENAI + said({"content": "A sentence to judge. And"}),
        {"type": "guardrail_status", "guardrail": "each", "state": "checking"},
        policy="sentences",
        requests=2,
    ),
    "monitor": Case(
        OPENAI + said({"content": "Well. "}),
        {"type": "message_stream"},
        "Well. ",
        policy="aside",
        requests=2,
        aside=True,
    ),
    "retry": Case(BUSY, {"type": "error", "code": "provider_unavailable", "recoverable": True}, connected=False),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[socket.socket]:
    """Where the test's endpoint listens for as long as the server runs."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        yield listening


@pytest.fixture(scope="module")
def server(upstream: socket.socket, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    hook = {"url": f"http://127.0.0.1:{upstream.getsockname()[1]}/hook"}
    guardrail = {"name": "each", "kind": "sentence_hook", "applies_to": ["response"], "mode": "BLOCK",
                 "action": "block", "time_limit_s": 30, "config": hook}  # fmt: skip
    policy = {"policy": "sentences", "guardrails": [guardrail]}
    app, folder = "tests.streaming.sentence_app:application", tmp_path_factory.mktemp("server")
    beside = guardrail | {"applies_to": ["prompt"], "mode": "MONITOR"}
    policies = [policy, {"policy": "aside", "guardrails": [beside]}]
    with served(folder, upstream, clients=len(CASES), redis_url=valkey_url, app=app, policies=policies) as running:
        yield running
        log = running.said.read_text()
    assert "Traceback" not in log, log[-4000:]


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint and a web hook that never answers. ``open``: connections that stand now."""

    case: Case
    open: int = 0
    asked: int = 0
    judged: int = 0
    left_at: float = 0.0
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    alone: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open, own = self.open + 1, 1
        self.alone.clear()
        try:
            with suppress(OSError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = re.search(r"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                self.heard.release()
                if "/hook" in head.split("\r\n", 1)[0]:
                    self.judged += 1
                    if self.case.aside:
                        self.open, own = self.open - 1, 0  # it is no provider's
                        await self.answer.wait()
                        writer.write(JUDGED)
                        await writer.drain()
                else:
                    self.asked += 1
                    writer.write(self.case.says)
                    await writer.drain()
                await reader.read()  # until the other side goes
        finally:
            self.open -= own
            self.left_at = time.monotonic() if own else self.left_at
            if not self.open:
                self.alone.set()
            writer.close()


@asynccontextmanager
async def endpoint(upstream: socket.socket, case: Case) -> AsyncIterator[Endpoint]:
    there, handlers = Endpoint(case), set[asyncio.Task[None]]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.get_running_loop().create_task(there.serve(reader, writer)))

    listening = await asyncio.start_server(accept, sock=upstream.dup())
    try:
        yield there
    finally:
        listening.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await listening.wait_closed()


async def stopped(client: Client, there: Endpoint, case: Case) -> tuple[float, list[Event]]:
    """Seconds from the interrupt to the end of everything, and the events of the answer."""
    client.seen.clear()
    there.answer.clear()
    await client.send(type="start", prompt=PROMPT, provider="openai", policy=case.policy, tools=True)
    kind, *fields = case.enough.items()
    await client.until(str(kind[1]), **dict(fields))
    while client.text() != case.final:
        await client.receive()
    for _ in range(case.requests):
        await there.heard.acquire()
    if case.connected:
        assert there.open == case.requests - case.aside, (
            "somebody is connected to the provider when the interrupt comes"
        )
    sent = time.monotonic()
    await client.send(type="interrupt")
    await client.until("done")
    done = time.monotonic()
    await there.alone.wait()
    events = list(client.seen)
    await client.over()
    if case.aside:
        assert client.seen[-1]["state"] == "MONITORING"
        there.answer.set()
        await client.over()
    return max(done, there.left_at) - sent, events


@pytest.mark.parametrize("waiting", CASES)
async def test_it_works(server: Served, upstream: socket.socket, waiting: str) -> None:
    case, took = CASES[waiting], list[float]()
    own_key = Served(server.url, (server.keys[list(CASES).index(waiting)],), server.said)
    async with asyncio.timeout(WAIT_S), endpoint(upstream, case) as there, connected(own_key, 1) as (client,):
        while len(took) < TRIES and min(took, default=PROMPT_S) >= PROMPT_S:
            seconds, events = await stopped(client, there, case)
            took.append(seconds)
            assert (events[-1]["outcome"], events[-1]["final"]) == ("interrupted", case.final)
            assert there.asked == len(took), "nobody is asked again"
            if waiting == "tool":
                (result,) = [event for event in events if event["type"] == "tool_result"]
                assert result["error"] == NOT_OVER
            if waiting == "monitor":
                assert not any(event["type"] == "finding" for event in events)
                assert [event["type"] for event in client.seen[-3:]] == ["finding", "guardrail_status", "state"]
            if waiting == "sentence":
                assert there.judged == len(took)
                assert not any(event["type"] == "message_stream" and event["chunk"] for event in events)
    assert min(took) < PROMPT_S, f"{[round(each * 1000) for each in took]} ms"
