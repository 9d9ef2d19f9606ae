"""Django's ASGI handler, without a thread for calls that need none.

Exists because Django takes every request to a thread of its own when it begins and when it is over, only to look at
connections to the database that a new thread cannot have. Starting that thread costs a call through the gateway more
than all of Django's middleware, and under load the call waits for it. Protects the rule that nothing is left open: a
call that did use its thread (a synchronous view or receiver) ends there, as Django ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import closing, suppress
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix

from streaming.gateway.errors import PATHS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Handler(ASGIHandler):
    """Django's; calls of the gateway begin and end in the event loop."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["path"] not in PATHS:
            await super().handle(scope, receive, send)
            return
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        with closing(body):
            set_script_prefix(get_script_prefix(scope))
            request, refusal = self.create_request(scope, body)
            if request is not None:
                await self._served(request, receive, send)
            elif refusal is not None:
                await self.send_response(refusal, send)

    async def _served(self, request: HttpRequest, receive: Receive, send: Send) -> None:
        """Until the answer is sent or the client has gone."""
        answering = asyncio.create_task(self._answered(request, send))
        going = asyncio.create_task(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (going, answering):
                task.cancel()
            await asyncio.wait({answering, going})
        if not going.cancelled() and not isinstance(error := going.exception(), RequestAborted | None):
            raise error
        if not answering.cancelled():
            await _closed(answering.result())

    async def _answered(self, request: HttpRequest, send: Send) -> HttpResponseBase:
        response: HttpResponseBase = await self.run_get_response(request)
        with suppress(asyncio.CancelledError):  # the client has gone while it was sent
            await self.send_response(response, send)
        return response


async def _closed(response: HttpResponseBase) -> None:
    """Close what belongs to a response; in the request's thread, and with what Django closes there, if it has one."""
    if SyncToAsync.thread_sensitive_context.get(None) in SyncToAsync.context_to_thread_executor:
        await sync_to_async(response.close)()
        return
    closers: list[Callable[[], None]] = getattr(response, "_resource_closers")  # noqa: B009 - the stubs do not know it
    for close in closers:
        with suppress(Exception):
            close()
    closers.clear()
    response.closed = True
