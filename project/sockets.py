"""A socket that waits weighs little.

Exists because of what Daphne and those below it keep of an open socket: an ``asyncio.Queue`` with room for four times
64 entries before there is one; the HTTP request that asked for the socket, whole and twice, and the channel that it
came through; and a hundred attributes, nearly all of which are as with every other socket. Protects the rule that a
thousand open streams are a few megabytes. And that one socket costs the others nothing: what came lies in a line as
short as it is, and who sends far more than is taken, or reads far less than is said, is let go.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.abstract import FileDescriptor
from twisted.web.http import HTTPChannel

from streaming.conf import conf
from streaming.wake import Line

MOST = 1_000
"""Frames of a socket that lie here; a client waits for answers long before."""
MOST_BYTES = 4 * 1024 * 1024
"""What they weigh at most; a larger one comes through where no other lies."""
UNREAD_BYTES = 4 * 1024 * 1024
"""What may lie here for a client beside the events that it has not acknowledged: the last one of these, and errors."""

GOODBYE_S = 10.0
"""Seconds in which a client may still read what lies here, when goodbye has been said."""


class Frames(Line[dict[str, Any]]):
    """What came from a socket and was not taken yet."""

    __slots__ = ("_bytes", "_protocol")

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self._protocol = protocol
        self._bytes = 0

    def put_nowait(self, item: dict[str, Any]) -> None:
        """Add what came; a frame too many ends the connection, which is told, and goes with those before it."""
        size = _size(item)
        crowded = self.qsize() >= MOST or (self.qsize() and self._bytes + size > MOST_BYTES)
        if item["type"] == "websocket.receive" and crowded:
            self.get_all()
            self._protocol.dropConnection(abort=True)
            return
        self._bytes += size
        super().put_nowait(item)

    def get_nowait(self) -> dict[str, Any]:
        """The first item, there must be one."""
        item = super().get_nowait()
        self._bytes -= _size(item)
        return item

    def get_all(self, most: int | None = None) -> list[dict[str, Any]]:
        """All items that are there, or the first of them."""
        items = super().get_all(most)
        self._bytes -= sum(map(_size, items))
        return items


def _size(item: dict[str, Any]) -> int:
    """Bytes in memory, where a text with one wide letter takes four times as many as it has letters."""
    return sys.getsizeof(item.get("text") or item.get("bytes"))


def create_application(server: Server, protocol: Any, scope: MutableMapping[str, Any]) -> object:
    """Daphne's own, but for what comes from a socket: there one task takes it, piece by piece."""
    if scope["type"] != "websocket":
        return _create_application(server, protocol, scope)
    connections: dict[Any, dict[str, object]] = server.connections
    assert "application_instance" not in connections[protocol], "a socket has one application"
    scope.setdefault("asgi", {"version": "3.0"})
    line = Frames(protocol)
    running = server.application(scope=scope, receive=line.get, send=partial(server.handle_reply, protocol))
    connections[protocol]["application_instance"] = asyncio.ensure_future(running)
    return line


_create_application = Server.create_application

ASKED = (
    "http_headers", "http_request_data", "http_request_host", "http_request_params", "http_request_path",
    "http_request_uri", "http_response_data", "http_status_line",
)  # fmt: skip
"""What autobahn keeps of the opening handshake, and looks at in it alone."""
COUNTED = "trafficStats"
"""What it counts of a socket and tells nobody: all sockets count together."""
WAITING = "send_queue"
"""Where it puts what is sent in pieces, with pauses between. Nothing here is, and of none there need be no queue."""


class LightSocket(WebSocketProtocol):  # type: ignore[misc]  # Daphne says nothing of its types
    """Daphne's socket, which forgets how it was opened, and keeps of its attributes those that are its own.

    Those that are as with every other stand in the class.
    """

    send_queue: tuple[()] = ()

    def onOpen(self) -> None:  # autobahn's name
        """The handshake is over."""
        super().onOpen()
        _let_go_of_the_call(self.transport)
        self.request.headers = self.request.params = {}
        own: dict[str, object] = {}
        for name, value in vars(self).items():
            if name in ASKED or (name == WAITING and not value):
                continue
            if name not in LightSocket.__dict__ and _is_common(name, value):
                setattr(LightSocket, name, value)
            if name != COUNTED and LightSocket.__dict__.get(name, own) is not value:
                own[name] = value
        self.__dict__ = own

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:  # autobahn's name
        """Write to the connection; one on which too much lies unread already is dropped.

        Not by ``dropConnection``: who is about to say goodbye would say afterwards that the socket is closing.
        """
        if unsent(self.transport) > conf().max_unacked_bytes + UNREAD_BYTES:
            self._closeConnection(abort=True)
        else:
            super().sendData(data, sync, chopsize)

    def serverSend(self, content: str | bytes, binary: bool = False) -> None:  # Daphne's name
        """Say that, unless the connection was dropped, of which the application is told in its turn."""
        if self.state != self.STATE_CLOSED:
            super().serverSend(content, binary)

    def dropConnection(self, abort: bool = False) -> None:  # autobahn's name
        """End the connection: at once, or when what lies here has been read, and after a while in any case."""
        super().dropConnection(abort)
        if not abort and unsent(self.transport):
            asyncio.get_running_loop().call_later(GOODBYE_S, self._closeConnection, True)

    def connectionLost(self, reason: Any) -> None:  # Twisted's name
        """Nobody hears or says anything any more: what lies half sent or half received goes at once.

        Protocol and connection are parts of cycles, which nobody looks for in old objects for hours.
        """
        super().connectionLost(reason)
        self.data, self.frame_data, self.message_data = b"", None, None
        if isinstance(connection := _layers(self.transport)[-1], FileDescriptor):
            connection.dataBuffer, connection.offset = b"", 0
            connection._tempDataBuffer, connection._tempDataLen = [], 0


def unsent(transport: Any) -> int:
    """Bytes that were written and lie here still: before they are encrypted, and on the connection."""
    *around, connection = _layers(transport)
    waiting = sum(len(data) for layer in around for data in getattr(layer, "_appSendBuffer", ()))
    if isinstance(connection, FileDescriptor):
        waiting += len(connection.dataBuffer) - connection.offset + connection._tempDataLen
    return waiting


def _layers(transport: Any) -> list[Any]:
    """From what a protocol writes to down to the connection, with TLS between them."""
    layers = [transport]
    while (below := getattr(layers[-1], "transport", None)) is not None:
        layers.append(below)
    return layers


def _is_common(name: str, value: object) -> bool:
    """Whether that is, or may be, the same with many sockets. What is common is never changed, only replaced.

    A function is not: in a class it would become a method.
    """
    common = value is None or isinstance(value, bool) or name == COUNTED or name in WebSocketProtocol.CONFIG_ATTRS
    return common and not callable(value)


def _let_go_of_the_call(transport: Any) -> None:
    """The channel of the call that became a socket is told when there is too much to send, of which it makes nothing.

    Nobody else knows it.
    """
    if isinstance(channel := getattr(transport, "producer", None), HTTPChannel):
        transport.unregisterProducer()
        for call in channel.requests:
            call.channel = None
        channel.requests.clear()


def light_daphne() -> None:
    """From now on Daphne's sockets are light."""
    Server.create_application = create_application
    WebSocketFactory.protocol = LightSocket
