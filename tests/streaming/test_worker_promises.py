"""What the broker and the workers promise to deferred checks: redelivery, order, time limits, one end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import redis
from asgiref.sync import async_to_sync
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection, connections
from django.utils import timezone
from kombu import Connection, Queue
from kombu.message import Message as Delivered

from guardrails.findings import Verdict
from guardrails.kinds.ai_judge import AiJudgeKind
from guardrails.performance import Checkpoint
from guardrails.policy import TIME_LIMIT_S
from project.celery import app
from streaming import deferred, sweep, tasks
from streaming.audit.verify import log_faults
from streaming.checks import Checked
from streaming.conf import conf
from streaming.models import AuditEntry, AuditSession, DeferredCheck
from tests.streaming.pumping import policy_of
from tests.streaming.test_tasks import monitoring, told

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy")]
ROUNDS = 12


def test_it_works(valkey_url: str) -> None:
    """A repair that was queued behind checks is delivered before them."""
    _, check = monitoring()
    with redis.Redis.from_url(valkey_url) as broker:
        broker.delete("celery", b"celery\x06\x165")
    for _ in range(3):
        assert tasks.queue_check(check.pk)
    tasks.sweep.apply_async(retry=False)
    names: list[str] = []
    with Connection(valkey_url, transport_options=app.conf.broker_transport_options) as broker:
        queue = Queue("celery", channel=broker.default_channel)
        while isinstance(found := queue.get(), Delivered):
            names.append(str(found.headers["task"]))
            found.ack()
    assert names == ["streaming.tasks.sweep", *["streaming.tasks.check"] * 3]


def test_checks_of_answers_that_somebody_reads_go_before_those_that_come_in_bulk(valkey_url: str) -> None:
    """Queued last and delivered first, also when the sweep queues them again; each is tried again where it was."""
    bulk = []
    for origin in (AuditSession.Origin.CHECK, AuditSession.Origin.GATEWAY):
        _, check = monitoring()
        AuditSession.objects.filter(pk=check.session_id).update(origin=origin)
        bulk.append(check)
    _, watched = monitoring()
    lists = [b"celery", b"celery\x06\x163", b"celery\x06\x165", b"celery\x06\x167"]
    options = app.conf.broker_transport_options

    def delivered() -> list[int]:
        found: list[int] = []
        with Connection(valkey_url, transport_options=options) as broker:
            queue = Queue("celery", channel=broker.default_channel)
            while isinstance(one := queue.get(), Delivered):
                found.append(one.decode()[0][0])  # type: ignore[index]  # the arguments
                one.ack()
        return found

    with redis.Redis.from_url(valkey_url) as broker:
        broker.delete(*lists)
        for check in (*bulk, watched):
            async_to_sync(tasks.queue_session)(str(check.session_id))
        assert [broker.llen(name) for name in lists] == [0, 1, 2, 0]
    assert delivered() == [watched.pk, *(check.pk for check in bulk)]
    DeferredCheck.objects.update(queued_at=timezone.now() - timedelta(seconds=conf().stale_s + 1))
    tasks.sweep()
    first, *others = delivered()
    assert (first, sorted(others)) == (watched.pk, sorted(check.pk for check in bulk))
    with redis.Redis.from_url(valkey_url) as broker:
        tasks.check.push_request(delivery_info={"priority": tasks.WATCHED})
        try:
            assert tasks.queue_again(watched.pk, 0.0)
        finally:
            tasks.check.pop_request()
        assert [broker.llen(name) for name in lists] == [0, 1, 0, 0]
        broker.delete(*lists)


def test_a_check_is_acknowledged_when_it_is_done_and_one_at_a_time_is_taken() -> None:
    """So a worker that dies loses neither the check that it makes nor others that it had put by."""
    assert app.tasks["streaming.tasks.check"].acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.task_acks_late is True


def test_what_is_delivered_is_not_lost_before_it_is_acknowledged(valkey_url: str) -> None:
    """The worker that took it is gone without a word: the broker still has it, and gives it to the next one."""
    _, check = monitoring()
    with redis.Redis.from_url(valkey_url) as broker:
        broker.delete("celery", b"celery\x06\x165", "unacked", "unacked_index")
    assert tasks.queue_check(check.pk)
    options = app.conf.broker_transport_options
    with Connection(valkey_url, transport_options=options) as first:
        taken = Queue("celery", channel=first.default_channel).get()
        assert isinstance(taken, Delivered)
        with redis.Redis.from_url(valkey_url) as broker:
            assert broker.hlen("unacked") == 1
        first.default_channel.qos.restore_by_tag(taken.delivery_tag)  # what happens when its time is over
    with Connection(valkey_url, transport_options=options) as second:
        again = Queue("celery", channel=second.default_channel).get()
        assert isinstance(again, Delivered)
        assert (again.headers["id"], again.payload) == (taken.headers["id"], taken.payload)
        again.ack()


def test_repairs_run_by_themselves_and_often_enough() -> None:
    app.loader.import_default_modules()
    schedule = app.conf.beat_schedule
    assert schedule["sweep"]["task"] == "streaming.tasks.sweep"
    assert 0 < schedule["sweep"]["schedule"] <= conf().stale_s / 2
    for name in ("purge", "keep_audit_head"):
        assert schedule[name]["task"] == f"streaming.tasks.{name}"
        assert 0 < schedule[name]["schedule"] <= 3_600, "the pages about the audit log say: every hour"
    assert {entry["task"] for entry in schedule.values()} <= set(app.tasks), "each of them is a task that there is"


def test_no_time_limit_comes_before_the_one_inside_it() -> None:
    """A check ends by itself, then softly, then hard; only a dead worker's check is made again, by sweep or broker."""
    soft, hard = app.conf.task_soft_time_limit, app.conf.task_time_limit
    visible = app.conf.broker_transport_options["visibility_timeout"]
    assert TIME_LIMIT_S[Checkpoint.DEFERRED] < conf().check_lease_s < soft < hard < visible
    assert conf().check_lease_s < conf().monitoring_limit_s


def test_a_check_that_meets_the_soft_limit_has_visibly_failed(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_long(*_: object) -> Verdict:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(AiJudgeKind, "check", too_long)
    started, check = monitoring()
    tasks.check(check.pk)
    check.refresh_from_db()
    assert (check.state, check.sealed_text) == ("error", None)
    assert "SoftTimeLimitExceeded" in check.error
    assert AuditSession.objects.get(pk=started.session_id).state == "COMPLETE"


class Settings:
    SLUICEGATE_CHECK_LEASE_S: float


def test_a_guardrail_that_would_wait_longer_than_a_lease_is_given_up_within_it(
    valkey_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two workers would make its check, and be believed by nobody, until it counts as one that kills workers."""
    patient = {"name": "harm", "kind": "ai_judge", "time_limit_s": 600, "config": {"rubric": "harm"}}
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: policy_of(patient, without="harm"))

    async def never(*_: object) -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(AiJudgeKind, "check", never)
    started, check = monitoring()
    DeferredCheck.objects.filter(pk=check.pk).update(attempts=conf().check_attempts - 1)  # none is left to try again
    settings.SLUICEGATE_CHECK_LEASE_S = 0.4
    tasks.check(check.pk)
    check.refresh_from_db()
    assert (check.state, check.error) == ("timeout", "no verdict within 0.3 s")
    assert AuditSession.objects.get(pk=started.session_id).state == "COMPLETE"


def test_expiry_is_told_stored_and_sealed_as_expired(valkey_url: str) -> None:
    started, check = monitoring()
    long_ago = timezone.now() - timedelta(seconds=conf().monitoring_limit_s + 1)
    AuditSession.objects.filter(pk=started.session_id).update(answered_at=long_ago, heartbeat_at=long_ago)
    tasks.sweep()
    check.refresh_from_db()
    assert (check.state, check.error) == ("expired", "No worker made this check in time.")
    events = told(started.session_id)
    assert [(event["type"], event["state"]) for event in events] == [
        ("guardrail_status", "expired"), ("state", "COMPLETE")
    ]  # fmt: skip
    assert AuditEntry.objects.filter(session=started.session_id, kind="sealed").count() == 1


def at_once(works: list[Callable[[], object]]) -> list[object]:
    """All of them in threads of their own, let go at the same moment."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        try:
            connection.ensure_connection()
            gate.wait(60)
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def record(lease: deferred.Lease, hit: bool) -> Callable[[], object]:
    def work() -> object:
        return deferred.record_result(
            lease=lease,
            guardrail=policy_of().guardrail("harm"),
            checked=Checked(Verdict(hit, 0.9), 1.0),
            judged_chars=9,
        )

    return work


def two_checks() -> tuple[str, list[deferred.Lease]]:
    """A session with two checks, both taken."""
    started, _ = monitoring()
    DeferredCheck.objects.create(session_id=started.session_id, guardrail="harm", applies_to="prompt", digest="x")
    leases = [
        deferred.take_lease(check_id=pk)
        for pk in DeferredCheck.objects.filter(session_id=started.session_id).values_list("pk", flat=True)
    ]
    assert all(isinstance(lease, deferred.Lease) for lease in leases)
    return started.session_id, [lease for lease in leases if isinstance(lease, deferred.Lease)]


def test_two_workers_that_end_the_last_two_checks_at_once_complete_the_session_once() -> None:
    for _ in range(ROUNDS):
        session_id, leases = two_checks()
        results = at_once([record(lease, hit=True) for lease in leases])
        assert sorted(isinstance(one, deferred.Recorded) and one.completed for one in results) == [False, True]
        session = AuditSession.objects.get(pk=session_id)
        assert (session.state, session.would_have, session.findings.count()) == ("COMPLETE", "blocked", 2)
        assert AuditEntry.objects.filter(session=session_id, kind="sealed").count() == 1
    assert list(log_faults()) == []


def test_a_worker_and_a_sweep_that_end_a_session_at_once_end_it_once() -> None:
    for _ in range(ROUNDS):
        session_id, leases = two_checks()
        end = partial(sweep.expire, session_id=session_id, now=timezone.now())
        done, swept = at_once([record(leases[0], hit=False), end])
        assert isinstance(swept, dict), "the sweep had the last check to end"
        assert done is None or (isinstance(done, deferred.Recorded) and not done.completed)
        states = set(DeferredCheck.objects.filter(session_id=session_id).values_list("state", flat=True))
        assert "expired" in states
        assert states <= {"expired", "passed"}
        assert AuditSession.objects.get(pk=session_id).state == "COMPLETE"
        assert AuditEntry.objects.filter(session=session_id, kind="sealed").count() == 1
    assert list(log_faults()) == []


def test_one_check_delivered_to_two_workers_at_once_is_made_by_one(valkey_url: str) -> None:
    for _ in range(conf().checks_at_once - 1):  # so many may be under way at once
        _, check = monitoring()
        taken = at_once([partial(deferred.take_lease, check_id=check.pk)] * 2)
        assert sum(isinstance(one, deferred.Lease) for one in taken) == 1
