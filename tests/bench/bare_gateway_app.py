"""A gateway that does nothing: what comes is sent on and what is answered sent back, by Daphne, Django and httpx alone.

What it costs is what any gateway on these costs: no key, no policy, no record, no middleware, no route.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import httpx
from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, StreamingHttpResponse

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

PATH = "/v1/chat/completions"
_upstreams: list[httpx.AsyncClient] = []
"""The one client, made in the event loop."""


def _upstream() -> httpx.AsyncClient:
    if not _upstreams:
        limits = httpx.Limits(max_connections=1_000, max_keepalive_connections=1_000)
        _upstreams.append(httpx.AsyncClient(timeout=None, trust_env=False, limits=limits))
    return _upstreams[0]


async def _passed_on(request: HttpRequest) -> StreamingHttpResponse:
    http = _upstream()
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    asked = http.build_request("POST", url, content=request.body, headers={"Content-Type": "application/json"})
    return StreamingHttpResponse(_pieces(await http.send(asked, stream=True)), content_type="text/event-stream")


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    finally:
        await response.aclose()


class _Bare(ASGIHandler):
    """Django's, with a view and nothing around it."""

    def load_middleware(self, is_async: bool = False) -> None:
        """None."""
        self._middleware_chain = _passed_on


_django = get_asgi_application()
_bare = _Bare()


async def _http(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    await (_bare if scope["path"] == PATH else _django)(scope, receive, send)


application = ProtocolTypeRouter({"http": _http})
