"""Whoever runs the service sees what is configured, and no secret with it."""

from __future__ import annotations

import pytest
import redis
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from streaming.configured import harmless, shown
from tests.conftest import Cast

pytestmark = pytest.mark.django_db
PAGE = "admin:streaming_configuredprovider_changelist"
SECRETS = {
    "OPENAI_API_KEY": "sk-not-to-be-seen",
    "OPENAI_BASE_URL": "https://someone:pass-not-to-be-seen@llm.example:8443/v1",
    "ANTHROPIC_API_KEY": "ant-not-to-be-seen",
    "ANTHROPIC_TOKEN_S": "never",
    "SLUICEGATE_ANTHROPIC_TOKEN_S": "soon",
    "OLLAMA_HOST": "http://models.example:11434?token=query-not-to-be-seen",
}


@pytest.fixture
def operator(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    user = User.objects.create_user("op", is_staff=True)
    user.groups.add(Group.objects.get(name="Operator"))
    client.force_login(user)
    return client


def test_it_works(operator: Client) -> None:
    page = operator.get(reverse(PAGE)).content.decode()
    assert "https://llm.example:8443/v1 (and a part that is not shown)" in page
    assert "gpt-4o-mini (default)" in page
    assert "30 s to connect, 180 s between two events, 900 s in all" in page
    assert "Not offered: SLUICEGATE_ANTHROPIC_TOKEN_S is a number of seconds" in page
    assert "Cannot be asked: its base URL has a query" in page
    assert "none, it answers from a script" in page


def test_no_secret_is_shown(operator: Client) -> None:
    page = operator.get(reverse(PAGE)).content.decode()
    assert "not-to-be-seen" not in page
    assert "someone" not in page
    assert "not-to-be-seen" not in repr(shown(SECRETS))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://api.example/v1", "https://api.example/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://u:p@host/x?k=s#f", "https://host/x (and a part that is not shown)"),
        ("https://key@host", "https://host (and a part that is not shown)"),
        ("sk-a-key-in-the-wrong-place", "not an http(s) address"),
        ("https://host:secret/", "not an address"),
        ("", "not an http(s) address"),
        ("javascript:alert(1)", "not an http(s) address"),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_secret(url: str, said: str) -> None:
    assert harmless(url) == said


def test_an_open_circuit_is_told(operator: Client, store: redis.Redis) -> None:
    assert {one.name: one.circuit for one in shown(SECRETS) if one.offered}["openai"] == "closed"
    store.hset("sg:breaker:state:{provider:openai}", "state", "open")
    assert {one.name: one.circuit for one in shown(SECRETS) if one.offered}["openai"] == "open"
    assert "Circuit open" in operator.get(reverse(PAGE)).content.decode()


def test_fallbacks_are_shown_in_their_order_with_what_is_wrong(operator: Client, settings: object) -> None:
    settings.SLUICEGATE_FALLBACKS = ["ollama", "openai", "nobody"]  # type: ignore[attr-defined]
    assert {one.name: one.fallback for one in shown(SECRETS)} == {
        "anthropic": 0, "ollama": 1, "openai": 2, "scripted": 0,
    }  # fmt: skip
    assert "which is not offered here" in operator.get(reverse(PAGE)).content.decode()


@pytest.mark.parametrize("who", ["author", "signer", "reviewer", "outsider"])
def test_nobody_else_may_look(operator: Client, cast: Cast, who: str) -> None:
    operator.force_login(getattr(cast, who))
    assert operator.get(reverse(PAGE)).status_code in (302, 403)
    assert "configuredprovider" not in operator.get(reverse("admin:index"), follow=True).content.decode()


def test_nothing_can_be_changed_and_there_is_no_other_page(operator: Client) -> None:
    assert operator.post(reverse(PAGE), {"action": "delete_selected"}).status_code == 403
    assert operator.get(reverse("admin:streaming_configuredprovider_add")).status_code == 403
    for name in ("change", "history", "delete"):
        response = operator.get(reverse(f"admin:streaming_configuredprovider_{name}", args=["openai"]))
        assert response.status_code in (302, 403, 404), name
        assert not response.content or b"openai" not in response.content
