"""What every call under ``/v1/`` passes: sizes, compression, origins, limits; and who may open a socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import AsyncClient

from guardrails.models import ApiKey
from guardrails.services import create_api_key, revoke_api_key
from project.asgi import application
from streaming import registry
from streaming.api import edge
from streaming.limits import Spends, take
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SHOP = "https://shop.example"
PHONE = {"text": "call me at +44 20 7946 0958 " + "or write a letter " * 60, "kind": "response", "accepts": ["redact"]}


@pytest.fixture(autouse=True)
async def closing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


@database_sync_to_async
def new_key(calls_per_minute: int = 60, name: str = "one") -> tuple[ApiKey, str]:
    return create_api_key(
        name=name, scopes=["check", "stream"], origins=[SHOP], calls_per_minute=calls_per_minute
    )  # fmt: skip


class Caller:
    def __init__(self, key: str) -> None:
        self.http = AsyncClient()
        self.key = key

    async def check(self, body: object = PHONE, **headers: str) -> HttpResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {self.key}", **headers}
        return await self.http.post("/v1/check", raw, content_type="application/json", headers=given)


@pytest.fixture
async def caller() -> Caller:
    return Caller((await new_key())[1])


def code(response: HttpResponse) -> object:
    return json.loads(response.content)["error"]["code"]


async def test_it_works(caller: Caller) -> None:
    packed = gzip.compress(json.dumps(PHONE).encode())
    response = await caller.check(packed, **{"Content-Encoding": "gzip", "Accept-Encoding": "br, gzip;q=0.5"})
    assert response.status_code == 200
    assert response.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in response.headers["Vary"]
    plain = gzip.decompress(response.content)
    assert json.loads(plain)["text"].startswith("call me at [PHONE] or")
    assert len(response.content) < len(plain)
    assert int(response.headers["Content-Length"]) == len(response.content)


@pytest.mark.parametrize("every", [1, 100, 1_000], ids=["each byte", "some", "all at once"])
async def test_a_body_may_be_compressed_in_several_members(caller: Caller, every: int) -> None:
    """What comes from a log or a proxy is often joined in that way (RFC 1952, 2.2)."""
    raw = json.dumps(PHONE).encode()
    packed = b"".join(gzip.compress(raw[at : at + every]) for at in range(0, len(raw), every)) + gzip.compress(b"")
    response = await caller.check(packed, **{"Content-Encoding": "gzip"})
    assert response.status_code == 200, response.content
    assert json.loads(response.content)["text"].startswith("call me at [PHONE] or")


async def test_a_body_of_a_great_many_members_takes_no_long_time(caller: Caller) -> None:
    packed = gzip.compress(json.dumps(PHONE).encode()) + gzip.compress(b"") * 52_000
    assert (await caller.check(packed, **{"Content-Encoding": "gzip"})).status_code == 200
    began = time.process_time()
    assert edge._members(packed, 1_000_000) is not None
    assert time.process_time() - began < 1.0


async def test_no_body_is_none_whatever_it_is_said_to_be_compressed_with(caller: Caller) -> None:
    """Clients that set the header once for all of their calls send it with a GET, too."""
    headers = {"Authorization": f"Bearer {caller.key}", "Content-Encoding": "gzip"}
    response = await caller.http.get("/v1/stream/status?session_id=none", headers=headers)
    assert (response.status_code, code(response)) == (404, "not_found")
    response = await caller.check(b"", **{"Content-Encoding": "gzip"})
    assert (response.status_code, json.loads(response.content)["error"]["message"]) == (400, "The body is not JSON.")


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "identity"])
async def test_who_does_not_take_gzip_gets_none(caller: Caller, accepted: str) -> None:
    response = await caller.check(**{"Accept-Encoding": accepted})
    assert "Content-Encoding" not in response.headers
    assert json.loads(response.content)["action"] == "redact"


async def test_an_event_stream_is_never_compressed(caller: Caller) -> None:
    headers = {"Authorization": f"Bearer {caller.key}", "Accept-Encoding": "gzip"}
    body = json.dumps({"prompt": "Hello there"})
    said = await caller.http.post("/v1/chat", body, content_type="application/json", headers=headers)
    response = await caller.http.get(json.loads(said.content)["events_url"], headers=headers)
    raw = b"".join([part async for part in response])
    assert "Content-Encoding" not in response.headers
    assert raw.startswith(b"event: state")


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"x" * 1_048_577, "identity", 413),
        (gzip.compress(b"x" * 1_048_577), "gzip", 413),
        (gzip.compress(b"0" * 200_000_000, 1), "gzip", 413),
        (b"not gzip at all", "gzip", 400),
        (gzip.compress(json.dumps(PHONE).encode())[:-9], "gzip", 400),
        (gzip.compress(b"{}") + b"more", "gzip", 400),
        (gzip.compress(b"{}") + gzip.compress(b"{}")[:-9], "gzip", 400),
        (gzip.compress(b" " * 524_289) * 2, "gzip", 413),
        (gzip.compress(b"") * 52_429, "gzip", 413),
        (zlib.compress(b"{}"), "deflate", 415),
    ],
    ids=[
        "plain",
        "packed",
        "bomb",
        "no gzip",
        "cut off",
        "more behind it",
        "second cut off",
        "packed in two",
        "many empty ones",
        "deflate",
    ],
)
async def test_a_body_that_is_too_large_or_not_what_it_says_is_refused(
    caller: Caller, body: bytes, encoding: str, status: int
) -> None:
    response = await caller.check(body, **{"Content-Encoding": encoding})
    assert response.status_code == status, response.content
    assert "error" in json.loads(response.content)
    assert not await AuditSession.objects.aexists()


async def test_a_chunked_body_without_a_length_is_measured_too(caller: Caller) -> None:
    body = json.dumps({"text": "x" * 1_100_000, "kind": "response"}).encode()
    sent: list[dict[str, object]] = []
    parts = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]

    async def receive() -> dict[str, object]:
        if not parts:
            await asyncio.Event().wait()  # the client stays
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {caller.key}".encode()), (b"content-type", b"application/json"),
               (b"transfer-encoding", b"chunked"), (b"host", b"testserver")]  # fmt: skip
    scope = {"type": "http", "method": "POST", "path": "/v1/check", "raw_path": b"/v1/check", "headers": headers,
             "query_string": b"", "http_version": "1.1", "scheme": "http"}  # fmt: skip
    await application(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 413


async def test_one_call_too_many_in_a_minute_is_told_to_wait(caller: Caller) -> None:
    key, plaintext = await new_key(calls_per_minute=3, name="slow")
    slow = Caller(plaintext)
    left = []
    for _ in range(3):
        response = await slow.check()
        left.append(response.headers["X-RateLimit-Remaining"])
        assert response.headers["X-RateLimit-Limit"] == "3"
    assert left == ["2", "1", "0"]
    refused = await slow.check()
    assert (refused.status_code, code(refused)) == (429, "too_many_calls")
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["X-RateLimit-Reset"] == refused.headers["Retry-After"]
    assert await AuditSession.objects.filter(client=key.prefix).acount() == 3
    assert (await caller.check()).status_code == 200  # another key's calls are its own


async def test_a_new_window_opens_when_the_store_says_so() -> None:
    seen = []
    for _ in range(3):
        allowance = await take("window", Spends.UPDATE, 2)
        assert allowance is not None
        seen.append(allowance.exceeded)
    assert seen == [False, False, True]
    # The window ends when its key does: what the store's clock will do in a second is done here at once.
    assert await shared_log().evaluate("return redis.call('DEL', KEYS[1])", ["sg:rate:{window}:update"], []) == 1
    again = await take("window", Spends.UPDATE, 2)
    assert again is not None
    assert not again.exceeded
    assert 0 < again.reset_s <= 1


async def test_without_a_store_calls_are_let_through(caller: Caller, settings: object) -> None:
    await close_shared_log()
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    response = await caller.check()
    assert response.status_code == 200
    assert "X-RateLimit-Limit" not in response.headers


async def test_a_page_of_an_origin_that_the_key_names_may_read_the_answer(caller: Caller) -> None:
    response = await caller.check(Origin=SHOP)
    assert response.headers["Access-Control-Allow-Origin"] == SHOP
    assert "Origin" in response.headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in response.headers
    refused = await caller.check({"text": 7}, Origin=SHOP)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (422, SHOP)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"x" * 1_048_577, {}, 413),
        (b"not gzip at all", {"Content-Encoding": "gzip"}, 400),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b"{}", {"Authorization": "Bearer sg_nonsense"}, 401),
        (b"{}", {"Authorization": ""}, 401),
    ],
    ids=["too large", "no gzip", "another encoding", "unknown key", "no key"],
)
@pytest.mark.parametrize("path", ["/v1/check", "/v1/chat/completions"])
async def test_a_page_sees_why_it_was_refused_before_its_key_was_known(
    caller: Caller, body: bytes, headers: dict[str, str], status: int, path: str
) -> None:
    """A browser would show its page a network error instead."""
    for origin, shown in ((SHOP, SHOP), ("https://evil.example", None)):
        given = {"Authorization": f"Bearer {caller.key}", "Origin": origin, **headers}
        response = await caller.http.post(path, body, content_type="application/json", headers=given)
        assert response.status_code == status
        assert response.headers.get("Access-Control-Allow-Origin") == shown
        assert "Origin" in response.headers["Vary"]


async def test_a_page_may_read_the_headers_that_we_say_something_in(caller: Caller) -> None:
    response = await caller.check(Origin=SHOP)
    exposed = {name.strip() for name in response.headers["Access-Control-Expose-Headers"].split(",")}
    said = {name for name in response.headers if name.startswith("X-")} - {"X-Content-Type-Options", "X-Frame-Options"}
    assert "X-Response-Time" in said
    assert said <= exposed


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://shop.example.evil.example", SHOP + ":8443"]
)
async def test_a_page_of_any_other_origin_is_refused_and_nothing_happens(caller: Caller, origin: str) -> None:
    response = await caller.check(Origin=origin)
    assert (response.status_code, code(response)) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in response.headers
    assert not await AuditSession.objects.aexists()


async def test_our_own_pages_and_programs_need_no_origin(caller: Caller) -> None:
    for headers in ({}, {"Origin": "http://testserver"}):
        response = await caller.check(**headers)
        assert response.status_code == 200
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
@pytest.mark.parametrize("path", ["/v1/", "/v1/stream/start/", "/v1/stream/begin", "/v1/embeddings", "/api/"])
async def test_a_call_that_there_is_not_is_not_there_however_it_is_asked_for(
    caller: Caller, path: str, method: str
) -> None:
    http = AsyncClient(enforce_csrf_checks=True)  # as a server does
    asked = getattr(http, method)
    response = await asked(path, headers={"Authorization": f"Bearer {caller.key}"})
    assert (response.status_code, json.loads(response.content)["error"]["code"]) == (404, "not_found")


async def test_a_preflight_is_answered_for_origins_that_some_key_names(caller: Caller) -> None:
    async def preflight(origin: str) -> HttpResponse:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response: HttpResponse = await caller.http.options("/v1/stream/start", headers=asked)
        return response

    allowed = await preflight(SHOP)
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (204, SHOP)
    assert "Authorization" in allowed.headers["Access-Control-Allow-Headers"]
    assert (await preflight("https://evil.example")).status_code == 403
    await database_sync_to_async(revoke_api_key)(key=await ApiKey.objects.aget())
    assert (await preflight(SHOP)).status_code == 403


async def test_a_page_may_send_headers_that_its_libraries_add(caller: Caller) -> None:
    """Those of vendors' clients and of tracing: a browser would not even make the call."""
    asked = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
    added = "authorization,content-type,traceparent,x-stainless-lang,anthropic-version"
    for path in ("/v1/stream/start", "/v1/chat/completions", "/v1/messages", "/api/chat"):
        more = asked | {"Access-Control-Request-Headers": added}
        response = await caller.http.options(path, headers=more)
        allowed = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
        assert set(added.split(",")) <= allowed
        assert "Access-Control-Request-Headers" in response.headers["Vary"]
    strange = "x-a, b c, d:e, é, " + "y" * 9_000
    odd = await caller.http.options(path, headers=asked | {"Access-Control-Request-Headers": strange})
    allowed = {name.strip().lower() for name in odd.headers["Access-Control-Allow-Headers"].split(",")}
    assert "x-a" in allowed
    assert not allowed & {"b c", "d:e", "é", "y" * 9_000}


async def opened(path: str, **headers: str) -> tuple[bool, list[dict[str, object]]]:
    """Whether a socket is accepted, and what it says first."""
    pairs = [(name.lower().encode(), value.encode()) for name, value in {"host": "testserver", **headers}.items()]
    socket = WebsocketCommunicator(application, path, headers=pairs)  # type: ignore[arg-type]
    accepted, _ = await socket.connect()
    said = []
    if accepted and not await socket.receive_nothing(timeout=0.2):
        said.append(json.loads(await socket.receive_from()))
    await socket.disconnect()
    return accepted, said


async def test_a_socket_opens_for_the_origins_of_its_key(caller: Caller) -> None:
    key = f"Bearer {caller.key}"
    assert await opened("/ws/stream/", authorization=key, origin=SHOP) == (True, [])
    accepted, said = await opened("/ws/stream/", authorization=key, origin="https://evil.example")
    assert (accepted, said[0]["code"]) == (True, "origin_not_allowed")
    assert await opened("/ws/chat/", authorization=key, origin=SHOP) == (False, [])
    assert await opened("/ws/stream/", origin=SHOP) == (False, [])
    accepted, said = await opened("/ws/stream/?token=nonsense", origin=SHOP)
    assert (accepted, said[0]["code"]) == (True, "unauthenticated")


@pytest.mark.parametrize("path", ["/ws/chat/", "/ws/compare/"])
@pytest.mark.parametrize(
    ("origin", "opens"),
    [
        ("http://localhost:8000", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
    ],
)
async def test_a_socket_of_our_pages_opens_for_our_pages_alone(path: str, origin: str, opens: bool) -> None:
    visitor = AsyncClient()
    await visitor.aforce_login(await database_sync_to_async(User.objects.create_user)("visitor"))
    cookie = f"sessionid={visitor.cookies['sessionid'].value}"  # a browser sends it along, whoever's page it shows
    headers = [(b"host", b"localhost:8000"), (b"origin", origin.encode()), (b"cookie", cookie.encode())]
    socket = WebsocketCommunicator(application, path, headers=headers)  # type: ignore[arg-type]
    accepted, _ = await socket.connect(timeout=20)
    await socket.disconnect()
    assert accepted is opens
