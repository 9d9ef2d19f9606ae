"""Fifty clients on one real server: no answer takes a word of another's, and none waits for another."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.streaming.faults.server import ENDS, HEAD, SAYS
from tests.streaming.real_server import Served, served

CLIENTS = 50
WORDS = 60
SAMPLES = 20
ROUNDS = 5
WAIT_S = 120.0
"""Generous: the machine may be busy. What is promised is in the assertions."""
INITIATED_S = 2.0
FIRST_S = 0.5
LATENCY_S = 0.5

Event = dict[str, object]
Say = Callable[[str], Awaitable[None]]


@pytest.fixture(scope="module")
def upstream() -> Iterator[socket.socket]:
    """Where the test's endpoint listens for as long as the server runs."""
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS * 2) as listening:
        yield listening


@pytest.fixture(scope="module")
def server(upstream: socket.socket, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("server")
    with served(folder, upstream, clients=CLIENTS, redis_url=valkey_url) as running:
        yield running
        log = running.said.read_text()
    assert "Traceback" not in log, log[-4000:]


@asynccontextmanager
async def answering(upstream: socket.socket, answer: Callable[[str, Say], Awaitable[None]]) -> AsyncIterator[None]:
    """An OpenAI-compatible endpoint: ``answer`` gets the prompt and says the answer's tokens."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(token: str) -> None:
            await send({"content": token}, None)

        async def send(delta: dict[str, str], reason: str | None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            writer.write(b"data: " + json.dumps({"model": "m-1", "choices": [choice]}).encode() + b"\n\n")
            await writer.drain()

        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", head)
            assert length is not None
            body = json.loads(await reader.readexactly(int(length[1])))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            await answer(str(body["messages"][-1]["content"]), say)
            await send({}, "stop")
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.get_running_loop().create_task(serve(reader, writer)))

    endpoint = await asyncio.start_server(accept, sock=upstream.dup())
    try:
        yield
    finally:
        endpoint.close()
        for task in handlers:
            task.cancel()
        ends = await asyncio.gather(*handlers, return_exceptions=True)
        await endpoint.wait_closed()
    assert [end for end in ends if end is not None] == [], "every answer was given to its end"


class Client:
    """A program with a real socket and an API key of its own."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.seen: list[Event] = []
        self.raw: list[str] = []

    async def start(self, prompt: str) -> None:
        await self.send(type="start", prompt=prompt, provider="openai", policy="basic")

    async def initiated(self, prompt: str) -> float:
        """Seconds from our frame to the placeholder of the answer."""
        began = time.monotonic()
        await self.start(prompt)
        await self.until("message_new", role="assistant")
        return time.monotonic() - began

    async def send(self, **frame: object) -> None:
        await self._connection.send(json.dumps(frame))

    async def ask_without_reading(self, frames: bytes) -> None:
        """Until the connection is lost."""
        self._connection.transport.pause_reading()
        self._connection.transport.write(frames)
        await self._connection.wait_closed()

    async def receive(self) -> Event:
        text = await self._connection.recv(decode=True)
        event: Event = json.loads(text)
        self.raw.append(text)
        self.seen.append(event)
        return event

    async def until(self, kind: str, **fields: object) -> Event:
        while True:
            event = await self.receive()
            if event["type"] == kind and all(event.get(key) == value for key, value in fields.items()):
                return event

    async def over(self) -> None:
        """The end of the answer: MONITORING or COMPLETE."""
        while (await self.until("state"))["state"] == "ACTIVE":
            pass

    def text(self) -> str:
        chunks = [e for e in self.seen if e["type"] in ("message_stream", "redaction")]
        return "".join(str(e.get("chunk", e.get("label", ""))) for e in chunks)


@asynccontextmanager
async def connected(server: Served, count: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        clients = []
        for key in server.keys[:count]:
            headers = {"Authorization": f"Bearer {key}"}
            opened = connect(server.url, additional_headers=headers, proxy=None, open_timeout=WAIT_S)
            clients.append(Client(await stack.enter_async_context(opened)))
        yield clients


def words(n: int) -> list[str]:
    return [f"s{n}w{word}x " for word in range(WORDS)]


def word(n: int) -> str:
    """Letters alone: digits are held until it is clear that they are nobody's number."""
    return "w" + "o" * n + "rd "


def address(n: int) -> str:
    return f"person.{n}.x@desk-{n}.example.com"


async def test_it_works(server: Served, upstream: socket.socket) -> None:
    async def answer(prompt: str, say: Say) -> None:
        for token in ("You asked: ", prompt, " My number is 536-22", "-8145."):
            await say(token)

    async with asyncio.timeout(WAIT_S), answering(upstream, answer), connected(server, 1) as (client,):
        await client.start("who are you?")
        await client.over()
    assert client.text() == "You asked: who are you? My number is [SSN]."
    done = next(event for event in client.seen if event["type"] == "done")
    assert done["final"] == client.text()


async def test_fifty_streams_at_once_never_mix(server: Served, upstream: socket.socket) -> None:
    """All fifty answers are half said before any of them goes on, and then they go on turn by turn."""
    everybody = asyncio.Barrier(CLIENTS)

    async def answer(prompt: str, say: Say) -> None:
        n = int(prompt.removeprefix("client "))
        tokens = [*words(n), f"write to {address(n)[:9]}", address(n)[9:], " soon."]
        for position, token in enumerate(tokens):
            if position == WORDS // 2:
                await everybody.wait()
            await say(token)
            await asyncio.sleep(0)

    async with asyncio.timeout(WAIT_S), answering(upstream, answer), connected(server, CLIENTS) as clients:
        for n, client in enumerate(clients):
            await client.start(f"client {n}")
        await asyncio.gather(*(client.over() for client in clients))
        sessions = [{str(event["session_id"]) for event in client.seen} for client in clients]
        stranger = clients[0]
        await stranger.send(type="resume", session_id=min(sessions[1]), last_seq=0)
        refused = await stranger.until("error")
    assert refused["code"] == "unknown_session", "another client's key does not open a session"
    for n, client in enumerate(clients):
        assert client.text() == "".join(words(n)) + "write to [EMAIL] soon."
        assert next(event for event in client.seen if event["type"] == "done")["final"] == client.text()
        seqs = [int(str(event["seq"])) for event in client.seen if "seq" in event and event["type"] != "error"]
        assert seqs == sorted(set(seqs))
        spoken_of = set(re.findall(r"\bs(\d+)w", "".join(client.raw)))
        assert spoken_of == {str(n)}, "no frame of any kind carries another's words"
        assert "@desk" not in "".join(client.raw)
    assert all(len(one) == 1 for one in sessions)
    assert len(set().union(*sessions)) == CLIENTS


async def test_who_reads_nothing_of_what_is_said_is_let_go(server: Served) -> None:
    """Answers to pings wait for no acknowledgements: they would lie here without end. All others are served on."""
    ping = b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125
    async with asyncio.timeout(WAIT_S), connected(server, 2) as (flooding, other):
        await flooding.ask_without_reading(ping * 200_000)
        await other.send(type="fly")
        await other.until("error", code="unknown_type")


async def test_an_answer_is_initiated_in_time(server: Served, upstream: socket.socket) -> None:
    """From the client's frame to the placeholder of the answer."""

    async def answer(prompt: str, say: Say) -> None:
        await say("Well. ")

    took = []
    async with asyncio.timeout(WAIT_S), answering(upstream, answer), connected(server, 1) as (client,):
        for number in range(ROUNDS + 1):
            took.append(await client.initiated(f"question {number}"))
            await client.over()
    # The first answer of a process loads what every later one finds ready.
    assert statistics.median(took[1:]) < INITIATED_S, took


@pytest.mark.parametrize("adapter", SAYS)
async def test_the_first_token_comes_in_time(server: Served, upstream: socket.socket, adapter: str) -> None:
    """From the client's frame, through the adapter and the gate, to the first text that the client is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + b"\r\n" + SAYS[adapter]("Well. ") + ENDS[adapter])
            await writer.drain()
        finally:
            writer.close()

    took: list[float] = []
    endpoint = await asyncio.start_server(answer, sock=upstream.dup())
    async with asyncio.timeout(WAIT_S), endpoint, connected(server, 1) as (client,):
        # The first answer of a process loads what every later one finds ready; cores are shared: the best one counts.
        while len(took) <= ROUNDS and min(took[1:], default=FIRST_S) >= FIRST_S:
            client.seen.clear()
            began = time.monotonic()
            await client.send(type="start", prompt="hello", provider=adapter, policy="basic")
            await client.until("message_stream")
            took.append(time.monotonic() - began)
            await client.over()
            assert (client.text(), client.seen[-1]["outcome"]) == ("Well. ", "allowed")
    assert min(took[1:]) < FIRST_S, took


async def test_a_socket_is_prompt_while_fifty_are_open(server: Served, upstream: socket.socket) -> None:
    """From the endpoint's write, through the gate and the log, to the client: its median, the others waiting."""
    waiting, heard = asyncio.Event(), asyncio.Queue[None]()
    written: list[float] = []
    half_said = asyncio.Semaphore(0)

    async def answer(prompt: str, say: Say) -> None:
        await say("Well. ")
        if prompt != "measured":
            half_said.release()
            await waiting.wait()
            return
        for position in range(SAMPLES):
            await heard.get()
            written.append(time.monotonic())
            await say(word(position))

    took: list[float] = []
    async with asyncio.timeout(WAIT_S), answering(upstream, answer), connected(server, CLIENTS) as clients:
        measured, *others = clients
        for client in others:
            await client.start("wait")
        for _ in others:
            await half_said.acquire()
        await measured.start("measured")
        expected = "Well. "
        while len(took) < SAMPLES:
            await measured.until("message_stream")
            if measured.text() == expected:
                if written:
                    took.append(time.monotonic() - written[-1])
                expected += word(len(written))
                heard.put_nowait(None)
        waiting.set()
        await asyncio.gather(*(client.over() for client in clients))
    assert statistics.median(took) < LATENCY_S, took
