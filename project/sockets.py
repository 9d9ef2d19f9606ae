"""A socket that waits weighs little.

Exists because Daphne hands every connection an ``asyncio.Queue``, which has room for four times 64 entries before there
is one: three kilobytes, of which an open socket needs none. Protects the rule that a thousand open streams are a few
megabytes: what lies here lies in a line as short as what came. And that one socket costs the others nothing: who sends
far more than is taken is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from daphne.server import Server

from streaming.wake import Line

MOST = 1_000
"""Frames of a socket that lie here; a client waits for answers long before."""


class Frames(Line[dict[str, Any]]):
    """What came from a socket and was not taken yet."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self._protocol = protocol

    def put_nowait(self, item: dict[str, Any]) -> None:
        """Add what came; a frame too many ends the connection, which is told in its turn."""
        if item["type"] == "websocket.receive" and self.qsize() >= MOST:
            self._protocol.dropConnection(abort=True)
            return
        super().put_nowait(item)


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


def light_daphne() -> None:
    """From now on Daphne's sockets are light."""
    Server.create_application = create_application
