"""What every adapter over HTTP needs: one request, its time limits, and what its failures mean.

Exists so that an adapter is only a dialect: where to, with which headers and body, and how to read what comes. Protects
the rules that nothing hangs (see ``waits``), that an answer nobody wants any more closes its connection at once, and
that neither a key nor a body unread stands in an error (see ``failures``).

There is one client per answer: closing it is closing its connection, and nothing outlives the answer or its loop.
"""

from __future__ import annotations

import functools
import json
import ssl
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import httpcore
import httpx

from streaming.core.events import ProviderEvent, ProviderToolResult, Stopped, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.providers import base, bodies
from streaming.providers.bodies import beginning, pieces, whole
from streaming.providers.failures import Failures, refusal, url_problem
from streaming.providers.paced import PacedTransport, Resolves
from streaming.providers.reading import Reader
from streaming.providers.waits import Waits

TOKENS = (TextDelta, ThinkingDelta, ToolCallDelta, ProviderToolResult, Stopped)
"""What ends a silence."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a dialect; ``path`` follows the base URL."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, object]


@functools.cache
def _tls() -> ssl.SSLContext:
    """Building a context reads the trust store (tens of ms); every answer shares one."""
    return httpx.create_ssl_context(trust_env=False)


class HttpProvider(base.Provider):
    """Base class of adapters; subclasses say the dialect. ``model``: names with commas between, the default first."""

    def __init__(
        self, base_url: str, api_key: str = "", model: str = "", limits: base.TimeLimits | None = None
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = api_key
        self._models = tuple(dict.fromkeys(name.strip() for name in model.split(",") if name.strip()))
        self._model = self._models[0] if self._models else model
        self._limits = limits or base.TimeLimits()

    def problem(self) -> str:
        """What is wrong with the base URL; empty: nothing that can be seen."""
        problem = url_problem(self._base_url)
        return f"its base URL {problem}" if problem else ""

    @property
    def default_model(self) -> str:
        """The configured model, the first of several, or the dialect's documented default."""
        return self._model

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is configured."""
        return self._models or super().models

    @property
    def _where(self) -> str:
        try:
            url = httpx.URL(self._base_url)
        except httpx.InvalidURL:
            return "its address"
        return f"{url.host}:{url.port}" if url.port else url.host

    resolves: Resolves | None = None
    """Where its host is looked up, where not every address may be connected to; None: wherever the system says."""
    answers_at: ClassVar[str] = ""
    """Where the dialect's answers are asked for, behind the base URL."""
    lists_at: ClassVar[str] = ""
    """Where it lists its models."""

    @property
    def base_url(self) -> str:
        """Where it is; without a slash at the end."""
        return self._base_url

    @property
    def has_key(self) -> bool:
        """Whether a key goes with its requests."""
        return bool(self._key)

    @property
    def limits(self) -> base.TimeLimits:
        """How long it is waited for."""
        return self._limits

    @property
    def answer_s(self) -> float:
        """As its limits say."""
        return self._limits.total_s

    @property
    def failures(self) -> Failures:
        """A context that says what goes wrong with it in our words, without its key."""
        return Failures(self._where, self._key)

    @property
    def where(self) -> str:
        """Its host, for messages."""
        return self._where

    @abstractmethod
    def headers(self, *, streaming: bool) -> dict[str, str]:
        """What the dialect wants to be sent with a request, its key included."""

    @abstractmethod
    def _call(self, request: base.ProviderRequest, *, streaming: bool) -> Call:
        """The request in the dialect. Raises ``ProviderRefused`` for what the dialect has no words for."""

    @abstractmethod
    def _reader(self, request: base.ProviderRequest) -> Reader:
        """A new reader of the dialect's stream."""

    @abstractmethod
    def _whole(self, document: dict[str, object], request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        """The events of an answer that was not streamed. Raises ``ProviderError``."""

    async def stream(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer as events. The response is closed when the generator is, also by cancellation."""
        with Failures(self._where, self._key):
            async with aclosing(self._stream(request)) as events:
                async for event in events:
                    yield event

    async def standard(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer asked for without streaming: one wait, so only the limits to connect and for all of it apply."""
        with Failures(self._where, self._key):
            for event in await self._ask_whole(request):
                yield event

    async def _stream(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        reader = self._reader(request)
        waits = Waits(self._limits, self._where, rest_s=request.rest_s, deadline=request.deadline)
        broke: base.ProviderUnavailable | None = None
        size = 0
        async with (
            self._response(self._call(request, streaming=True), waits) as response,
            aclosing(pieces(response)) as body,
        ):
            while not reader.done:
                try:
                    async with waits.waiting():
                        data = await anext(body, None)
                except (base.StreamCutOff, base.ProviderTimeout) as error:
                    broke, data = error, None
                if data is None:
                    break
                size += len(data)
                if size > bodies.MAX_STREAM_BYTES:
                    raise base.ProviderProtocolError(f"the answer is larger than {bodies.MAX_STREAM_BYTES:,} bytes")
                for event in reader.feed(data):
                    # A keep-alive is no token: silence goes on until the model says something.
                    if isinstance(event, TOKENS):
                        waits.heard()
                    yield event
        try:
            # What is complete is complete, however the connection ended: some servers forget the terminator.
            for event in reader.finish():
                yield event
        except (base.ProviderProtocolError, base.StreamCutOff):
            if broke is None:
                raise
            raise broke from None

    async def _ask_whole(self, request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        waits = Waits(self._limits, self._where, whole=True, deadline=request.deadline)
        async with self._response(self._call(request, streaming=False), waits) as response:
            raw = await whole(response, waits)
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            raise base.ProviderProtocolError("the endpoint's answer is not JSON") from None
        if not isinstance(document, dict):
            raise base.ProviderProtocolError("the endpoint's answer is not a JSON object")
        return self._whole(document, request)

    @asynccontextmanager
    async def _response(self, call: Call, waits: Waits) -> AsyncGenerator[httpx.Response, None]:
        if problem := url_problem(self._base_url):
            raise base.ProviderRefused(f"the provider's base URL {problem}")

        opening = _Opening(waits)
        # The environment's proxies and .netrc are not ours to follow: an answer goes where the setting says.
        transport = PacedTransport(waits, _tls() if self._base_url.lower().startswith("https") else None, self.resolves)
        # httpx's own time-outs are off: they start again with every byte and know no whole (see ``waits``).
        async with httpx.AsyncClient(timeout=None, trust_env=False, transport=transport) as client:  # noqa: S113
            request = client.build_request(
                "POST",
                f"{self._base_url}{call.path}",
                content=json.dumps(call.body, ensure_ascii=False).encode(errors="replace"),
                # Compression would hold tokens back until a block is full.
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **call.headers},
                extensions={"trace": opening.on_trace},
            )
            try:
                async with waits.waiting():
                    response = await client.send(request, stream=True)
            except BaseException:
                await opening.abandon()
                raise
            try:
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await beginning(response, waits))
                yield response
            finally:
                await response.aclose()


class _Opening:
    """What httpx tells while a connection is made."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def on_trace(self, event: str, info: Mapping[str, object]) -> None:
        """A step was taken; the names are httpcore's."""
        if event == "connection.connect_tcp.complete":
            stream = info.get("return_value")
            self._stream = stream if isinstance(stream, httpcore.AsyncNetworkStream) else None
        elif event.endswith("send_request_headers.started"):
            self._waits.connected()

    async def abandon(self) -> None:
        """Close what was opened: httpcore loses sight of a socket whose TLS handshake is cancelled."""
        if self._stream is not None:
            await self._stream.aclose()
