"""``POST /v1/chat``, its event stream, and stream tokens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.test import AsyncClient
from django.utils import timezone

from guardrails.services import create_api_key
from streaming import registry, stream_tokens
from streaming.conf import Conf
from streaming.core.wire import HEARTBEAT
from streaming.log import LogUnavailable, MemoryLog
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession
from streaming.routing import websocket_urlpatterns
from streaming.sse import ENDED, event_stream

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SSN = "536-22-8145"
Event = dict[str, object]


@pytest.fixture(autouse=True)
async def quick(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = False  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


class Client:
    def __init__(self, key: str) -> None:
        self.http = AsyncClient()
        self.headers = {"Authorization": f"Bearer {key}"}

    async def chat(self, **body: object) -> tuple[int, Event]:
        response = await self.http.post(
            "/v1/chat", json.dumps(body), content_type="application/json", headers=self.headers
        )
        return response.status_code, json.loads(response.content)

    async def events(self, url: str, last: str = "", *, key: bool = True) -> tuple[int, list[Event]]:
        headers = {**(self.headers if key else {}), **({"Last-Event-ID": last} if last else {})}
        response = await self.http.get(url, headers=headers)
        if not response.streaming:
            return response.status_code, []
        raw = b"".join([part async for part in response])
        self.raw = raw.decode()
        return response.status_code, frames(self.raw)


def frames(raw: str) -> list[Event]:
    """Events of an SSE text; the type and the id outside agree with those inside, and no block is without data."""
    out = []
    for block in raw.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            event = json.loads(lines["data"])
            assert event["type"] == lines["event"]
            assert lines.get("id", "0") == str(event["seq"] or (ENDED if event.get("state") == "COMPLETE" else 0))
            out.append(event)
    return out


@database_sync_to_async
def new_key(*scopes: str) -> str:
    return create_api_key(name=f"key {scopes} {time.monotonic_ns()}", scopes=scopes, policy="demo")[1]


@pytest.fixture
async def client() -> Client:
    return Client(await new_key("stream"))


def visible(events: list[Event]) -> str:
    return "".join(
        str(e.get("chunk", e.get("label", ""))) for e in events if e["type"] in ("message_stream", "redaction")
    )


async def test_it_works(client: Client) -> None:
    status, said = await client.chat(prompt="What is on file?", provider="scripted", scenario="pii", policy="basic")
    assert status == 201
    status, events = await client.events(str(said["events_url"]))
    assert status == 200
    assert [e["seq"] for e in events] == sorted({e["seq"] for e in events})
    assert {e["session_id"] for e in events} == {said["session_id"]}
    (done,) = [e for e in events if e["type"] == "done"]
    assert done["outcome"] == "redacted"
    assert visible(events) == done["final"]
    assert "[SSN]" in str(done["final"])
    assert SSN not in client.raw
    assert events[-1]["state"] == "COMPLETE"


async def test_a_reader_that_comes_back_reads_on_and_one_that_has_all_is_sent_away(client: Client) -> None:
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    _, events = await client.events(str(said["events_url"]))
    half = len(events) // 2
    middle = events[half]["seq"]
    status, rest = await client.events(str(said["events_url"]), last=str(middle))
    assert status == 200
    assert visible(events[: half + 1]) + visible(rest) == visible(events)  # neighbouring chunks may come as one
    assert rest[-1] == events[-1]
    assert await client.events(str(said["events_url"]), last=str(events[-1]["seq"])) == (204, [])


async def test_a_reader_that_comes_back_when_the_log_is_gone_learns_the_end_and_learns_it_once(client: Client) -> None:
    """As an EventSource does: with the id of the last frame that had one, and none at first."""
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    url = str(said["events_url"])
    _, events = await client.events(url)
    await shared_log()._redis.flushdb()
    for last in ("", "7", str(events[-1]["seq"])):
        status, rest = await client.events(url, last=last)
        assert status == 200
        assert [event["type"] for event in rest] == ["message_update", "done", "state"], last
        assert rest[-1]["state"] == "COMPLETE"
        assert {event["seq"] for event in rest} == {0}
        place = [line for line in client.raw.split("\n") if line.startswith("id: ")][-1].removeprefix("id: ")
        assert await client.events(url, last=place) == (204, [])


async def test_a_reader_that_was_told_the_end_by_the_database_stays_away_though_the_log_is_back(client: Client) -> None:
    """The place of that end is behind all that a log can say."""
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    await client.events(str(said["events_url"]))
    assert await client.events(str(said["events_url"]), last=str(ENDED)) == (204, [])
    assert (await client.events(str(said["events_url"]), last="7"))[0] == 200


@pytest.mark.parametrize("last", ["x", "-1", "1e3", "²", "9" * 30])
async def test_a_last_event_id_that_is_none_is_refused(client: Client, last: str) -> None:
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    response = await client.http.get(str(said["events_url"]), headers={**client.headers, "Last-Event-ID": last})
    assert response.status_code == 422
    assert json.loads(response.content)["error"]["field"] == "Last-Event-ID"


async def test_a_token_opens_its_session_and_nothing_else(client: Client) -> None:
    _, first = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    _, second = await client.chat(prompt="Hello again", provider="scripted", policy="basic")
    token = first["stream_token"]
    status, events = await client.events(f"{first['events_url']}&token={token}", key=False)
    assert (status, events[-1]["type"]) == (200, "state")
    assert await client.events(f"{second['events_url']}&token={token}", key=False) == (404, [])
    assert await client.events(f"/v1/stream/events?token={token}", key=False) != (422, [])
    assert await client.events(f"{first['events_url']}&token={token}x", key=False) == (401, [])
    assert await client.events(str(first["events_url"]), key=False) == (401, [])


async def test_a_token_expires_and_every_answer_renews_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    url = f"{said['events_url']}&token={said['stream_token']}"
    response = await client.http.get(url)
    renewed = response.headers["X-Stream-Token"]
    response.close()
    opened = stream_tokens.opened(renewed)
    assert opened is not None
    assert opened.session_id == said["session_id"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + stream_tokens.LIFETIME_S + 1)
    assert await client.events(url, key=False) == (401, [])


@pytest.mark.parametrize("path", ["events", "status"])
async def test_beside_a_token_that_is_good_for_nothing_a_key_counts(client: Client, path: str) -> None:
    """A client that keeps its addresses shows the key again, and reads on; its key opens what it always does."""
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    first = client if path == "events" else Client(await new_key("stream"))
    if path == "status":
        said = json.loads(
            (await first.http.post("/v1/stream/start", "{}", "application/json", headers=first.headers)).content
        )
    token = str(said["stream_token"])

    async def asked(by: Client | None, token: str) -> tuple[int, str]:
        url = f"/v1/stream/{path}?session_id={said['session_id']}&token={token}"
        response = await client.http.get(url, headers=by.headers if by else {})
        renewed = response.headers.get("X-Stream-Token", "")
        response.close()
        return response.status_code, renewed

    status, renewed = await asked(first, token + "x")
    assert (status, (await asked(None, renewed))[0]) == (200, 200)
    assert (await asked(None, token + "x"))[0] == 401
    nameless = await client.http.get(f"/v1/stream/{path}?token={token}x", headers=first.headers)
    assert nameless.status_code == 401, "the token alone said which session"
    assert (await asked(Client("sg_wrong"), token + "x"))[0] == 401
    assert (await asked(Client(await new_key("stream")), token + "x"))[0] == 404
    assert (await asked(Client(await new_key("check")), token + "x"))[0] == 403
    assert (await asked(Client("sg_wrong"), token))[0] == 200, "the token is good, so nothing else is asked"


async def test_a_key_reads_only_its_own_sessions_and_needs_the_scope(client: Client) -> None:
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    other = Client(await new_key("stream"))
    assert await other.events(str(said["events_url"])) == (404, [])
    checker = Client(await new_key("check"))
    assert (await checker.chat(prompt="x"))[0] == 403
    assert (await checker.events(str(said["events_url"])))[0] == 403
    assert await client.events("/v1/stream/events?session_id=nonsense") == (404, [])
    assert await client.events("/v1/stream/events") == (422, [])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "x", "provider": "nobody"}, "provider"),
        ({"prompt": "x", "policy": "nothing"}, "policy"),
        ({"prompt": "x", "conversation_id": "nothing"}, "conversation_id"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(client: Client, body: Event, field: str) -> None:
    status, said = await client.chat(**body)
    error = said["error"]
    assert isinstance(error, dict)
    assert (status, error["field"]) == (422, field)
    assert not await AuditSession.objects.aexists()


async def test_a_lone_surrogate_and_a_list_are_refused(client: Client) -> None:
    for raw, status in ((b'{"prompt": "\\ud800"}', 422), (b"[1]", 422), (b"{", 400)):
        response = await client.http.post("/v1/chat", raw, content_type="application/json", headers=client.headers)
        assert response.status_code == status, response.content
        assert "error" in json.loads(response.content)


async def test_a_browser_socket_with_a_token_reads_on_and_may_not_begin(client: Client) -> None:
    _, said = await client.chat(prompt="Hello there", provider="scripted", policy="basic")
    _, events = await client.events(str(said["events_url"]))
    path = f"/ws/stream/?token={said['stream_token']}"
    socket = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path)  # type: ignore[arg-type]
    socket.scope["session"] = None
    assert (await socket.connect())[0]
    await socket.send_to(text_data=json.dumps({"type": "start", "prompt": "more"}))
    assert json.loads(await socket.receive_from())["code"] == "forbidden"
    last = events[-3]["seq"]
    await socket.send_to(text_data=json.dumps({"type": "resume", "session_id": said["session_id"], "last_seq": last}))
    assert json.loads(await socket.receive_from())["seq"] == last + 1  # type: ignore[operator]
    await socket.disconnect()


async def test_a_silent_stream_is_kept_alive_and_closing_it_leaves_nothing_behind() -> None:
    log = MemoryLog()
    session = await AuditSession.objects.acreate(policy_name="p", policy_version=1, started_at=timezone.now())
    before = asyncio.all_tasks()
    stream = event_stream(log, str(session.pk), 0, Conf(idle_check_s=60), correlation_id="c", heartbeat_s=0.01)
    assert await anext(stream) == HEARTBEAT
    await log.append(str(session.pk), [{"type": "state", "state": "ACTIVE"}], ms=1)
    while (frame := await anext(stream)) == HEARTBEAT:
        pass
    assert frame.startswith(b"event: state\nid: 1\ndata: {")
    await stream.aclose()
    assert asyncio.all_tasks() == before
    assert not await log.attended(str(session.pk))


async def test_a_log_that_goes_away_is_told_without_moving_the_readers_place() -> None:
    class Away(MemoryLog):
        async def read(self, session_id: str, after: int, count: int = 500) -> list[Event]:
            raise LogUnavailable("the store is away")

    told = b"".join([part async for part in event_stream(Away(), "s", 3, Conf(), correlation_id="c")])
    assert b"log_unavailable" in told
    assert b"\nid:" not in told
