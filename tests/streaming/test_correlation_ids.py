"""The id under which a session was begun stands in each of its events, whoever reads it, and in the sweep's log."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import redirect_stdout
from datetime import timedelta

import pytest
import structlog
from channels.db import database_sync_to_async
from django.core.management import call_command
from django.test import AsyncClient
from django.utils import timezone

from streaming import log_redis, registry, sessions, sweep
from streaming.callbacks import StreamCallbacks, start_stream
from streaming.conf import conf
from streaming.log import LogUnavailable, MemoryLog
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, DeferredCheck
from streaming.sessions import DeferredText, Ending, NewSession, Started, Visitor

from .pumping import QUICK
from .test_chat_api import frames
from .test_consumers import Client, connected
from .test_stream_api import forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
Event = dict[str, object]
ID = "order-4711"
ENVELOPE = {"type", "seq", "session_id", "ms", "correlation_id"}


@pytest.fixture(autouse=True)
async def quick(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


def carried(events: list[Event]) -> set[object]:
    """The ids that these events carry, each with the whole envelope."""
    assert events
    assert all(event.keys() >= ENVELOPE for event in events), [sorted(event) for event in events]
    return {event["correlation_id"] for event in events}


class Reader:
    """Reads a session's events over SSE, with these headers."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers

    async def events(self, url: str) -> list[Event]:
        response = await AsyncClient().get(url, headers=self.headers)
        given = self.headers.get("X-Correlation-ID", response.headers["X-Correlation-ID"])
        assert response.headers["X-Correlation-ID"] == given, "the call's own id is another matter"
        return frames(b"".join([part async for part in response]).decode())


async def over(client: Client) -> list[Event]:
    """Begin an answer without deferred checks and read it to its end."""
    await client.send(type="start", prompt="Hello there", provider="scripted", policy="basic")
    await client.until("state", state="COMPLETE")
    return client.seen


async def test_it_works() -> None:
    async with connected(**{"x-correlation-id": ID}) as client:
        events = await over(client)
    assert carried(events) == {ID}
    assert {"message_new", "message_stream", "guardrail_status", "timing", "done", "state"} <= {
        event["type"] for event in events
    }


async def test_the_id_is_not_stored_with_each_event() -> None:
    async with connected(**{"x-correlation-id": ID}) as client:
        session_id = str((await over(client))[0]["session_id"])
    assert not any("correlation_id" in event for event in await shared_log().read(session_id, 0))


async def test_who_resumes_under_another_id_is_told_the_sessions() -> None:
    async with connected(**{"x-correlation-id": ID}) as client:
        first = await over(client)
    async with connected(**{"x-correlation-id": "another-4712"}) as client:
        await client.send(type="resume", session_id=first[0]["session_id"], last_seq=3)
        await client.until("state", state="COMPLETE")
    assert carried(client.seen) == {ID}


@pytest.mark.parametrize("gone", [False, True], ids=["log", "database"])
async def test_another_process_reads_it_from_the_log_and_from_the_database_when_the_log_is_gone(gone: bool) -> None:
    http, key = AsyncClient(), await new_key("stream")
    response = await http.post(
        "/v1/chat",
        json.dumps({"prompt": "Hello there", "provider": "scripted", "policy": "basic"}),
        content_type="application/json",
        headers={"Authorization": f"Bearer {key}", "X-Correlation-ID": ID},
    )
    said = json.loads(response.content)
    first = Reader({"Authorization": f"Bearer {key}"})
    assert carried(await first.events(said["events_url"])) == {ID}
    if gone:
        await forget_store()
    await close_shared_log()  # what reads now has nothing but the store and the session's row
    second = Reader({"Authorization": f"Bearer {key}", "X-Correlation-ID": "another-4712"})
    events = await second.events(said["events_url"])
    assert carried(events) == {ID}
    assert [event["type"] for event in events][-2:] == ["done", "state"]
    assert (events[-1]["seq"] == 0) is gone


async def test_an_error_about_one_session_carries_it_and_one_about_none_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*args: object, **kwargs: object) -> object:
        raise LogUnavailable("away")

    monkeypatch.setattr(log_redis.RedisLog, "read", away)
    async with connected(**{"x-correlation-id": ID}) as client:
        await client.send(type="nonsense")
        assert "correlation_id" not in await client.receive()
        client.seen.clear()
        await client.send(type="start", prompt="Hello there", provider="scripted", policy="basic")
        await client.until("state", state="COMPLETE")
    assert client.seen[0]["code"] == "log_unavailable"
    assert carried(client.seen) == {ID}


async def test_callbacks_are_told_the_id_that_the_row_and_their_log_lines_have() -> None:
    bound: list[object] = []

    class Listening(StreamCallbacks):
        def on_state_change(self, old: str, new: str) -> None:
            bound.append(structlog.contextvars.get_contextvars().get("correlation_id"))

    start = {"prompt": "Hello there", "provider": "scripted"}
    for given in (ID, "", "<forged>\n"):
        handle = await start_stream(
            start, Listening(), visitor=Visitor(client="mine"), log=MemoryLog(), settings=QUICK, correlation_id=given
        )
        await handle.wait()
        row = await AuditSession.objects.aget(pk=handle.session_id)
        assert (handle.correlation_id == ID) is (given == ID)
        assert (row.correlation_id, set(bound)) == (handle.correlation_id, {handle.correlation_id})
        assert row.correlation_id
        bound.clear()
    assert "correlation_id" not in structlog.contextvars.get_contextvars()


@pytest.mark.parametrize("given", [ID, ""])
async def test_refused_calls_are_answered_with_an_id_too(given: str) -> None:
    key = await new_key("narrow", calls_per_minute=1)
    headers = {"Authorization": f"Bearer {key}", **({"X-Correlation-ID": given} if given else {})}
    seen = []
    for path, body, status in (
        ("/v1/nothing", {}, 404),
        ("/v1/stream/update", {"session_id": "00000000-0000-4000-8000-000000000000", "seq": 2, "delta": "x"}, 404),
        ("/v1/check", {"text": "x" * 1_100_000, "kind": "prompt"}, 413),
        ("/v1/check", {"text": "x", "kind": "prompt"}, 200),
        ("/v1/check", {"text": "x", "kind": "prompt"}, 429),
    ):
        answer = await AsyncClient().post(path, json.dumps(body), content_type="application/json", headers=headers)
        assert answer.status_code == status, answer.content
        seen.append(answer.headers["X-Correlation-ID"])
    assert all(seen)
    assert set(seen) == {given} if given else len(set(seen)) == len(seen)


def test_the_terminal_gives_each_answer_an_id_and_says_it() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        call_command("chat", "Hello there", "--json", "--provider", "scripted")
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    (said,) = carried(events)
    assert said == AuditSession.objects.get().correlation_id != ""


def begun(correlation_id: str, *deferred: DeferredText) -> Started:
    new = NewSession(
        visitor=Visitor(session_key="b"), prompt="p", provider="scripted", model="m", correlation_id=correlation_id,
        policy={"name": "demo", "version": 1, "digest": "sha256:trial"},
    )  # fmt: skip
    started = sessions.start_session(new)
    if deferred:
        ending = Ending(sessions.Outcome.ALLOWED, sessions.Message.Status.COMPLETE, content="x", deferred=deferred)
        sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return started


async def test_what_the_sweep_logs_about_a_session_carries_the_sessions_id() -> None:
    class Away(MemoryLog):
        async def append(self, *args: object, **kwargs: object) -> int:
            raise LogUnavailable("away")

    waits = DeferredText("harm", "response", "x")
    lost = await database_sync_to_async(begun)("lost-4711")
    overdue = await database_sync_to_async(begun)("overdue-4711", waits)
    silent = await database_sync_to_async(begun)("silent-4711", waits)
    now = timezone.now()
    later = now + timedelta(seconds=conf().stale_s + 1)
    past = now - timedelta(seconds=conf().monitoring_limit_s)
    await AuditSession.objects.filter(pk=overdue.session_id).aupdate(heartbeat_at=past)
    check = await DeferredCheck.objects.aget(session_id=silent.session_id)
    queued: list[tuple[int, object]] = []

    def queue(check_id: int) -> None:
        queued.append((check_id, structlog.contextvars.get_contextvars().get("correlation_id")))

    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as lines:
        done = await sweep.sweep(later, Away(), queue)
    assert (done.lost, done.expired) == ([lost.session_id], [overdue.session_id])
    told = {(line["event"], line["session"], line["correlation_id"]) for line in lines if "session" in line}
    assert told == {
        ("session_lost", lost.session_id, "lost-4711"),
        ("readers_not_told", lost.session_id, "lost-4711"),
        ("unjudged_not_recorded", lost.session_id, "lost-4711"),
        ("readers_not_told", overdue.session_id, "overdue-4711"),
    }
    assert queued == [(check.pk, "silent-4711")]
    assert "correlation_id" not in structlog.contextvars.get_contextvars()
