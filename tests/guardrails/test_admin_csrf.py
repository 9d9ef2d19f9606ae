"""Every address of the admin that takes a POST, called from somebody else's page: refused, and nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import Model
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import URLPattern, reverse
from django.urls.resolvers import RoutePattern

from guardrails import services
from guardrails.models import Policy, PolicyVersion
from tests.conftest import PASSWORD
from tests.streaming.test_audit_chain import session

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]
Address = tuple[str, dict[str, object]]
FOREIGN = {"Origin": "https://evil.example"}
OF_THE_SITE = ("login", "logout", "password_change")
OF_THE_PAGES = (
    "/admin/guardrails/policy/lint/",
    "/admin/guardrails/rollout/of/{version}/",
    "/admin/streaming/shadowedpolicy/{policy}/begin/",
    "/admin/streaming/shadowedpolicy/{policy}/end/",
    "/admin/auth/user/{user}/password/",
)
"""Forms beside the usual ones; written down, so that the walk below cannot miss one unseen."""


@pytest.fixture
def root(db: None) -> User:
    """May do everything, and stands before a draft, a signed version, a key and a finished session."""
    rule = {"name": "words", "kind": "keywords", "action": "warn", "keywords": ["acme"]}
    document = {"policy": "support", "description": "d", "guardrails": [rule]}
    services.install(document=document)
    services.save_draft(document={**document, "description": "another"})
    services.create_api_key(name="one", scopes=["check"])
    session()
    return User.objects.create_superuser("root", password=PASSWORD)


@pytest.fixture
def strict(root: User) -> Client:
    client = Client(enforce_csrf_checks=True)
    client.force_login(root)
    return client


def key_of(model: type[Model]) -> str:
    """Of the first row, where there is a table and one stands in it."""
    first = model._default_manager.values_list("pk", flat=True).first() if model._meta.managed else None
    return str(first or 1)


def addresses(root: User) -> Iterator[Address]:
    """Each address under ``/admin/``, with what a forged form would send there: every action of every list, too."""
    asking = RequestFactory().get("/admin/")
    asking.user = root
    for model, page in admin.site._registry.items():
        base = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        rows = [key_of(model)]
        for pattern in page.get_urls():
            assert isinstance(pattern, URLPattern)
            assert isinstance(pattern.pattern, RoutePattern), pattern
            own = str(pattern.pattern).replace("<int:version_id>", key_of(PolicyVersion))
            yield base + re.sub(r"<[^>]+>", rows[0], own), {}
        for action in page.get_actions(asking):
            yield base, {"action": action, "_selected_action": rows, "post": "yes"}
    for name in OF_THE_SITE:
        yield reverse(f"admin:{name}"), {}


def counts() -> dict[str, int]:
    """How many rows stand in each table."""
    return {model._meta.label: model._default_manager.count() for model in apps.get_models() if model._meta.managed}


def forged(response: HttpResponse) -> bool:
    """Refused as forged, not for some other reason."""
    return response.status_code == 403 and b'data-refused="forged"' in response.content


def test_it_works(strict: Client) -> None:
    address = reverse("admin:guardrails_policy_changelist")
    assert strict.get(address).status_code == 200
    token = {"csrfmiddlewaretoken": strict.cookies["csrftoken"].value}
    form = {"action": "publish", "_selected_action": [str(Policy.objects.get().pk)], **token}
    assert forged(strict.post(address, form, headers=FOREIGN))
    assert PolicyVersion.objects.count() == 1
    assert strict.post(address, form).status_code == 302
    assert PolicyVersion.objects.count() == 2


def test_no_address_takes_a_forged_post(strict: Client, root: User) -> None:
    before = counts()
    asked = list(addresses(root))
    taken = [
        (address, form, response.status_code)
        for address, form in asked
        for headers in ({}, FOREIGN)
        if not forged(response := strict.post(address, form, headers=headers))
    ]
    assert taken == []
    assert counts() == before


def test_the_walk_finds_every_form(root: User) -> None:
    asked = list(addresses(root))
    found = {address for address, _ in asked}
    keys = {"version": PolicyVersion.objects.get().pk, "policy": Policy.objects.get().pk, "user": root.pk}
    assert {address.format(**keys) for address in OF_THE_PAGES} <= found
    assert {"/admin/guardrails/policy/add/", f"/admin/guardrails/policy/{keys['policy']}/change/"} <= found
    actions = {(address, form["action"]) for address, form in asked if form}
    for model, action in (
        ("guardrails/policy", "publish"),
        ("guardrails/policyversion", "sign"), ("guardrails/policyversion", "activate"),
        ("guardrails/policyversion", "roll_out"), ("guardrails/rollout", "end"), ("guardrails/apikey", "revoke"),
        ("streaming/demotion", "lift"), ("streaming/deferredcheck", "queue_again"),
    ):  # fmt: skip
        assert (f"/admin/{model}/", action) in actions
