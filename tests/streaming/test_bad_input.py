"""Streams and chats used wrongly: each answer says what is wrong, and what was there before is there afterwards.

What single calls refuse stands beside the calls' own tests; here is what only a whole session, or very many, can do
wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from math import ceil

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.http import HttpResponse
from django.test import AsyncClient, override_settings

from guardrails.services import create_api_key
from project.asgi import application
from streaming import registry, tasks
from streaming.conf import conf
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditEntry, AuditSession, Conversation, Message

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SSN = "536-22-8145"
Json = dict[str, object]


@pytest.fixture(autouse=True)
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


class Caller:
    """A key's calls."""

    def __init__(self, key: str) -> None:
        self._http, self.headers = AsyncClient(), {"Authorization": f"Bearer {key}"}
        self.last: HttpResponse

    async def post(self, path: str, **body: object) -> tuple[int, Json]:
        self.last = await self._http.post(
            f"/v1/{path}", json.dumps(body), content_type="application/json", headers=self.headers
        )
        said: Json = json.loads(self.last.content)
        error = said.get("error", said)
        assert isinstance(error, dict)
        return self.last.status_code, error

    async def get(self, path: str) -> HttpResponse:
        return await self._http.get(f"/v1/{path}", headers=self.headers)


@database_sync_to_async
def new_key(name: str, **limits: int) -> str:
    return create_api_key(name=name, scopes=["stream", "check"], **limits)[1]


@pytest.fixture
async def caller() -> Caller:
    return Caller(await new_key("one", calls_per_minute=10_000, updates_per_second=10_000))


async def rest_of(caller: Caller, session_id: object) -> str:
    """What a stream still shows when it is ended: the proof that nothing else has been applied."""
    status, said = await caller.post("stream/finish", session_id=session_id)
    assert status == 200
    return str(said["released"])


async def test_it_works(caller: Caller) -> None:
    """A client that makes every mistake in turn ends with the text that it would have had without them."""
    _, began = await caller.post("stream/start", delta=f"The number is {SSN[:6]}")
    session_id, shown = began["session_id"], str(began["released"])
    right = {"session_id": session_id, "seq": 2, "delta": f"{SSN[6:]}, I say. "}
    wrong: list[tuple[Json, int, str]] = [
        ({**right, "seq": 1}, 409, "seq_conflict"),
        ({**right, "seq": 3}, 409, "seq_conflict"),
        ({**right, "seq": 2**62}, 409, "seq_conflict"),
        ({**right, "seq": 10**30}, 409, "seq_conflict"),
        ({**right, "seq": 0}, 422, "invalid"),
        ({**right, "seq": 2.0}, 422, "invalid"),
        ({**right, "seq": True}, 422, "invalid"),
        ({**right, "seq": None}, 422, "invalid"),
        ({**right, "delta": None}, 422, "invalid"),
        ({**right, "delta": ["x"]}, 422, "invalid"),
        ({**right, "delta": "\0"}, 422, "invalid"),
        ({**right, "delta": "x" * (conf().max_own_text_chars + 1)}, 422, "invalid"),
        ({**right, "delta": "x" * 1_100_000}, 413, "too_large"),
        ({**right, "session_id": [session_id]}, 422, "invalid"),
    ]
    for body, status, code in wrong:
        got, error = await caller.post("stream/update", **body)
        assert (got, error["code"]) == (status, code), str(body)[:200]
        if status == 409:
            assert error["expected_seq"] == 2
    status, said = await caller.post("stream/update", **right)
    assert status == 200
    shown += str(said["released"])
    for body in ({**right, "delta": "something else"}, {**right, "seq": 1, "delta": f"The number is {SSN[:6]}"}):
        got, error = await caller.post("stream/update", **body)
        assert (got, error["code"], error["expected_seq"]) == (409, "seq_conflict", 3)
    assert shown + await rest_of(caller, session_id) == "The number is [SSN], I say. "
    for call, body in (("update", {**right, "seq": 3}), ("finish", {"session_id": session_id, "delta": "more"})):
        got, error = await caller.post(f"stream/{call}", **body)
        assert (got, error["code"], error["expected_seq"]) == (409, "stream_ended", 3)
    message = await Message.objects.aget()
    assert message.content == "The number is [SSN], I say. "


@pytest.mark.parametrize("call", ["update", "finish"])
async def test_a_text_that_becomes_too_long_is_refused_and_the_stream_goes_on(caller: Caller, call: str) -> None:
    half = "word " * (conf().max_own_text_chars // 8)
    _, began = await caller.post("stream/start", delta=half)
    body: Json = {"session_id": began["session_id"], "seq": 2}
    status, error = await caller.post(f"stream/{call}", **body, delta=half)
    assert (status, error["field"]) == (422, "delta")
    _, said = await caller.post("stream/update", **body, delta="end.")
    shown = str(began["released"]) + str(said["released"]) + await rest_of(caller, began["session_id"])
    assert shown == half + "end."


async def test_a_session_that_is_no_stream_is_not_found_by_the_stream_calls(caller: Caller) -> None:
    _, checked = await caller.post("check", text="Hello", kind="prompt")
    _, chat = await caller.post("chat", prompt="Hello", provider="scripted")
    for session_id in (checked["session_id"], chat["session_id"]):
        for call, body in (("update", {"seq": 1, "delta": "x"}), ("finish", {})):
            assert (await caller.post(f"stream/{call}", session_id=session_id, **body))[0] == 404
        assert (await caller.get(f"stream/status?session_id={session_id}")).status_code == 404
    assert await AuditSession.objects.filter(error_code="").acount() == 2, "and nothing is wrong with them now"


async def test_the_events_of_a_check_end_at_once(caller: Caller) -> None:
    """It has no events; whoever asks for them must not wait for ever."""
    _, checked = await caller.post("check", text="Hello", kind="response")
    response = await caller.get(f"stream/events?session_id={checked['session_id']}")
    raw = b"".join([part async for part in response]).decode()
    assert '"state":"COMPLETE"' in raw


async def flood(calls: int) -> None:
    """One key begins sessions without end; what it gets, and what another key notices of it."""
    greedy, other = Caller(await new_key("greedy")), Caller(await new_key("other"))
    _, running = await other.post("stream/start", delta="Hello. ")
    began, since = [], time.monotonic()
    for n in range(calls):
        call, body = (
            ("stream/start", {"delta": "x"}),
            ("chat", {"prompt": "x"}),
            ("check", {"text": "x", "kind": "prompt"}),
        )[n % 3]
        status, said = await greedy.post(call, **body)
        if status < 300:
            began.append(said["session_id"])
            continue
        assert (status, said["code"]) == (429, "too_many_calls")
        assert 0 < int(greedy.last.headers["Retry-After"]) <= 60
        assert greedy.last.headers["X-RateLimit-Remaining"] == "0"
        if n % (calls // 20) == 0:
            assert (await other.post("check", text="Hello", kind="prompt"))[0] == 200
    windows = 1 + ceil((time.monotonic() - since) / 60)  # on a slow machine it takes more than one
    assert 60 <= len(began) <= 60 * windows
    assert len(began) < calls / 2
    assert await AuditSession.objects.acount() <= len(began) + 1 + 20, "a refused call leaves nothing"
    status, _ = await other.post("stream/update", session_id=running["session_id"], seq=2, delta="there.")
    assert status == 200


async def test_a_flood_of_sessions_from_one_key_is_held_back_and_others_notice_nothing() -> None:
    await flood(400)


@pytest.mark.long
async def test_ten_thousand_sessions_from_one_key() -> None:
    await flood(10_000)


async def crowd(starts: int, most: int) -> None:
    """One key that may call as often as it likes leaves all its sessions open."""
    greedy = Caller(await new_key("greedy", calls_per_minute=1_000_000))
    other = Caller(await new_key("other", calls_per_minute=1_000_000))
    _, running = await other.post("stream/start", delta="Hello. ")
    with override_settings(SLUICEGATE_SESSIONS_AT_ONCE=most):
        for n in range(starts):
            status, said = await greedy.post("stream/start", delta="x")
            assert status == (201 if n < most else 429), n
            if status == 429:
                assert (said["code"], int(greedy.last.headers["Retry-After"]) > 0) == ("too_many_sessions", True)
            if n % (starts // 20) == 0:
                assert (await other.post("stream/start", delta="Hello"))[0] in (201, 429)
                assert (await other.post("check", text="Hello", kind="prompt"))[0] == 200
    mine = AuditSession.objects.filter(state="ACTIVE").exclude(pk=running["session_id"])
    assert await mine.acount() <= most + 20, "a refused call leaves nothing"
    status, _ = await other.post("stream/update", session_id=running["session_id"], seq=2, delta="there.")
    assert status == 200


async def test_a_key_that_never_ends_its_sessions_gets_no_more_of_them() -> None:
    await crowd(60, 20)


@pytest.mark.long
async def test_ten_thousand_open_sessions_from_one_key() -> None:
    await crowd(10_000, 2_000)


async def test_sockets_are_no_way_around_the_limit() -> None:
    """Each start frame counts, however many sockets a key opens; its calls share the count."""
    key, other = await new_key("greedy", calls_per_minute=3), await new_key("other", calls_per_minute=3)
    caller = Caller(key)
    codes = [await first_answer(key) for _ in range(5)]
    assert codes == ["state", "state", "state", "too_many_calls", "too_many_calls"]
    assert (await caller.post("stream/start"))[0] == 429
    assert await first_answer(other) == "state"
    assert await AuditSession.objects.acount() == 4
    assert await AuditEntry.objects.filter(kind="opened").acount() == 4
    assert await Conversation.objects.acount() == 4


async def first_answer(key: str) -> object:
    """What a new socket hears when it begins a session: the type of an event, or the code of an error."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
    socket = WebsocketCommunicator(application, "/ws/stream/", headers=headers)  # type: ignore[arg-type]
    assert (await socket.connect())[0]
    await socket.send_to('{"type": "start", "prompt": "Hello"}')
    said = json.loads(await socket.receive_from(timeout=10))
    await socket.disconnect()
    return said.get("code", said["type"])


async def test_the_window_of_a_flood_ends_and_the_key_is_served_again() -> None:
    caller = Caller(await new_key("greedy", calls_per_minute=1))
    assert [(await caller.post("stream/start"))[0] for _ in range(3)] == [201, 429, 429]
    (key,) = [one async for one in AuditSession.objects.values_list("client", flat=True)]
    # What the store's clock does when the minute is over is done here at once.
    assert await shared_log().evaluate("return redis.call('DEL', KEYS[1])", [f"sg:rate:{{{key}}}:start"], []) == 1
    assert (await caller.post("stream/start"))[0] == 201
