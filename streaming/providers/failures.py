"""What the failures of HTTP mean, in the words of ``providers.base``.

Exists so that every adapter fails alike, and that retrying is decided by a class and not by a text. Protects the rule
that an error is fit for a reader: a key never stands in it, nor the body of an answer that may quote one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from streaming.core.sse import SseTooLarge
from streaming.providers import base

KEY_WITHHELD = "[key]"
MAX_HEARD_CHARS = 2_000
"""Of a message, with what the endpoint said."""
MAX_ERROR_CHARS = 300
"""Of what is told of it, once guardrails have looked: half of a value is not found any more."""


def url_problem(url: str) -> str:
    """Why this cannot be a base URL (a clause); empty when it can. The URL itself, which may hold a password, is
    never repeated."""
    try:
        parts, parsed = urlsplit(url), httpx.URL(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parsed.host:
            return "is not an http(s) address"
        if parts.port == 0:
            return "names port 0"
    except (ValueError, httpx.InvalidURL):
        return "is not a valid address"
    if parts.query or parts.fragment:
        return "has a query or a fragment, and paths are appended to it"
    return ""


class Failures:
    """A context in which httpx's exceptions become ``ProviderError`` and the key is taken out of all messages."""

    def __init__(self, where: str, key: str) -> None:
        self._where = where
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, base.ProviderError):
            error.args = (shortened(self._without_key(str(error)), MAX_HEARD_CHARS),)
        elif isinstance(error, Exception) and (meant := self._meaning(error)):
            raise meant from None

    def cleaned(self, document: dict[str, object]) -> dict[str, object]:
        """An error in the endpoint's own words, as a JSON object, without the key."""
        if not self._key:
            return document
        try:
            return {self._without_key(name): self._cleaned(value) for name, value in document.items()}
        except RecursionError:
            return {"error": {"message": "the provider's error is nested too deep to be told"}}

    def _cleaned(self, value: object) -> object:
        if isinstance(value, str):
            return self._without_key(value)
        if isinstance(value, list):
            return [self._cleaned(item) for item in value]
        if isinstance(value, dict):
            return {self._without_key(name): self._cleaned(item) for name, item in value.items()}
        return value

    def _without_key(self, said: str) -> str:
        return said.replace(self._key, KEY_WITHHELD) if self._key else said

    def _meaning(self, error: Exception) -> base.ProviderError | None:
        where = self._where
        match error:
            case SseTooLarge():
                return base.ProviderProtocolError(f"the endpoint sent something that is no stream of tokens: {error}")
            case httpx.TimeoutException():
                # Our own limits are timed elsewhere; this one is the operating system's.
                return base.ProviderTimeout(f"the connection to the provider at {where} timed out")
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return base.ProviderRefused("the provider's base URL is not a valid address")
            case httpx.ConnectError():
                return base.ProviderUnavailable(f"no connection to the provider at {where}")
            case httpx.RemoteProtocolError() if "disconnected without" in str(error):
                return base.ProviderUnavailable("the provider closed the connection without an answer")
            case httpx.RemoteProtocolError():
                return base.ProviderProtocolError("the endpoint does not speak HTTP as expected")
            case httpx.HTTPError():
                return base.ProviderUnavailable(f"the connection to the provider failed ({type(error).__name__})")
        return None


def cut_off(error: httpx.TransportError) -> base.StreamCutOff | None:
    """What a failure means that came while an answer was read; None: it has the meaning that it has elsewhere."""
    if isinstance(error, httpx.RemoteProtocolError) and not any(
        word in str(error) for word in ("incomplete", "closed", "disconnected")
    ):
        return None
    return base.StreamCutOff("the connection to the provider broke in the middle of the answer")


def refusal(status: int, headers: httpx.Headers, body: bytes) -> base.ProviderError:
    """The error that an answer with this status is."""
    said = f"the provider answered {status}"
    if status in (401, 403):
        # Vendors quote (part of) the key in this one, so the body is not passed on.
        return base.ProviderAuthError(f"{said}: the API key is missing or not accepted")
    if 300 <= status < 400:
        return base.ProviderRefused(f"{said}: a redirect, which is not followed; set the base URL to where it leads")
    if message := _message(body):
        said += f": {message}"
    if status == 429:
        return base.ProviderRateLimited(said, _seconds(headers.get("retry-after", "")))
    if status >= 500 or status == 408:
        return base.ProviderUnavailable(said)
    return base.ProviderRefused(said)


def _message(body: bytes) -> str:
    """The error message out of a JSON error body; empty when there is none. ``Failures`` shortens it."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = found.get("error") if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def shortened(said: str, most: int = MAX_ERROR_CHARS) -> str:
    """What fits, in whole words; only once keys and what guardrails hide are out of it."""
    if len(said) <= most:
        return said
    *words, _ = said[: most - 1].rsplit(maxsplit=1)
    return f"{words[0] if words else said[: most - 2]} …"


def _seconds(value: str) -> float | None:
    """``Retry-After``: seconds, or the date after which to come again."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
            seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
