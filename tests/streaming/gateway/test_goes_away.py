"""Answers that end before their time: the upstream is let go at once, and what was held is sent to nobody."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from statistics import median
from types import SimpleNamespace
from typing import cast

import pytest

from guardrails.policy import Policy, compile_policy
from streaming.gateway.gates import Gates
from streaming.gateway.record import Record
from streaming.gateway.relay import Failed, Over, Relay
from streaming.gateway.upstream import UpstreamSaid
from streaming.gateway.walker import Json
from streaming.providers.base import ProviderError, ProviderRefused, ProviderTimeout, StreamCutOff
from tests.streaming.gateway.fake import JSON, NDJSON, Answer
from tests.streaming.gateway.served import Gateway
from tests.streaming.gateway.test_anthropic_sdk import message, text
from tests.streaming.gateway.test_ollama_sdk import LAST, line
from tests.streaming.gateway.test_openai_sdk import chunk, sse
from tests.streaming.gateway.test_walkers import SHAPES
from tests.streaming.gateway.walked import BLOCKING, REDACTING, WALKERS

TEXT = "pay with 4111111111111111 or 5555 5555"
TRIES, ROUNDS = 5, 3
WITHIN_S = 0.1
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}
WHEN = ["streamed", "whole", "before the head", "whole, before the head", "all of it is held"]
"""When the client goes."""


def answer_of(dialect: str, when: str) -> Answer:
    """An answer that stops in the middle: behind its first words, within its body, or before its head."""
    gate = threading.Event()
    if when.startswith("whole"):
        return Answer([b"{", b"}"], JSON, gate=gate, gated_head="head" in when)
    first = "4111 1111 " if "held" in when else "Good "
    if dialect == "ollama":
        return Answer([line({"content": first}), LAST], NDJSON, gate=gate, gated_head="head" in when)
    pieces = sse(chunk({"content": first})) if dialect == "openai" else message(text(first))
    cut = next(at for at, piece in enumerate(pieces) if first.encode() in piece) + 1
    return Answer([*pieces[:cut], pieces[-1]], gate=gate, gated_head="head" in when)


def seconds_until_let_go(served: Gateway, url: str, dialect: str, key: str, when: str) -> float:
    """Ask, wait until the answer has stopped in the middle, hang up: when did the upstream see its connection closed?

    Where there are words, the client has read them.
    """
    served.fake.gone.clear()
    served.fake.writing.clear()
    host, port = url.removeprefix("http://").split(":")
    streaming = not when.startswith("whole")
    body = json.dumps(
        {"model": "slow", "stream": streaming, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    )
    head = "\r\n".join(
        [f"POST {PATHS[dialect]} HTTP/1.1", "Host: localhost", "Content-Type: application/json",
         f"Authorization: Bearer {key}", f"Content-Length: {len(body)}"]
    )  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        wire.sendall(f"{head}\r\n\r\n{body}".encode())
        said = b""
        assert served.fake.writing.wait(60)
        while when == "streamed" and b"Good" not in said:
            more = wire.recv(4_096)
            assert more, said
            said += more
        if when != "streamed" and url == served.url:
            wire.setblocking(False)
            with suppress(BlockingIOError):
                said = wire.recv(4_096)
            assert b"411" not in said, "held text has been sent"
            assert "held" in when or said == b"", "nothing of an answer has come"
        left = time.monotonic()
    assert served.fake.gone.wait(60)
    return served.fake.gone_at - left


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("dialect", PATHS)
def test_it_works(served: Gateway, dialect: str, when: str) -> None:
    """Half of the clients that hang up have their upstream let go within 100 ms of what hanging up on the upstream
    itself takes. The machine may be busy: one round of tries of three counts."""
    served.fake.answers["slow"] = answer_of(dialect, when)
    key = served.keys["strict" if "held" in when else "open"]
    rounds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        ours, direct = [], []
        for _ in range(TRIES):
            direct.append(seconds_until_let_go(served, served.fake.url, dialect, "any", when))
            ours.append(seconds_until_let_go(served, served.url, dialect, key, when))
        rounds.append((median(ours), median(direct)))
        if median(ours) - median(direct) < WITHIN_S:
            return
    raise AssertionError(f"through the gateway and directly: {rounds}")


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
        self.errors: list[object] = []

    def moved(self, gates: Gates) -> None:
        if self.chunks == self._last:
            self.taken.set()

    def alive(self, gates: Gates) -> None:
        """Nobody sweeps here."""

    async def end(self, gates: Gates, usage: object, **how: object) -> None:
        self.outcomes.append(how.get("outcome"))
        self.errors.append(how.get("error"))


ENDS: dict[str, ProviderError | None] = {
    "time-out": ProviderTimeout("nothing came for 180 seconds"),
    "cut off": StreamCutOff("the provider's stream ended before the answer did"),
    "silence": None,
}
TEXTS = [shape for shape in SHAPES if "text" in shape or "thinking" in shape or shape.endswith("knows")]


async def told(
    shape: str, policy: Policy, chunks: list[Json], end: ProviderError | None, *, streaming: bool = True
) -> tuple[list[object], Stand]:
    """All that a client could read. Without an error at the end the client goes when nothing more comes."""
    record, asked = Stand(len(chunks)), asyncio.Event()

    async def source() -> AsyncGenerator[Json, None]:
        for one in chunks:
            yield json.loads(json.dumps(one))
        asked.set()
        if end is not None:
            raise end
        await asyncio.Event().wait()

    gates = Gates(policy)
    walker = WALKERS[shape.split()[0]](gates)
    relay = Relay(source(), walker, gates, cast("Record", record), streaming=streaming)
    task = asyncio.create_task(relay.run())
    if end is None:
        async with asyncio.timeout(60):
            if chunks:
                await record.taken.wait()
            else:
                await asked.wait()
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
    _, whole = SHAPES[shape](0, TEXT)
    found, record = await told(shape, BLOCKING, whole, StreamCutOff("unused"))
    said = json.dumps([one for one in found if isinstance(one, dict)])
    assert isinstance(found[-1], Over)
    assert "411" not in said
    assert "111" not in said
    assert "555" not in said
    assert record.outcomes == [None]


WHOLE: dict[str, Json] = {
    "openai": {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]},
    "anthropic": {"type": "message", "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn"},
    "ollama": {"message": {"role": "assistant", "content": TEXT}, "done": True, "done_reason": "stop"},
}


@pytest.mark.parametrize("dialect", WHOLE)
async def test_of_an_answer_in_one_piece_a_block_leaves_nothing_that_was_held(dialect: str) -> None:
    found, record = await told(f"{dialect} whole", BLOCKING, [WHOLE[dialect]], StreamCutOff("unused"), streaming=False)
    said = json.dumps([one for one in found if isinstance(one, dict)])
    assert isinstance(found[-1], Over)
    assert "pay with" in said
    assert not re.search("411|111|555", said)
    assert record.outcomes == [None]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("dialect", WHOLE)
async def test_of_an_answer_in_one_piece_that_breaks_off_nothing_is_sent(dialect: str, end: str) -> None:
    found, record = await told(f"{dialect} whole", REDACTING, [], ENDS[end], streaming=False)
    assert [one for one in found if isinstance(one, dict)] == []
    assert len(record.outcomes) == 1


JUDGED = compile_policy({"policy": "j", "guardrails": [
    {"name": "judge", "kind": "toxicity", "action": "block"},
    {"name": "pii", "kind": "pii", "action": "redact"},
    {"name": "names", "kind": "keywords", "action": "block", "config": {"keywords": ["Blue Heron"]}},
]})  # fmt: skip
"""Somebody who decides has to be asked about answers, who is not asked about failures."""
SAID = {
    "the provider refused: no model of that name for 4111111111111111":
        "the provider refused: no model of that name for [CREDIT_CARD]",
    "nothing came for 180 seconds": "nothing came for 180 seconds",
    "Blue Heron is the name of it": "The provider failed (provider_refused).",
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", WHOLE)
async def test_why_an_answer_failed_is_told_and_stored_where_a_judge_decides(dialect: str, streaming: bool) -> None:
    """Rules look at it, and nobody is asked."""
    for said, shown in SAID.items():
        found, record = await told(f"{dialect} text", JUDGED, [], ProviderRefused(said), streaming=streaming)
        (failed,) = found
        assert isinstance(failed, Failed)
        assert failed.said == shown
        assert record.errors == [shown]


@pytest.mark.parametrize("dialect", WHOLE)
async def test_an_upstreams_own_document_keeps_its_sentence_where_a_judge_decides(dialect: str) -> None:
    """But not what a model wrote, which some quote in it, and which nobody has judged."""
    words = "the key of 4111111111111111 has no credit left"
    error = {"message": words, "type": "billing", "failed_generation": "this is what the model said"}
    document: Json = {"error": words} if dialect == "ollama" else {"error": error}
    found, record = await told(f"{dialect} text", JUDGED, [], UpstreamSaid(402, document))
    (failed,) = found
    assert isinstance(failed, Failed)
    sentence = "the key of [CREDIT_CARD] has no credit left"
    looked_at = {"message": sentence, "type": "billing", "failed_generation": ""}
    assert failed.said == {"error": sentence if dialect == "ollama" else looked_at}
    assert record.errors == ["the provider answered 402"]
