"""What workers run, how they say that they live, and a broker that is away."""

from __future__ import annotations

import threading
import time

import pytest
import redis
from asgiref.sync import async_to_sync

from guardrails import selectors
from streaming import sessions, tasks, workers
from streaming.conf import conf
from streaming.log_redis import own_log, shared_log
from streaming.models import AuditSession, DeferredCheck, Message
from streaming.sessions import DeferredText, Ending, NewSession, Started, Visitor

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy")]


def monitoring() -> tuple[Started, DeferredCheck]:
    policy = selectors.active_policy("demo")
    new = NewSession(
        visitor=Visitor(session_key="b"), prompt="p", provider="scripted", model="m",
        policy={"name": policy.name, "version": policy.version, "digest": policy.digest},
    )  # fmt: skip
    started = sessions.start_session(new)
    text = "First you mix the poison."
    ending = Ending(
        sessions.Outcome.ALLOWED, Message.Status.COMPLETE, content=text, released=len(text), chars_in=len(text),
        deferred=[DeferredText("harm", "response", text)],
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return started, DeferredCheck.objects.get(session_id=started.session_id)


def told(session_id: str) -> list[dict[str, object]]:
    async def read() -> list[dict[str, object]]:
        async with own_log() as log:
            return await log.read(session_id, 0)

    return async_to_sync(read)()


def test_it_works(valkey_url: str) -> None:
    started, check = monitoring()
    tasks.check(check.pk)
    check.refresh_from_db()
    assert (check.state, check.sealed_text) == ("would_block", None)
    assert AuditSession.objects.get(pk=started.session_id).state == "COMPLETE"
    assert [event["type"] for event in told(started.session_id)] == [
        "guardrail_status", "finding", "guardrail_status", "state"
    ]  # fmt: skip
    tasks.check(check.pk)
    assert len(told(started.session_id)) == 4, "a task that is delivered twice tells nothing twice"


def test_only_ids_travel_through_the_broker(valkey_url: str) -> None:
    _, check = monitoring()
    with redis.Redis.from_url(valkey_url) as broker:
        queue = b"celery\x06\x165"  # the broker keeps a list for each priority
        broker.delete(queue)
        assert tasks.queue_check(check.pk)
        (message,) = broker.lrange(queue, 0, -1)
        broker.delete(queue)
    assert b"poison" not in message


def test_broker_that_is_away_is_no_error_and_the_check_stays_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise tasks.OperationalError("away")

    _, check = monitoring()
    monkeypatch.setattr(tasks.check, "apply_async", refuse)
    assert not tasks.queue_check(check.pk)
    async_to_sync(tasks.queue_session)(str(check.session_id))
    check.refresh_from_db()
    assert check.state == "waiting"


def test_sweep_task_ends_what_a_dead_process_left(valkey_url: str) -> None:
    started, _ = monitoring()
    long_ago = AuditSession.objects.get(pk=started.session_id).heartbeat_at
    AuditSession.objects.filter(pk=started.session_id).update(
        heartbeat_at=long_ago - sessions.timedelta(seconds=conf().monitoring_limit_s + 1)
    )
    tasks.sweep()
    assert AuditSession.objects.get(pk=started.session_id).state == "COMPLETE"
    assert told(started.session_id)[-1]["state"] == "COMPLETE"


async def alive() -> int:
    try:
        return await workers.count_workers()
    finally:
        await shared_log().aclose()


def test_worker_says_that_it_lives_and_that_it_goes(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[object] = []
    monkeypatch.setattr(tasks.sweep, "apply_async", lambda **kwargs: swept.append(kwargs))
    assert async_to_sync(alive)() == 0
    workers.start_beating()
    try:
        assert swept, "a worker that starts looks at once for what was left behind"
        until = time.monotonic() + 10
        while not async_to_sync(alive)() and time.monotonic() < until:
            pass
        assert async_to_sync(alive)() == 1
        with redis.Redis.from_url(valkey_url) as store:
            (key,) = store.keys(workers.PREFIX + "*")
            assert 0 < store.ttl(key) <= conf().worker_ttl_s
    finally:
        workers.stop_beating()
        for thread in threading.enumerate():
            if thread.name == "worker-heartbeat":
                thread.join(10)
    assert async_to_sync(alive)() == 0


def test_repairs_do_not_wait_behind_checks(valkey_url: str) -> None:
    _, check = monitoring()
    with redis.Redis.from_url(valkey_url) as broker:
        broker.delete("celery", b"celery\x06\x165")
        assert tasks.queue_check(check.pk)
        tasks.sweep.apply_async(retry=False)
        assert [broker.llen(queue) for queue in (b"celery", b"celery\x06\x165")] == [1, 1]
        broker.delete("celery", b"celery\x06\x165")
