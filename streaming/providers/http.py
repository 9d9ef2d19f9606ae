"""What every adapter over HTTP needs: one request, its time limits, and what its failures mean.

Exists so that an adapter is only a dialect: where to, with which headers and body, and how to read what comes. Protects
the rules that nothing hangs (each time limit is timed by itself, and only the time that *we* wait counts as silence),
that an answer nobody wants any more closes its connection at once, and that neither a key nor a body unread stands in
an error.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

import httpx

from streaming.core.events import ProviderEvent, ProviderNotice
from streaming.core.sse import SseTooLarge
from streaming.providers import base
from streaming.providers.reading import Reader

MAX_ERROR_BYTES = 65_536
MAX_WHOLE_BYTES = 16 * 1024 * 1024
"""An answer that is not streamed and larger than this is not an answer."""


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
    """Base class of adapters; subclasses say the dialect."""

    def __init__(
        self, base_url: str, api_key: str = "", model: str = "", limits: base.TimeLimits | None = None
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = api_key
        self._model = model
        self._limits = limits or base.TimeLimits()

    @property
    def default_model(self) -> str:
        """The configured model or the dialect's documented default."""
        return self._model

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
        with self._failures():
            async with aclosing(self._stream(request)) as events:
                async for event in events:
                    yield event

    async def standard(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer asked for without streaming."""
        with self._failures():
            for event in await self._ask_whole(request):
                yield event

    async def _stream(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        reader, waits = self._reader(request), _Waits(self._limits)
        async with self._response(self._call(request, streaming=True), waits) as response:
            async with aclosing(_bytes(response)) as body:
                while not reader.done:
                    async with waits.waiting():
                        data = await anext(body, None)
                    if data is None:
                        break
                    for event in reader.feed(data):
                        # A keep-alive is no token: silence goes on until the model says something.
                        if not isinstance(event, ProviderNotice):
                            waits.heard()
                        yield event
            for event in reader.finish():
                yield event

    async def _ask_whole(self, request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        # Nothing comes before everything has been written, so only the whole answer's limit applies.
        limits = base.TimeLimits(self._limits.connect_s, self._limits.total_s, self._limits.total_s)
        waits, raw = _Waits(limits), b""
        async with (
            self._response(self._call(request, streaming=False), waits) as response,
            aclosing(_bytes(response)) as body,
        ):
            while True:
                async with waits.waiting():
                    data = await anext(body, None)
                if data is None:
                    break
                raw += data
                if len(raw) > MAX_WHOLE_BYTES:
                    raise base.ProviderProtocolError(f"the answer is larger than {MAX_WHOLE_BYTES:,} bytes")
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            raise base.ProviderProtocolError("the endpoint's answer is not JSON") from None
        if not isinstance(document, dict):
            raise base.ProviderProtocolError("the endpoint's answer is not a JSON object")
        return self._whole(document, request)

    @asynccontextmanager
    async def _response(self, call: Call, waits: _Waits) -> AsyncGenerator[httpx.Response, None]:
        if not self._base_url.lower().startswith(("http://", "https://")):
            raise base.ProviderRefused(_NO_ADDRESS)
        # The environment's proxies and .netrc are not ours to follow: an answer goes where the setting says.
        verify = _tls() if self._base_url.lower().startswith("https") else False
        timeout = httpx.Timeout(None, connect=self._limits.connect_s)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False, verify=verify) as client:
            request = client.build_request(
                "POST", f"{self._base_url}{call.path}", json=dict(call.body), headers=dict(call.headers)
            )
            async with waits.waiting(connecting=True):
                response = await client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise await self._refusal(response, waits)
                yield response
            finally:
                await response.aclose()

    async def _refusal(self, response: httpx.Response, waits: _Waits) -> base.ProviderError:
        status, raw = response.status_code, b""
        async with aclosing(_bytes(response)) as body, waits.waiting():
            async for data in body:
                raw += data
                if len(raw) > MAX_ERROR_BYTES:
                    break
        said = f"the provider answered {status}"
        if message := _message(raw):
            said += f": {message}"
        if status in (401, 403):
            # Vendors quote (part of) the key in this one, so the body is not passed on.
            return base.ProviderAuthError(f"the provider answered {status}: the API key is missing or not accepted")
        if status == 429:
            return base.ProviderRateLimited(said, _seconds(response.headers.get("retry-after", "")))
        if status >= 500 or status == 408:
            return base.ProviderUnavailable(said)
        return base.ProviderRefused(said)

    def _failures(self) -> _Failures:
        return _Failures(self._where, self._key)

    @property
    def _where(self) -> str:
        try:
            url = httpx.URL(self._base_url)
        except httpx.InvalidURL:
            return "its address"
        return f"{url.host}:{url.port}" if url.port else url.host


class _Failures:
    """What goes wrong on the way, in the words of ``providers.base`` and without the key."""

    def __init__(self, where: str, key: str) -> None:
        self._where = where
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, base.ProviderError):
            said = str(error)
            error.args = (said.replace(self._key, "[key]") if self._key else said,)
        elif isinstance(error, Exception) and (meant := self._meaning(error)):
            raise meant from None

    def _meaning(self, error: Exception) -> base.ProviderError | None:
        where = self._where
        match error:
            case SseTooLarge():
                return base.ProviderProtocolError(f"the endpoint sent something that is no stream of tokens: {error}")
            case httpx.TimeoutException():
                return base.ProviderTimeout(f"no connection to {where} within the time limit")
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return base.ProviderRefused(_NO_ADDRESS)
            case httpx.ConnectError():
                return base.ProviderUnavailable(f"no connection to the provider at {where}")
            case httpx.RemoteProtocolError() if "incomplete" in str(error) or "closed" in str(error):
                return base.StreamCutOff("the provider closed the connection in the middle of the answer")
            case httpx.RemoteProtocolError():
                return base.ProviderProtocolError("the endpoint does not speak HTTP as expected")
            case httpx.DecodingError():
                return base.ProviderProtocolError("the endpoint's answer could not be decompressed")
            case httpx.HTTPError():
                return base.ProviderUnavailable(f"the connection to the provider failed ({type(error).__name__})")
        return None


_NO_ADDRESS = "the provider's base URL is not a usable http(s) address"


class _Waits:
    """The clocks of one answer: how long it may take, and how long nothing may come."""

    def __init__(self, limits: base.TimeLimits) -> None:
        self._limits = limits
        self._now = asyncio.get_running_loop().time
        self._ends_at = self._now() + limits.total_s
        self._silent_s = 0.0

    def heard(self) -> None:
        """The model said something."""
        self._silent_s = 0.0

    @asynccontextmanager
    async def waiting(self, *, connecting: bool = False) -> AsyncGenerator[None, None]:
        """While we wait for the provider. Raises ``ProviderTimeout``; time that our reader takes is not counted."""
        started = self._now()
        silence_ends = started + self._limits.token_s - self._silent_s
        try:
            async with asyncio.timeout_at(min(silence_ends, self._ends_at)):
                yield
        except TimeoutError:
            if self._ends_at <= silence_ends:
                raise base.ProviderTimeout(f"the answer took longer than {self._limits.total_s:g} s") from None
            what = "did not answer" if connecting else "sent nothing"
            raise base.ProviderTimeout(f"the provider {what} for {self._limits.token_s:g} s") from None
        self._silent_s += self._now() - started


async def _bytes(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes; a generator, so that it can be closed."""
    async for data in response.aiter_bytes():
        yield data


def _message(raw: bytes) -> str:
    """The error message out of a JSON error body, at most 300 characters; empty when there is none."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    error = found.get("error") if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message[:300] if isinstance(message, str) else ""


def _seconds(value: str) -> float | None:
    try:
        return max(0.0, float(value))
    except ValueError:
        return None
