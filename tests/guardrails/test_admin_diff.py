"""The page of differences: every change is on it, as text, and nobody sees it who may not see the versions."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse

from guardrails import services
from guardrails.models import Policy, PolicyVersion
from tests.conftest import PASSWORD, Cast

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]
MARKUP = "<img src=x onerror=alert(1)>"


def document(**patterns: str) -> dict[str, Any]:
    rules = [{"id": id_, "pattern": pattern} for id_, pattern in patterns.items()]
    return {"policy": "support", "guardrails": [{"name": "codes", "kind": "regex", "config": {"rules": rules}}]}


def published(written: dict[str, Any]) -> PolicyVersion:
    return services.publish(policy=services.save_draft(document=written))


def client_of(user: object) -> Client:
    client = Client()
    client.force_login(user)  # type: ignore[arg-type]
    return client


def markup(client: Client, old: object = "", new: object = "") -> str:
    asked = {name: value for name, value in (("old", old), ("new", new)) if value}
    response = client.get(reverse("admin:guardrails_policy_diff", args=[Policy.objects.get().pk]), asked)
    assert response.status_code == 200
    return response.content.decode()


def test_it_works(cast: Cast) -> None:
    first, _, third = (published(document(a=word)) for word in ("one", "two", "three"))
    signer = client_of(cast.signer)
    for old, new, before, after in ((1, 2, "one", "two"), (1, 3, "one", "three"), (3, 1, "three", "one")):
        text = unescape(markup(signer, old, new))
        assert f'"{before}"' in text
        assert f'"{after}"' in text
        assert "1 difference" in text
    assert "Nothing differs." in markup(signer, 2, 2)
    services.activate(version=services.sign(version=first))
    shown = unescape(markup(signer))
    assert '"one"' in shown, "what is active stands first"
    assert '"three"' in shown
    change = signer.get(reverse("admin:guardrails_policyversion_change", args=[third.pk])).content.decode()
    assert f"{reverse('admin:guardrails_policy_diff', args=[first.policy_id])}?old=1&amp;new=3" in change


def test_a_draft_is_compared_with_what_is_active(cast: Cast) -> None:
    services.activate(version=services.sign(version=published(document(a="one"))))
    services.save_draft(document=document(a="one", b="added here"))
    text = unescape(markup(client_of(cast.author)))
    assert "Draft" in text
    assert '"pattern": "added here"' in text


def test_markup_in_a_rule_is_text(cast: Cast) -> None:
    published(document(a="one"))
    second = document(a=MARKUP)
    second["description"] = MARKUP
    second["guardrails"].append({"name": "words", "kind": "keywords", "keywords": [MARKUP], "action": "warn"})
    published(second)
    shown = markup(client_of(cast.signer), 1, 2)
    assert MARKUP not in shown
    assert unescape(shown).count(MARKUP) == 3, "description, pattern and word"


def test_rules_that_look_the_same_are_told_apart(cast: Cast) -> None:
    published(document(a="blue heron"))
    published(document(a="blue\u202eheron\u200b"))
    shown = unescape(markup(client_of(cast.signer), 1, 2))
    assert r'"blue\u202eheron\u200b"' in shown
    assert "\u202e" not in shown
    assert "\u200b" not in shown


def test_names_that_are_not_offered_are_said_and_nothing_is_compared(cast: Cast) -> None:
    published(document(a="one"))
    for old in ("9", "draft", "-1", "1;drop", "\u0661", "9" * 30):
        assert "There is no such version" in markup(client_of(cast.signer), old, "1")


def test_an_altered_version_that_cannot_be_read_is_said(cast: Cast) -> None:
    published(document(a="one"))
    version = published(document(a="two"))
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER IF EXISTS guardrails_version_stays")
        cursor.execute("update guardrails_policyversion set canonical = '{}' where id = %s", [version.pk])
    signer = client_of(cast.signer)
    assert "version 2 cannot be read" in markup(signer, 1, 2)
    shown = signer.get(reverse("admin:guardrails_policyversion_change", args=[version.pk]))
    assert "It cannot be read; it was altered." in shown.content.decode()


def test_who_may_not_see_versions_sees_no_difference(cast: Cast) -> None:
    published(document(a="one"))
    address = reverse("admin:guardrails_policy_diff", args=[Policy.objects.get().pk])
    cast.outsider.is_staff = True
    cast.outsider.save()
    outsider = Client()
    assert outsider.get(address).status_code == 302
    assert outsider.login(username=cast.outsider.username, password=PASSWORD)
    assert outsider.get(address).status_code == 403
