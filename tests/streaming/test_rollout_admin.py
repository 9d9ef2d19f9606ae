"""The admin's page of flags, and the record of what they led to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from channels.db import database_sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import AsyncClient, Client
from django.urls import NoReverseMatch, reverse

from streaming import rollout
from streaming.core.events import ProviderChosen, ProviderNotice
from streaming.flags import RolloutFlag, Stage
from streaming.models import AuditSession
from streaming.providers.base import ProviderRequest
from streaming.rollout import Decision, Subject, decide
from tests.conftest import Cast
from tests.guardrails.fields import Fields
from tests.streaming.pumping import trial

pytestmark = pytest.mark.django_db
LIST = "admin:streaming_rolloutflag_changelist"
DOCS = Path(rollout.__file__).resolve().parent.parent / "docs" / "rollout.md"


@pytest.fixture
def operator(cast: Cast, client: Client) -> Client:
    own = Permission.objects.filter(content_type__app_label="streaming", codename__endswith="_rolloutflag")
    cast.operator.user_permissions.add(*own.exclude(codename__startswith="delete"))
    client.force_login(cast.operator)
    return client


def test_it_works(operator: Client) -> None:
    add = reverse("admin:streaming_rolloutflag_add")
    form = Fields(operator.get(add).content.decode()).data()
    said = {"name": "streaming", "stage": "long", "percent": "25.0"}
    added = operator.post(add, {**form, **said})
    assert added.status_code == 302, re.findall(r"errorlist.*", added.content.decode())
    flag = RolloutFlag.objects.get()
    assert (flag.everyone, flag.stage, float(flag.percent or 0)) == (None, Stage.LONG, 25.0)


def test_the_form_as_it_is_shown_can_be_saved_with_one_field_changed(operator: Client) -> None:
    flag = RolloutFlag.objects.create(name="streaming", everyone=True, percent=10)
    flag.users.add(User.objects.get(username="outsider"))
    change = reverse("admin:streaming_rolloutflag_change", args=[flag.pk])
    page = operator.get(change).content.decode()
    assert "the share of conversations" in page
    assert "of users for whom" not in page
    saved = operator.post(change, {**Fields(page).data(), "everyone": "false"})
    assert saved.status_code == 302, re.findall(r"errorlist.*", saved.content.decode())
    flag.refresh_from_db()
    assert (flag.everyone, float(flag.percent or 0)) == (False, 10.0)
    assert [user.username for user in flag.users.all()] == ["outsider"]


def test_off_for_everyone_is_one_action_and_is_logged(operator: Client) -> None:
    flag = RolloutFlag.objects.create(name="streaming", everyone=True)
    assert decide(Subject("c"), ProviderRequest(())) == Decision(True)
    operator.post(reverse(LIST), {"action": "disable_for_all", "_selected_action": [flag.pk]})
    assert decide(Subject("c"), ProviderRequest(())) == Decision(False, "flag_off")
    assert LogEntry.objects.filter(object_id=str(flag.pk)).count() == 1


def test_who_may_look_may_not_switch_and_an_outsider_sees_nothing(client: Client, cast: Cast) -> None:
    flag = RolloutFlag.objects.create(name="streaming", everyone=True)
    switch = {"action": "disable_for_all", "_selected_action": [flag.pk]}
    cast.reviewer.user_permissions.add(Permission.objects.get(codename="view_rolloutflag"))
    client.force_login(cast.reviewer)
    assert client.get(reverse(LIST)).status_code == 200
    client.post(reverse(LIST), switch)
    client.force_login(cast.outsider)
    assert client.get(reverse(LIST)).status_code == 302
    client.post(reverse(LIST), switch)
    flag.refresh_from_db()
    assert flag.everyone is True


def test_there_are_no_pages_for_flags_that_nothing_reads() -> None:
    for name in ("flag", "switch", "sample"):
        with pytest.raises(NoReverseMatch):
            reverse(f"admin:waffle_{name}_changelist")


def test_the_audit_list_shows_and_filters_the_reason(client: Client, cast: Cast) -> None:
    AuditSession.objects.create(streaming=True, provider="one")
    AuditSession.objects.create(streaming=False, fallback="flag_off", provider="two")
    cast.reviewer.user_permissions.add(Permission.objects.get(codename="view_auditsession"))
    client.force_login(cast.reviewer)
    shown = client.get(reverse("admin:streaming_auditsession_changelist"), {"fallback": "flag_off"})
    assert shown.status_code == 200
    assert [row.provider for row in shown.context["cl"].queryset] == ["two"]
    assert "flag_off" in shown.content.decode()


@pytest.mark.django_db(transaction=True)
async def test_the_sessions_page_shows_what_was_tried_again(async_client: AsyncClient) -> None:
    again = ProviderNotice("provider_unavailable", "it is down; trying again", 1, 1.0)
    session = await trial([ProviderChosen("alpha", True), again, again, "hello"])
    await session.pump.run()
    (metadata,) = [e["metadata"] for e in await session.of("message_update") if e["message_id"] == session.answer_id]
    assert metadata["notices"] == [["alpha", "provider_unavailable", 2]]  # type: ignore[index]
    root = await database_sync_to_async(User.objects.create_superuser)("root")
    await async_client.aforce_login(root)
    page = await async_client.get(reverse("admin:streaming_auditsession_change", args=[session.session_id]))
    assert "alpha: provider_unavailable × 2" in page.content.decode()


def test_the_documentation_names_every_reason_and_every_stage() -> None:
    text = DOCS.read_text("utf-8")
    table = text.split("## What is recorded")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(rollout.REASONS)
    assert all(f"| {label} |" in text for label in Stage.labels)
