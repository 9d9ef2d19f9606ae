"""A deferred check is handed on by who may, where it makes sense, and it is known who did it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from streaming import tasks
from streaming.breakers import NOT_ASKED
from streaming.conf import conf
from streaming.models import AuditSession, DeferredCheck
from tests.streaming.test_tasks import monitoring

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("demo_policy")]
LIST = "admin:streaming_deferredcheck_changelist"
LONG_AGO = timedelta(days=1)


def signed_in(client: Client, group: str) -> User:
    user = User.objects.create_user(group.lower(), is_staff=True)
    user.groups.add(Group.objects.get(name=group))
    client.force_login(user)
    return user


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []

    def queue(check_id: int) -> bool:
        asked.append(check_id)
        return True

    monkeypatch.setattr(tasks, "queue_check", queue)
    return asked


def ask(client: Client, *checks: DeferredCheck) -> str:
    form = {"action": "queue_again", "_selected_action": [check.pk for check in checks]}
    response = client.post(reverse(LIST), form, follow=True)
    assert response.status_code == 200
    return response.content.decode()


def test_it_works(client: Client, queued: list[int]) -> None:
    operator = signed_in(client, "Operator")
    started, check = monitoring()
    DeferredCheck.objects.filter(pk=check.pk).update(queued_at=timezone.now() - LONG_AGO)
    assert "handed to the workers again" in ask(client, check)
    assert queued == [check.pk]
    check.refresh_from_db()
    assert check.state == "waiting"
    assert timezone.now() - check.queued_at < LONG_AGO
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id) == (operator, str(check.pk))
    assert AuditSession.objects.get(pk=started.session_id).state == "MONITORING"


def test_checks_behind_an_open_circuit_can_be_found(client: Client) -> None:
    signed_in(client, "Operator")
    (_, held), (_, other) = monitoring(), monitoring()
    DeferredCheck.objects.filter(pk=held.pk).update(error=f"{NOT_ASKED}; trying again")
    shown = client.get(reverse(LIST), {"circuit": "open"}).content.decode()
    assert "Circuit open</td>" in shown
    assert str(held.session_id) in shown
    assert str(other.session_id) not in shown
    assert str(other.session_id) in client.get(reverse(LIST)).content.decode()


@pytest.mark.parametrize("state", ["passed", "hit", "would_block", "error", "timeout", "expired"])
def test_what_has_ended_stays_as_it_is(client: Client, queued: list[int], state: str) -> None:
    signed_in(client, "Operator")
    _, check = monitoring()
    DeferredCheck.objects.filter(pk=check.pk).update(state=state, sealed_text=None)
    assert "has ended" in ask(client, check)
    assert (queued, DeferredCheck.objects.get().state, LogEntry.objects.count()) == ([], state, 0)


def test_what_a_worker_holds_is_not_taken_from_it(client: Client, queued: list[int]) -> None:
    signed_in(client, "Operator")
    _, check = monitoring()
    DeferredCheck.objects.filter(pk=check.pk).update(state="checking", started_at=timezone.now(), attempts=1)
    assert "a worker has been making it since" in ask(client, check)
    assert (queued, DeferredCheck.objects.get().state) == ([], "checking")


def test_what_a_dead_worker_held_is_handed_on_as_often_as_it_may(client: Client, queued: list[int]) -> None:
    signed_in(client, "Operator")
    _, check = monitoring()
    held = DeferredCheck.objects.filter(pk=check.pk)
    held.update(state="checking", started_at=timezone.now() - LONG_AGO, attempts=conf().check_attempts)
    assert "attempts are used up" in ask(client, check)
    assert queued == []
    held.update(attempts=conf().check_attempts - 1)
    ask(client, check)
    assert (queued, DeferredCheck.objects.get().state) == ([check.pk], "waiting")


def test_workers_that_cannot_be_reached_are_told_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "queue_check", lambda check_id: False)
    signed_in(client, "Operator")
    _, check = monitoring()
    assert "queue cannot be reached" in ask(client, check)
    assert (DeferredCheck.objects.get().state, LogEntry.objects.count()) == ("waiting", 0)


@pytest.mark.parametrize(("group", "looks"), [("Auditor", 200), ("Reviewer", 403), ("Author", 403), ("Signer", 403)])
def test_nobody_else_may(client: Client, queued: list[int], group: str, looks: int) -> None:
    signed_in(client, group)
    _, check = monitoring()
    assert client.get(reverse(LIST)).status_code == looks
    form = {"action": "queue_again", "_selected_action": [check.pk]}
    assert client.post(reverse(LIST), form).status_code == 403
    assert queued == []


def test_a_forged_post_does_nothing(queued: list[int]) -> None:
    client = Client(enforce_csrf_checks=True)
    signed_in(client, "Operator")
    _, check = monitoring()
    form = {"action": "queue_again", "_selected_action": [check.pk]}
    assert client.post(reverse(LIST), form).status_code == 403
    assert queued == []


def test_the_list_is_narrowed_by_state_and_tells_no_text(client: Client) -> None:
    signed_in(client, "Operator")
    first, check = monitoring()
    second, _ = monitoring()
    DeferredCheck.objects.filter(pk=check.pk).update(state="error", error="<b>gone</b>", result={"took_ms": 12.5})
    page = client.get(reverse(LIST), {"state__exact": "error"}).content.decode()
    assert first.session_id in page
    assert second.session_id not in page
    assert "&lt;b&gt;gone" in page
    assert "12\u00a0ms" in page
    assert "poison" not in client.get(reverse(LIST)).content.decode()
    detail = client.get(reverse("admin:streaming_deferredcheck_change", args=[check.pk])).content.decode()
    assert "poison" not in detail


def test_a_long_list_takes_as_many_queries_as_a_short_one(client: Client) -> None:
    signed_in(client, "Operator")
    found = []
    for _ in range(2):
        for _ in range(3):
            monitoring()
        with CaptureQueriesContext(connection) as caught:
            assert client.get(reverse(LIST)).status_code == 200
        found.append(len(caught))
    assert found[0] == found[1]
