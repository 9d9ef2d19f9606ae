"""A body that is too long is refused while it comes, not when all of it is there.

Exists because Django and Daphne both take a whole body to the disk before anybody looks at it: one call without a key
could fill it. Protects the rule that of no request more than the limit is ever kept, whatever its path, however it was
sent and whichever server runs the application. The refusal itself is worded where all refusals are: the application is
told that the body has one byte more than it may have, and gets none of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from io import BytesIO
from typing import Any, BinaryIO

from daphne import http_protocol
from django.conf import settings
from twisted.internet import reactor
from twisted.internet.interfaces import ISSLTransport
from twisted.web.http import HTTPChannel

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

LINGER_S = 3.0
"""So long a connection stays for a client that still sends and has not read the refusal yet."""
LINGER_BYTES = 8_388_608
"""So much of what it still sends is read, and thrown away; then it has to wait."""


def most() -> int:
    """Bytes that a body may have as it is sent."""
    return int(settings.DATA_UPLOAD_MAX_MEMORY_SIZE)


class Bounded:
    """The application below a server that hands a body on in pieces."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._application(scope, _Body(scope, receive).receive, send)


class _Body:
    """One request's. What comes behind a refusal is thrown away: only that the client has gone matters then."""

    def __init__(self, scope: Message, receive: Receive) -> None:
        self._scope, self._receive = scope, receive
        self._came, self._refused = 0, False

    async def receive(self) -> Message:
        if not self._came and not self._refused and _said_length(self._scope) > most():
            return self._refuse()
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._came += len(message.get("body", b""))
            if self._refused:
                continue
            if self._came > most():
                return self._refuse()
            return message

    def _refuse(self) -> Message:
        self._refused = True
        headers = [(name, value) for name, value in self._scope["headers"] if name.lower() != b"content-length"]
        self._scope["headers"] = [*headers, (b"content-length", b"%d" % (most() + 1))]
        return {"type": "http.request", "body": b"", "more_body": False}


def _said_length(scope: Message) -> int:
    said = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return max((int(value) for value in said if value.isdigit()), default=0)


class Request(http_protocol.WebRequest):  # type: ignore[misc]  # Daphne has no types
    """Daphne's, which calls the application only when a body is there: here also when it is too long to come."""

    refused = False
    content: BinaryIO

    def gotLength(self, length: int | None) -> None:
        """The headers are there."""
        too_long = length is not None and length > most()
        super().gotLength(0 if too_long else length)
        if too_long:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body, however it is sent."""
        if self.refused:
            return
        if self.content.tell() + len(data) > most():
            self._refuse()
        else:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is there, and nobody waits for it who has been told that it is too long."""
        if not (self.refused and isinstance(self.channel, HTTPChannel)):
            super().requestReceived(command, path, version)

    def _refuse(self) -> None:
        self.refused = True
        self.content.close()
        self.content = BytesIO()
        self.requestHeaders.setRawHeaders(b"content-length", [b"%d" % (most() + 1)])
        self.requestHeaders.removeHeader(b"expect")  # nobody shall say that it may be sent
        channel = self.channel
        if isinstance(channel, HTTPChannel):  # of HTTP/2 the streams of others are on the same connection
            channel.persistent = False
            self.responseHeaders.setRawHeaders(b"connection", [b"close"])
            channel._transferDecoder = _Sink(channel)
            super().requestReceived(channel._command, channel._path, channel._version)


class _Sink:
    """Takes the rest of a body in a decoder's place, and lets the connection end only when the refusal can be read.

    A connection that is closed while something lies in it unread takes with it what its client has not read.
    """

    def __init__(self, channel: HTTPChannel) -> None:
        self._channel, self._came, self._ending = channel, 0, False
        self._network: Any = channel._networkProducer
        setattr(channel, "loseConnection", self._lose_connection)  # noqa: B010 - of this channel alone

    def dataReceived(self, data: bytes) -> None:
        self._came += len(data)
        if self._came > LINGER_BYTES:
            self._network.pauseProducing()

    def noMoreData(self) -> None:
        """The client has gone."""

    def _lose_connection(self) -> None:
        if self._ending:
            return
        self._ending = True
        transport: Any = self._channel.transport
        self._network.unregisterProducer()
        if ISSLTransport.providedBy(transport):  # TLS cannot be half closed
            transport.loseConnection()
            return
        transport.loseWriteConnection()
        clock: Any = reactor
        clock.callLater(LINGER_S, transport.abortConnection)


def bound_daphne() -> None:
    """From now on Daphne takes its requests in this form."""
    http_protocol.WebRequest = Request
