"""What every answer carries: a Content-Security-Policy, a correlation id; and how static files are cached."""

from __future__ import annotations

import json
import re
from contextlib import closing
from http.cookies import SimpleCookie

import pytest
from asgiref.sync import AsyncToSync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings
from django.contrib import messages
from django.contrib.sessions.backends.db import SessionStore
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, JsonResponse
from django.test import AsyncClient, Client
from django.urls import path

pytestmark = pytest.mark.django_db


def directives(header: str) -> dict[str, list[str]]:
    return {name: sources for name, *sources in (part.split() for part in header.split(";"))}


@pytest.mark.usefixtures("demo_policy")
def test_it_works(client: Client, settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    response = client.get("/")
    assert response.status_code == 200
    policy = directives(response.headers["Content-Security-Policy"])
    assert policy["default-src"] == ["'none'"]
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Correlation-ID"])


@pytest.mark.parametrize("path", ["/health", "/no/such/page", "/static/css/sluicegate.css", "/administration/"])
def test_nothing_outside_the_admin_may_run_inline_code(client: Client, path: str) -> None:
    with closing(client.get(path)) as response:  # a static file is open until its answer is closed
        policy = directives(response.headers["Content-Security-Policy"])
    for name in ("script-src", "style-src"):
        assert not {"'unsafe-inline'", "'unsafe-eval'"} & set(policy[name])
    assert {source for sources in policy.values() for source in sources} <= {"'self'", "'none'", "data:"}


def test_the_admin_may_and_loads_nothing_from_elsewhere_either(client: Client) -> None:
    policy = directives(client.get("/admin/login/").headers["Content-Security-Policy"])
    assert "'unsafe-eval'" in policy["script-src"]
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
    allowed = {"'self'", "'none'", "data:", "'unsafe-inline'", "'unsafe-eval'"}
    assert {source for sources in policy.values() for source in sources} <= allowed


async def test_a_given_correlation_id_comes_back(async_client: AsyncClient) -> None:
    response = await async_client.get("/health", headers={"X-Correlation-ID": "order-4711.retry_2"})
    assert response.headers["X-Correlation-ID"] == "order-4711.retry_2"


@pytest.mark.parametrize(
    "given", ["short", "a" * 65, "with space in it", "line\nbreak-in-it", "<script>alert</script>"]
)
async def test_an_id_that_could_forge_log_lines_is_replaced(async_client: AsyncClient, given: str) -> None:
    response = await async_client.get("/health", headers={"X-Correlation-ID": given})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Correlation-ID"])


def test_static_files_are_asked_for_again_and_not_sent_again(client: Client) -> None:
    first = client.get("/static/css/sluicegate.css")
    assert first.status_code == 200
    assert "max-age=0" in first.headers["Cache-Control"]
    again = client.get("/static/css/sluicegate.css", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert b"".join(again) == b""  # type: ignore[call-overload]
    first.close()
    again.close()


async def _beneath(request: HttpRequest) -> JsonResponse:
    """Where a view is: does a thread wait for it?"""
    request.session["seen"] = "yes"
    messages.info(request, "Said in the loop.")
    return JsonResponse({"a thread waits": bool(getattr(AsyncToSync.executors, "current", None))})


urlpatterns = [path("beneath", _beneath), path("static/away", _beneath)]


@pytest.mark.django_db(transaction=True)
async def test_no_thread_waits_while_a_call_is_answered(settings: object) -> None:
    """Neither Django's own steps nor the static files take a request out of the loop; what they store is stored."""
    settings.ROOT_URLCONF = __name__  # type: ignore[attr-defined]
    server = ApplicationCommunicator(
        ASGIHandler(),
        {"type": "http", "http_version": "1.1", "method": "GET", "path": "/beneath", "query_string": b"",
         "headers": [(b"host", b"localhost")]},
    )  # fmt: skip
    await server.send_input({"type": "http.request", "body": b""})
    head = await server.receive_output(20)
    body = await server.receive_output(20)
    assert json.loads(body["body"]) == {"a thread waits": False}
    cookies = SimpleCookie()
    for name, value in head["headers"]:
        if name.lower() == b"set-cookie":
            cookies.load(value.decode())
    key = cookies[django_settings.SESSION_COOKIE_NAME].value
    stored = await sync_to_async(SessionStore(key).load)()
    assert stored["seen"] == "yes"
    assert "messages" in cookies
    assert dict(head["headers"])[b"X-Frame-Options"] == b"DENY"
    await server.wait(20)
