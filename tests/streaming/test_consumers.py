"""The sockets: start, interrupt, resume, back-pressure, and every wrong frame answered in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from channels_redis.pubsub import RedisPubSubChannelLayer

from guardrails.findings import Action, Finding, Mode
from streaming import consumers, log_redis, registry
from streaming.core.events import Done, FindingEvent, ServerEvent, StateChange
from streaming.log import LogUnavailable
from streaming.log_redis import close_shared_log
from streaming.models import AuditSession, Conversation, Message
from streaming.providers.schedule import Schedule
from streaming.routing import websocket_urlpatterns

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
Event = dict[str, object]


@pytest.fixture(autouse=True)
async def quick(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


class Client:
    """A JSON client of a socket."""

    def __init__(self, socket: WebsocketCommunicator) -> None:
        self.socket = socket
        self.seen: list[Event] = []

    async def send(self, **frame: object) -> None:
        await self.socket.send_to(text_data=json.dumps(frame))

    async def receive(self) -> Event:
        event: Event = json.loads(await self.socket.receive_from(timeout=15))
        self.seen.append(event)
        return event

    async def until(self, kind: str, **fields: object) -> Event:
        while True:
            event = await self.receive()
            if event["type"] == kind and all(event.get(key) == value for key, value in fields.items()):
                return event

    async def over(self) -> Event:
        """The end of the answer: MONITORING or COMPLETE."""
        while True:
            event = await self.until("state")
            if event["state"] != "ACTIVE":
                return event

    def text(self) -> str:
        chunks = [e for e in self.seen if e["type"] in ("message_stream", "redaction")]
        return "".join(str(e.get("chunk", e.get("label", ""))) for e in chunks)


@asynccontextmanager
async def connected(path: str = "/ws/stream/", session_key: str = "s1", **headers: str) -> AsyncIterator[Client]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    socket = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path, headers=pairs)
    socket.scope["session"] = type("Session", (), {"session_key": session_key})()
    accepted, _ = await socket.connect(timeout=10)
    assert accepted
    try:
        yield Client(socket)
    finally:
        await socket.disconnect(timeout=10)


@database_sync_to_async
def last_session() -> AuditSession:
    return AuditSession.objects.select_related("answer", "prompt", "conversation").latest("started_at")


async def test_it_works() -> None:
    async with connected() as client:
        await client.send(type="start", prompt="", scenario="pii")
        await client.over()
    text = client.text()
    assert "[SSN]" in text
    assert "[CREDIT_CARD]" in text
    for planted in ("536-22", "4111", "desk.seven@"):
        assert planted not in json.dumps(client.seen)
    session = await last_session()
    assert (session.state, session.outcome) == ("MONITORING", "redacted")
    assert session.answer.content == text
    seqs = [int(str(e["seq"])) for e in client.seen]
    assert seqs == sorted(set(seqs))


async def test_page_socket_speaks_html_and_takes_form_frames() -> None:
    async with connected("/ws/chat/") as client:
        frame = {"type": "start", "prompt": "", "scenario": "clean", "HEADERS": {"HX-Request": "true"}}
        await client.socket.send_to(text_data=json.dumps(frame))
        html = ""
        while 'data-type="done"' not in html:
            html += await client.socket.receive_from(timeout=15)
    assert "hx-swap-oob" in html
    assert "canal lock" in html.replace("</div>", "").replace("\n", " ") or "chamber" in html


async def test_own_text_streams_guarded() -> None:
    async with connected() as client:
        await client.send(type="start", provider="scripted", scenario="own_text", text="mine: 536-22-8145 <b>")
        await client.over()
    assert client.text() == "mine: [SSN] <b>"
    assert (await last_session()).prompt.content == "Guard my own text."


async def test_blocked_prompt_and_blocked_phrase() -> None:
    async with connected() as client:
        await client.send(type="start", scenario="injection")
        blocked = await client.until("blocked")
        assert blocked["guardrail"] == "instructions"
        await client.until("state", state="COMPLETE")
        assert client.text() == ""
        await client.send(type="start", scenario="blocked_phrase")
        assert (await client.until("blocked"))["guardrail"] == "codenames"
        assert (await client.until("done"))["outcome"] == "blocked"
    assert "heron" not in client.text().lower()


async def test_interrupt_ends_the_answer_with_what_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20")
    async with connected() as client:
        await client.send(type="start", scenario="clean")
        await client.until("message_stream")
        await client.send(type="interrupt")
        done = await client.until("done")
    assert done["outcome"] == "interrupted"
    assert done["final"] == client.text()
    assert len(client.text()) < 200


async def test_who_reads_from_elsewhere_on_the_same_socket_can_still_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20")
    async with connected() as client:
        await client.send(type="start", scenario="clean")
        event = await client.until("message_stream")
        await client.send(type="resume", session_id=event["session_id"], last_seq=str(event["seq"]))
        await client.until("message_stream")
        await client.send(type="start", scenario="clean")
        assert (await client.until("error"))["code"] == "busy"
        await client.send(type="interrupt")
        assert (await client.until("done"))["outcome"] == "interrupted"


async def test_a_stop_is_about_the_answer_that_began_here_whatever_is_read_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "5")
    async with connected() as elsewhere, connected() as client:
        await elsewhere.send(type="start", scenario="clean")
        other = (await elsewhere.until("message_stream"))["session_id"]
        await client.send(type="start", scenario="clean")
        mine = (await client.until("message_stream"))["session_id"]
        await client.send(type="resume", session_id=other)
        await client.until("message_stream", session_id=other)
        await client.send(type="interrupt")
        assert (await client.until("done", session_id=mine))["outcome"] == "interrupted"
        await client.until("message_stream", session_id=other)  # that one goes on
        await client.send(type="interrupt")  # now it is about the one that is left
        assert (await client.until("done", session_id=other))["outcome"] == "interrupted"


async def test_a_stop_is_about_the_answer_that_was_resumed_last_and_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a page does that was loaded again with two answers under way."""
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "5")
    async with connected() as one, connected() as two, connected() as client:
        names = []
        for elsewhere in (one, two):
            await elsewhere.send(type="start", scenario="clean")
            names.append((await elsewhere.until("message_stream"))["session_id"])
            await client.send(type="resume", session_id=names[-1])
            await client.until("message_stream", session_id=names[-1])
        for name in reversed(names):
            await client.send(type="interrupt")
            assert (await client.until("done", session_id=name))["outcome"] == "interrupted"


async def test_the_readers_of_a_socket_that_breaks_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20")
    socket = WebsocketCommunicator(URLRouter(websocket_urlpatterns), "/ws/stream/")
    socket.scope["session"] = type("Session", (), {"session_key": "s1"})()
    assert (await socket.connect(timeout=10))[0]
    client = Client(socket)
    await client.send(type="start", scenario="clean")
    await client.until("message_stream")
    assert [one for one in asyncio.all_tasks() if "deliver" in repr(one.get_coro())]

    async def breaks(*_: object) -> None:
        raise OSError("the other side is gone")

    monkeypatch.setattr(consumers.StreamConsumer, "take_frame", breaks)
    await client.send(type="interrupt")
    with pytest.raises(OSError, match="gone"):
        await socket.wait(timeout=10)
    assert not [one for one in asyncio.all_tasks() if "deliver" in repr(one.get_coro())]


async def test_what_somebody_without_a_cookie_began_opens_to_nobody_else_without_one() -> None:
    """All of them passed for one visitor: who knew an id read another's answer, and went on with the conversation."""
    async with connected(session_key="") as one, connected(session_key="") as other:
        await one.send(type="start", scenario="clean")
        first = await one.until("done")
        await one.over()
        await other.send(type="resume", session_id=first["session_id"], last_seq=0)
        assert (await other.until("error"))["code"] == "unknown_session"
        row = await last_session()
        assert row.conversation is not None
        conversation_id = str(row.conversation.pk)
        await other.send(type="start", prompt="Go on", conversation_id=conversation_id)
        assert (await other.until("error"))["code"] == "unknown_conversation"
        await one.send(type="start", scenario="clean", conversation_id=conversation_id)
        await one.until("done")
        await one.over()
    assert await Conversation.objects.acount() == 1


async def test_cut_socket_resumes_where_it_was_on_another_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "300")
    async with connected() as first:
        await first.send(type="start", scenario="pii")
        for _ in range(5):
            event = await first.until("message_stream")
    async with connected() as second:
        await second.send(type="resume", session_id=event["session_id"], last_seq=str(event["seq"]))
        await second.over()
    second.seen = [*first.seen, *second.seen]
    assert second.text() == (await last_session()).answer.content
    seqs = [int(str(e["seq"])) for e in second.seen]
    assert seqs == sorted(set(seqs)), "nothing twice, nothing out of order"


async def test_session_is_told_from_the_database_when_its_log_is_gone(valkey_url: str) -> None:
    async with connected() as client:
        await client.send(type="start", scenario="injection")
        state = await client.until("state", state="COMPLETE")
        await consumers.shared_log()._redis.flushdb()
        await client.send(type="resume", session_id=state["session_id"], last_seq=0)
        await client.until("message_update")
        assert (await client.until("done"))["outcome"] == "blocked"
        await client.until("state", state="COMPLETE")


async def test_conversation_goes_on_and_its_history_reaches_the_model() -> None:
    async with connected() as client:
        await client.send(type="start", prompt="What is a weir?")
        new = await client.until("message_new", role="user")
        await client.over()
        client.seen.clear()
        await client.send(type="start", prompt="And a lock?", conversation_id=new["conversation_id"])
        await client.over()
    assert "2 earlier messages" in client.text()
    count = await database_sync_to_async(Message.objects.filter(conversation_id=new["conversation_id"]).count)()
    assert count == 4


async def test_conversation_of_somebody_else_does_not_exist_for_me() -> None:
    async with connected(session_key="s1") as mine:
        await mine.send(type="start", prompt="hello there")
        new = await mine.until("message_new")
        await mine.over()
    async with connected(session_key="s2") as other:
        await other.send(type="start", prompt="hi", conversation_id=new["conversation_id"])
        assert (await other.receive())["code"] == "unknown_conversation"
        for frame in ("resume", "interrupt"):
            await other.send(type=frame, session_id=new["session_id"])
            assert (await other.receive())["code"] == "unknown_session"


@pytest.mark.parametrize(
    ("frame", "code", "field"),
    [
        ("{", "not_json", None),
        ("[]", "not_an_object", None),
        ("[" * 100_000, "not_json", None),
        ('{"type": "fly"}', "unknown_type", "type"),
        ('{"prompt": "x"}', "unknown_type", "type"),
        ('{"type": "start", "prompt": ""}', "empty_prompt", "prompt"),
        ('{"type": "start", "prompt": " \\n "}', "empty_prompt", "prompt"),
        ('{"type": "start", "prompt": 7}', "invalid_field", "prompt"),
        ('{"type": "start", "prompt": "a\\u0000b"}', "invalid_text", "prompt"),
        ('{"type": "start", "prompt": "a\\ud800b"}', "invalid_text", "prompt"),
        ('{"type": "start", "prompt": "x", "provider": "nope"}', "unknown_provider", "provider"),
        ('{"type": "start", "prompt": "x", "policy": "nope"}', "policy_unavailable", "policy"),
        ('{"type": "start", "prompt": "x", "scenario": "nope"}', "unknown_scenario", "scenario"),
        ('{"type": "start", "prompt": "x", "conversation_id": "nope"}', "unknown_conversation", "conversation_id"),
        ('{"type": "start", "scenario": "own_text", "text": " "}', "empty_text", "text"),
        ('{"type": "resume"}', "invalid_field", "session_id"),
        ('{"type": "resume", "session_id": "nope"}', "unknown_session", "session_id"),
        ('{"type": "resume", "session_id": "x", "last_seq": -1}', "invalid_field", "last_seq"),
        ('{"type": "ack", "seq": "many"}', "invalid_field", "seq"),
        ('{"type": "resume", "session_id": "x", "last_seq": 1000000000000000}', "invalid_field", "last_seq"),
        ('{"type": "resume", "session_id": "x", "last_seq": 99999999999999999999}', "invalid_field", "last_seq"),
        ('{"type": "start", "\\ud800": "\\u0000"}', "invalid_text", None),
        ('{"type": "start", "prompt": "x", "\\ud800": 1}', "invalid_text", None),
        (json.dumps({"type": "start", "prompt": "x" * 1_000_000}), "too_long", "prompt"),
        (json.dumps({"type": "start", "prompt": "x" * 3_000_000}), "too_large", None),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_wrong_frame_is_answered_with_the_field_and_stores_nothing(
    frame: str, code: str, field: str | None
) -> None:
    async with connected() as client:
        await client.socket.send_to(text_data=frame)
        event = await client.receive()
        assert (event["type"], event["code"], event.get("field")) == ("error", code, field)
        assert "Traceback" not in str(event)
        await client.send(type="start", prompt="still works")
        await client.until("message_new")
    rows = await database_sync_to_async(AuditSession.objects.count)()
    assert rows == 1, "only the good frame may have begun a session"


async def test_bytes_are_refused_and_a_second_start_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20")
    async with connected() as client:
        await client.socket.send_to(bytes_data=b"\x00")
        assert (await client.receive())["code"] == "not_text"
        await client.send(type="start", scenario="clean")
        await client.send(type="start", scenario="clean")
        assert (await client.until("error"))["code"] == "busy"
    assert await database_sync_to_async(AuditSession.objects.count)() == 1


async def test_endpoint_that_is_down_ends_the_session_as_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    async with connected() as client:
        await client.send(type="start", prompt="hello", provider="openai")
        error = await client.until("error")
        assert error["code"] == "provider_unavailable"
        assert (await client.until("done"))["outcome"] == "error"
        await client.until("state", state="COMPLETE")
    session = await last_session()
    assert (session.state, session.outcome) == ("COMPLETE", "error")


@pytest.mark.parametrize("layer_too", [False, True])
async def test_store_that_is_down_is_a_clear_error_and_no_row_is_lost(
    layer_too: bool, monkeypatch: pytest.MonkeyPatch, settings: object
) -> None:
    if layer_too:
        gone = RedisPubSubChannelLayer(hosts=["redis://127.0.0.1:1/0"])
        monkeypatch.setattr(log_redis, "get_channel_layer", lambda: gone)
    await down(settings)


async def down(settings: object) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"  # type: ignore[attr-defined]
    async with connected() as client:
        await client.send(type="start", prompt="hello")
        error = await client.until("error")
        assert (error["code"], error["recoverable"]) == ("log_unavailable", True)
        assert (await client.until("done"))["outcome"] == "error"
        assert (await client.until("state"))["state"] == "COMPLETE"
        assert [event["type"] for event in client.seen].count("error") == 1, "said once, not at every look"
    session = await last_session()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "error", "log_unavailable")


async def test_reader_goes_on_when_the_store_is_back(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "10")
    away = hurried = False
    reading, pausing = log_redis.RedisLog.read, Schedule.after

    async def paced(self: Schedule, seconds: float) -> None:
        await (asyncio.sleep(0) if hurried else pausing(self, seconds))

    monkeypatch.setattr(Schedule, "after", paced)

    async def flaky(self: log_redis.RedisLog, *args: object, **kwargs: object) -> object:
        if away:
            raise LogUnavailable("away")
        return await reading(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(log_redis.RedisLog, "read", flaky)
    async with connected() as client:
        await client.send(type="start", scenario="clean")
        await client.until("message_stream")
        away = True
        assert (await client.until("error"))["code"] == "log_unavailable"
        away = False
        await client.until("message_stream")
        away = True
        assert (await client.until("error"))["code"] == "log_unavailable", "the second time is told, too"
        away, hurried = False, True
        await client.over()
    assert client.text() == (await last_session()).answer.content


async def test_client_that_does_not_acknowledge_is_paused_while_the_answer_goes_on(settings: object) -> None:
    settings.SLUICEGATE_MAX_UNACKED_BYTES = 6_000  # type: ignore[attr-defined]
    text = "word " * 4_000
    async with connected() as client:
        await client.send(type="start", scenario="own_text", text=text)
        async with asyncio.timeout(30):
            while (await last_session_or_none() or AuditSession()).answered_at is None:
                await client_pause()
        got = 0
        while not await client.socket.receive_nothing(timeout=0.5):
            got += len(json.dumps(await client.receive()))
        assert got < 20_000, "the reader must have paused"
        while client.seen[-1].get("state") != "MONITORING":
            await client.send(type="ack", seq=client.seen[-1]["seq"])
            await client.receive()
    assert client.text() == text


async def test_client_that_does_not_acknowledge_slows_nobody_who_reads_beside_it(settings: object) -> None:
    """The whole answer is given and read to its end while the slow reader stands still; then it gets all of it too."""
    settings.SLUICEGATE_MAX_UNACKED_BYTES = 6_000  # type: ignore[attr-defined]
    text = "word " * 4_000
    async with connected() as slow, connected() as fast:
        await slow.send(type="start", scenario="own_text", text=text)
        started = await slow.receive()
        await fast.send(type="resume", session_id=started["session_id"], last_seq=0)
        await acknowledging(fast)
        assert fast.text() == text
        assert (await last_session()).answered_at is not None
        got = 0
        while not await slow.socket.receive_nothing(timeout=0.5):
            got += len(json.dumps(await slow.receive()))
        assert got < 20_000, "the slow reader must have paused"
        await slow.send(type="ack", seq=slow.seen[-1]["seq"])
        await acknowledging(slow)
    assert slow.text() == text


async def acknowledging(client: Client) -> None:
    """Read to the end of the answer, and say so after each event."""
    while True:
        event = await client.receive()
        await client.send(type="ack", seq=event["seq"])
        if event["type"] == "state" and event["state"] != "ACTIVE":
            return


@database_sync_to_async
def last_session_or_none() -> AuditSession | None:
    return AuditSession.objects.order_by("-started_at").first()


async def client_pause() -> None:
    """Let the server's tasks run."""
    await asyncio.sleep(0.02)


async def test_outside_of_demo_mode_a_stranger_gets_an_error_and_a_close(settings: object) -> None:
    settings.SLUICEGATE_DEMO = False  # type: ignore[attr-defined]
    socket = WebsocketCommunicator(URLRouter(websocket_urlpatterns), "/ws/chat/")
    await socket.connect()
    assert "sign in" in await socket.receive_from(timeout=5)
    closed = await socket.receive_output(timeout=5)
    assert (closed["type"], closed["code"]) == ("websocket.close", consumers.REFUSED)
    await socket.wait()
    assert await database_sync_to_async(Conversation.objects.count)() == 0


async def test_unknown_key_is_refused_on_the_stream_socket() -> None:
    socket = WebsocketCommunicator(
        URLRouter(websocket_urlpatterns),
        "/ws/stream/",
        headers=[(b"authorization", b"Bearer sg_" + uuid4().hex.encode())],
    )
    await socket.connect()
    assert json.loads(await socket.receive_from(timeout=5))["code"] == "unauthenticated"
    await socket.wait()


def test_a_page_is_told_the_latest_hold_of_a_channel() -> None:
    held: Event = {"type": "hold", "message_id": "m", "channel": "text"}
    beside: Event = {"type": "hold", "message_id": "m", "channel": "thinking", "seq": 2}
    shown: Event = {"type": "message_stream", "message_id": "m", "channel": "text", "seq": 4}
    batch = [held | {"seq": 1}, beside, held | {"seq": 3}, shown, held | {"seq": 5}]
    assert [one["seq"] for one in consumers.ChatConsumer().worth_sending(batch)] == [2, 4, 5]


def test_a_page_is_told_the_latest_state_of_a_guardrail_and_every_event_of_other_kinds() -> None:
    """Of a batch that was read at once; a client of the JSON socket gets all of it."""
    kinds = [("guardrail_status", "tone"), ("finding", "tone"), ("guardrail_status", "harm"),
             ("message_stream", None), ("guardrail_status", "tone"), ("finding", "tone")]  # fmt: skip
    batch: list[Event] = [
        {"type": kind, "seq": seq, **({"guardrail": name} if name else {})} for seq, (kind, name) in enumerate(kinds, 1)
    ]
    assert [one["seq"] for one in consumers.ChatConsumer().worth_sending(batch)] == [2, 3, 4, 5, 6]
    assert consumers.StreamConsumer().worth_sending(batch) == batch


async def test_findings_of_deferred_checks_are_told_where_the_store_is_away_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end was told by the database, and then nobody but the database told what the checks came to."""
    hits = [
        FindingEvent(Finding("claims", "keywords", "claim", "claims", 0, 1, Mode.MONITOR, Action.WARN, n=n))
        for n in (1, 2)
    ]
    state, said = AuditSession.State.MONITORING, [Done("a", "allowed"), hits[0], StateChange("MONITORING", "allowed")]
    socket = consumers.StreamConsumer()
    sent: list[tuple[object, object]] = []

    async def ended(session_id: str) -> tuple[AuditSession.State, list[ServerEvent]]:
        return state, said

    async def pass_on(event: dict[str, object], conversation_id: str) -> None:
        sent.append((event["type"], event.get("n")))

    def gone() -> None:
        raise LogUnavailable("away")

    monkeypatch.setattr(socket, "ended", ended)
    monkeypatch.setattr(socket, "pass_on", pass_on)
    monkeypatch.setattr(socket, "log", gone)
    place = consumers.Place("s", "c", "order-4711", 0, resumed=False, warned=True)
    assert not await socket.read_log(place)
    assert not await socket.read_log(place)
    state, said = AuditSession.State.COMPLETE, [Done("a", "allowed"), *hits, StateChange("COMPLETE", "allowed")]
    assert await socket.read_log(place)
    assert sent == [("done", None), ("finding", 1), ("state", None), ("finding", 2), ("state", None)]
