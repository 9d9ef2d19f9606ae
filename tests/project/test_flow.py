"""A client that does not read: what is made for it waits, and ends with its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from daphne.server import Server
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from project.bodies import Request
from project.flow import handle_reply

Reply = Callable[[bytes, bool], Awaitable[None]]
Handle = Callable[[Any, Any, dict[str, Any]], Awaitable[None]]


def answering(handle: Handle = handle_reply) -> tuple[HTTPChannel, StringTransport, Reply]:
    """A connection with a request on it whose answer has begun, and how more of it is sent."""
    channel, transport = HTTPChannel(), StringTransport()
    server: Any = Server.__new__(Server)
    server.connections, server.action_logger, server.server_name = {}, None, ""
    channel.factory = SimpleNamespace(server=server, log=lambda request: None)
    channel.makeConnection(transport)
    request: Any = Request(channel)
    channel.requests.append(request)
    request.clientproto, request.method, request.uri = b"HTTP/1.1", b"GET", b"/"
    request._response_started, request.request_start = True, 0.0

    async def reply(body: bytes, more: bool) -> None:
        message = {"type": "http.response.body", "body": body, "more_body": more}
        await handle(server, request, message)

    return channel, transport, reply


async def is_held(work: asyncio.Task[None]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return not work.done()


async def test_it_works() -> None:
    """Held while the connection is full, and only then."""
    channel, transport, reply = answering()
    await reply(b"one", True)
    channel.pauseProducing()
    work = asyncio.ensure_future(reply(b"two", True))
    assert await is_held(work)
    assert b"two" in transport.value(), "what was made already is on its way"
    channel.resumeProducing()
    await work
    await reply(b"three", True)
    channel.pauseProducing()
    again = asyncio.ensure_future(reply(b"four", True))
    assert await is_held(again)
    channel.resumeProducing()
    await again
    channel.pauseProducing()
    await reply(b"the last", False)


async def test_who_has_gone_is_not_waited_for() -> None:
    channel, _, reply = answering()
    channel.pauseProducing()
    work = asyncio.ensure_future(reply(b"one", True))
    assert await is_held(work)
    channel.stopProducing()  # what a transport says when its connection is lost
    channel.connectionLost(Failure(ConnectionDone()))
    await work


async def test_an_answer_that_is_given_up_leaves_nothing_registered() -> None:
    channel, _, reply = answering()
    channel.pauseProducing()
    work = asyncio.ensure_future(reply(b"one", True))
    assert await is_held(work)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert channel._requestProducer is None
    channel.resumeProducing()
    await reply(b"two", True)
