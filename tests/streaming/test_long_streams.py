"""Long answers and many at once: order, separation and promptness, over the consumers and over real connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from channels.db import database_sync_to_async

from streaming import registry
from streaming.log_redis import close_shared_log
from streaming.models import AuditSession
from tests.bench import stream
from tests.streaming.local_server import serve
from tests.streaming.test_consumers import Client, connected

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]

STREAMS = 50
WAIT_S = 30.0
"""Generous: this machine may be busy. What is promised is in the assertions."""


@pytest.fixture(autouse=True)
async def quick(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "5000")
    yield
    await registry.shutdown()
    await close_shared_log()


def dialect(tokens: list[str]) -> list[bytes]:
    """An OpenAI-compatible stream, a token a chunk."""
    deltas: list[tuple[dict[str, str], str | None]] = [({"content": token}, None) for token in tokens]
    lines = []
    for delta, reason in [*deltas, ({}, "stop")]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        lines.append(b"data: " + json.dumps({"model": "m-1", "choices": [choice]}).encode() + b"\n\n")
    return [*lines, b"data: [DONE]\n\n"]


async def over(client: Client) -> None:
    """Read to the end of the answer, acknowledging on the way as a client does."""
    while not client.seen or client.seen[-1].get("state") not in ("MONITORING", "COMPLETE"):
        event = await client.receive()
        if int(str(event["seq"])) % 100 == 0:
            await client.send(type="ack", seq=event["seq"], session_id=event["session_id"])


async def test_it_works_with_fifteen_hundred_tokens_from_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [f"w{n}x " for n in range(1_500)]
    async with serve(dialect(tokens)) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
        async with asyncio.timeout(WAIT_S), connected() as client:
            await client.send(type="start", prompt="count", provider="openai", policy="basic")
            await over(client)
    assert client.text() == "".join(tokens)
    seqs = [int(str(event["seq"])) for event in client.seen]
    assert seqs == sorted(set(seqs))


async def test_fifty_streams_at_once_never_mix() -> None:
    def said(n: int) -> str:
        return " ".join(f"s{n}w{word}" for word in range(60)) + " 536-22-8145."

    async with asyncio.timeout(3 * WAIT_S), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(session_key=f"v{n}")) for n in range(STREAMS)]
        for n, client in enumerate(clients):
            await client.send(type="start", provider="scripted", scenario="own_text", text=said(n), policy="basic")
        await asyncio.gather(*(over(client) for client in clients))
    for n, client in enumerate(clients):
        assert client.text() == said(n).replace("536-22-8145", "[SSN]"), client.seen[-6:]
        assert len({event["session_id"] for event in client.seen}) == 1
    sessions = {str(event["session_id"]) for client in clients for event in client.seen}
    assert len(sessions) == STREAMS
    outcomes = await database_sync_to_async(lambda: set(AuditSession.objects.values_list("outcome", flat=True)))()
    assert outcomes == {"redacted"}


async def test_an_answer_is_initiated_and_its_first_character_is_there_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholder within 2 s of the frame, first character within half a second of the endpoint's first byte."""
    async with serve(dialect(["Well", ", ", "yes."])) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
        async with asyncio.timeout(WAIT_S), connected() as client:
            # The first answer of a process loads what every later one finds ready.
            await client.send(type="start", prompt="warm up", provider="openai", policy="basic")
            await over(client)
            took: list[tuple[float, float]] = []
            while len(took) < 10 and not any(placed < 2.0 and came < 0.5 for placed, came in took):  # cores are shared
                client.seen.clear()
                began = time.monotonic()
                await client.send(type="start", prompt="again", provider="openai", policy="basic")
                await client.until("message_new", role="assistant")
                initiated = time.monotonic()
                await client.until("message_stream")
                took.append((initiated - began, time.monotonic() - initiated))
                await over(client)
    assert any(placed < 2.0 and came < 0.5 for placed, came in took), took


async def test_pending_text_reaches_a_socket_soon_after_the_endpoint_falls_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = dialect(["Well, ", "ye", "s "])[:3]
    async with serve(pieces, hang=True) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
        took: list[float] = []
        while len(took) < 10 and min(took, default=1.0) >= 0.5:  # cores are shared: the best of ten counts
            async with asyncio.timeout(WAIT_S), connected() as client:
                await client.send(type="start", prompt="slowly", provider="openai", policy="basic")
                await client.until("message_stream")
                began = time.monotonic()
                while client.text() != "Well, yes ":
                    await client.until("message_stream")
                took.append(time.monotonic() - began)
                await client.send(type="interrupt")
                await client.until("done", outcome="interrupted")
        await asyncio.wait_for(endpoint.client_gone.wait(), WAIT_S)
    assert min(took) < 0.5, took


def test_a_long_stream_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens: whether the target is met is the benchmark's business, that it measures is ours."""
    monkeypatch.setattr(stream, "TOKENS", 500)
    sessions = AuditSession.objects.count()
    found = stream._child(str(tmp_path), 0)
    assert 10_000 < found["peak_bytes"] < 10_000_000
    assert AuditSession.objects.count() == sessions
