"""Rollouts in the admin: who may activate begins, changes and ends them; every step is in the history."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.urls import reverse

from guardrails import selectors, services
from guardrails.cohorts import Subject
from guardrails.models import Policy, PolicyVersion, Rollout
from tests.conftest import PASSWORD, Cast

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]


def document(*words: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "warn", "keywords": list(words)}
    return {"policy": "support", "description": "d", "guardrails": [rule]}


@pytest.fixture
def second(db: None) -> PolicyVersion:
    """Version 2, signed; version 1 is active."""
    services.install(document=document("acme"))
    return services.sign(version=services.publish(policy=services.save_draft(document=document("acme", "heron"))))


@pytest.fixture
def operator(cast: Cast) -> Client:
    cast.operator.user_permissions.add(Permission.objects.get(codename="view_rollout"))
    return signed_in(cast.operator)


def signed_in(user: User) -> Client:
    client = Client()
    assert client.login(username=user.get_username(), password=PASSWORD)
    return client


def page_of(version: PolicyVersion) -> str:
    return reverse("admin:guardrails_rollout_of", args=[version.pk])


def sent(client: Client, version: PolicyVersion, **fields: object) -> str:
    """What the page, or the one that it leads to, says to a form."""
    response = client.post(page_of(version), {"percent": 10, "sample": 50, **fields}, follow=True)
    assert response.status_code == 200
    return unescape(response.content.decode())


def act(client: Client, model: str, action: str, *rows: int) -> Any:
    url = reverse(f"admin:guardrails_{model}_changelist")
    return client.post(url, {"action": action, "_selected_action": [str(row) for row in rows]})


def history(row: PolicyVersion | Rollout) -> list[tuple[str, str]]:
    entries = LogEntry.objects.filter(object_id=str(row.pk), content_type__model=row._meta.model_name).order_by("pk")
    return [(entry.user.get_username(), entry.get_change_message()) for entry in entries]


def test_it_works(operator: Client, second: PolicyVersion, cast: Cast) -> None:
    pilots = Group.objects.create(name="pilots")
    cast.reviewer.groups.add(pilots)
    to_page = act(operator, "policyversion", "roll_out", second.pk)
    assert (to_page.status_code, to_page["Location"]) == (302, page_of(second))
    assert "Begin" in unescape(operator.get(page_of(second)).content.decode())
    limits = {"max_errors": 5, "max_would_have": 20, "sample": 30, "note": "try it"}
    told = sent(operator, second, percent=0, groups=[pilots.pk], **limits)
    rollout = Rollout.objects.get()
    assert "support v2 is rolled out to 0 % of the conversations and the group pilots" in told
    assert (rollout.percent, rollout.groups, rollout.max_errors, rollout.max_would_have) == (0, ["pilots"], 0.05, 0.2)
    assert (rollout.sample, rollout.started_by, rollout.activation.note) == (30, cast.operator, "try it")
    assert selectors.running_policy("support", Subject("c", cast.reviewer.pk)).policy.version == 2
    assert selectors.running_policy("support", Subject("c", cast.author.pk)).policy.version == 1

    to_page = act(operator, "rollout", "change_share", rollout.pk)
    assert to_page["Location"] == page_of(second)
    assert "Change the share" in operator.get(page_of(second)).content.decode()
    assert "100 % of the conversations and the group pilots from now on" in sent(operator, second, percent=100)
    assert selectors.running_policy("support", Subject("c", cast.author.pk)).policy.version == 2

    assert act(operator, "rollout", "end", rollout.pk).status_code == 302
    rollout.refresh_from_db()
    assert (rollout.outcome, rollout.ended_by, rollout.ended_why) == ("ended", cast.operator, "Ended by hand.")
    assert selectors.running_policy("support", Subject("c", cast.reviewer.pk)).policy.version == 1
    steps = [
        ("operator", "support v2 is rolled out to 0 % of the conversations and the group pilots"),
        ("operator", "support v2 is rolled out to 100 % of the conversations and the group pilots from now on"),
        ("operator", "support v2 is not rolled out any more"),
    ]
    assert history(second) == history(rollout) == steps
    shown = unescape(operator.get(reverse("admin:guardrails_policyversion_change", args=[second.pk])).content.decode())
    assert "Activated for rollout with serial 2" in shown
    assert "Rollout ended" in shown


def test_who_may_not_activate_is_refused_each_step_however_it_is_sent(cast: Cast, second: PolicyVersion) -> None:
    rollout = services.begin_rollout(version=second, percent=10)
    look = Permission.objects.get(codename="view_rollout")
    for user in (cast.author, cast.signer, cast.reviewer):
        user.user_permissions.add(look)
        client = signed_in(user)
        assert client.get(page_of(second)).status_code == 403
        assert client.post(page_of(second), {"percent": 100}).status_code == 403
        assert act(client, "policyversion", "roll_out", second.pk).status_code == 403
        for action in ("change_share", "end"):
            assert act(client, "rollout", action, rollout.pk).status_code == 403
    for client in (Client(), signed_in(cast.outsider)):
        assert client.post(page_of(second), {"percent": 100})["Location"].startswith("/admin/login/")
    rollout.refresh_from_db()
    assert (rollout.percent, rollout.outcome) == (10, "running")
    assert history(second) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"percent": 0}, "nobody would run it"),
        ({"percent": 101}, "less than or equal to 100"),
        ({"percent": "nan"}, "Enter a number"),
        ({"max_errors": -1}, "greater than or equal to 0"),
        ({"sample": 0}, "greater than or equal to 1"),
        ({"groups": [999]}, "not one of the available choices"),
        ({"percent": ""}, "required"),
    ],
    ids=str,
)
def test_what_makes_no_rollout_is_refused_on_the_page(
    operator: Client, second: PolicyVersion, fields: dict[str, object], words: str
) -> None:
    assert words in sent(operator, second, **fields)
    assert not Rollout.objects.exists()


def test_version_that_cannot_run_is_refused_with_the_reason(operator: Client, second: PolicyVersion) -> None:
    unsigned = services.publish(policy=services.save_draft(document=document("acme", "other")))
    assert "is not signed" in sent(operator, unsigned)
    first = PolicyVersion.objects.get(number=1)
    assert "is active for everyone" in sent(operator, first)
    sent(operator, second)
    third = services.sign(version=unsigned)
    assert "is being rolled out already" in sent(operator, third)
    assert operator.get(reverse("admin:guardrails_rollout_of", args=[10**6])).status_code == 404
    assert Policy.objects.get().rollout == Rollout.objects.get()


def test_rollouts_are_set_up_one_at_a_time_and_ended_once(operator: Client, second: PolicyVersion) -> None:
    first = PolicyVersion.objects.get(number=1)
    listed = reverse("admin:guardrails_policyversion_changelist")
    assert act(operator, "policyversion", "roll_out", first.pk, second.pk)["Location"].startswith(listed)
    assert "Choose one" in unescape(operator.get(listed).content.decode())
    sent(operator, second)
    rollout = Rollout.objects.get()
    act(operator, "rollout", "end", rollout.pk)
    act(operator, "rollout", "end", rollout.pk)
    rollouts = operator.get(reverse("admin:guardrails_rollout_changelist"))
    assert "does not run any more" in unescape(rollouts.content.decode())
