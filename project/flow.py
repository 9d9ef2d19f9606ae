"""A client that does not read holds up its own answer.

Exists because Daphne takes every piece of an answer at once, however much of it lies there unread. Protects the memory:
what is made for one client waits while its connection is full, as it does under servers that wait by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from daphne.server import Server
from twisted.web.http import HTTPChannel, Request


class _Full:
    """Told by the connection when it takes more, or is no more."""

    def __init__(self) -> None:
        self.over = asyncio.get_running_loop().create_future()

    def pauseProducing(self) -> None:
        """It is full again, or still."""

    def resumeProducing(self) -> None:
        """It takes more."""
        if not self.over.done():
            self.over.set_result(None)

    stopProducing = resumeProducing


async def room(request: Any) -> None:
    """Wait until the connection of this request takes more. Of HTTP/2 the streams of others are on the same one."""
    channel = request.channel
    if not isinstance(channel, HTTPChannel) or not channel._waitingForTransport or request.producer is not None:
        return
    full = _Full()
    request.registerProducer(full, True)
    try:
        await full.over
    finally:
        if request.channel is not None:  # else the connection is gone, and with it what was registered there
            request.unregisterProducer()


async def handle_reply(server: Server, protocol: object, message: MutableMapping[str, Any]) -> None:
    """Daphne's own, which here comes back when there is room for more."""
    await _handle_reply(server, protocol, message)
    if isinstance(protocol, Request) and message.get("more_body"):
        await room(protocol)


_handle_reply = Server.handle_reply


def paced_daphne() -> None:
    """From now on Daphne's answers wait for who reads them."""
    Server.handle_reply = handle_reply
