"""Versions under real sessions: rolled out in part, rolled back by themselves, and rolled back under load."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient
from django.utils import timezone

from guardrails import services
from guardrails.findings import Outcome
from guardrails.models import Policy, PolicyVersion, Rollout
from streaming import cohorts, registry, tasks
from streaming.chat import Asked, Own, Started, start_chat
from streaming.conf import Conf
from streaming.frames import StartFrame
from streaming.log import MemoryLog
from streaming.log_redis import close_shared_log
from streaming.models import AuditSession, Finding
from streaming.sessions import Visitor
from tests.streaming.pumping import Controlled

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url", "forgetful")]
STREAMS = 50
LIMIT_S = 240
PATIENT = Conf(abandon_s=3_600, log_poll_s=0.05)
"""Nobody reads between the steps of a test, and a slow machine takes a minute for them."""


def document(word: str) -> dict[str, Any]:
    rules = [{"id": "word", "pattern": word, "placeholder": "[X]"}]
    guardrail = {"name": "words", "kind": "regex", "action": "redact", "config": {"rules": rules}}
    return {"policy": "load", "description": word, "guardrails": [guardrail]}


@database_sync_to_async
def two_versions() -> None:
    """Version 1 hides “heron”, version 2 hides “falcon” and is active."""
    services.install(document=document("heron"))
    services.install(document=document("falcon"))


def policy() -> Policy:
    return Policy.objects.get(name="load")


def second() -> PolicyVersion:
    return PolicyVersion.objects.get(number=2)


@pytest.fixture(autouse=True)
async def closing() -> AsyncIterator[None]:
    yield
    await registry.shutdown()
    await close_shared_log()


class Stream:
    """A session on the real pump whose provider waits in the middle of its answer."""

    def __init__(self, log: MemoryLog) -> None:
        self.log, self.go = log, asyncio.Event()
        self.provider = Controlled(["A heron ", "and a ", self.go, "heron; a fal", "con flies."])
        self.started: Started | None = None

    async def begin(self) -> None:
        async def queue(session_id: str) -> None:
            return None

        asked = Asked(
            Visitor(session_key="s"), "load", own=Own(provider=self.provider, queue_checks=queue, flagged=False)
        )
        self.started = await start_chat(StartFrame(type="start", prompt="hello"), asked, self.log, PATIENT)

    @property
    def session_id(self) -> str:
        assert self.started is not None
        return self.started.session_id

    async def until(self, kind: str) -> dict[str, object]:
        async with asyncio.timeout(LIMIT_S), self.log.attend(self.session_id) as wake:
            while True:
                wake.clear()
                for event in await self.log.read(self.session_id, 0, 100_000):
                    if event["type"] == kind:
                        return event
                await wake.wait()

    async def answer(self) -> str:
        """The visible text, once the answer is over."""
        return str((await self.until("done"))["final"])


async def test_it_works() -> None:
    """Roll back under load: running sessions finish on their version, new ones begin on the old one, none fails."""
    await two_versions()
    log = MemoryLog()
    before = [Stream(log) for _ in range(STREAMS)]
    for stream in before:
        await stream.begin()
    await asyncio.gather(*(stream.until("message_stream") for stream in before))  # all are in the middle
    await database_sync_to_async(lambda: services.rollback(policy=policy(), note="too many hits"))()
    after = [Stream(log) for _ in range(STREAMS)]
    for stream in after:
        await stream.begin()
    for stream in before + after:
        stream.go.set()
    assert {await stream.answer() for stream in before} == {"A heron and a heron; a [X] flies."}
    assert {await stream.answer() for stream in after} == {"A [X] and a [X]; a falcon flies."}
    await registry.shutdown()

    @database_sync_to_async
    def recorded(streams: list[Stream]) -> set[tuple[int, str, str]]:
        rows = AuditSession.objects.filter(pk__in=[stream.session_id for stream in streams])
        assert rows.count() == STREAMS
        return set(rows.values_list("policy_version", "outcome", "error_code"))

    assert await recorded(before) == {(2, "redacted", "")}
    assert await recorded(after) == {(1, "redacted", "")}


async def test_clients_that_own_their_stream_run_the_version_of_their_conversation() -> None:
    await two_versions()

    @database_sync_to_async
    def begin() -> str:
        services.activate(version=PolicyVersion.objects.get(number=1))
        services.begin_rollout(version=second(), percent=50)
        limits = {"calls_per_minute": 1_000, "updates_per_second": 1_000}
        return services.create_api_key(name="k", scopes=["stream", "check"], policy="load", **limits)[1]

    headers = {"Authorization": f"Bearer {await begin()}"}
    client = AsyncClient()

    async def version_of(path: str, body: dict[str, Any]) -> int:
        response = await client.post(path, json.dumps(body), content_type="application/json", headers=headers)
        found = json.loads(response.content)
        return int(found["policy"]["version"] if "policy" in found else found["metadata"]["version"])

    chosen = set()
    for n in range(12):
        context = {"conversation_id": f"c{n}"}
        began = await version_of("/v1/stream/start", {"delta": "a", "context": context})
        again = await version_of("/v1/stream/start", {"delta": "b", "context": context})
        checked = await version_of("/v1/check", {"text": "a", "kind": "response", "context": context})
        assert began == again == checked
        chosen.add(began)
    assert chosen == {1, 2}


async def test_sessions_in_which_a_guardrail_on_trial_would_have_blocked_roll_it_back() -> None:
    @database_sync_to_async
    def begin() -> tuple[Rollout, str]:
        services.install(document=document("heron"))
        trial = {"name": "trial", "kind": "keywords", "mode": "MONITOR", "action": "block", "keywords": ["falcon"]}
        tried = document("heron")
        tried["guardrails"].append(trial)
        services.sign(version=services.publish(policy=services.save_draft(document=tried)))
        rollout = services.begin_rollout(version=second(), percent=100, max_would_have=0.5, sample=5)
        return rollout, services.create_api_key(name="k", scopes=["check"], policy="load", calls_per_minute=1_000)[1]

    rollout, key = await begin()
    client = AsyncClient()

    async def version_of(text: str) -> int:
        body = json.dumps({"text": text, "kind": "response"})
        headers = {"Authorization": f"Bearer {key}"}
        response = await client.post("/v1/check", body, content_type="application/json", headers=headers)
        found = json.loads(response.content)
        assert found["action"] == "allow"  # on trial it decides nothing
        return int(found["metadata"]["version"])

    @database_sync_to_async
    def watched() -> str:
        tasks.watch_rollouts()
        rollout.refresh_from_db()
        return rollout.outcome

    for text in ("A sparrow.", "A wren.", "A falcon.", "Two falcons and a falcon."):
        assert await version_of(text) == 2
    assert await watched() == "running"  # four are too few to say
    assert await version_of("One more falcon.") == 2
    assert await watched() == "rolled_back"
    assert rollout.ended_why == "3 of 5 sessions would have been acted on (60.0%; the limit is 50.0%)"
    assert await version_of("A falcon.") == 1


# -- limits -------------------------------------------------------------------------------------------------------


def ended(
    number: int, *, outcome: Outcome = Outcome.ALLOWED, version: PolicyVersion | None = None, **more: Any
) -> None:
    """Sessions that are over."""
    digest = (version or second()).digest
    given = {"answered_at": timezone.now(), **more}
    for _ in range(number):
        AuditSession.objects.create(policy_name="load", policy_digest=digest, outcome=outcome.value, **given)


@pytest.fixture
def rolling() -> Rollout:
    """Version 2 for a tenth of the conversations, with both limits."""
    services.install(document=document("heron"))
    services.sign(version=services.publish(policy=services.save_draft(document=document("falcon"))))
    return services.begin_rollout(version=second(), percent=10, max_errors=0.1, max_would_have=0.2, sample=20)


def test_too_many_failures_roll_it_back_and_it_is_told(rolling: Rollout, caplog: pytest.LogCaptureFixture) -> None:
    ended(17)
    ended(2, outcome=Outcome.ERROR)
    tasks.watch_rollouts()
    assert policy().rollout == rolling  # nineteen are too few to say
    ended(1, outcome=Outcome.ERROR)
    tasks.watch_rollouts()
    rolling.refresh_from_db()
    assert policy().rollout is None
    assert (rolling.outcome, rolling.ended_by) == ("rolled_back", None)
    assert rolling.ended_why == "3 of 20 sessions failed (15.0%; the limit is 10.0%)"
    assert "rollout_rolled_back" in caplog.text
    tasks.watch_rollouts()
    assert Rollout.objects.count() == 1


def test_guardrail_that_fails_counts_as_a_failure(rolling: Rollout) -> None:
    ended(20)
    for session in AuditSession.objects.all()[:3]:
        for n in (1, 2):
            Finding.objects.create(
                session=session, n=n, guardrail="g", kind="regex", category="error", channel="text", start=0, end=1,
                mode="BLOCK", action="block",
            )  # fmt: skip
    assert cohorts.counts(rolling) == cohorts.Counts(20, 3, 0)
    assert cohorts.watch() == ["load"]


def test_what_monitor_would_have_done_counts(rolling: Rollout) -> None:
    ended(16)
    ended(4, would_have="block")
    assert cohorts.watch() == []
    ended(2, would_have="redact")
    assert cohorts.watch() == ["load"]
    rolling.refresh_from_db()
    assert "would have been acted on" in rolling.ended_why


def test_only_sessions_of_the_version_and_of_the_time_that_are_over_count(rolling: Rollout) -> None:
    ended(50, outcome=Outcome.ERROR, version=PolicyVersion.objects.get(number=1))
    ended(50, outcome=Outcome.ERROR, started_at=timezone.now() - timedelta(days=1))
    ended(50, outcome=Outcome.ERROR, answered_at=None)
    assert cohorts.counts(rolling) == cohorts.Counts(0, 0, 0)
    assert cohorts.watch() == []


def test_rollout_without_limits_is_left_alone(rolling: Rollout) -> None:
    Rollout.objects.update(max_errors=None, max_would_have=None)
    ended(50, outcome=Outcome.ERROR)
    assert cohorts.watch() == []


def test_rollout_that_began_meanwhile_is_not_ended_in_its_place(rolling: Rollout) -> None:
    services.end_rollout(policy=policy())
    other = services.begin_rollout(version=second(), percent=5)
    assert services.end_rollout(policy=policy(), why="late", only=rolling.pk, left_limits=True) is None
    assert policy().rollout == other


async def test_what_came_of_rollouts_is_a_metric() -> None:
    @database_sync_to_async
    def begin() -> None:
        services.install(document=document("heron"))
        services.sign(version=services.publish(policy=services.save_draft(document=document("falcon"))))
        services.begin_rollout(version=second(), percent=10)
        services.end_rollout(policy=policy(), left_limits=True, why="w")
        services.begin_rollout(version=second(), percent=10)

    await begin()
    text = (await AsyncClient().get("/metrics")).content.decode()
    found = re.findall(r'^sluicegate_rollouts\{outcome="(\w+)",policy="load"\} (\S+)$', text, re.MULTILINE)
    assert sorted(found) == [("rolled_back", "1.0"), ("running", "1.0")]
