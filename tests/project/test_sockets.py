"""An open socket that waits: one line, one task, and nothing beside them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from daphne.http_protocol import HTTPFactory
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from project.sockets import ASKED, MOST, LightSocket, create_application
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


@pytest.mark.django_db  # Channels looks whether a connection of this thread's has been open for too long
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


OPENING = (
    b"GET /ws/stream/?a=b HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-Own: one\r\n"
)


class Transport(StringTransport):
    """As a connection that nothing is wrong with; it knows whose words it carries, as Twisted's own do."""

    protocol: Any = None

    def unregisterProducer(self) -> None:
        """Whether there is one or not."""
        self.producer = None

    def abortConnection(self) -> None:
        """Gone at once."""
        self.abortingConnection = True


class Serving:
    """What Daphne's protocols ask their server for. ``lines``: what each socket's application would read from."""

    root_path, application, proxy_forwarded_address_header = "", None, None
    request_buffer_size, http_timeout, ping_interval = 8192, None, 20
    websocket_timeout = websocket_connect_timeout = 86_400

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(WebSocketFactory, "protocol", LightSocket)
        self.ws_factory, self.http = WebSocketFactory(self, server="t"), HTTPFactory(self)
        self.ws_factory.setProtocolOptions(autoPingTimeout=30, allowNullOrigin=True, openHandshakeTimeout=0)
        self.lines: dict[object, list[dict[str, Any]]] = {}
        self.scopes: list[dict[str, Any]] = []

    def protocol_connected(self, protocol: object) -> None:
        """Daphne keeps those in a table."""

    def protocol_disconnected(self, protocol: object) -> None:
        """And forgets them."""

    def log_action(self, protocol: str, action: str, details: object) -> None:
        """Into the access log."""

    def create_application(self, protocol: object, scope: dict[str, Any]) -> Any:
        """A line, of which everything stays."""
        self.scopes.append(scope)
        line = self.lines[protocol] = []
        return type("Line", (), {"put_nowait": staticmethod(line.append)})

    def opened(self, subprotocol: str | None = None) -> tuple[Any, Transport]:
        """A socket amid its first words, by way of the call that asked for it."""
        transport = Transport()
        transport.protocol = self.http.buildProtocol(transport.getPeer())
        transport.protocol.makeConnection(transport)
        offered = f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode() if subprotocol else b""
        transport.protocol.dataReceived(OPENING + offered + b"\r\n")
        made = transport.protocol
        assert isinstance(made, WebSocketProtocol)
        made.serverAccept(subprotocol)
        assert transport.value().startswith(b"HTTP/1.1 101 ")
        transport.clear()
        return made, transport


def test_a_socket_keeps_what_is_its_own_and_shares_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(monkeypatch)
    (one, its), (other, others) = serving.opened(), serving.opened("a")
    assert (one.websocket_protocol_in_use, other.websocket_protocol_in_use) == (None, "a")
    for made in (one, other):
        assert not [name for name in ASKED if hasattr(made, name)], "the opening is over"
        assert len(vars(made)) <= 42, f"of more the table is twice as large: {sorted(vars(made))}"
        assert made.request.path == "/ws/stream/"
        assert made.failByDrop == serving.ws_factory.failByDrop
        assert made.autoPingTimeout == 30
    assert (b"x-own", b"one") in serving.scopes[0]["headers"]
    one.handle_reply({"type": "websocket.send", "text": "to the one"})
    other.handle_reply({"type": "websocket.send", "text": "to the other"})
    assert its.value() == b"\x81\x0ato the one"
    assert others.value() == b"\x81\x0cto the other"
    one.dataReceived(b"\x81\x82\x00\x00\x00\x00hi")
    assert [message.get("text") for message in serving.lines[one]] == [None, "hi"]
    assert len(serving.lines[other]) == 1


def test_what_happens_to_one_happens_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(monkeypatch)
    (one, its), (other, others) = serving.opened(), serving.opened()
    one.handle_reply({"type": "websocket.close", "code": 4401})
    assert its.value() == b"\x88\x02\x11\x31"
    one.dataReceived(b"\x88\x82\x00\x00\x00\x00\x11\x31")
    one.connectionLost(Failure(ConnectionDone()))
    assert serving.lines[one][-1] == {"type": "websocket.disconnect", "code": 4401}
    assert (one.closedByMe, one.localCloseCode, one.remoteCloseCode) == (True, 4401, 4401)
    assert (other.closedByMe, other.localCloseCode, other.remoteCloseCode) == (False, None, None)
    assert (one.state, other.state) == (one.STATE_CLOSED, other.STATE_OPEN)
    other.handle_reply({"type": "websocket.send", "text": "still here"})
    assert others.value() == b"\x81\x0astill here"
    third, _ = serving.opened()
    assert (third.closedByMe, third.state) == (False, third.STATE_OPEN)


def test_the_call_that_asked_for_a_socket_goes_with_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(monkeypatch)
    calls: list[weakref.ref[object]] = []
    make = serving.http.buildProtocol

    def noted(address: object) -> Any:
        made = make(address)
        calls.append(weakref.ref(made._channel))
        return made

    serving.http.buildProtocol = noted
    gc.disable()
    try:
        _, transport = serving.opened()
        assert transport.producer is None
        assert [call() for call in calls] == [None]
    finally:
        gc.enable()


def test_what_is_sent_in_pieces_is_never_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a queue that sockets share there is none, rather than one that carries one's words to another."""
    one, its = Serving(monkeypatch).opened()
    with pytest.raises(AttributeError):
        one.sendData(b"piece", sync=True)
    assert its.value() == b""
