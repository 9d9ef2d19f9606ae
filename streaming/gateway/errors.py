"""Refusals as each dialect words them.

Exists so that a library raises what it would raise at the vendor: a wrong key is an authentication error, a limit
is a rate limit, in the shape that the library reads. Protects the rule that no refusal of ours, wherever it was made,
reaches a client of the gateway in a shape that it cannot read. Pure.
"""

from __future__ import annotations

from streaming.gateway.upstream import Dialect
from streaming.gateway.walker import Json
from streaming.providers import base

PATHS: dict[str, Dialect] = {
    "/v1/chat/completions": "openai",
    "/v1/models": "openai",
    "/v1/messages": "anthropic",
    "/api/chat": "ollama",
    "/api/tags": "ollama",
}
"""Whose words are spoken where."""

_OPENAI = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "invalid_request_error", 415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
_ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 413: "request_too_large", 415: "invalid_request_error",
    422: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_CODES = {"unauthenticated": "invalid_api_key", "too_many_calls": "rate_limit_exceeded"}


def worded(dialect: Dialect, status: int, code: str, message: str, field: str = "") -> Json:
    """The body of a refusal."""
    if dialect == "openai":
        kind = _OPENAI.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": field or None, "code": _CODES.get(code, code)}}
    if dialect == "anthropic":
        kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": message}


def status_of(error: base.ProviderError) -> int:
    """The status with which a provider's failure is told."""
    match error:
        case base.ProviderAuthError():
            return 502  # it is our key that it does not take, not the client's
        case base.ProviderRateLimited():
            return 429
        case base.ProviderTimeout():
            return 504
        case base.ProviderProtocolError() | base.ProviderRefused() | base.StreamCutOff():
            return 502
    return 503
