"""Two things every request passes: its correlation id, and the Content-Security-Policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from csp.middleware import CSPMiddleware, PolicyParts
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from streaming.correlation import correlation_of

ADMIN_POLICY = {
    "default-src": [NONE],
    "script-src": [SELF, UNSAFE_INLINE, UNSAFE_EVAL],  # Alpine.js in the theme evaluates attributes
    "style-src": [SELF, UNSAFE_INLINE],
    "img-src": [SELF, "data:"],
    "font-src": [SELF],
    "connect-src": [SELF],
    "base-uri": [NONE],
    "form-action": [SELF],
    "frame-ancestors": [NONE],
    "object-src": [NONE],
}

Next = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


class CorrelationMiddleware:
    """Takes ``X-Correlation-ID`` if it is well formed, makes one otherwise; in every log line and in the answer.

    Asynchronous only: Django adapts it for the synchronous test client.
    """

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Bind the id for the time of the request."""
        correlation_id = correlation_of(request.headers.get("X-Correlation-ID", ""))
        request.META["sluicegate.correlation_id"] = correlation_id
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            response = await self.get_response(request)
        response.headers["X-Correlation-ID"] = correlation_id
        return response


class PolicyMiddleware(CSPMiddleware):
    """The strict Content-Security-Policy of the settings; only under ``/admin/`` may scripts and styles be inline."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        """The settings' policy, replaced by ``ADMIN_POLICY`` for the admin's theme."""
        parts = super().get_policy_parts(request, response, report_only)
        if request.path.startswith("/admin/") and not report_only:
            parts.replace = ADMIN_POLICY
        return parts
