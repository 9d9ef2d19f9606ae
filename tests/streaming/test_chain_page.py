"""Verifying the whole log from the page: at once while it is short, by a worker when it is long, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connections
from django.test import Client
from django.utils import timezone

from streaming import tasks
from streaming.audit import verification
from streaming.audit.chain import Fault
from streaming.models import ChainCheck

from .audit_people import people
from .test_audit_chain import alter, session

PAGE = "/audit/chain/"
pytestmark = pytest.mark.django_db


@pytest.fixture
def auditor(client: Client) -> Client:
    client.force_login(people().auditor)
    return client


def state(client: Client) -> str:
    said = client.get(PAGE).content.decode()
    return said.partition('data-state="')[2].partition('"')[0]


def test_it_works(auditor: Client) -> None:
    for _ in range(3):
        session()
    assert state(auditor) == "none"
    said = auditor.post(PAGE, follow=True).content.decode()
    assert "The whole log is as it was written: 6 entries" in said
    check = ChainCheck.objects.get()
    assert (check.state, check.by, check.fault_count, check.place) == ("verified", "auditor", 0, None)
    assert check.checked == check.total == 6 + 3


def test_a_tampered_row_is_pointed_at(auditor: Client) -> None:
    keys = [session() for _ in range(3)]
    alter("UPDATE streaming_finding SET score = 0.5 WHERE id = (SELECT MIN(id) FROM streaming_finding)")
    said = auditor.post(PAGE, follow=True).content.decode()
    assert 'data-fault="findings_altered"' in said
    assert keys[0] in said
    assert keys[1] not in said
    assert state(auditor) == "faulty"


def test_of_many_faults_the_first_are_kept_and_all_are_counted(
    auditor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "FAULTS_KEPT", 2)
    for _ in range(3):
        session()
    alter("UPDATE streaming_finding SET score = 0.5")
    said = auditor.post(PAGE, follow=True).content.decode()
    assert "3 things are not as written." in said
    assert said.count("data-fault=") == 2
    assert "The first 2 are shown" in said


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every log is a long one, and what the workers were asked for."""
    asked: list[int] = []
    monkeypatch.setattr(verification, "SMALL", 1)

    def queue(check_id: int) -> bool:
        asked.append(check_id)
        return True

    monkeypatch.setattr(tasks, "queue_chain_check", queue)
    return asked


def test_a_long_log_is_left_to_a_worker(auditor: Client, queued: list[int]) -> None:
    session()
    said = auditor.post(PAGE, follow=True).content.decode()
    assert "Waiting for a worker" in said
    assert 'hx-trigger="every 2s"' in said
    assert "Verify the whole log now" not in said
    (check_id,) = queued
    tasks.verify_chain(check_id)
    assert state(auditor) == "verified"
    assert "every 2s" not in auditor.get(PAGE).content.decode()
    tasks.verify_chain(check_id)  # delivered twice
    assert ChainCheck.objects.get().state == "verified"


def test_who_asks_meanwhile_joins(auditor: Client, queued: list[int]) -> None:
    session()
    for _ in range(3):
        auditor.post(PAGE)
    assert len(queued) == ChainCheck.objects.count() == 1


def test_one_that_waits_behind_other_work_keeps_its_place(auditor: Client, queued: list[int]) -> None:
    session()
    auditor.post(PAGE)
    ChainCheck.objects.update(heartbeat_at=timezone.now() - timedelta(minutes=50))
    said = auditor.get(PAGE).content.decode()
    assert "Waiting for a worker" in said
    auditor.post(PAGE)
    assert len(queued) == ChainCheck.objects.count() == 1
    assert verification.run(queued[0]).state == "verified"
    ChainCheck.objects.update(state="waiting", place=1, heartbeat_at=timezone.now() - timedelta(minutes=61))
    assert "gives no sign of life" in auditor.get(PAGE).content.decode()
    auditor.post(PAGE)
    assert len(queued) == 2


def test_one_whose_worker_died_is_told_and_replaced(auditor: Client, queued: list[int]) -> None:
    session()
    auditor.post(PAGE)
    ChainCheck.objects.update(
        state="checking", heartbeat_at=timezone.now() - verification.LOST_AFTER - timedelta(seconds=1)
    )
    said = auditor.get(PAGE).content.decode()
    assert "gives no sign of life" in said
    assert "Verify the whole log now" in said
    auditor.post(PAGE)
    newest, older = ChainCheck.objects.order_by("-pk")
    assert (newest.state, older.state, older.place) == ("waiting", "error", None)
    verification.run(older.pk)
    assert ChainCheck.objects.get(pk=older.pk).state == "error", "one that was given up stays so"


def test_workers_that_cannot_be_reached_are_said(
    auditor: Client, monkeypatch: pytest.MonkeyPatch, queued: list[int]
) -> None:
    monkeypatch.setattr(tasks, "queue_chain_check", lambda _: False)
    session()
    assert "The workers cannot be reached." in auditor.post(PAGE, follow=True).content.decode()
    assert state(auditor) == "error"


def test_what_breaks_is_no_verdict(auditor: Client, monkeypatch: pytest.MonkeyPatch, queued: list[int]) -> None:
    def broken(**_: object) -> Iterator[Fault]:
        raise OSError("the disk")

    session()
    auditor.post(PAGE)
    monkeypatch.setattr(verification, "log_faults", broken)
    with pytest.raises(OSError, match="the disk"):
        tasks.verify_chain(queued[0])
    assert state(auditor) == "error"
    assert "OSError" in auditor.get(PAGE).content.decode()


@pytest.mark.django_db(transaction=True)
def test_progress_is_seen_while_the_walk_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk reads one moment in a transaction; what it says of itself is written beside it."""
    monkeypatch.setattr(verification, "BEAT_S", 0.0)
    for _ in range(3):
        session()
    seen: list[int] = []
    walk = verification.log_faults

    def watched(**told: object) -> Iterator[Fault]:
        yield from walk(**told)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as other:  # a connection that sees what others see
            seen.append(other.submit(stored).result())

    def stored() -> int:
        try:
            end = timezone.now() + timedelta(seconds=60)
            while not (checked := ChainCheck.objects.get().checked) and timezone.now() < end:
                pass
            return checked
        finally:
            connections.close_all()

    monkeypatch.setattr(verification, "log_faults", watched)
    check, new = verification.ask(by="auditor")
    assert new
    done = verification.run(check.pk)
    assert 0 < seen[0] <= 9
    assert (done.state, done.checked, done.total) == ("verified", 9, 9)


@pytest.mark.django_db(transaction=True)
def test_of_many_who_ask_at_once_one_begins() -> None:
    session()

    def ask(number: int) -> bool:
        try:
            return verification.ask(by=str(number))[1]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(ask, range(4))) == [False] * 3 + [True]
    assert ChainCheck.objects.count() == 1


def test_the_queue_takes_it_and_a_broker_that_is_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("refused")

    monkeypatch.setattr(tasks.verify_chain, "apply_async", away)
    assert tasks.queue_chain_check(1) is False
    sent: list[object] = []
    monkeypatch.setattr(tasks.verify_chain, "apply_async", lambda *args, **_: sent.append(args))
    assert tasks.queue_chain_check(7) is True
    assert sent == [((7,),)]
