"""Every way to begin an answer takes the same fields: over HTTP and over the socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from streaming import registry, rollout
from streaming.flags import RolloutFlag, Stage
from streaming.log_redis import close_shared_log
from streaming.models import AuditSession, Conversation, Message
from streaming.providers.base import ProviderRequest
from streaming.providers.scripted import ScriptedProvider
from streaming.tools.base import specs
from tests.streaming.test_chat_api import Client as HttpClient
from tests.streaming.test_chat_api import new_key
from tests.streaming.test_consumers import connected

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
Json = dict[str, object]
TALK: list[Json] = [
    {"role": "user", "content": "My number is 536-22-8145."},
    {"role": "assistant", "content": "I have noted it."},
    {"role": "user", "content": "Which number was it?"},
]


@pytest.fixture(autouse=True)
async def quick(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


@pytest.fixture
async def http() -> HttpClient:
    return HttpClient(await new_key("stream"))


async def test_it_works(http: HttpClient) -> None:
    status, said = await http.chat(messages=TALK, policy="basic", use_streaming=False)
    assert status == 201
    _, events = await http.events(str(said["events_url"]))
    (done,) = [event for event in events if event["type"] == "done"]
    assert "before it I was shown 2 earlier messages" in str(done["final"])
    assert "536-22-8145" not in http.raw
    row = await AuditSession.objects.select_related("prompt").aget(pk=str(said["session_id"]))
    assert row.prompt is not None
    assert row.prompt.content == "Which number was it?"
    assert (row.streaming, row.fallback) == (False, "use_streaming_false")


async def test_the_socket_takes_them_too() -> None:
    async with connected() as socket:
        await socket.send(type="start", messages=TALK, use_streaming=False)
        done = await socket.until("done")
    assert "before it I was shown 2 earlier messages" in str(done["final"])
    (update,) = [e for e in socket.seen if e["type"] == "message_update" and "streaming" in dict(e["metadata"])]  # type: ignore[call-overload]
    assert update["metadata"]["fallback"] == "use_streaming_false"  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": TALK, "prompt": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [*TALK, {"role": "user", "content": "a\x00"}]}, "messages[3].content"),
        ({"messages": [*TALK, {"role": "king", "content": "a"}]}, "messages[3].role"),
        ({"prompt": "hello", "tools": "maybe"}, "tools"),
        ({"prompt": "hello", "use_streaming": 7}, "use_streaming"),
        ({"prompt": "hello", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "hello", "max_tokens": 1_000_001}, "max_tokens"),
        ({"prompt": "hello", "max_tokens": True}, "max_tokens"),
        ({"prompt": "hello", "max_tokens": "many"}, "max_tokens"),
    ],
)
async def test_http_and_socket_refuse_the_same_and_name_the_same_place(
    http: HttpClient, body: Json, field: str
) -> None:
    status, said = await http.chat(**body)
    assert (status, said["error"]["field"]) == (422, field)  # type: ignore[index]
    async with connected() as socket:
        await socket.send(type="start", **body)
        assert (await socket.until("error"))["field"] == field
    assert not await Message.objects.aexists()


async def test_null_says_nothing_to_either(http: HttpClient) -> None:
    """Clients of typed languages write so whatever they leave out: the prompt beside messages, a message's calls."""
    names = ("prompt", "provider", "model", "policy", "conversation_id", "tools", "use_streaming", "max_tokens")
    body: Json = dict.fromkeys((*names, "scenario", "text"))
    body["messages"] = [{"tool_calls": None, "tool_call_id": None, "images": None, **message} for message in TALK]
    status, said = await http.chat(**body)
    assert status == 201, said
    async with connected() as socket:
        await socket.send(type="start", **body)
        done = await socket.until("done")
        assert done["outcome"] == "redacted"
        await socket.send(type="resume", session_id=done["session_id"], last_seq=None)
        assert (await socket.until("done"))["seq"] == done["seq"]
        await socket.send(type="interrupt", session_id=None)
    status, said = await http.chat(prompt="hello", messages=None)
    assert status == 201, said
    status, said = await http.chat(**dict.fromkeys((*names, "messages")))
    assert (status, said["error"]["field"]) == (422, "prompt")  # type: ignore[index]


async def test_a_conversation_that_a_client_calls_by_a_number_goes_on_by_it(http: HttpClient) -> None:
    body = json.dumps({"context": {"conversation_id": 42}})
    began = await http.http.post("/v1/stream/start", body, content_type="application/json", headers=http.headers)
    assert began.status_code == 201
    for name in (42, "42", 42.0):
        status, said = await http.chat(prompt="hello", conversation_id=name)
        assert status == 201, said
        named = await Conversation.objects.aget(external_id="42")
        assert said["conversation_id"] == str(named.pk)
    for odd in (True, 4.2, [42], 10**300):
        status, said = await http.chat(prompt="hello", conversation_id=odd)
        assert (status, said["error"]["field"]) == (422, "conversation_id")  # type: ignore[index]


async def test_a_tester_of_the_flag_is_known_by_header_on_both(http: HttpClient) -> None:
    make = database_sync_to_async(RolloutFlag.objects.create)
    await make(name=rollout.FLAG, testing=True, superusers=False)
    for on in (True, False):
        http.headers = {**http.headers, "dwft-streaming": "1" if on else "0"}
        _, said = await http.chat(prompt="hello", policy="basic")
        row = await AuditSession.objects.aget(pk=str(said["session_id"]))
        assert (row.streaming, row.fallback) == (on, "" if on else "not_in_rollout")
        async with connected(f"/ws/stream/?dwft_streaming={int(on)}") as socket:
            await socket.send(type="start", prompt="hello")
            session = (await socket.until("done"))["session_id"]
        assert (await AuditSession.objects.aget(pk=str(session))).streaming is on


async def test_tools_are_offered_only_to_who_asks_for_them(http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ProviderRequest] = []
    monkeypatch.setattr(ScriptedProvider, "validate", lambda self, request: asked.append(request))
    every = {spec.name for spec in specs()}
    assert every
    bodies: list[tuple[Json, set[str]]] = [({}, set()), ({"tools": False}, set()), ({"tools": True}, every)]
    for body, offered in bodies:
        asked.clear()
        _, said = await http.chat(prompt="hello", policy="basic", **body)
        await http.events(str(said["events_url"]))
        assert asked
        assert all({tool.name for tool in request.tools} == offered for request in asked)


async def test_a_rollout_to_requests_with_tools_streams_those_alone(http: HttpClient) -> None:
    await database_sync_to_async(RolloutFlag.objects.create)(name=rollout.FLAG, everyone=True, stage=Stage.TOOLS)
    for tools in (True, False):
        _, said = await http.chat(prompt="hello", policy="basic", tools=tools)
        row = await AuditSession.objects.aget(pk=str(said["session_id"]))
        assert (row.streaming, row.fallback) == (tools, "" if tools else "request_type")


async def test_a_limit_of_tokens_goes_to_the_provider_on_both(
    http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ProviderRequest] = []
    monkeypatch.setattr(ScriptedProvider, "validate", lambda self, request: asked.append(request))
    for said, limit in ((None, None), (500, 500), ("500", 500), ("", None)):
        asked.clear()
        await http.chat(prompt="hello", policy="basic", max_tokens=said)
        async with connected() as socket:
            await socket.send(type="start", prompt="hello", max_tokens=said)
            await socket.until("done")
        assert len(asked) >= 2
        assert {request.max_tokens for request in asked} == {limit}
