"""How many sessions a key may have open: the last place goes to one, and none is kept by what is over or died."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
from channels.testing import WebsocketCommunicator
from django.test import AsyncClient
from django.utils import timezone

from project.asgi import application
from streaming import open_sessions, registry
from streaming.chat import Asked, Own, start_chat
from streaming.conf import conf
from streaming.frames import StartFrame
from streaming.log import LogUnavailable
from streaming.log_redis import shared_log
from streaming.models import AuditEntry, AuditSession
from streaming.open_sessions import TooManyOpen, take_place
from streaming.sessions import Visitor
from streaming.sweep import sweep
from tests.streaming.test_stream_api import Client, Json, closing, error, forget_store, new_key
from tests.streaming.test_tenancy import Waits

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("demo_policy", "valkey_url", closing.__name__),
]
MOST = 3


@pytest.fixture(autouse=True)
async def few(settings: object) -> AsyncIterator[None]:
    settings.SLUICEGATE_SESSIONS_AT_ONCE = MOST  # type: ignore[attr-defined]
    yield
    await registry.shutdown()


@pytest.fixture
async def client() -> Client:
    return Client(await new_key())


async def begun(client: Client) -> tuple[int, Json]:
    return await client.post("start", {"delta": "Hello. "})


async def full(client: Client) -> list[str]:
    """All places are taken."""
    taken = [await begun(client) for _ in range(MOST)]
    assert [status for status, _ in taken] == [201] * MOST
    assert (await begun(client))[0] == 429
    return [str(said["session_id"]) for _, said in taken]


async def test_it_works(client: Client) -> None:
    taken = await full(client)
    status, said = await begun(client)
    assert (status, error(said)["code"]) == (429, "too_many_sessions")
    assert await AuditSession.objects.acount() == await AuditEntry.objects.acount() == MOST, "nothing of it is stored"
    assert (await begun(Client(await new_key("two"))))[0] == 201, "another key has places of its own"
    assert (await client.update(taken[0], 2, "More. "))[0] == 200, "what is open goes on"
    await client.finish(taken[0])
    assert [(await begun(client))[0] for _ in range(2)] == [201, 429]


async def test_a_refusal_says_when_to_come_again(client: Client) -> None:
    await full(client)
    response = await client.http.post(
        "/v1/stream/start", '{"delta": "x"}', content_type="application/json", headers=client.headers
    )
    assert (response.status_code, response.headers["Retry-After"]) == (429, str(open_sessions.RETRY_S))


async def test_what_expires_gives_its_place_back(client: Client) -> None:
    """Also where whoever served it is gone: it is the sweep that ends it."""
    taken = await full(client)
    script = "redis.call('HSET', KEYS[1], 'at', 1) return 1"
    await shared_log().evaluate(script, [f"sg:guarded:{{{taken[1]}}}"], [])
    later = timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1)
    assert (await sweep(later, shared_log(), lambda pk: None)).expired == [taken[1]]
    assert [(await begun(client))[0] for _ in range(2)] == [201, 429]


async def test_of_many_that_come_at_once_as_many_begin_as_there_are_places(client: Client) -> None:
    said = await asyncio.gather(*(begun(client) for _ in range(4 * MOST)))
    assert sorted(status for status, _ in said) == [201] * MOST + [429] * (3 * MOST)
    assert await AuditSession.objects.acount() == MOST


async def test_a_start_that_comes_again_takes_no_second_place(client: Client) -> None:
    for _ in range(2 * MOST):
        assert (await client.post("start", {"delta": "x"}, **{"Idempotency-Key": "k"}))[0] == 201
    assert [(await begun(client))[0] for _ in range(MOST)] == [201] * (MOST - 1) + [429]


async def test_a_start_that_came_to_nothing_keeps_its_place_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died between the place and the rows."""
    for _ in range(MOST):
        await take_place(shared_log(), "sg_one", str(uuid4()), conf())
    with pytest.raises(TooManyOpen):
        await take_place(shared_log(), "sg_one", str(uuid4()), conf())
    monkeypatch.setattr(open_sessions, "FRESH_S", -1.0)
    await take_place(shared_log(), "sg_one", str(uuid4()), conf())


async def test_answers_of_ours_and_sockets_share_the_places(client: Client) -> None:
    slow = Waits()
    asked = Asked(Visitor(client=client.headers["Authorization"][7:18]), "basic", own=Own(slow, flagged=False))
    await start_chat(StartFrame(type="start", prompt="Hello"), asked, shared_log())
    body = json.dumps({"prompt": "Hello", "provider": "scripted"})
    headers = client.headers

    async def chat() -> tuple[int, Json, str]:
        response = await AsyncClient().post("/v1/chat", body, content_type="application/json", headers=headers)
        return response.status_code, json.loads(response.content), response.headers.get("Retry-After", "")

    for _ in range(MOST - 1):
        assert (await begun(client))[0] == 201
    status, said, again = await chat()
    assert (status, error(said)["code"], again) == (429, "too_many_sessions", str(open_sessions.RETRY_S))
    pairs = [(b"host", b"localhost"), (b"authorization", headers["Authorization"].encode())]
    socket = WebsocketCommunicator(application, "/ws/stream/", headers=pairs)  # type: ignore[arg-type]
    assert (await socket.connect(timeout=60))[0]
    await socket.send_to('{"type": "start", "prompt": "Hello"}')
    assert json.loads(await socket.receive_from(timeout=60))["code"] == "too_many_sessions"
    assert await AuditSession.objects.acount() == MOST
    await registry.shutdown()  # the answer ends with its server
    await socket.send_to('{"type": "start", "prompt": "Hello"}')
    assert json.loads(await socket.receive_from(timeout=60))["type"] == "state"
    await socket.disconnect(timeout=60)


async def test_a_store_that_has_lost_the_places_is_told_of_them(client: Client) -> None:
    """Or that has forgotten them, because no session has begun for long."""
    taken = await full(client)
    await forget_store()
    assert (await begun(client))[0] == 429
    assert (await client.finish(taken[0], seq=2))[0] == 200
    assert [(await begun(client))[0] for _ in range(2)] == [201, 429]


async def test_places_are_forgotten_like_a_log() -> None:
    await take_place(shared_log(), "sg_one", str(uuid4()), conf())
    left = await shared_log().evaluate("return redis.call('TTL', KEYS[1])", ["sg:open:{sg_one}"], [])
    assert 0 < int(str(left)) <= conf().log_ttl_s


@pytest.mark.parametrize("way", ["chat", "socket"])
async def test_what_begins_while_the_store_is_away_is_refused_and_not_on_record(
    client: Client, way: str, settings: object
) -> None:
    """It could only end in an error. The question for a place is the one that finds out, so nothing more is asked."""
    settings.REDIS_URL = "redis://127.0.0.1:1/0"  # type: ignore[attr-defined]
    key = client.headers["Authorization"]
    if way == "chat":
        body = json.dumps({"prompt": "Hello", "provider": "scripted"})
        said = await AsyncClient().post("/v1/chat", body, content_type="application/json", headers=client.headers)
        assert (said.status_code, error(json.loads(said.content))["code"]) == (503, "log_unavailable")
    else:
        pairs = [(b"host", b"localhost"), (b"authorization", key.encode())]
        socket = WebsocketCommunicator(application, "/ws/stream/", headers=pairs)  # type: ignore[arg-type]
        assert (await socket.connect(timeout=60))[0]
        await socket.send_to('{"type": "start", "prompt": "Hello"}')
        told = json.loads(await socket.receive_from(timeout=60))
        assert (told["type"], told["code"], told["recoverable"]) == ("error", "log_unavailable", True)
        await socket.disconnect(timeout=60)
    assert not await AuditSession.objects.aexists()


@pytest.mark.parametrize("cut", [LogUnavailable, asyncio.CancelledError])
async def test_a_place_that_the_store_gave_too_late_is_given_back(
    client: Client, monkeypatch: pytest.MonkeyPatch, cut: type[BaseException]
) -> None:
    """Whoever asked for it was refused, or had gone; it is free before the minute in which nobody looks."""
    plain = open_sessions._take

    async def late(*given: object, **more: object) -> int:
        assert await plain(*given, anew=True) == 2  # type: ignore[arg-type]
        raise cut

    with monkeypatch.context() as slow:
        slow.setattr(open_sessions, "_take", late)
        for _ in range(MOST):
            with pytest.raises(cut):
                async with open_sessions.place(shared_log(), f"sg_late_{cut.__name__}", str(uuid4()), conf()):
                    raise AssertionError("it has no place")
    await asyncio.gather(*open_sessions._freeing)
    with monkeypatch.context() as slow:
        slow.setattr(open_sessions, "_take", late)
        with pytest.raises(cut):
            async with open_sessions.place(shared_log(), f"sg_same_{cut.__name__}", "same", conf(), repeatable=True):
                raise AssertionError("it has no place")
    assert open_sessions._freeing == set()
    assert not await take_place(shared_log(), f"sg_same_{cut.__name__}", "same", conf()), (
        "the same call, said again, has it"
    )
    for _ in range(MOST):
        assert await take_place(shared_log(), f"sg_late_{cut.__name__}", str(uuid4()), conf())
