"""A stream token that somebody took from an address: what was opened with it comes to its end like the token."""

from __future__ import annotations

import json
import time

import pytest
from django.test import AsyncClient

from streaming import registry, stream_tokens
from streaming.chat import Asked, Own, start_chat
from streaming.conf import conf
from streaming.frames import StartFrame
from streaming.log_redis import shared_log
from streaming.reader import follow
from streaming.sessions import Started, Visitor
from tests.streaming.test_tenancy import (
    NEWS,
    NOTHING_NEW,
    Reader,
    Waits,
    begin,
    new_key,
    refusal,
    revoke,
    socket,
    strict,
    watchful,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["strict", "watchful"]
LIFETIME_S, RENEWABLE_S = stream_tokens.LIFETIME_S, stream_tokens.RENEWABLE_S


class Clock:
    """The time that tokens are judged by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = self.now = time.time()
        monkeypatch.setattr(time, "time", lambda: self.now)

    def at(self, seconds: float) -> None:
        self.now = self.began + seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def answering(key: str, provider: Waits) -> Started:
    """An answer of this key that goes on until the provider is let."""
    asked = Asked(Visitor(client=key[:11]), "basic", own=Own(provider, flagged=False))
    return await start_chat(StartFrame(type="start", prompt="Hello"), asked, shared_log())


async def outcome(session_id: str) -> object:
    batches = follow(shared_log(), session_id, 0, conf(), correlation_id="")
    (done,) = [event async for batch in batches for event in batch if event["type"] == "done"]
    return done["outcome"]


@pytest.mark.parametrize(("after_s", "wanted"), [(LIFETIME_S - 5, "interrupted"), (LIFETIME_S + 1, "allowed")])
async def test_it_works(after_s: int, wanted: str, clock: Clock) -> None:
    """A token stops its session as long as it is good, also through a socket that was opened long before."""
    key, provider = await new_key("owner"), Waits()
    started = await answering(key, provider)
    made = await socket(f"?token={stream_tokens.issue(started.session_id)}")
    clock.at(after_s)
    await made.send_to(json.dumps({"type": "interrupt", "session_id": started.session_id}))
    if wanted == "allowed":
        assert await refusal(made) == "unauthenticated"
        assert not await shared_log().interrupted(started.session_id)
        assert started.session_id in registry.running()
        provider.go_on.set()
    assert await outcome(started.session_id) == wanted
    await made.disconnect()


@pytest.mark.parametrize("meanwhile", [NOTHING_NEW, NEWS])
@pytest.mark.parametrize("way", ["events", "socket"])
async def test_an_open_reader_ends_when_its_token_can_be_renewed_no_more(
    way: str, meanwhile: str, watchful: None, clock: Clock, settings: object
) -> None:
    """It reads on for half an hour after the key was last there, and nothing of what comes later."""
    if meanwhile == NEWS:
        settings.SLUICEGATE_IDLE_CHECK_S = 600.0  # type: ignore[attr-defined]
    session_id, token = await begin(await new_key("owner"))
    reader = await Reader.of(way, session_id, f"?token={token}")
    clock.at(RENEWABLE_S - 5)
    await shared_log().append(session_id, [{"type": "finding", "n": 1}], ms=1)
    await reader.finds()
    clock.at(RENEWABLE_S + 2)
    if meanwhile == NEWS:
        await shared_log().append(session_id, [{"type": "secret"}], ms=1)
    assert "secret" not in await reader.refused()


@pytest.mark.parametrize("way", ["events", "socket"])
async def test_a_reader_with_the_key_has_no_such_end(way: str, watchful: None, clock: Clock) -> None:
    key = await new_key("owner")
    session_id, _ = await begin(key)
    reader = await Reader.of(way, session_id, key=key)
    clock.at(10 * RENEWABLE_S)
    await shared_log().append(session_id, [{"type": "finding", "n": 1}], ms=1)
    await reader.finds()
    await revoke("owner")
    await reader.refused()


@pytest.mark.parametrize("by", ["key", "token"])
@pytest.mark.parametrize("reading", [True, False], ids=["reading", "not reading"])
async def test_an_interrupt_of_a_stream_that_its_client_owns_is_answered(by: str, reading: bool) -> None:
    """There is nothing here that could be stopped: the client is told what ends it, and the stream goes on."""
    key = await new_key("owner")
    session_id, token = await begin(key)
    made = await (socket(key=key) if by == "key" else socket(f"?token={token}"))
    if reading:
        await made.send_to(json.dumps({"type": "resume", "session_id": session_id}))
        for wanted in ("state", "message_new"):
            assert json.loads(await made.receive_from(timeout=60))["type"] == wanted
    await made.send_to(json.dumps({"type": "interrupt", "session_id": session_id}))
    said = json.loads(await made.receive_from(timeout=60))
    assert (said["type"], said["code"], said["field"]) == ("error", "not_ours_to_stop", "session_id")
    assert "/v1/stream/finish" in said["message"]
    assert not await shared_log().interrupted(session_id)
    headers = {"Authorization": f"Bearer {key}"}
    body = json.dumps({"session_id": session_id, "seq": 2, "delta": " there"})
    after = await AsyncClient().post("/v1/stream/update", body, content_type="application/json", headers=headers)
    assert after.status_code == 200
    await made.disconnect()
