"""An open socket that waits: one line, one task, and nothing beside them."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
from daphne.http_protocol import HTTPFactory
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from project import sockets
from project.sockets import ASKED, MOST, MOST_BYTES, UNREAD_BYTES, Frames, LightSocket, create_application, unsent
from streaming import access
from streaming.conf import Conf
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
    assert line.get_all() == [{"type": "websocket.disconnect"}], "that it is gone is told, and lets go of the rest"


class Dropped:
    """A protocol of which it is noted."""

    times = 0

    def dropConnection(self, *, abort: bool) -> None:
        self.times += abort


def frame(text: str | bytes) -> dict[str, Any]:
    """One that came."""
    return {"type": "websocket.receive", "text" if isinstance(text, str) else "bytes": text}


LARGE = {"ASCII": "x" * 1_000_000, "wide": "x" * 250_000 + "😀", "bytes": b"x" * 1_000_000}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_who_sends_far_larger_frames_than_are_taken_is_let_go(text: str | bytes) -> None:
    protocol = Dropped()
    line = Frames(protocol)
    for _ in range(MOST_BYTES // 1_000_000):
        line.put_nowait(frame(text))
    assert not protocol.times
    line.put_nowait(frame(text))
    line.put_nowait({"type": "websocket.disconnect"})
    assert protocol.times == 1
    assert line.get_all() == [{"type": "websocket.disconnect"}]


async def test_what_is_taken_makes_room_however_it_is_taken() -> None:
    protocol, large = Dropped(), frame("x" * (MOST_BYTES // 2 - 100))
    line = Frames(protocol)
    for _ in range(5):
        line.put_nowait(large)
        line.put_nowait(large)
        assert [await line.get(), line.get_nowait()] == [large] * 2
        line.put_nowait(large)
        line.put_nowait(large)
        assert line.get_all(1) == line.get_all() == [large]
    assert not protocol.times


def test_a_frame_that_is_far_too_large_is_answered_where_no_other_lies() -> None:
    protocol = Dropped()
    line = Frames(protocol)
    line.put_nowait(frame("x" * 2 * MOST_BYTES))
    assert (line.qsize(), protocol.times) == (1, 0)


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

    def opened(self, subprotocol: str | None = None, transport: Any = None) -> tuple[Any, Any]:
        """A socket amid its first words, by way of the call that asked for it."""
        transport = transport or Transport()
        transport.protocol = self.http.buildProtocol(transport.getPeer())
        transport.protocol.makeConnection(transport)
        offered = f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode() if subprotocol else b""
        transport.protocol.dataReceived(OPENING + offered + b"\r\n")
        made = transport.protocol
        assert isinstance(made, WebSocketProtocol)
        made.serverAccept(subprotocol)
        if isinstance(transport, Transport):
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


class Unread(Connection):
    """A connection of Twisted's own, whose other side reads nothing."""

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    getHost = getPeer

    def setTcpNoDelay(self, enabled: bool) -> None:
        """A pair of sockets has no such thing."""


@pytest.fixture
def unread() -> Iterator[Unread]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Unread(ours, None, MemoryReactorClock())  # type: ignore[arg-type]  # who it belongs to is said later
        made.connected = 1
        yield made


EVENT = 10_000


def filled(serving: Serving, unread: Unread) -> Any:
    """A socket whose reader has waited for acknowledgements since a large event, and on which errors were said."""
    made, _ = serving.opened(transport=unread)
    sent = 0
    while sent < Conf().max_unacked_bytes:
        made.handle_reply({"type": "websocket.send", "text": "x" * EVENT})
        sent += EVENT
    made.handle_reply({"type": "websocket.send", "text": "x" * (UNREAD_BYTES - 2 * EVENT)})
    return made


def end(unread: Unread) -> None:
    """The next turn of the loop."""
    unread.reactor.advance(0)


def test_who_reads_slowly_what_waits_for_acknowledgements_stays(
    monkeypatch: pytest.MonkeyPatch, unread: Unread
) -> None:
    made = filled(Serving(monkeypatch), unread)
    made.handle_reply({"type": "websocket.send", "text": '{"type": "error"}'})
    made.dataReceived(b"\x89\x80\x00\x00\x00\x00")  # a ping
    end(unread)
    assert made.state == made.STATE_OPEN
    assert unsent(unread) > Conf().max_unacked_bytes + UNREAD_BYTES - 2 * EVENT
    unread._tempDataBuffer.clear()
    unread._tempDataLen, unread.dataBuffer, unread.offset = 0, b"read in part", 5
    assert unsent(unread) == 7


@pytest.mark.parametrize("why", ["answers", "pings"])
def test_who_reads_nothing_of_what_is_said_is_let_go(monkeypatch: pytest.MonkeyPatch, unread: Unread, why: str) -> None:
    """Errors wait for no acknowledgement, and nor do the answers to pings."""
    serving = Serving(monkeypatch)
    made = filled(serving, unread)
    for _ in range(EVENT):
        if why == "answers":
            made.handle_reply({"type": "websocket.send", "text": "no such field"})
        else:
            made.dataReceived(b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125)
    assert unsent(unread) < Conf().max_unacked_bytes + UNREAD_BYTES + EVENT
    made.dataReceived(b"\x01\xfe\xff\xff\x00\x00\x00\x00" + b"x" * 1_000)  # of a message so far
    end(unread)
    assert serving.lines[made][-1] == {"type": "websocket.disconnect", "code": 1006}
    assert [one["type"] for one in serving.lines[made]].count("websocket.disconnect") == 1
    assert made.state == made.STATE_CLOSED
    assert (unsent(unread), unread.dataBuffer, unread._tempDataBuffer) == (0, b"", []), "nobody keeps what is not sent"
    assert (made.data, made.frame_data, made.message_data) == (b"", None, None)
    made.handle_reply({"type": "websocket.send", "text": "nobody hears that"})
    assert unsent(unread) == 0


def test_who_reads_nothing_is_let_go_amid_a_goodbye(monkeypatch: pytest.MonkeyPatch, unread: Unread) -> None:
    serving = Serving(monkeypatch)
    made = filled(serving, unread)
    made.handle_reply({"type": "websocket.send", "text": "x" * 3 * EVENT})
    made.handle_reply({"type": "websocket.close", "code": 4401})
    end(unread)
    assert serving.lines[made][-1]["type"] == "websocket.disconnect"
    assert made.state == made.STATE_CLOSED


async def test_who_says_goodbye_and_reads_nothing_is_let_go_after_a_while(
    monkeypatch: pytest.MonkeyPatch, unread: Unread
) -> None:
    """The end of a connection waits for what is to be read; nobody pings one that is closed, or looks after it."""
    monkeypatch.setattr(sockets, "GOODBYE_S", 0.05)
    serving = Serving(monkeypatch)
    made = filled(serving, unread)
    made.dataReceived(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
    assert made.state == made.STATE_CLOSED
    assert serving.lines[made][-1]["type"] != "websocket.disconnect"
    assert unsent(unread)
    await asyncio.sleep(0.2)
    end(unread)
    assert serving.lines[made][-1]["type"] == "websocket.disconnect"
    assert unsent(unread) == 0


def test_what_lies_before_encryption_counts_once(unread: Unread) -> None:
    """What encrypts has its connection's attributes, too."""
    around = ProtocolWrapper(WrappingFactory(ServerFactory()), ProtocolWrapper(None, None))  # type: ignore[arg-type]
    around.transport = unread
    around.write(b"encrypted")
    around._appSendBuffer = [b"not", b"yet"]  # type: ignore[attr-defined]
    assert unsent(around) == len(b"encrypted") + len(b"notyet")


async def test_who_is_dropped_while_an_answer_to_it_is_made_costs_no_traceback(
    monkeypatch: pytest.MonkeyPatch, unread: Unread
) -> None:
    made, _ = Serving(monkeypatch).opened(transport=unread)
    made.dropConnection(abort=True)
    before = unsent(unread)
    made.handle_reply({"type": "websocket.send", "text": json.dumps({"type": "error"})})
    assert unsent(unread) == before
