"""Who may call what: every route of the project has a row here, or the first test fails.

The routes come from the URL configuration, the API and the socket routing, not from a list that somebody has to keep.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import AsyncClient
from django.urls import URLPattern, URLResolver, get_resolver
from ninja.operation import PathView

from guardrails.models import ApiKey, Scope
from guardrails.services import change_api_key, create_api_key, revoke_api_key
from project.asgi import application
from streaming import key_watch, registry, stream_tokens, tasks
from streaming.access import Refused
from streaming.api.auth import Key
from streaming.chat import Asked, Own, start_chat
from streaming.conf import conf
from streaming.core.events import ProviderEvent, TextDelta
from streaming.frames import StartFrame
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, Conversation, GuardedStream
from streaming.providers.base import Provider, ProviderRequest
from streaming.reader import follow
from streaming.routing import websocket_urlpatterns
from streaming.sessions import Visitor, conversation_of
from tests.conftest import Cast

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
PUBLIC, LOGIN = "public", "login"
Json = dict[str, object]


@dataclass(frozen=True)
class Row:
    """What a route needs: a scope's name, ``PUBLIC`` or ``LOGIN``.

    ``{id}`` in path or body is the session's id. ``own``: the answer to the owner. ``token``: ``?token=`` opens it.
    """

    needs: str
    body: Json | None = None
    query: str = ""
    own: int = 200
    token: bool = False

    @property
    def of_a_session(self) -> bool:
        """The call reads or continues a session."""
        return "{id}" in json.dumps(self.body) + self.query


ASKED: Json = {"model": "scripted-1", "messages": [{"role": "user", "content": "Hello"}]}
TABLE = {
    "GET /health": Row(PUBLIC),
    "GET /ready": Row(PUBLIC),
    "GET /metrics": Row(PUBLIC),
    "GET /v1/docs": Row(PUBLIC),
    "GET /v1/openapi.json": Row(PUBLIC),
    "GET /.well-known/jwks.json": Row(PUBLIC),
    "GET /v1/": Row(PUBLIC, own=404),
    "GET ^v1/": Row(PUBLIC, own=404),
    "GET /v1/rules": Row("rules", query="?policy=demo"),
    "GET /v1/audit/export": Row("audit"),
    "POST /v1/check": Row("check", {"text": "Hello", "kind": "prompt"}),
    "POST /v1/chat": Row("stream", {"prompt": "Hello"}, own=201),
    "GET /v1/stream/events": Row("stream", query="?session_id={id}", token=True),
    "POST /v1/stream/start": Row("stream", {"delta": "Hello"}, own=201),
    "POST /v1/stream/update": Row("stream", {"session_id": "{id}", "seq": 2, "delta": " there"}),
    "POST /v1/stream/finish": Row("stream", {"session_id": "{id}"}),
    "GET /v1/stream/status": Row("stream", query="?session_id={id}", token=True),
    "POST /v1/chat/completions": Row("gateway", ASKED),
    "POST /v1/messages": Row("gateway", ASKED | {"max_tokens": 100}),
    "POST /api/chat": Row("gateway", ASKED | {"stream": False}),
    "GET /api/tags": Row("gateway"),
    "GET /api/": Row(PUBLIC, own=404),
    "GET /v1/models": Row("gateway"),
    "GET /": Row(LOGIN),
    "GET /compare/": Row(LOGIN),
    "GET /welcome/": Row(PUBLIC),
    "GET /admin/": Row(LOGIN),
    "GET /audit/": Row(LOGIN, own=403),  # to a reviewer of policies, who may see no sessions
    "WS /ws/chat/": Row(LOGIN),
    "WS /ws/compare/": Row(LOGIN),
    "WS /ws/stream/": Row("stream"),
}
KEYED = {name: row for name, row in TABLE.items() if row.needs in set(Scope) and not name.startswith("WS")}
OF_A_SESSION = {name: row for name, row in KEYED.items() if row.of_a_session}


def http_routes(resolver: URLResolver, before: str = "/") -> Iterator[tuple[str, list[object]]]:
    """Every route with what its call asks for; admin and audit, which have their own tests, as one each."""
    for pattern in resolver.url_patterns:
        part = str(pattern.pattern)
        path = part if part.startswith("^") else before + part
        if isinstance(pattern, URLPattern):
            view = inspect.getclosurevars(pattern.callback).nonlocals.get("self") if _closes(pattern.callback) else None
            if isinstance(view, PathView):
                for operation in view.operations:
                    yield from ((f"{method} {path}", list(operation.auth_callbacks)) for method in operation.methods)
            else:
                yield f"GET {path}", []
        elif pattern.app_name in ("admin", "audit"):
            yield f"GET {path}", []
        else:
            yield from http_routes(pattern, path)


def _closes(callback: object) -> bool:
    return inspect.isfunction(callback) and bool(callback.__closure__)


@pytest.fixture(autouse=True)
async def strict(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    settings.SLUICEGATE_DEMO = False  # type: ignore[attr-defined]
    yield
    await registry.shutdown()
    await close_shared_log()


@database_sync_to_async
def new_key(name: str, *scopes: str) -> str:
    return create_api_key(name=name, scopes=scopes or list(Scope), calls_per_minute=1_000)[1]


@database_sync_to_async
def revoke(name: str) -> None:
    revoke_api_key(key=ApiKey.objects.get(name=name))


@database_sync_to_async
def leave(name: str, *scopes: str) -> None:
    """The key keeps these scopes alone."""
    key = ApiKey.objects.get(name=name)
    kept = {one: getattr(key, one) for one in ("policy", "origins", "calls_per_minute", "updates_per_second")}
    change_api_key(key=key, name=name, scopes=scopes, **kept)


async def lose(what: str) -> str:
    """The owner's key is revoked, or keeps every scope but ``stream``; the code of the refusal that follows."""
    if what == "key":
        await revoke("owner")
        return "unauthenticated"
    await leave("owner", *(scope for scope in Scope if scope != "stream"))
    return "forbidden"


async def call(route: str, session_id: str = "", *, key: str = "", token: str = "") -> tuple[int, Json]:
    """Status and error of a call as its row describes it."""
    row, (method, path) = TABLE[route], route.split(" ")
    url = path.replace("^v1/", "/v1/nothing") + row.query.replace("{id}", session_id)
    if token:
        url += f"{'&' if '?' in url else '?'}token={token}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = AsyncClient()
    if method == "GET":
        response = await client.get(url, headers=headers)
    else:
        body = json.dumps(row.body).replace("{id}", session_id)
        response = await client.post(url, body, content_type="application/json", headers=headers)
    if response.streaming:
        response.close()
    elif code := response.headers.get("X-Sluicegate-Code"):  # the gateway's calls word refusals in their dialect
        return response.status_code, {"code": code}
    elif response.status_code >= 400:
        return response.status_code, json.loads(response.content)["error"]
    return response.status_code, {}


async def begin(key: str) -> tuple[str, str]:
    """A stream of this key, with its token."""
    headers = {"Authorization": f"Bearer {key}"}
    response = await AsyncClient().post(
        "/v1/stream/start", '{"delta": "My number is 536-"}', content_type="application/json", headers=headers
    )
    said = json.loads(response.content)
    return said["session_id"], said["stream_token"]


async def state_of_everything() -> object:
    """What no refused call may change."""
    return [
        [row async for row in AuditSession.objects.order_by("pk").values_list("pk", "state", "chars_in", "timing")],
        [row async for row in GuardedStream.objects.order_by("pk").values_list("rev", "seq")],
    ]


async def socket(query: str = "", path: str = "/ws/stream/", *, key: str = "") -> WebsocketCommunicator:
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    if key:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    made = WebsocketCommunicator(application, path + query, headers=headers)  # type: ignore[arg-type]
    assert (await made.connect())[0]
    return made


async def refusal(made: WebsocketCommunicator) -> object:
    """The code of the error that a socket says before it closes."""
    said = json.loads(await made.receive_from(timeout=10))
    assert (await made.receive_output(timeout=10))["type"] == "websocket.close"
    return said["code"]


@dataclass
class Reader:
    """Reads the events of a session, on a socket or as a stream, and has had the first ones."""

    made: WebsocketCommunicator | None = None
    parts: AsyncIterator[bytes] | None = None

    @classmethod
    async def of(cls, way: str, session_id: str, query: str = "", key: str = "") -> Reader:
        """``query``: what lets it in where no ``key`` does."""
        if way == "socket":
            made = await socket(query, key=key)
            await made.send_to(json.dumps({"type": "resume", "session_id": session_id}))
            for wanted in ("state", "message_new"):
                assert json.loads(await made.receive_from(timeout=60))["type"] == wanted
            return cls(made)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        response = await AsyncClient().get(f"/v1/stream/events{query or '?session_id=' + session_id}", headers=headers)
        parts = aiter(response)
        assert b"event: state" in await anext(parts)
        return cls(parts=parts)

    async def finds(self) -> None:
        """The next event is a finding."""
        if self.made is not None:
            assert json.loads(await self.made.receive_from(timeout=60))["type"] == "finding"
        elif self.parts is not None:
            async with asyncio.timeout(60):
                assert b"event: finding" in await anext(self.parts)

    async def refused(self, code: str = "unauthenticated") -> str:
        """It is told that it may not read on; what else it was told on the way to its end."""
        if self.made is not None:
            assert await refusal(self.made) == code
            await self.made.disconnect()
            return ""
        assert self.parts is not None
        async with asyncio.timeout(60):
            rest = b"".join([part async for part in self.parts]).decode()
        assert f'"code":"{code}"' in rest.replace('": ', '":')
        return rest


def test_it_works() -> None:
    """No route without a row, no row without a route, and each call asks for the very scope of its row."""
    asked = dict(http_routes(get_resolver()))
    sockets = {f"WS /{pattern.pattern}" for pattern in websocket_urlpatterns}
    assert {*asked, *sockets} == set(TABLE), "give the new route a row: who may call it?"
    for route, callbacks in asked.items():
        wanted = [TABLE[route].needs] if route in KEYED else []
        assert [one.scope for one in callbacks if isinstance(one, Key)] == wanted, route
        assert len(callbacks) == len(wanted), f"{route} can be opened by something else than a key"


@pytest.mark.parametrize("route", KEYED)
async def test_no_call_without_a_key_that_stands_and_has_the_scope(route: str) -> None:
    needed = KEYED[route].needs
    session_id, _ = await begin(await new_key("owner"))
    revoked = await new_key("revoked")
    await revoke("revoked")
    narrow = await new_key("narrow", *(scope for scope in Scope if scope != needed))
    before = await state_of_everything()
    wrong = revoked[:-1] + ("A" if revoked[-1] != "A" else "B")
    for key, status, code in (
        ("", 401, "unauthenticated"),
        ("sg_nonsense", 401, "unauthenticated"),
        (wrong, 401, "unauthenticated"),
        (revoked, 401, "unauthenticated"),
        (narrow, 403, "forbidden"),
    ):
        got, error = await call(route, session_id, key=key)
        assert (got, error.get("code")) == (status, code), f"{route} with {key[:11] or 'no key'}"
    assert await state_of_everything() == before


@pytest.mark.parametrize("route", KEYED)
async def test_the_one_scope_is_enough(route: str) -> None:
    owner = await new_key("owner", "stream")
    session_id, _ = await begin(owner)
    key = owner if KEYED[route].of_a_session else await new_key("one scope", KEYED[route].needs)
    assert (await call(route, session_id, key=key))[0] == KEYED[route].own


@pytest.mark.parametrize("route", OF_A_SESSION)
async def test_another_keys_session_does_not_exist(route: str) -> None:
    session_id, _ = await begin(await new_key("owner"))
    other = await new_key("other")
    before = await state_of_everything()
    for asked in (session_id, session_id.upper(), "urn:uuid:" + session_id, "nonsense"):
        assert (await call(route, asked, key=other))[0] == 404
    assert await state_of_everything() == before


@pytest.mark.parametrize("route", OF_A_SESSION)
async def test_a_session_has_one_name(route: str) -> None:
    """Another spelling of the id must not lead to a second state of the same stream."""
    key = await new_key("owner")
    session_id, _ = await begin(key)
    for asked in (session_id.upper(), "{" + session_id + "}", session_id.replace("-", "")):
        assert (await call(route, asked, key=key))[0] == 404
    assert (await call(route, session_id, key=key))[0] == 200


@pytest.mark.parametrize("route", KEYED)
async def test_a_stolen_token_reads_one_session_and_nothing_else(route: str) -> None:
    key = await new_key("owner")
    _, token = await begin(key)
    other_id, _ = await begin(key)
    before = await state_of_everything()
    assert (await call(route, other_id, token=token))[0] == (404 if KEYED[route].token else 401)
    assert (await call(route, other_id, key=token))[0] == 401, "a token is no key"
    assert await state_of_everything() == before


@pytest.mark.parametrize("route", OF_A_SESSION)
async def test_a_stolen_token_is_good_for_minutes_and_not_longer_than_its_key(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, token = await begin(await new_key("owner"))
    opens = 200 if KEYED[route].token else 401
    assert (await call(route, session_id, token=token))[0] == opens
    assert (await call(route, session_id, token=token[:-1]))[0] == 401
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + stream_tokens.LIFETIME_S + 1)
        assert (await call(route, session_id, token=token))[0] == 401
    await revoke("owner")
    assert (await call(route, session_id, token=token))[0] == 401


async def test_a_thief_cannot_renew_a_token_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    key = await new_key("owner")
    session_id, token = await begin(key)
    began = now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    url = f"/v1/stream/status?session_id={session_id}"
    while True:
        response = await AsyncClient().get(f"{url}&token={token}")
        if response.status_code != 200:
            break
        token = response.headers["X-Stream-Token"]
        assert now - began <= stream_tokens.RENEWABLE_S
        now += stream_tokens.LIFETIME_S - 1
    assert response.status_code == 401
    assert now - began > stream_tokens.LIFETIME_S, "it had been renewed"
    mine = await AsyncClient().get(url, headers={"Authorization": f"Bearer {key}"})
    assert (await AsyncClient().get(f"{url}&token={mine.headers['X-Stream-Token']}")).status_code == 200


async def test_the_stream_socket_is_as_strict_as_the_calls() -> None:
    key = await new_key("owner")
    session_id, token = await begin(key)
    other_id, _ = await begin(key)
    revoked = await new_key("revoked")
    await revoke("revoked")
    refused = {"unauthenticated": ["", revoked, "sg_nonsense"], "forbidden": [await new_key("narrow", "check")]}
    for code, keys in refused.items():
        for plaintext in keys:
            assert await refusal(await socket(key=plaintext)) == code
    assert await refusal(await socket("?token=nonsense")) == "unauthenticated"
    other = await new_key("other")
    for made, asked, wanted in (
        (await socket(key=key), session_id, "state"),
        (await socket(key=other), session_id, "error"),
        (await socket(f"?token={token}"), session_id, "state"),
        (await socket(f"?token={token}"), other_id, "error"),
    ):
        await made.send_to(json.dumps({"type": "resume", "session_id": asked}))
        said = json.loads(await made.receive_from(timeout=10))
        assert said["type"] == wanted, said
        await made.send_to(json.dumps({"type": "interrupt", "session_id": other_id}))
        await made.disconnect()
    thief = await socket(f"?token={token}")
    await thief.send_to('{"type": "start", "prompt": "Hello"}')
    assert json.loads(await thief.receive_from(timeout=10))["code"] == "forbidden"
    await thief.disconnect()


class Waits(Provider):
    """Says one sentence and then another, when it is let."""

    label = "Waits"

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> None:
        """Never offered."""

    @property
    def default_model(self) -> str:
        return "waits-1"

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield TextDelta("One. ")
        await self.go_on.wait()
        yield TextDelta("Two.")


async def test_a_stolen_token_stops_no_other_answer_while_it_runs() -> None:
    """Neither one of the same key nor one of another: it is told that there is none, and the answer goes on."""
    keys = [await new_key("owner"), await new_key("other")]
    _, token = await begin(keys[0])
    made = await socket(f"?token={token}")
    for key in keys:
        slow = Waits()
        asked = Asked(Visitor(client=key[:11]), "basic", own=Own(slow, flagged=False))
        started = await start_chat(StartFrame(type="start", prompt="Hello"), asked, shared_log())
        await made.send_to(json.dumps({"type": "interrupt", "session_id": started.session_id}))
        said = json.loads(await made.receive_from(timeout=60))
        assert (said["type"], said["code"]) == ("error", "unknown_session")
        assert started.session_id in registry.running()
        slow.go_on.set()
        batches = follow(shared_log(), started.session_id, 0, conf(), correlation_id="")
        (done,) = [event async for batch in batches for event in batch if event["type"] == "done"]
        assert (done["outcome"], done["final"]) == ("allowed", "One. Two.")
    await made.disconnect()
    await registry.shutdown()


@pytest.mark.parametrize("by", ["key", "token"])
async def test_a_socket_that_stays_open_outlives_neither_its_key_nor_its_token(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await new_key("owner")
    session_id, token = await begin(key)
    made = await (socket(key=key) if by == "key" else socket(f"?token={token}"))
    if by == "key":
        await revoke("owner")
    else:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + stream_tokens.LIFETIME_S + 1)
    await made.send_to(json.dumps({"type": "resume", "session_id": session_id}))
    assert await refusal(made) == "unauthenticated"
    await made.disconnect()


@pytest.fixture
def watchful(settings: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at a key is due, and a quiet reader asks the database at once."""
    monkeypatch.setattr(key_watch, "CHECK_S", 0.0)
    settings.SLUICEGATE_IDLE_CHECK_S = settings.SLUICEGATE_LOG_POLL_S = 0.02  # type: ignore[attr-defined]


NOTHING_NEW, NEWS = "quiet", "events come"


@pytest.mark.parametrize("meanwhile", [NOTHING_NEW, NEWS])
@pytest.mark.parametrize("by", ["key", "token"])
@pytest.mark.parametrize("way", ["events", "socket"])
@pytest.mark.parametrize("lost", ["key", "scope"])
async def test_an_open_reader_ends_with_its_key_and_with_the_scope(
    lost: str, way: str, by: str, meanwhile: str, watchful: None, settings: object
) -> None:
    """It is told so, and nothing of what came after."""
    if meanwhile == NEWS:
        settings.SLUICEGATE_IDLE_CHECK_S = 600.0  # type: ignore[attr-defined]
    key = await new_key("owner")
    session_id, token = await begin(key)
    query = f"?token={token}" if by == "token" else ""
    plaintext = "" if by == "token" else key
    reader = await Reader.of(way, session_id, query, plaintext)
    code = await lose(lost)
    if meanwhile == NEWS:
        await shared_log().append(session_id, [{"type": "secret"}], ms=1)
    assert "secret" not in await reader.refused(code)


@pytest.mark.parametrize("route", [name for name, row in OF_A_SESSION.items() if row.token])
async def test_a_token_opens_nothing_that_its_key_does_not_open_any_more(route: str) -> None:
    key = await new_key("owner")
    session_id, token = await begin(key)
    assert (await call(route, session_id, token=token))[0] == 200
    await leave("owner", "check", "rules")
    for way in ({"key": key}, {"token": token}):
        status, error = await call(route, session_id, **way)
        assert (status, error.get("code")) == (403, "forbidden")


@pytest.mark.parametrize("by", ["key", "token"])
async def test_a_socket_resumes_nothing_without_the_scope(by: str) -> None:
    """Neither one that is opened afterwards nor one that was open before."""
    key = await new_key("owner")
    session_id, token = await begin(key)
    opening = {"key": key} if by == "key" else {"query": f"?token={token}"}
    before = await socket(**opening)
    await leave("owner", "check")
    await before.send_to(json.dumps({"type": "resume", "session_id": session_id}))
    for made in (before, await socket(**opening)):
        assert await refusal(made) == "forbidden"
        await made.disconnect()


@pytest.mark.parametrize("lost", ["key", "scope"])
async def test_a_revoked_key_or_one_without_the_scope_interrupts_nothing(lost: str) -> None:
    """Not even through a socket that was open before, and looked at a moment ago."""
    key = await new_key("owner")
    made = await socket(key=key)
    slow = Waits()
    asked = Asked(Visitor(client=key[:11]), "basic", own=Own(slow, flagged=False))
    started = await start_chat(StartFrame(type="start", prompt="Hello"), asked, shared_log())
    code = await lose(lost)
    await made.send_to(json.dumps({"type": "interrupt", "session_id": started.session_id}))
    assert await refusal(made) == code
    assert not await shared_log().interrupted(started.session_id)
    assert started.session_id in registry.running()
    await made.disconnect()


async def test_the_keys_of_many_readers_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    await new_key("owner")
    prefix = (await ApiKey.objects.aget()).prefix
    asked: list[str] = []

    def scopes(name: str) -> list[str]:
        asked.append(name)
        return ["stream"]

    monkeypatch.setattr(key_watch, "scopes_of_key", scopes)
    monkeypatch.setattr(key_watch, "_stood", {})
    monkeypatch.setattr(key_watch, "CHECK_S", 600.0)
    for _ in range(20):
        await key_watch.look(prefix, "stream")
    assert asked == [prefix]
    await key_watch.look(prefix, "stream", now=True)
    assert len(asked) == 2
    with pytest.raises(Refused) as refused:
        await key_watch.look(prefix, "audit")
    assert refused.value.code == "forbidden", "that it stands with one scope says nothing of another"


@pytest.mark.parametrize("route", [name for name, row in TABLE.items() if row.needs == LOGIN and "GET" in name])
async def test_pages_need_a_login(route: str, cast: Cast) -> None:
    client = AsyncClient()
    response = await client.get(route.split(" ")[1])
    assert (response.status_code, "login" in response.headers["Location"]) == (302, True)
    await client.aforce_login(cast.reviewer)
    assert (await client.get(route.split(" ")[1])).status_code == TABLE[route].own


@pytest.mark.parametrize("route", [name for name in TABLE if name.startswith("WS") and TABLE[name].needs == LOGIN])
async def test_the_pages_sockets_take_neither_key_nor_token_and_need_a_login(route: str) -> None:
    path = route.removeprefix("WS ")
    key = await new_key("owner")
    _, token = await begin(key)
    for made in (await socket(path=path, key=key), await socket(f"?token={token}", path=path)):
        assert "sign in" in await made.receive_from(timeout=10)
        assert (await made.receive_output(timeout=10))["type"] == "websocket.close"


async def test_a_conversation_is_one_within_a_key_only() -> None:
    """The name that a client gives it belongs to the client's key; the id of another key's opens nothing."""
    keys = [await new_key("one"), await new_key("two")]
    for key in (*keys, keys[0]):
        for path, body in (
            ("/v1/stream/start", {"context": {"conversation_id": "mine"}}),
            ("/v1/check", {"text": "Hello", "kind": "prompt", "context": {"conversation_id": "mine"}}),
        ):
            headers = {"Authorization": f"Bearer {key}"}
            said = await AsyncClient().post(path, json.dumps(body), content_type="application/json", headers=headers)
            assert said.status_code < 300
    rows = Conversation.objects.filter(external_id="mine").order_by("client").values_list("client", flat=True)
    assert sorted([client async for client in rows]) == sorted(key[:11] for key in keys)
    theirs = await Conversation.objects.aget(client=keys[0][:11])
    body = json.dumps({"prompt": "Go on", "conversation_id": str(theirs.pk)})
    for key, status in zip(keys, (201, 422), strict=True):
        headers = {"Authorization": f"Bearer {key}"}
        said = await AsyncClient().post("/v1/chat", body, content_type="application/json", headers=headers)
        assert said.status_code == status


async def test_a_conversation_that_belongs_to_nobody_opens_to_no_key(cast: Cast) -> None:
    """Its user was deleted, say: neither a key nor a token nor another user comes with a browser's session."""
    left = await Conversation.objects.acreate(policy="basic")
    visitors = [Visitor(client="sg_other"), Visitor(only_session="s"), Visitor(user_id=cast.reviewer.pk), Visitor()]
    for visitor in visitors:
        with pytest.raises(Conversation.DoesNotExist):
            await database_sync_to_async(conversation_of)(visitor, str(left.pk))
    key = await new_key("owner")
    body = json.dumps({"prompt": "Go on", "conversation_id": str(left.pk)})
    headers = {"Authorization": f"Bearer {key}"}
    said = await AsyncClient().post("/v1/chat", body, content_type="application/json", headers=headers)
    assert (said.status_code, json.loads(said.content)["error"]["code"]) == (422, "unknown_conversation")


@pytest.mark.parametrize("route", [name for name, row in TABLE.items() if row.needs == PUBLIC])
async def test_what_is_public_is_meant_to_be(route: str) -> None:
    response = await AsyncClient().get(route.split(" ")[1].replace("^v1/", "/v1/nothing"))
    assert response.status_code == TABLE[route].own
