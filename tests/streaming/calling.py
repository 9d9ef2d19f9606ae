"""Calls to the application itself, without a server, from tests that are not asynchronous: Hypothesis runs these."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from project.asgi import application
from project.logs import logging_config
from streaming import registry
from streaming.log_redis import close_shared_log

BASE = "http://localhost"
EVENTS_BYTES = 2_000_000


class Tracebacks(logging.Handler):
    """What an installation's log would show with a traceback, whoever wrote it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        line = dict(logging_config(json_lines=True)["formatters"]["line"])  # type: ignore[call-overload]
        self.setFormatter(line.pop("()")(**line))
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        written = self.format(record)
        if record.exc_info or "Traceback" in written:
            self.found.append(written)


class Caller:
    """One event loop for all calls of a test, as a server has it."""

    def __init__(self, runner: asyncio.Runner, key: str, log: Tracebacks) -> None:
        self._runner, self._log = runner, log
        self.key = key
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)  # type: ignore[arg-type]
        self._http = httpx.AsyncClient(transport=transport, base_url=BASE, timeout=60)

    def tracebacks(self) -> list[str]:
        """Those that the log has shown since this was last asked."""
        found, self._log.found = self._log.found, []
        return found

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

    def forget_connections(self) -> None:
        """The next call connects to the store anew."""
        self._runner.run(close_shared_log())

    async def close(self) -> None:
        await self._http.aclose()
        await registry.shutdown()
        await close_shared_log()


@contextmanager
def calling(key: str) -> Iterator[Caller]:
    """A caller with this key."""
    log, root = Tracebacks(), logging.getLogger()
    root.addHandler(log)
    try:
        with asyncio.Runner() as runner:
            caller = Caller(runner, key, log)
            try:
                yield caller
            finally:
                runner.run(caller.close())
    finally:
        root.removeHandler(log)
