"""The admin shows what was streamed and lets nobody change it."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from streaming import admin
from streaming.models import AuditSession, Finding
from tests.conftest import Cast
from tests.streaming.test_tasks import monitoring

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("demo_policy")]
PAGES = ("auditsession", "finding", "deferredcheck", "conversation")


@pytest.fixture
def auditor(cast: Cast, client: Client) -> Client:
    cast.reviewer.user_permissions.add(
        *Permission.objects.filter(content_type__app_label="streaming", codename__startswith="view_")
    )
    client.force_login(cast.reviewer)
    return client


def test_it_works(auditor: Client) -> None:
    started, _ = monitoring()
    for page in PAGES:
        assert auditor.get(reverse(f"admin:streaming_{page}_changelist")).status_code == 200
    detail = auditor.get(reverse("admin:streaming_auditsession_change", args=[started.session_id]))
    assert detail.status_code == 200
    assert b"harm" in detail.content
    assert b"sealed" not in detail.content


def test_of_many_findings_the_first_are_rows_and_all_are_counted(
    auditor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "FINDINGS_SHOWN", 2)
    started, _ = monitoring()
    for n in range(1, 6):
        Finding.objects.create(
            session_id=started.session_id, n=n, guardrail=f"rule-{n}", kind="pii", channel="text", start=0, end=1,
            mode="BLOCK", action="warn",
        )  # fmt: skip
    page = auditor.get(reverse("admin:streaming_auditsession_change", args=[started.session_id])).content.decode()
    assert [name for name in ("rule-1", "rule-2", "rule-3", "rule-5") if name in page] == ["rule-1", "rule-2"]
    assert "5; the first 2 are below" in page


def test_timeline_is_a_line_and_not_a_page_of_numbers(auditor: Client) -> None:
    started, _ = monitoring()
    points = [[ms, 3] for ms in range(20, 2020, 20)]
    timing = {"type": "timing", "arrivals": points, "releases": [[2100, 300]]}
    AuditSession.objects.filter(pk=started.session_id).update(timing=timing)
    page = auditor.get(reverse("admin:streaming_auditsession_change", args=[started.session_id])).content.decode()
    assert "100 arrivals, the first after 20 ms; 1 release, the first after 2.1 s" in page
    assert "at most 300 characters held" in page
    assert "1980" not in page


def test_outsider_sees_nothing_and_a_superuser_changes_nothing(client: Client, cast: Cast) -> None:
    started, check = monitoring()
    client.force_login(cast.outsider)
    assert client.get(reverse("admin:streaming_auditsession_changelist")).status_code == 302
    client.force_login(User.objects.create_superuser("root", password="x" * 12))
    for page, pk in (("auditsession", started.session_id), ("deferredcheck", check.pk)):
        assert client.get(reverse(f"admin:streaming_{page}_add")).status_code == 403
        change = reverse(f"admin:streaming_{page}_change", args=[pk])
        assert client.post(change, {"state": "COMPLETE"}).status_code == 403
        assert client.post(reverse(f"admin:streaming_{page}_delete", args=[pk]), {"post": "yes"}).status_code == 403
