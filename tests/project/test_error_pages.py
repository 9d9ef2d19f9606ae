"""What a visitor sees where there is no page, when a form or a page is refused or fails: our look, and no database."""

from __future__ import annotations

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.test import Client
from django.urls import path

from project import urls

SECRET = "123-45-6789"


def boom(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(SECRET)


def not_yours(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied(SECRET)


urlpatterns = [path("boom", boom), path("not-yours", not_yours), *urls.urlpatterns]


def look(response: HttpResponse) -> str:
    """The page as text, which has the look of all others."""
    body: str = response.content.decode()
    assert response.headers["Content-Type"].startswith("text/html")
    for part in ("css/sluicegate.css", "css/said.css", "js/theme.js", "js/colours.js"):
        assert part in body
    for part in ('class="brand-name"', 'id="theme"', 'href="#main"', '<main id="main" class="said"'):
        assert part in body
    assert body.count("<h1") == 1
    return body


def test_it_works(client: Client) -> None:
    response = client.get("/no/such/<script>page")
    assert response.status_code == 404
    body = look(response)
    assert "There is no such page" in body
    for place in ("/", "/compare/", "/welcome/"):
        assert f'href="{place}"' in body
    assert "<script>page" not in body


def test_a_forged_form_is_told_what_to_do() -> None:
    response = Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "root", "password": "x"})
    assert response.status_code == 403
    body = look(response)
    assert "nothing was changed" in body
    assert "load the page again" in body


@pytest.mark.urls(__name__)
def test_who_may_not_open_a_page_is_told_so(client: Client) -> None:
    response = client.get("/not-yours")
    assert response.status_code == 403
    body = look(response)
    assert 'data-refused="permission"' in body
    assert SECRET not in body


@pytest.mark.urls(__name__)
def test_a_page_that_fails_says_so_and_nothing_of_why() -> None:
    response = Client(raise_request_exception=False).get("/boom")
    assert response.status_code == 500
    body = look(response)
    assert "Something failed here" in body
    assert SECRET not in body
    assert "RuntimeError" not in body


@pytest.mark.urls("tests.project.urls_that_are_not_there")
def test_the_page_of_a_failure_needs_no_address_and_no_context() -> None:
    assert "Something failed here" in render_to_string("500.html")
    with pytest.raises(ModuleNotFoundError):
        render_to_string("404.html")
