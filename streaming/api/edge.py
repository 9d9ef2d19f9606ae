"""What every call under ``/v1/`` passes on its way in and out: bodies, compression, origins, limits.

Exists as one middleware so that no single call can forget it. Protects three rules: a body is at most 1 MB *after*
decompression and however it was sent (a chunked one names no length); a browser is told that it may read an answer only
where the key names its origin; event streams are never compressed, because a compressor holds text back.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers
from django.utils.text import compress_string

from guardrails.selectors import origin_is_known
from streaming.api.errors import Refusal, database_away, error_response
from streaming.database import AWAY, in_database
from streaming.gateway.errors import PATHS, worded
from streaming.gateway.upstream import Dialect
from streaming.limits import Allowance

PREFIXES = ("/v1/", "/api/")
ALLOWANCE = "sluicegate.allowance"
"""Where the key's check leaves what is left of the limit, in ``request.META``."""
ORIGIN = "sluicegate.origin"
"""Where it leaves the origin of another site's page that may read the answer."""
NOT_ALLOWED = "origin_not_allowed"
CODE_HEADER = "X-Sluicegate-Code"
"""The refusal's code beside an error that a dialect words."""
WORTH_COMPRESSING = 500
"""Bytes; below that gzip's own header eats the gain."""

_ALLOWED_HEADERS = (
    "Authorization, X-API-Key, Content-Type, Content-Encoding, Idempotency-Key, If-None-Match, Last-Event-ID, "
    "X-Correlation-ID"
)
_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")
_MOST_HEADERS = 50
_EXPOSED_HEADERS = (
    "ETag, X-Correlation-ID, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After, X-Stream-Token, "
    "X-Response-Time, X-Sluicegate-Session, X-Sluicegate-Policy, X-Sluicegate-Code"
)
_PREFLIGHT_S = 600
_GZIP = 31
"""How zlib is told to expect gzip's header."""
_PIECE = 1_024
"""Bytes of a compressed body that are unpacked at a time."""

Next = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


class EdgeMiddleware:
    """Asynchronous only: Django adapts it for the synchronous test client."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Pages are none of its business."""
        if not request.path.startswith(PREFIXES):
            return await self.get_response(request)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return await _preflight(request)
        response = _unpack(request) or _in_shape(await self.get_response(request))
        if response.status_code >= 400 and (dialect := PATHS.get(request.path)) is not None:
            response = _reworded(response, dialect)
        await _say_origin(request, response)
        allowance = request.META.get(ALLOWANCE)
        if isinstance(allowance, Allowance):
            for name, value in allowance.headers().items():
                response[name] = value
        return _compressed(request, response)


async def _preflight(request: HttpRequest) -> HttpResponseBase:
    """A preflight carries no key, so it asks whether any key names the origin; the call itself asks its own."""
    origin = request.headers.get("Origin", "")
    try:
        known = await in_database(origin_is_known)(origin)
    except AWAY as error:
        return database_away(error, request.path)
    if not known:
        return error_response(403, "No API key may be used from pages of this origin.", code=NOT_ALLOWED)
    response = HttpResponse(status=204)
    response["Access-Control-Allow-Origin"] = origin
    response["Access-Control-Allow-Methods"] = "GET, POST"
    response["Access-Control-Allow-Headers"] = ", ".join([_ALLOWED_HEADERS, *_added(request)])
    response["Access-Control-Max-Age"] = str(_PREFLIGHT_S)
    patch_vary_headers(response, ["Origin", "Access-Control-Request-Headers"])
    return response


def _added(request: HttpRequest) -> list[str]:
    """What a page's libraries add to its calls (vendors' clients, tracing): no cookie comes with them, and what we do
    not know we do not read."""
    asked = request.headers.get("Access-Control-Request-Headers", "").split(",", _MOST_HEADERS)[:_MOST_HEADERS]
    return [name for one in asked if _HEADER.fullmatch(name := one.strip())]


def _in_shape(response: HttpResponseBase) -> HttpResponseBase:
    """Refusals that the framework words itself (a wrong method, an unknown host) look like ours."""
    if response.status_code < 400 or response.headers.get("Content-Type", "").startswith("application/json"):
        return response
    ours = error_response(response.status_code, f"{response.reason_phrase}.")
    if "Allow" in response.headers:
        ours["Allow"] = response.headers["Allow"]
    return ours


def _reworded(response: HttpResponseBase, dialect: Dialect) -> HttpResponseBase:
    """A refusal of ours in the words of the dialect that is spoken there; an upstream's own words stay."""
    refusal = getattr(response, "refusal", None)
    if refusal is None:
        return response
    error: Refusal = refusal
    said = worded(dialect, response.status_code, error["code"], error["message"], error.get("field", ""))
    status = 400 if response.status_code == 422 else response.status_code
    made = JsonResponse(said, status=status)
    made[CODE_HEADER] = error["code"]
    for name in ("Retry-After", "WWW-Authenticate", "Allow"):
        if name in response.headers:
            made[name] = response.headers[name]
    return made


async def _say_origin(request: HttpRequest, response: HttpResponseBase) -> None:
    """Say whose page may read the answer. A call that was refused before its key was known is treated like a preflight:
    its page has to see why, or it would take the refusal for a network that is down.
    """
    origin = request.META.get(ORIGIN) or await _refused_to(request, response)
    if origin:
        response["Access-Control-Allow-Origin"] = origin
        response["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    patch_vary_headers(response, ["Origin"])


async def _refused_to(request: HttpRequest, response: HttpResponseBase) -> str:
    """The origin of a page that may read why it was refused, where no key has said so."""
    origin = request.headers.get("Origin", "")
    if not origin or response.status_code < 400 or _code(response) == NOT_ALLOWED:
        return ""
    try:
        return origin if await in_database(origin_is_known)(origin) else ""
    except AWAY:
        return ""


def _code(response: HttpResponseBase) -> str:
    return str(response.headers.get(CODE_HEADER, "") or getattr(response, "refusal", {}).get("code", ""))


def _unpack(request: HttpRequest) -> HttpResponse | None:
    """Read and decompress the body in place; the refusal if it is too large or no body that we can read."""
    most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    too_large = "The body is larger than 1 MB."
    try:
        body = request.body
    except RequestDataTooBig:
        return error_response(413, too_large)
    if len(body) > most:
        return error_response(413, too_large)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return None
    if encoding != "gzip":
        return error_response(415, "A body may be compressed with gzip or not at all.", code="unknown_encoding")
    if not body:
        return None
    try:
        plain = _members(body, most)
    except zlib.error:
        return error_response(400, "The body is not gzip.")
    except EOFError:
        return error_response(400, "The body is not one whole gzip file.")
    if plain is None:
        return error_response(413, too_large)
    request._body = plain
    request.META["CONTENT_LENGTH"] = str(len(plain))
    return None


def _members(body: bytes, most: int) -> bytes | None:
    """What all members of a gzip file have in them (RFC 1952, 2.2), None for more than ``most`` bytes.

    In pieces, for what is left behind a member is copied: a body of nothing but empty ones has fifty thousand of them.
    Raises ``zlib.error``, and ``EOFError`` where the last one is cut off.
    """
    plain = bytearray()
    unpacker = zlib.decompressobj(wbits=_GZIP)
    for at in range(0, len(body), _PIECE):
        piece = body[at : at + _PIECE]
        while piece:
            if unpacker.eof:
                unpacker = zlib.decompressobj(wbits=_GZIP)
            plain += unpacker.decompress(piece, most + 1 - len(plain))
            if len(plain) > most:
                return None
            piece = unpacker.unused_data
    if not unpacker.eof:
        raise EOFError
    return bytes(plain)


def _compressed(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if not isinstance(response, HttpResponse) or response.has_header("Content-Encoding"):
        return response
    patch_vary_headers(response, ["Accept-Encoding"])
    if len(response.content) < WORTH_COMPRESSING or not _takes_gzip(request.headers.get("Accept-Encoding", "")):
        return response
    response.content = compress_string(response.content)
    response["Content-Encoding"] = "gzip"
    response["Content-Length"] = str(len(response.content))
    return response


def _takes_gzip(accepted: str) -> bool:
    """Whether the header names gzip with a weight other than nothing (RFC 9110, 12.5.3)."""
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
