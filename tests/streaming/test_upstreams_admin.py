"""Upstreams in the admin: the key goes in and never comes out, and no row makes this server talk to its own house."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from streaming.audit.services import rotate_texts
from streaming.models import Upstream
from streaming.providers.base import TimeLimits
from streaming.providers.http import HttpProvider
from streaming.upstreams import offered_now
from tests.streaming.test_checks_admin import signed_in

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("demo_policy")]
KEY = "house-key-4711"
LIST, ADD, CHANGE = (f"admin:streaming_upstream_{page}" for page in ("changelist", "add", "change"))
FORM = {"name": "house", "dialect": "openai", "base_url": "http://127.0.0.1:9/v1/", "model_names": "small\nlarge\n",
        "fallback": "0", "at_once": "4", "enabled": "on"}  # fmt: skip


@pytest.fixture(autouse=True)
def allowed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SLUICEGATE_HOOK_HOSTS = ["127.0.0.1"]
    settings.SLUICEGATE_FALLBACKS = []
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


def stored() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT key FROM streaming_upstream")
        return str(cursor.fetchone()[0])


def test_it_works(client: Client) -> None:
    """An operator's upstream is offered; its key stands in no page, in no history and not in its column."""
    signed_in(client, "Operator")
    assert client.post(reverse(ADD), FORM | {"new_key": KEY}).status_code == 302
    row = Upstream.objects.get()
    assert (row.base_url, row.listed, row.key) == ("http://127.0.0.1:9/v1", ("small", "large"), KEY)
    pages = [client.get(reverse(LIST)), client.get(reverse(CHANGE, args=[row.pk])),
             client.get(reverse("admin:streaming_upstream_history", args=[row.pk])),
             client.post(reverse(CHANGE, args=[row.pk]), FORM | {"new_key": KEY, "fallback": "x"})]  # fmt: skip
    assert [page.status_code for page in pages] == [200] * 4
    assert not any(KEY in page.content.decode() for page in pages)
    assert KEY not in str([*LogEntry.objects.values()])
    assert stored().startswith("sg1:")
    assert KEY not in stored()
    assert row.at_once == 4
    found = offered_now()
    assert found.models["house"] == ("small", "large")
    assert found.providers["house"].called == "house"


def test_a_key_stays_until_another_one_comes_or_it_is_to_be_forgotten(client: Client) -> None:
    signed_in(client, "Operator")
    client.post(reverse(ADD), FORM | {"new_key": KEY})
    row = Upstream.objects.get()
    for more, key in (
        ({"model_names": "small"}, KEY),
        ({"new_key": "other-key"}, "other-key"),
        ({"remove_key": "on"}, ""),
    ):
        assert client.post(reverse(CHANGE, args=[row.pk]), FORM | more).status_code == 302
        row.refresh_from_db()
        assert (row.key, row.name) == (key, "house")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "openai"), ("name", "a/b"), ("base_url", "ftp://127.0.0.1"), ("base_url", "http://u:p@127.0.0.1/v1"),
        ("base_url", "http://127.0.0.2/v1"), ("base_url", "http://169.254.169.254/latest"), ("model_names", " \n"),
        ("connect_s", "0"), ("token_s", "a day"), ("total_s", "86401"), ("total_s", "nan"),
        ("new_key", "two words"), ("new_key", "clé"), ("dialect", "other"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(client: Client, field: str, value: str) -> None:
    signed_in(client, "Operator")
    page = client.post(reverse(ADD), FORM | {field: value})
    assert page.status_code == 200
    assert page.context["adminform"].form.errors.keys() == {field}
    assert not Upstream.objects.exists()


def test_an_upstream_has_time_limits_of_its_own_and_the_usual_ones_where_it_names_none(client: Client) -> None:
    signed_in(client, "Operator")
    for more, limits in (
        ({}, TimeLimits()),
        ({"token_s": "600"}, TimeLimits(token_s=600)),
        ({"connect_s": "2.5", "token_s": "9", "total_s": "60"}, TimeLimits(2.5, 9, 60)),
        ({"connect_s": "", "token_s": "", "total_s": ""}, TimeLimits()),
    ):
        row = Upstream.objects.first()
        page = reverse(CHANGE, args=[row.pk]) if row else reverse(ADD)
        assert client.post(page, FORM | more).status_code == 302
        provider = offered_now().providers["house"]
        assert isinstance(provider, HttpProvider)
        assert provider.limits == limits


@pytest.mark.parametrize("group", ["Author", "Signer", "Reviewer", "Auditor"])
def test_nobody_else_may(client: Client, group: str) -> None:
    signed_in(client, group)
    assert client.get(reverse(LIST)).status_code == 403
    assert client.post(reverse(ADD), FORM | {"new_key": KEY}).status_code == 403
    assert not Upstream.objects.exists()


def test_fallbacks_stand_in_the_order_of_the_settings_and_then_of_the_rows(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    settings.SLUICEGATE_FALLBACKS = ["named", "openai"]
    for name, place in (("late", 2), ("early", 1), ("never", 0), ("named", 0), ("off", 1)):
        Upstream.objects.create(
            name=name, dialect="ollama", base_url="http://h", model_names="m", fallback=place, enabled=name != "off"
        )
    Upstream.objects.create(name="openai", dialect="ollama", base_url="http://h", model_names="m", fallback=1)
    found = offered_now()
    assert found.fallbacks == ("named", "openai", "early", "late")
    assert found.providers["openai"].name == "openai", "a row took the place of the environment's provider"


def test_a_key_that_cannot_be_opened_is_not_sent_anywhere() -> None:
    Upstream.objects.create(name="house", dialect="openai", base_url="http://h", model_names="m", key=KEY)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE streaming_upstream SET key = 'sg1:gone'")
    assert "house" not in offered_now().providers


def test_keys_are_rotated_with_the_texts(settings: Settings) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.SLUICEGATE_TEXT_KEYS = [old]
    Upstream.objects.create(name="house", dialect="openai", base_url="http://h", model_names="m", key=KEY)
    settings.SLUICEGATE_TEXT_KEYS = [new, old]
    rotate_texts()
    settings.SLUICEGATE_TEXT_KEYS = [new]
    assert Upstream.objects.get().key == KEY
