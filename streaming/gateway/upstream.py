"""Upstreams of the gateway: who is asked, over which connection, and what it answers, chunk by chunk.

Exists beside the adapters because an answer in the client's own dialect passes as it is, with all that typed events
have no words for. Protects four rules. Connections are kept and shared (HTTP/2 where it is offered), and an answer
nobody wants any more ends at once. The upstream sees its own key and headers, never the client's. A redirect is not
followed. And the next upstream is asked only as long as nothing of an answer has come.

    UpstreamSaid     an answer that is an error of the dialect: status, document, seconds to wait if it says so
    ProviderError    everything else that fails, as adapters say it
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.util import find_spec
from typing import Literal
from weakref import WeakKeyDictionary

import httpx

from streaming import breakers, registry
from streaming.core.sse import SseParser, SseTooLarge
from streaming.gateway.http2 import TellingPool
from streaming.gateway.walker import Json, objects
from streaming.providers import base, bodies
from streaming.providers.bodies import beginning, pieces, whole
from streaming.providers.failures import refusal, url_problem
from streaming.providers.http import HttpProvider
from streaming.providers.paced import CheckedBackend, Resolves
from streaming.providers.waits import Waits
from streaming.upstreams import Offered

Dialect = Literal["openai", "anthropic", "ollama"]
MAX_LINE_BYTES = 4 * 1024 * 1024
LISTED_S = 5.0
"""Seconds that an upstream's list of models is waited for."""
MOST_LISTED = 2_000
MOST_WAIT_S = 86_400
"""Seconds after which a client is told to come again, at most: what an upstream says there is looked at by nobody."""
HTTP2 = find_spec("h2") is not None
CONNECTIONS, KEPT_ALIVE, KEEP_ALIVE_S = 1_000, 100, 60.0

_Pools = dict[Resolves | None, httpx.AsyncClient]
_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = WeakKeyDictionary()


class UpstreamSaid(base.ProviderRefused):
    """The upstream refused, in its dialect."""

    def __init__(self, status: int, document: Json, retry_after_s: float | None = None) -> None:
        super().__init__(f"the provider answered {status}")
        self.status = status
        self.document = document
        self.retry_after_s = retry_after_s


class Trouble(UpstreamSaid):
    """It asks to wait, or broke down in its own words: another upstream may be asked."""


@dataclass(frozen=True, slots=True)
class Passing:
    """A request in the dialect of the upstream, ready to be sent."""

    body: Json
    streaming: bool
    headers: Mapping[str, str]


@functools.cache
def _tls() -> ssl.SSLContext:
    """Building a context reads the trust store (tens of ms); every loop's connections share one."""
    context = httpx.create_ssl_context(trust_env=False)
    if HTTP2:
        context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own transport, connecting where ``resolves`` says."""

    def __init__(self, resolves: Resolves | None) -> None:
        # Not the constructor of the class above: all that it makes is another pool, and a TLS context for it.
        self._pool = TellingPool(
            ssl_context=_tls(),
            max_connections=CONNECTIONS,
            max_keepalive_connections=KEPT_ALIVE,
            keepalive_expiry=KEEP_ALIVE_S,
            http2=HTTP2,
            network_backend=CheckedBackend(resolves),
        )


def pool(resolves: Resolves | None = None) -> httpx.AsyncClient:
    """The connections of this event loop to hosts that are looked up in this way."""
    kept = _pools.setdefault(asyncio.get_running_loop(), {})
    found = kept.get(resolves)
    if found is None or found.is_closed:
        # The environment's proxies and .netrc are not ours to follow, and the time limits are ours (``waits``).
        found = kept[resolves] = httpx.AsyncClient(
            timeout=None,  # noqa: S113
            trust_env=False,
            transport=_Transport(resolves),
            follow_redirects=False,
            # What an upstream says to one caller it must not hear again from another: no cookie is kept.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
    return found


async def close_pool() -> None:
    """Close what this event loop keeps open."""
    for found in _pools.pop(asyncio.get_running_loop(), {}).values():
        await found.aclose()


registry.at_shutdown(close_pool)


def in_order(first: base.Provider, offered: Offered) -> tuple[base.Provider, ...]:
    """The upstream that is asked and, behind it, the fallbacks."""
    if first.scripted:
        return (first,)
    names = dict.fromkeys(name for name in offered.fallbacks if name != first.called)
    return (first, *(offered.providers[name] for name in names))


@asynccontextmanager
async def guarded_by_breaker(provider: base.Provider) -> AsyncGenerator[None, None]:
    """One answer of an upstream, counted: five that failed in a row and it is left alone for a while."""
    breaker = await breakers.breaker(breakers.PROVIDER + provider.called)
    try:
        await breaker.enter()
    except breakers.CircuitOpen:
        name = provider.circuit or provider.label or provider.name
        raise base.ProviderUnavailable(f"{name} has failed again and again and is left alone for a while") from None
    try:
        yield
    except base.ProviderRefused:
        await breaker.succeeded()  # it is well: it is the request that is not
        raise
    except base.ProviderError as error:
        await breaker.failed(error)
        raise
    except BaseException:
        await breaker.given_up()
        raise
    await breaker.succeeded()


async def chunks(provider: HttpProvider, asked: Passing, dialect: Dialect) -> AsyncGenerator[Json, None]:
    """The answer's chunks as they come; of an answer that is not streamed, the one document.

    Raises ``ProviderError``. Closing the generator closes the response.
    """
    with provider.failures:
        waits = Waits(provider.limits, provider.where, whole=not asked.streaming)
        async with _response(provider, "POST", provider.answers_at, asked, waits) as response:
            if not asked.streaming:
                yield await _document(response, waits)
                return
            said = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if said in ("application/json", "text/html", "text/plain") and dialect != "ollama":
                raise base.ProviderProtocolError(f"the endpoint answered with {said} instead of a stream")
            reader = _lines if dialect == "ollama" else _events
            async with aclosing(reader(response, waits)) as found:
                async for chunk in found:
                    if chunk.get("error"):
                        raise Trouble(502, provider.failures.cleaned(chunk))
                    yield chunk


async def listed(provider: HttpProvider) -> Json:
    """The upstream's models, in its dialect. Raises ``ProviderError``."""
    with provider.failures:
        waits = Waits(provider.limits, provider.where, whole=True)
        nothing = Passing({}, False, {})
        async with _response(provider, "GET", provider.lists_at, nothing, waits) as response:
            return await _document(response, waits)


async def lists(offered: Offered, dialect: Dialect, field: str) -> dict[str, list[Json]]:
    """What the upstreams of a dialect list, by their names; who does not answer in time lists nothing.

    ``field``: where the list stands.
    """

    async def one(name: str, provider: base.Provider) -> tuple[str, list[Json]]:
        if not isinstance(provider, HttpProvider) or provider.name != dialect or not provider.lists_at:
            return name, []
        try:
            async with asyncio.timeout(LISTED_S):
                return name, objects((await listed(provider)).get(field))[:MOST_LISTED]
        except (base.ProviderError, TimeoutError):
            return name, []

    found = await asyncio.gather(*(one(name, provider) for name, provider in offered.providers.items()))
    return {name: entries for name, entries in found if entries}


@asynccontextmanager
async def _response(
    provider: HttpProvider, method: str, path: str, asked: Passing, waits: Waits
) -> AsyncGenerator[httpx.Response, None]:
    if problem := url_problem(provider.base_url):
        raise base.ProviderRefused(f"the provider's base URL {problem}")

    async def on_trace(event: str, info: Mapping[str, object]) -> None:
        if event.endswith("send_request_headers.started"):
            waits.connected()

    client = pool(provider.resolves)
    headers = {
        "Content-Type": "application/json",
        # Compression would hold tokens back until a block is full.
        "Accept-Encoding": "identity",
        **asked.headers,
        **provider.headers(streaming=asked.streaming),
    }
    request = client.build_request(
        method,
        f"{provider.base_url}{path}",
        content=json.dumps(asked.body, ensure_ascii=False).encode(errors="replace") if method == "POST" else None,
        headers=headers,
        extensions={"trace": on_trace},
    )
    async with waits.waiting():
        response = await client.send(request, stream=True)
    try:
        if response.status_code != 200:
            raise await _refusal(provider, response, waits)
        yield response
    finally:
        await response.aclose()


async def _refusal(provider: HttpProvider, response: httpx.Response, waits: Waits) -> base.ProviderError:
    """What a status other than 200 means; a request that the upstream does not take is told in its own words."""
    raw = await beginning(response, waits)
    status = response.status_code
    error = refusal(status, response.headers, raw)
    # What is said of the key that we hold is not the client's business, and a redirect leads where we do not go.
    if status in (401, 403) or status < 400:
        return error
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "error" not in document or status >= 500:
        return error
    document = provider.failures.cleaned(document)
    if isinstance(error, base.ProviderRateLimited):
        return Trouble(status, document, error.retry_after_s)
    return UpstreamSaid(status, document)


async def _document(response: httpx.Response, waits: Waits) -> Json:
    found = _object((await whole(response, waits)).decode("utf-8", "replace"))
    if found is None:
        raise base.ProviderProtocolError("the endpoint's answer is not a JSON object")
    return found


async def _events(response: httpx.Response, waits: Waits) -> AsyncGenerator[Json, None]:
    """The objects in an event stream. ``{"done": "[DONE]"}`` stands for the terminator of those that have one."""
    parser, size = SseParser(), 0
    async with aclosing(pieces(response)) as body:
        while True:
            async with waits.waiting():
                data = await anext(body, None)
            size = _grown(size, data)
            try:
                found = parser.finish() if data is None else parser.feed(data)
            except SseTooLarge as error:
                raise base.ProviderProtocolError(str(error)) from None
            for event in found:
                if event.data.strip() == "[DONE]":
                    yield DONE
                    await _read_out(body)
                    return
                if not event.data.strip():
                    continue
                chunk = _object(event.data)
                if chunk is None:
                    raise base.ProviderProtocolError("the endpoint sent a line that is not a JSON object")
                waits.heard()
                yield chunk
            if data is None:
                return


def _grown(size: int, data: bytes | None) -> int:
    """The bytes of an answer so far."""
    size += len(data or b"")
    if size > bodies.MAX_STREAM_BYTES:
        raise base.ProviderProtocolError(f"the answer is larger than {bodies.MAX_STREAM_BYTES:,} bytes")
    return size


async def _read_out(body: AsyncGenerator[bytes, None]) -> None:
    """What HTTP itself says behind the terminator is mostly there already; a connection is used again only when it has
    been read. Nobody waits long for it."""
    with suppress(TimeoutError, base.ProviderError, httpx.HTTPError):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in body:
                pass


READ_OUT_S = 0.05
"""Seconds for the end of a response whose answer is over."""
DONE: Json = {"done": "[DONE]"}
"""The terminator of an event stream that has one."""


async def _lines(response: httpx.Response, waits: Waits) -> AsyncGenerator[Json, None]:
    buffer, size = bytearray(), 0
    async with aclosing(pieces(response)) as body:
        while True:
            async with waits.waiting():
                data = await anext(body, None)
            size = _grown(size, data)
            buffer += b"\n" if data is None else data
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            if len(buffer) > MAX_LINE_BYTES:
                raise base.ProviderProtocolError(f"one line is larger than {MAX_LINE_BYTES} bytes")
            for line in lines:
                if not line.strip():
                    continue
                chunk = _object(line.decode("utf-8", "replace"))
                if chunk is None:
                    raise base.ProviderProtocolError("the endpoint sent a line that is not a JSON object")
                waits.heard()
                yield chunk
            if data is None:
                return


def _object(text: str) -> Json | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
