"""A guardrail has no more checks under way than it may, however many workers look at the same moment.

On a file one writer comes after another; on PostgreSQL a lock of their own makes them (``tests/stack/test_leases.py``).
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone

from guardrails.findings import Outcome
from streaming import deferred, sessions, sweep
from streaming.conf import conf
from streaming.core.events import PolicyRef
from streaming.models import DeferredCheck, Message
from streaming.sessions import DeferredText, Ending, NewSession, Visitor

pytestmark = pytest.mark.django_db(transaction=True)
WORKERS, MOST, ROUNDS = 8, 3, 6


def waiting(guardrail: str, policy: str = "t") -> int:
    """A check of an answer that is over."""
    ref: PolicyRef = {"name": policy, "version": 1, "digest": "sha256:t"}
    started = sessions.start_session(NewSession(Visitor(session_key="b"), "p", ref, "scripted", "m"))
    ending = Ending(
        Outcome.ALLOWED, Message.Status.COMPLETE, content="x", released=1,
        deferred=[DeferredText(guardrail, "response", "x")],
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return DeferredCheck.objects.get(session_id=started.session_id).pk


def taken_at_once(check_ids: list[int]) -> list[object]:
    """Each check is asked for by a thread of its own; all begin together."""
    gate = threading.Barrier(len(check_ids))

    def take(check_id: int) -> object:
        try:
            connection.ensure_connection()
            gate.wait(60)
            return deferred.take_lease(check_id=check_id)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(check_ids)) as pool:
        return list(pool.map(take, check_ids))


def test_it_works(settings: object) -> None:
    settings.SLUICEGATE_CHECKS_AT_ONCE = MOST  # type: ignore[attr-defined]
    for number in range(ROUNDS):
        checks = [waiting(f"harm {number}") for _ in range(WORKERS)]
        found = taken_at_once(checks)
        assert sum(isinstance(one, deferred.Lease) for one in found) == MOST
        assert sum(isinstance(one, deferred.Busy) for one in found) == WORKERS - MOST
        assert DeferredCheck.objects.filter(guardrail=f"harm {number}", state="checking").count() == MOST


def test_guardrails_do_not_take_each_others_places(settings: object) -> None:
    settings.SLUICEGATE_CHECKS_AT_ONCE = 1  # type: ignore[attr-defined]
    found = taken_at_once([waiting(f"place {number}") for number in range(WORKERS)])
    assert all(isinstance(one, deferred.Lease) for one in found)


def test_a_check_that_is_gone_is_not_taken() -> None:
    assert deferred.take_lease(check_id=1) is None


def test_policies_do_not_take_each_others_places(settings: object) -> None:
    """Their breakers are not the same either: one policy's judge that is busy says nothing of the other's."""
    settings.SLUICEGATE_CHECKS_AT_ONCE = 1  # type: ignore[attr-defined]
    checks = [waiting("shared name", policy=f"policy {number}") for number in range(2)]
    assert all(isinstance(deferred.take_lease(check_id=pk), deferred.Lease) for pk in checks)
    assert isinstance(deferred.take_lease(check_id=waiting("shared name", policy="policy 0")), deferred.Busy)


def test_a_check_that_has_ended_is_not_told_to_come_again(settings: object) -> None:
    settings.SLUICEGATE_CHECKS_AT_ONCE = 1  # type: ignore[attr-defined]
    assert isinstance(deferred.take_lease(check_id=waiting("full")), deferred.Lease)
    for state in DeferredCheck.State:
        if state != "waiting":
            pk = waiting("full")
            DeferredCheck.objects.filter(pk=pk).update(state=state)
            assert deferred.take_lease(check_id=pk) is None, state


def test_a_check_that_has_to_wait_has_one_task_and_the_sweep_adds_none(settings: object) -> None:
    settings.SLUICEGATE_CHECKS_AT_ONCE = 1  # type: ignore[attr-defined]
    assert isinstance(deferred.take_lease(check_id=waiting("full")), deferred.Lease)
    pk = waiting("full")
    DeferredCheck.objects.filter(pk=pk).update(queued_at=timezone.now() - timedelta(seconds=conf().stale_s - 1))
    assert isinstance(deferred.take_lease(check_id=pk), deferred.Busy)
    assert [deferred.take_lease(check_id=pk) for _ in range(3)] == [None] * 3, "other tasks of it end"
    assert sweep.requeue(now=timezone.now() + timedelta(seconds=conf().stale_s))[0] == []
    later = timezone.now() + timedelta(seconds=conf().stale_s + conf().check_again_s + 1)
    assert sweep.requeue(now=later)[0] == [pk], "the task that was to come is lost: the sweep finds it"
