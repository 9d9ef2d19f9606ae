"""Calls through the gateway have no thread of their own, unless something takes them to one."""

from __future__ import annotations

import asyncio
import threading
from unittest.mock import patch

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.http import HttpRequest, JsonResponse
from django.urls import path

from project.handler import Handler

CLOSED: list[int] = []
"""The threads in which a response was closed."""
BEGUN: list[asyncio.Event] = []
"""Set once a call waits."""
ENDED: list[str] = []
"""What calls that wait were ended by."""


async def _in_loop(request: HttpRequest) -> JsonResponse:
    if "waits" in request.GET:
        BEGUN[0].set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ENDED.append("cancelled")
            raise
    if "thread" in request.GET:
        await sync_to_async(threading.get_ident)()
    response = JsonResponse({"asked": request.body.decode()})
    response._resource_closers.append(lambda: CLOSED.append(threading.get_ident()))  # type: ignore[attr-defined]
    return response


urlpatterns = [path("v1/chat/completions", _in_loop)]


@pytest.fixture(autouse=True)
def routes(settings: object) -> None:
    settings.ROOT_URLCONF = __name__  # type: ignore[attr-defined]
    settings.MIDDLEWARE = []  # type: ignore[attr-defined]
    CLOSED.clear()
    ENDED.clear()
    BEGUN[:] = [asyncio.Event()]


async def _call(query: bytes = b"", *, goes: bool = False) -> list[bytes]:
    server = ApplicationCommunicator(
        Handler(),
        {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/chat/completions", "query_string": query,
         "headers": [(b"host", b"localhost")]},
    )  # fmt: skip
    await server.send_input({"type": "http.request", "body": b"said"})
    if goes:
        async with asyncio.timeout(20):
            await BEGUN[0].wait()
        await server.send_input({"type": "http.disconnect"})
        await server.wait(20)
        return []
    said = [await server.receive_output(20) for _ in range(2)]
    await server.wait(20)
    return [said[1]["body"]]


async def test_it_works() -> None:
    """No thread is begun, and what belongs to the answer is closed in the loop."""
    with patch.object(SyncToAsync, "__call__", side_effect=AssertionError("a call was taken to a thread")):
        assert await _call() == [b'{"asked": "said"}']
    assert [threading.get_ident()] == CLOSED


async def test_a_call_that_was_taken_to_its_thread_ends_there() -> None:
    """What is open in that thread (a connection to the database) is closed by nobody else."""
    assert await _call(b"thread") == [b'{"asked": "said"}']
    assert len(CLOSED) == 1
    assert [threading.get_ident()] != CLOSED


async def test_a_client_that_has_gone_ends_its_call_and_no_other() -> None:
    await _call(b"waits", goes=True)
    assert ENDED == ["cancelled"]
    assert await _call() == [b'{"asked": "said"}']
