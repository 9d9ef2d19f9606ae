"""Who may open which page of the audit review.

Exists so that a permission is asked for in one place, before anything is read. Protects the rule that a page is refused
however it is asked for: whoever is not signed in is sent to sign in, whoever may not gets 403 and nothing else, and
what is shown is kept by no cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, cast

from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.cache import add_never_cache_headers
from django_htmx.http import HttpResponseClientRefresh

SESSIONS = ("streaming.view_auditsession", "streaming.view_finding")
REVIEWS = (*SESSIONS, "streaming.view_review")
REVIEW = (*REVIEWS, "streaming.add_review")
REVEAL = (*SESSIONS, "streaming.reveal_text")
EXAMPLE = (*REVIEWS, "guardrails.change_policy")
LOG = ("streaming.view_auditentry",)

P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def needs(*permissions: str) -> Callable[[View[P]], View[P]]:
    """Only for people who have all of ``permissions``."""

    def guarded(view: View[P]) -> View[P]:
        @wraps(view)
        def asked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not request.user.is_authenticated:
                if is_fragment(request):  # a login page has no place in the middle of a list
                    return HttpResponseClientRefresh()
                return redirect_to_login(request.get_full_path())
            if not request.user.has_perms(permissions):
                return _kept_by_nobody(refused(request))
            return _kept_by_nobody(view(request, *args, **kwargs))

        return asked

    return guarded


def refused(request: HttpRequest, why: str = "") -> HttpResponse:
    """403, with a page that says so."""
    return render(request, "audit/refused.html", {"why": why, "may": abilities(request)}, status=403)


def abilities(request: HttpRequest) -> dict[str, bool]:
    """What templates ask: which pages and steps are there for this visitor."""
    user = request.user
    return {
        "sessions": user.has_perms(SESSIONS),
        "reviews": user.has_perms(REVIEWS),
        "review": user.has_perms(REVIEW),
        "reveal": user.has_perms(REVEAL),
        "example": user.has_perms(EXAMPLE),
        "log": user.has_perms(LOG),
    }


def person(request: HttpRequest) -> User:
    """Who is signed in; ``needs`` has seen to it."""
    return cast("User", request.user)


def is_fragment(request: HttpRequest) -> bool:
    """Asked for by htmx, for a part of the page."""
    return request.headers.get("HX-Request") == "true"


def _kept_by_nobody(response: HttpResponseBase) -> HttpResponseBase:
    add_never_cache_headers(response)
    return response
