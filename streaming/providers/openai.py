"""Any OpenAI-compatible chat-completions endpoint, streamed.

Configured by the names that the vendor's own tools read: ``OPENAI_BASE_URL``, ``OPENAI_API_KEY``, ``OPENAI_MODEL``;
offered only when one of them is set. Protects the rules that a stream is complete only when it says so, that partial
text survives a failure, and that neither key nor response body reaches a reader unread.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import httpx

from streaming.core.events import ProviderEvent
from streaming.core.sse import SseParser, SseTooLarge
from streaming.providers import base
from streaming.providers.openai_chunks import ChunkReader

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-4o-mini"
MAX_ERROR_BYTES = 65_536


@functools.cache
def _tls() -> ssl.SSLContext:
    """Building a context reads the trust store (tens of ms); every answer shares one."""
    return httpx.create_ssl_context(trust_env=False)


class OpenAIProvider(base.Provider):
    """``POST {base_url}/chat/completions`` with ``stream: true``."""

    name = "openai"
    label = "OpenAI-compatible"

    def __init__(
        self, base_url: str, api_key: str = "", model: str = "", limits: base.TimeLimits | None = None
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = api_key
        self._model = model or DEFAULT_MODEL
        self._limits = limits or base.TimeLimits()

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> OpenAIProvider | None:
        """None when neither base URL, key nor model is set."""
        url, key, model = (env.get(f"OPENAI_{part}", "").strip() for part in ("BASE_URL", "API_KEY", "MODEL"))
        return cls(url or DEFAULT_BASE_URL, key, model) if url or key or model else None

    @property
    def default_model(self) -> str:
        """``OPENAI_MODEL`` or the documented default."""
        return self._model

    async def stream(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer as events. The response is closed when the generator is, also by cancellation."""
        try:
            async with aclosing(self._stream(request)) as events:
                async for event in events:
                    yield event
        except base.ProviderError as error:
            error.args = (self._without_key(str(error)),)
            raise
        except SseTooLarge as error:
            raise base.ProviderProtocolError(f"the endpoint sent something that is no event stream: {error}") from None
        except TimeoutError:
            raise base.ProviderTimeout("the provider sent nothing within the time limit") from None
        except httpx.TimeoutException:
            raise base.ProviderTimeout(f"no connection to {self._where} within the time limit") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise base.ProviderRefused("the provider's base URL is not a usable http(s) address") from None
        except httpx.ConnectError:
            raise base.ProviderUnavailable(f"no connection to the provider at {self._where}") from None
        except httpx.RemoteProtocolError as error:
            if "incomplete" in str(error) or "closed" in str(error):
                raise base.StreamCutOff("the provider closed the connection in the middle of the answer") from None
            raise base.ProviderProtocolError("the endpoint does not speak HTTP as expected") from None
        except httpx.DecodingError:
            raise base.ProviderProtocolError("the endpoint's answer could not be decompressed") from None
        except httpx.HTTPError as error:
            raise base.ProviderUnavailable(f"the connection to the provider failed ({type(error).__name__})") from None

    async def _stream(self, request: base.ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        limits, now = self._limits, asyncio.get_running_loop().time
        ends_at, last_token = now() + limits.total_s, now()
        reader, parser = ChunkReader(), SseParser()
        timeout = httpx.Timeout(limits.token_s, connect=limits.connect_s)
        # The environment's proxies and .netrc are not ours to follow: an answer goes where the setting says.
        verify = _tls() if self._base_url.startswith("https") else False
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False, verify=verify) as client,
            client.stream(
                "POST", f"{self._base_url}/chat/completions", json=self._body(request), headers=self._headers()
            ) as response,
        ):
            if response.status_code != 200:
                raise await self._refusal(response)
            async with aclosing(_bytes(response)) as body:
                while True:
                    # Keep-alive comments do not count as tokens, so the limit is ours and not the socket's.
                    try:
                        async with asyncio.timeout_at(min(last_token + limits.token_s, ends_at)):
                            data = await anext(body)
                    except StopAsyncIteration:
                        break
                    for item in parser.feed(data):
                        for event in reader.read(item):
                            last_token = now()
                            yield event
                    if reader.done:
                        break
            for item in parser.finish():
                for event in reader.read(item):
                    yield event
            for event in reader.finish(parser.stray):
                yield event

    def _body(self, request: base.ProviderRequest) -> dict[str, object]:
        return {
            "model": request.model or self._model,
            "messages": [{"role": m.role, "content": m.text} for m in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    @property
    def _where(self) -> str:
        try:
            url = httpx.URL(self._base_url)
        except httpx.InvalidURL:
            return "its address"
        return f"{url.host}:{url.port}" if url.port else url.host

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    async def _refusal(self, response: httpx.Response) -> base.ProviderError:
        status, raw = response.status_code, b""
        async with aclosing(_bytes(response)) as body:
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
