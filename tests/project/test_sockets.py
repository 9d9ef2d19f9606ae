"""An open socket that waits: one line, one task, and nothing beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from daphne.server import Server

from project.sockets import MOST, create_application
from streaming import access
from streaming.consumers import StreamConsumer
from streaming.wake import Line

Application = Callable[..., Awaitable[None]]


def serving(application: Application) -> Any:
    """A server of this application with one connection, which is called "one"."""
    server: Any = Server.__new__(Server)
    server.application, server.connections = application, {"one": {}}
    return server


async def test_it_works() -> None:
    """What came before anybody took it, and what comes later, arrives in its order."""
    taken: list[str] = []

    async def application(*, scope: object, receive: Callable[[], Awaitable[Any]], send: object) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            taken.append(message["text"])

    server = serving(application)
    line: Any = create_application(server, "one", {"type": "websocket"})
    for text in ("a", "b"):
        line.put_nowait({"type": "websocket.receive", "text": text})
    for _ in range(5):
        await asyncio.sleep(0)
    line.put_nowait({"type": "websocket.receive", "text": "c"})
    line.put_nowait({"type": "websocket.disconnect"})
    await server.connections["one"]["application_instance"]
    assert taken == ["a", "b", "c"]


async def test_a_socket_is_given_no_room_that_it_does_not_need() -> None:
    async def application(*, scope: object, receive: object, send: object) -> None:
        """Over at once."""

    made = [
        create_application(serving(application), "one", {"type": kind, "headers": []}) for kind in ("websocket", "http")
    ]
    assert isinstance(made[0], Line)
    assert isinstance(made[1], asyncio.Queue), "of a call two may take at the same time"


async def test_nothing_waits_beside_a_socket_that_nobody_speaks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own task takes what comes: with another one for each message a thousand sockets hold two megabytes more."""
    monkeypatch.setattr(access, "demo_mode", lambda: False)  # so that who has no key is sent away
    line, closed = Line[MutableMapping[str, Any]](), asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "websocket.close":
            closed.set()

    before = asyncio.all_tasks()
    scope = {"type": "websocket", "path": "/ws/stream/", "headers": [], "query_string": b""}
    running = asyncio.ensure_future(StreamConsumer()(scope, line.get, send))
    line.put_nowait({"type": "websocket.connect"})
    await closed.wait()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == {running}
    line.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await running


async def test_who_sends_far_more_than_is_taken_is_let_go() -> None:
    """Else one socket's frames would lie here without end, and each that is taken would move all others."""
    dropped: list[bool] = []

    class Protocol:
        def dropConnection(self, *, abort: bool) -> None:
            dropped.append(abort)

    async def application(*, scope: object, receive: object, send: object) -> None:
        """Takes nothing."""

    protocol, server = Protocol(), serving(application)
    server.connections = {protocol: {}}
    line: Any = create_application(server, protocol, {"type": "websocket"})
    for _ in range(MOST):
        line.put_nowait({"type": "websocket.receive", "text": "{}"})
    assert not dropped
    line.put_nowait({"type": "websocket.receive", "text": "{}"})
    line.put_nowait({"type": "websocket.disconnect"})
    assert dropped == [True]
    assert line.qsize() == MOST + 1, "that it is gone is told all the same"
