"""Calls to the application itself, without a server, from tests that are not asynchronous: Hypothesis runs these."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from project.asgi import application
from streaming import registry
from streaming.log_redis import close_shared_log

BASE = "http://localhost"
EVENTS_BYTES = 2_000_000


class Caller:
    """One event loop for all calls of a test, as a server has it."""

    def __init__(self, runner: asyncio.Runner, key: str) -> None:
        self._runner = runner
        self.key = key
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)  # type: ignore[arg-type]
        self._http = httpx.AsyncClient(transport=transport, base_url=BASE, timeout=60)

    def send(
        self, method: str, url: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The whole answer to one call with the key; a header given as "" is left out."""
        wanted = {"Authorization": f"Bearer {self.key}", **(headers or {})}
        sent = {name: value for name, value in wanted.items() if value}
        return self._runner.run(self._http.request(method, url, content=content, headers=sent))

    def post(self, path: str, body: object) -> dict[str, object]:
        """The answer to a call that succeeds."""
        headers = {"Content-Type": "application/json"}
        response = self.send("POST", path, content=json.dumps(body).encode(), headers=headers)
        assert response.status_code < 300, response.text
        found: dict[str, object] = response.json()
        return found

    async def close(self) -> None:
        await self._http.aclose()
        await registry.shutdown()
        await close_shared_log()


@contextmanager
def calling(key: str) -> Iterator[Caller]:
    """A caller with this key."""
    with asyncio.Runner() as runner:
        caller = Caller(runner, key)
        try:
            yield caller
        finally:
            runner.run(caller.close())
