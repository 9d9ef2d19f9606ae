"""The database goes away: every call, page and socket says so in words that are its own, and nothing else breaks."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.db import InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import AsyncClient

from project.asgi import application
from streaming import key_watch
from streaming.audit.verify import log_faults
from tests.conftest import Cast
from tests.streaming.calling import Tracebacks
from tests.streaming.test_tenancy import (
    KEYED,
    LOGIN,
    PUBLIC,
    TABLE,
    begin,
    call,
    new_key,
    socket,
    state_of_everything,
    strict,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["strict"]
SAID = "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally"


@contextmanager
def away(kind: type[Exception] = OperationalError) -> Iterator[None]:
    """No query can be made meanwhile."""

    def none(self: object, *args: object) -> NoReturn:
        raise kind(SAID)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BaseDatabaseWrapper, "_cursor", none)
        yield


@pytest.fixture
def log() -> Iterator[Tracebacks]:
    handler, root = Tracebacks(), logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


@pytest.fixture(autouse=True)
async def looked() -> AsyncIterator[None]:
    key_watch._stood.clear()
    yield
    key_watch._stood.clear()


async def asked(route: str, session_id: str, key: str, accept: str = "*/*") -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of a call as its row describes it."""
    row, (method, path) = TABLE[route], route.split(" ")
    url = path.replace("^v1/", "/v1/nothing") + row.query.replace("{id}", session_id)
    headers = {"Accept": accept} | ({"Authorization": f"Bearer {key}"} if key else {})
    client = AsyncClient()
    if method == "GET":
        response = await client.get(url, headers=headers)
    else:
        body = json.dumps(row.body).replace("{id}", session_id)
        response = await client.post(url, body, content_type="application/json", headers=headers)
    return response.status_code, response.content.decode(), dict(response.headers)


@pytest.mark.parametrize("route", KEYED)
async def test_it_works(route: str, log: Tracebacks) -> None:
    """Every call with a key: 503 in the shape of its dialect, and when it is back, all is as it was."""
    key = await new_key("owner")
    session_id, _ = await begin(key)
    before = await state_of_everything()
    for kind in (OperationalError, InterfaceError):
        with away(kind):
            status, body, headers = await asked(route, session_id, key)
        assert (status, headers.get("Retry-After")) == (503, "2"), body
        error = json.loads(body)["error"]
        if KEYED[route].needs == "gateway":
            assert headers["X-Sluicegate-Code"] == "database_unavailable"
            assert "database" in (error if isinstance(error, str) else error["message"])
        else:
            assert (set(error), error["code"]) == ({"code", "message"}, "database_unavailable")
        assert "connection" not in body, "what the driver said is for the log"
    assert log.found == []
    assert await state_of_everything() == before
    assert (await call(route, session_id, key=key))[0] == KEYED[route].own


@pytest.mark.parametrize(
    "route", [name for name, row in TABLE.items() if row.needs in (PUBLIC, LOGIN) and "GET" in name]
)
async def test_a_page_says_it_as_a_page(route: str, cast: Cast, log: Tracebacks) -> None:
    client = AsyncClient()
    await client.aforce_login(cast.reviewer)
    url = route.split(" ")[1].replace("^v1/", "/v1/nothing")
    with away():
        response = await client.get(url, headers={"Accept": "text/html"})
    body = b"".join([part async for part in response]) if response.streaming else response.content
    assert response.status_code in (200, 404, 503), "what asks no database is answered as always"
    assert b"unexpectedly" not in body
    if TABLE[route].needs == LOGIN:
        assert response.status_code == 503
        assert b"The database is away" in body
        assert response.headers["Retry-After"] == "2"
    assert log.found == []


async def refused(made: WebsocketCommunicator) -> str:
    said = await made.receive_from(timeout=10)
    output = await made.receive_output(timeout=10)
    assert (output["type"], output["code"]) == ("websocket.close", 1013)
    return str(said)


async def test_a_socket_that_nobody_can_let_in_says_why(cast: Cast, log: Tracebacks) -> None:
    key = await new_key("owner")
    _, token = await begin(key)
    client = AsyncClient()
    await client.aforce_login(cast.reviewer)
    cookie = f"sessionid={client.cookies['sessionid'].value}".encode()
    with away():
        for made in (await socket(key=key), await socket(f"?token={token}")):
            assert json.loads(await refused(made))["code"] == "database_unavailable"
        for path in ("/ws/chat/", "/ws/compare/", "/ws/stream/"):
            headers = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"cookie", cookie)]
            ours = WebsocketCommunicator(application, path, headers=headers)  # type: ignore[arg-type]
            assert (await ours.connect())[0]
            assert "database cannot be reached" in await refused(ours)
    assert log.found == []


async def test_an_open_socket_says_so_and_goes_on_afterwards(log: Tracebacks) -> None:
    key = await new_key("owner")
    session_id, _ = await begin(key)
    made = await socket(key=key)
    resume = json.dumps({"type": "resume", "session_id": session_id})
    await made.send_to('{"type": "nonsense"}')
    assert json.loads(await made.receive_from(timeout=10))["type"] == "error", "it has been let in"
    with away():
        await made.send_to(resume)
        said = json.loads(await made.receive_from(timeout=10))
        assert (said["type"], said["code"], said["recoverable"]) == ("error", "database_unavailable", True)
        await made.send_to('{"type": "start", "prompt": "Hello"}')
        assert json.loads(await made.receive_from(timeout=10))["code"] == "database_unavailable"
    await made.send_to(resume)
    assert json.loads(await made.receive_from(timeout=10))["type"] == "state"
    await made.disconnect()
    assert log.found == []


async def test_a_reader_of_server_sent_events_is_sent_back_with_its_place(log: Tracebacks, settings: object) -> None:
    settings.SLUICEGATE_LOG_POLL_S = 0.02  # type: ignore[attr-defined]
    settings.SLUICEGATE_IDLE_CHECK_S = 0.02  # type: ignore[attr-defined]
    key = await new_key("owner")
    session_id, _ = await begin(key)
    headers = {"Authorization": f"Bearer {key}"}
    response = await AsyncClient().get(f"/v1/stream/events?session_id={session_id}", headers=headers)
    frames = aiter(response)
    first = (await anext(frames)).decode()
    assert "event: state" in first
    with away():
        rest = b"".join([part async for part in frames]).decode()
    assert "database_unavailable" in rest
    assert "id:" not in rest, "it stands in no log, and the reader comes back with the place that it had"
    assert log.found == []


async def test_a_reader_waits_for_the_database_and_is_told_the_end(log: Tracebacks, settings: object) -> None:
    """A quiet reader asks it how its session ended."""
    settings.SLUICEGATE_LOG_POLL_S = 0.02  # type: ignore[attr-defined]
    settings.SLUICEGATE_IDLE_CHECK_S = 0.02  # type: ignore[attr-defined]
    key = await new_key("owner")
    session_id, _ = await begin(key)
    made = await socket(key=key)
    await made.send_to(json.dumps({"type": "resume", "session_id": session_id, "last_seq": 1}))
    assert json.loads(await made.receive_from(timeout=10))["type"] == "message_new"
    with away():
        said = json.loads(await made.receive_from(timeout=10))
        assert (said["code"], said["session_id"]) == ("database_unavailable", session_id)
    status, _, _ = await asked("POST /v1/stream/finish", session_id, key)
    assert status == 200
    types = []
    while "state" not in types:
        types.append(json.loads(await made.receive_from(timeout=10))["type"])
    assert types == ["message_update", "timing", "done", "state"]
    await made.disconnect()
    assert log.found == []
    assert await database_sync_to_async(lambda: list(log_faults()))() == []
