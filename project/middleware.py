"""What every request passes that is ours: its correlation id, the Content-Security-Policy, and the loop it stays in.

Django takes each synchronous step of a request to a thread and back, even where the step only sets a header; and below
one middleware that is synchronous altogether, the thread waits until the answer begins. With fifty streams those trips
are most of what a call costs. So the steps of Django's own middleware that wait for nothing run in the event loop, and
only those that may ask the database or read a body go to a thread. A step that should ask the database in spite of that
fails loudly: Django refuses queries in the loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from csp.middleware import CSPMiddleware, PolicyParts
from django.conf import settings
from django.contrib.auth import middleware as auth
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.middleware import clickjacking, common, csrf, security
from django.shortcuts import render
from django.utils.deprecation import MiddlewareMixin
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

from streaming.api.errors import database_away
from streaming.correlation import correlation_of
from streaming.database import AWAY

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
SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")


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


class _InLoop(MiddlewareMixin):
    """Mixed in before Django's class: its two steps are taken where the request is."""

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """What ``MiddlewareMixin`` does, without the threads."""
        before: Callable[[HttpRequest], HttpResponseBase | None] | None = getattr(self, "process_request", None)
        after: Callable[[HttpRequest, HttpResponseBase], HttpResponseBase] | None
        after = getattr(self, "process_response", None)
        response = before(request) if before else None
        if response is None:
            following = cast("Next", self.get_response)
            response = await following(request)
        if after is None:
            return response
        if not self.may_wait(request):
            now: HttpResponseBase = after(request, response)
            return now
        said: HttpResponseBase = await sync_to_async(after)(request, response)
        return said

    def may_wait(self, request: HttpRequest) -> bool:
        """Whether the second step may ask the database."""
        return False


class SecurityMiddleware(_InLoop, security.SecurityMiddleware):
    """Django's."""


class CommonMiddleware(_InLoop, common.CommonMiddleware):
    """Django's."""


class XFrameOptionsMiddleware(_InLoop, clickjacking.XFrameOptionsMiddleware):
    """Django's."""


class AuthenticationMiddleware(_InLoop, auth.AuthenticationMiddleware):
    """Django's: who it is, is found out when somebody asks."""


class SessionMiddleware(_InLoop, sessions.SessionMiddleware):
    """Django's; what was changed is stored in a thread."""

    def may_wait(self, request: HttpRequest) -> bool:
        """Only then is anything written."""
        return request.session.modified or settings.SESSION_SAVE_EVERY_REQUEST


class MessageMiddleware(_InLoop, messages.MessageMiddleware):
    """Django's; messages may be in the session."""

    def may_wait(self, request: HttpRequest) -> bool:
        """Whether any were read or added."""
        stored = getattr(request, "_messages", None)
        return stored is not None and (stored.used or stored.added_new)


class CsrfViewMiddleware(_InLoop, csrf.CsrfViewMiddleware):
    """Django's; what reads a body goes to a thread."""

    async def process_view(  # type: ignore[override]  # Django takes either
        self, request: HttpRequest, callback: Callable[..., HttpResponseBase], args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        """Refuses what another site's page sent."""
        check = super().process_view
        if request.method in SAFE or getattr(callback, "csrf_exempt", False):
            return check(request, callback, args, kwargs)
        return await sync_to_async(check)(request, callback, args, kwargs)


class DatabaseAwayMiddleware:
    """What is asked while the database cannot be reached is told so, a page with a page; no traceback is logged.

    The API's own calls are answered before they come here.
    """

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Nothing to do on the way."""
        return await self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponseBase | None:
        """The answer, where that is what went wrong."""
        if not isinstance(error, AWAY):
            return None
        response: HttpResponseBase = database_away(error, request.path)
        if "text/html" in request.headers.get("Accept", ""):
            away = render(None, "503.html", status=response.status_code)
            away["Retry-After"] = response["Retry-After"]
            return away
        return response


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]  # it has no types
    """WhiteNoise's, asynchronous: below it nothing waits in a thread."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Next) -> None:
        super().__init__(get_response)
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """The file, or whatever else there is; where files may change, looking for one asks the disk."""
        path = request.path_info
        found = await sync_to_async(self.find_file)(path) if self.autorefresh else self.files.get(path)
        response: HttpResponseBase = (
            self.serve(found, request) if found is not None else await self.get_response(request)
        )
        return response


class PolicyMiddleware(_InLoop, CSPMiddleware):
    """The strict Content-Security-Policy of the settings; only under ``/admin/`` may scripts and styles be inline."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        """The settings' policy, replaced by ``ADMIN_POLICY`` for the admin's theme."""
        parts = super().get_policy_parts(request, response, report_only)
        if request.path.startswith("/admin/") and not report_only:
            parts.replace = ADMIN_POLICY
        return parts
