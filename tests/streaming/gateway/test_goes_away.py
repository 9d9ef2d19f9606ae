"""Answers that end before their time: the upstream is let go at once, and what was held is sent to nobody."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import cast

import pytest

from guardrails.policy import Policy
from streaming.gateway.gates import Gates
from streaming.gateway.record import Record
from streaming.gateway.relay import Failed, Over, Relay
from streaming.gateway.walker import Json
from streaming.providers.base import ProviderError, ProviderTimeout, StreamCutOff
from tests.streaming.gateway.fake import NDJSON, Answer
from tests.streaming.gateway.served import Gateway
from tests.streaming.gateway.test_anthropic_sdk import message, text
from tests.streaming.gateway.test_ollama_sdk import LAST, line
from tests.streaming.gateway.test_openai_sdk import chunk, sse
from tests.streaming.gateway.test_walkers import SHAPES
from tests.streaming.gateway.walked import BLOCKING, REDACTING, WALKERS

TRIES = 7
WITHIN_S = 0.1
ANSWERS = {
    "openai": ("/v1/chat/completions", sse(chunk({"content": "Good "})), "text/event-stream"),
    "anthropic": ("/v1/messages", message(text("Good ", "morning")), "text/event-stream"),
    "ollama": ("/api/chat", [line({"content": "Good "}), LAST], NDJSON),
}  # fmt: skip


def seconds_until_let_go(served: Gateway, url: str, path: str, key: str) -> float:
    """Ask, read the first words, hang up: when did the upstream see its connection closed after that?"""
    served.fake.gone.clear()
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": "slow", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    )
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer {key}"
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        wire.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        said = b""
        while b"Good" not in said:
            more = wire.recv(4_096)
            assert more, said
            said += more
        left = time.monotonic()
    assert served.fake.gone.wait(60)
    return served.fake.gone_at - left


@pytest.mark.parametrize("dialect", ANSWERS)
def test_it_works(served: Gateway, dialect: str) -> None:
    """Within 100 ms of what hanging up on the upstream itself takes; the best of several tries counts."""
    path, pieces, content_type = ANSWERS[dialect]
    served.fake.answers["slow"] = Answer(pieces, content_type, gate=threading.Event())
    ours, direct = [], []
    for _ in range(TRIES):
        direct.append(seconds_until_let_go(served, served.fake.url, path, "any"))
        ours.append(seconds_until_let_go(served, served.url, path, served.keys["open"]))
        if min(ours) - min(direct) < WITHIN_S:
            return
    raise AssertionError(f"through the gateway {ours}, directly {direct}")


class Stand:
    """A record that keeps nothing."""

    def __init__(self, chunks: int) -> None:
        self._last = chunks
        self.taken = asyncio.Event()
        self.prompted = SimpleNamespace(later=[])
        self.started = SimpleNamespace(session_id="s")
        self.chunks = 0
        self.statuses: list[object] = []
        self.late: list[object] = []
        self.outcomes: list[object] = []

    async def alive(self, gates: Gates) -> None:
        if self.chunks == self._last:
            self.taken.set()

    async def end(self, gates: Gates, usage: object, **how: object) -> None:
        self.outcomes.append(how.get("outcome"))


ENDS: dict[str, ProviderError | None] = {
    "time-out": ProviderTimeout("nothing came for 180 seconds"),
    "cut off": StreamCutOff("the provider's stream ended before the answer did"),
    "silence": None,
}
TEXTS = [shape for shape in SHAPES if "text" in shape or "thinking" in shape or shape.endswith("knows")]


async def told(shape: str, policy: Policy, chunks: list[Json], end: ProviderError | None) -> tuple[list[object], Stand]:
    """All that a client could read. Without an error at the end the client goes when nothing more comes."""
    record = Stand(len(chunks))

    async def source() -> AsyncGenerator[Json, None]:
        for one in chunks:
            yield json.loads(json.dumps(one))
        if end is not None:
            raise end
        await asyncio.Event().wait()

    gates = Gates(policy)
    walker = WALKERS[shape.split()[0]](gates)
    relay = Relay(source(), walker, gates, cast("Record", record), streaming=True)
    task = asyncio.create_task(relay.run())
    if end is None:
        async with asyncio.timeout(60):
            await record.taken.wait()
        relay.abandon()
        task.cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(task, return_exceptions=True)
    found: list[object] = []
    while not relay.told.empty():
        found.append(relay.told.get_nowait())
    return found, record


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("shape", TEXTS)
async def test_held_text_is_not_sent_when_an_answer_breaks_off(shape: str, end: str) -> None:
    """The half of a card that was held stays here; what came before it has been sent."""
    _, whole = SHAPES[shape](len("pay with 4111 11"), "pay with 4111 1111 1111 1111 now")
    half = next(at for at, one in enumerate(whole) if "4111 11" in json.dumps(one)) + 1
    found, record = await told(shape, REDACTING, whole[:half], ENDS[end])
    said = json.dumps([one for one in found if isinstance(one, dict)])
    assert "pay with" in said
    assert "411" not in said
    assert len(record.outcomes) == 1
    if ENDS[end] is not None:
        assert isinstance(found[-1], Failed)


@pytest.mark.parametrize("shape", TEXTS)
async def test_held_text_is_not_sent_after_a_block(shape: str) -> None:
    """Behind the block nothing of what was held in any channel comes out, and the answer is over."""
    _, whole = SHAPES[shape](0, "pay with 4111111111111111 or 5555 5555")
    found, record = await told(shape, BLOCKING, whole, StreamCutOff("unused"))
    said = json.dumps([one for one in found if isinstance(one, dict)])
    assert isinstance(found[-1], Over)
    assert "411" not in said
    assert "111" not in said
    assert "555" not in said
    assert record.outcomes == [None]
