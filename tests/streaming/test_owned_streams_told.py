"""What is told of a stream that its client owns: which events, in which order, and what checking by chunks costs."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from django.template.loader import render_to_string
from django.utils import timezone

from streaming.conf import conf
from streaming.log_redis import shared_log
from streaming.models import AuditSession
from streaming.sweep import sweep
from streaming.timeline import TimelineView
from tests.streaming.test_stream_api import SSN, Client, Json, closing, error, new_key

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("demo_policy", "valkey_url", closing.__name__),
]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "events.md"
BEGIN, END = ["state", "message_new"], ["message_update", "timing", "done", "state"]
DELTAS = (("One. ", 3), (f"{SSN}. ", 4), ("Three.", 2))


async def told(session_id: object) -> list[Json]:
    return await shared_log().read(str(session_id), 0)


async def sent(client: Client, *chunks: int | None) -> Json:
    """A stream of three deltas, with as many chunks each as given; its summary."""
    extra: list[Json] = [{} if number is None else {"chunks": number} for number in chunks]
    (one, _), (two, _), (three, _) = DELTAS
    session_id = (await client.start(delta=one, **extra[0]))["session_id"]
    status, _ = await client.post("update", {"session_id": session_id, "seq": 2, "delta": two, **extra[1]})
    assert status == 200
    status, done = await client.finish(session_id, delta=three, **extra[2])
    assert status == 200
    return {**cast("Json", done["summary"]), "session_id": session_id}


def drawn(timing: Json) -> str:
    return render_to_string("streaming/timeline.html#timeline", {"timeline": TimelineView.of(timing)})


@pytest.fixture
async def client() -> Client:
    return Client(await new_key("demo", "demo"))


async def test_it_works(client: Client) -> None:
    """Redacted: a finding, no block; what the chunks would have cost is the client's own count."""
    summary = await sent(client, 3, 4, 2)
    assert (summary["chunks"], summary["naive_calls"], summary["calls"]) == (3, 9, 3)
    events = await told(summary["session_id"])
    assert [event["type"] for event in events] == [*BEGIN, "finding", *END]
    (timing,) = [event for event in events if event["type"] == "timing"]
    assert (timing["calls"], timing["audit_rows"], timing["naive_calls"]) == (3, 4, 9)
    row = (await AuditSession.objects.aget()).timing
    assert (row["naive_calls"], row["arrivals"]) == (9, timing["arrivals"])
    assert sum(chars for _, chars in cast("list[tuple[int, int]]", timing["arrivals"])) == len("One. . Three." + SSN)
    assert "(per-chunk checking: 9)" in drawn(timing)


@pytest.mark.parametrize("chunks", [(None, None, None), (3, None, 2), (None, 4, 2), (3, 4, None)], ids=str)
async def test_what_nobody_knows_is_not_compared(client: Client, chunks: tuple[int | None, ...]) -> None:
    """One delta of which the client does not say it is enough."""
    summary = await sent(client, *chunks)
    assert (summary["chunks"], "naive_calls" in summary) == (3, False)
    (timing,) = [event for event in await told(summary["session_id"]) if event["type"] == "timing"]
    assert timing["naive_calls"] == 0
    row = (await AuditSession.objects.aget()).timing
    assert "naive_calls" not in row
    for source in (timing, row):
        assert "API calls" in drawn(source)
        assert "per-chunk" not in drawn(source)


@pytest.mark.parametrize("chunks", [-1, 1.5, "3", True, 1_000_001, [1]], ids=str)
async def test_a_count_that_is_none_is_refused_and_nothing_is_applied(client: Client, chunks: object) -> None:
    session_id = (await client.start())["session_id"]
    for call, more in (("start", {}), ("update", {"seq": 1}), ("finish", {})):
        body = {**({} if call == "start" else {"session_id": session_id}), **more, "delta": "x", "chunks": chunks}
        status, said = await client.post(call, body)
        assert (status, error(said)["field"]) == (422, "chunks"), call
    assert (await client.status(session_id))[1]["expected_seq"] == 1
    assert await AuditSession.objects.acount() == 1


async def test_a_copy_of_a_call_counts_once_and_is_the_same_call_without_its_count(client: Client) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = [await client.post("start", {"delta": "One.", **more}, **headers) for more in ({"chunks": 2}, {})]
    assert [status for status, _ in answers] == [201, 201]
    session_id = answers[0][1]["session_id"]
    assert answers[1][1]["session_id"] == session_id
    body = {"session_id": session_id, "seq": 2, "delta": " Two."}
    for more in ({"chunks": 5}, {"chunks": 5}, {}):
        assert (await client.post("update", {**body, **more}))[0] == 200
    _, done = await client.finish(session_id)
    assert cast("Json", done["summary"])["naive_calls"] == 7


async def test_a_stream_that_is_stopped_says_so_behind_what_stopped_it(client: Client) -> None:
    session_id = (await client.start(delta="They call it project blue heron, and more."))["session_id"]
    await client.finish(session_id)
    events = await told(session_id)
    assert [event["type"] for event in events] == [*BEGIN, "finding", "blocked", *END]
    assert [event["seq"] for event in events] == list(range(1, 9))


async def test_a_stream_that_expires_ends_like_any_other(client: Client) -> None:
    session_id = (await client.start(delta="One. "))["session_id"]
    script = "redis.call('HSET', KEYS[1], 'at', 1) return 1"
    await shared_log().evaluate(script, [f"sg:guarded:{{{session_id}}}"], [])
    await sweep(timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1), shared_log(), lambda pk: None)
    events = await told(session_id)
    assert [event["type"] for event in events] == [*BEGIN, *END]
    assert events[-1]["outcome"] == "expired"


async def test_the_page_names_the_events_that_there_are() -> None:
    part = PAGE.read_text("utf-8").split("## A stream that its client owns", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[2] for line in part.splitlines() if re.match(r"\| (?!n |-)", line)]
    named = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row) if name not in ("kind", "prompt")]
    assert named == [*BEGIN, "finding", "blocked", *END, "guardrail_status", "finding", "state"]
