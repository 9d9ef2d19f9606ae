"""Routes of the sockets, and which pages may open them.

Protects the rule that a page of another site cannot use a visitor's cookies: without a key or a token a socket opens
only for our own pages. Whoever shows one of those is asked by the consumer for the origins that its key names.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.security.websocket import AllowedHostsOriginValidator
from django.urls import path

from streaming.access import headers_of, key_in, token_in
from streaming.compare_socket import CompareConsumer
from streaming.consumers import UNKNOWN, ChatConsumer, StreamConsumer
from streaming.database import AWAY

KEYED = "/ws/stream/"
_REACHED = "sluicegate.reached"

# Channels routes ASGI applications with Django's path(); the stubs know only views there.
websocket_urlpatterns = [
    path("ws/chat/", ChatConsumer.as_asgi()),  # type: ignore[arg-type]
    path("ws/compare/", CompareConsumer.as_asgi()),  # type: ignore[arg-type]
    path(KEYED.lstrip("/"), StreamConsumer.as_asgi()),  # type: ignore[arg-type]
]


class Visitors:
    """ASGI middleware: who it is, by session and user; where the database is away the socket opens and says so."""

    def __init__(self, sockets: Any) -> None:
        self._sockets = sockets
        self._known: Any = AuthMiddlewareStack(self._reached)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand the socket on."""
        asked = {**scope, _REACHED: []}
        try:
            await self._known(asked, receive, send)
        except AWAY as error:
            if asked[_REACHED]:
                raise
            await self._sockets({**scope, UNKNOWN: error}, receive, send)

    async def _reached(self, scope: Any, receive: Any, send: Any) -> None:
        scope.pop(_REACHED).append(True)
        await self._sockets(scope, receive, send)


class CheckedOrigins:
    """ASGI middleware: an ``Origin`` that is not ours passes only with a key or a token, and only where they count.

    Who shows one of those is known by it: ``keyed`` needs no session and no user, ``ours`` brings them.
    """

    def __init__(self, *, keyed: Any, ours: Any) -> None:
        self._keyed = keyed
        self._ours = AllowedHostsOriginValidator(ours)

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[Any]:
        """Hand the socket on, or refuse it before it is accepted."""
        keyed = scope["path"] == KEYED and (key_in(headers_of(scope)) or token_in(scope))
        made: Awaitable[Any] = (self._keyed if keyed else self._ours)(scope, receive, send)
        return made


def keyed_socket(scope: Any, receive: Any, send: Any) -> Awaitable[Any]:
    """The socket that takes keys, which has one address: a router would keep a copy of the scope for as long as it is
    open, and each application around it a coroutine of its own.
    """
    made: Awaitable[Any] = StreamConsumer()(scope, receive, send)
    return made
