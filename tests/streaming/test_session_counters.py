"""The counters of a session's audit row are what happened, whoever owned the stream; one id leads through all of it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
import structlog
from channels.db import database_sync_to_async
from django.test import AsyncClient
from django.utils import timezone

from guardrails.services import install
from streaming import deferred, sessions, tasks
from streaming.audit.verify import log_faults
from streaming.core.events import GuardrailStatus
from streaming.guarded import rows
from streaming.log import MemoryLog
from streaming.log_redis import close_shared_log
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding
from streaming.totals import AllTotals, add

from .test_consumers import connected
from .test_stream_api import Client, forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SSN = "536-22-8145"
CHUNKS = ["My number is 5", "36-22-81", "45. The blue ", "heron sings. ", "Shut up, you ", "stupid moron."]
TEXT = "".join(CHUNKS)
POLICY: dict[str, object] = {
    "policy": "counted",
    "guardrails": [
        {"name": "pii", "kind": "pii", "action": "redact", "config": {"entities": {"ssn": True}}},
        {"name": "heron", "kind": "regex", "action": "warn",
         "config": {"rules": [{"id": "h", "pattern": "blue heron"}]}},
        {"name": "tone", "kind": "toxicity", "mode": "MONITOR", "action": "warn"},
    ],
}  # fmt: skip


class Settings:
    SLUICEGATE_DEMO: bool


@pytest.fixture(autouse=True)
async def closing(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    settings.SLUICEGATE_DEMO = True
    await database_sync_to_async(install)(document=POLICY)
    yield
    await close_shared_log()


async def stored(session_id: object) -> AuditSession:
    return await AuditSession.objects.aget(pk=str(session_id))


def characters(row: AuditSession) -> dict[str, int]:
    return {name: getattr(row, name) for name in ("chars_in", "released", "withheld", "exposed")}


COUNTED = {"chars_in": len(TEXT), "released": len(TEXT) - len(SSN), "withheld": len(SSN), "exposed": 36}
"""Exposed: what was only warned of, and the sentence that its guardrail saw when it was out."""


def totals(row: AuditSession) -> dict[str, tuple[int, int, int]]:
    """Per guardrail: questions, findings, failures."""
    for one in row.timing["guardrails"].values():
        assert 0 <= one["last_ms"] <= one["ms"]
        assert one["checks"] or not one["ms"]
    return {name: (one["checks"], one["hits"], one["errors"]) for name, one in row.timing["guardrails"].items()}


async def judged(session_id: object, *, doubled: bool = False) -> AuditSession:
    """The session once a worker has made the checks that no call waits for; ``doubled``: every task comes twice."""
    async for check in DeferredCheck.objects.filter(session_id=str(session_id)):
        for again in range(2 if doubled else 1):
            assert await deferred.run_deferred(check.pk, MemoryLog()) is not bool(again)
    return await stored(session_id)


async def streamed(client: Client, *, doubled: bool = False) -> AuditSession:
    """The text as a stream that its client owns; ``doubled``: every call is sent twice."""
    began = await client.start()
    session_id = began["session_id"]
    for seq, chunk in enumerate(CHUNKS, start=1):
        for _ in range(2 if doubled else 1):
            assert (await client.update(session_id, seq, chunk))[0] == 200
    for _ in range(2 if doubled else 1):
        assert (await client.finish(session_id))[0] == 200
    return await judged(session_id, doubled=doubled)


async def test_it_works() -> None:
    row = await streamed(Client(await new_key(policy="counted")))
    assert (row.state, row.outcome, row.would_have) == ("COMPLETE", "redacted", "")
    assert characters(row) == COUNTED
    assert (row.timing["chunks"], row.timing["calls"]) == (len(CHUNKS), len(CHUNKS) + 2)
    assert row.timing["checks"] == totals(row)["tone"][0] == 3, "three sentences"
    assert totals(row) == {"pii": (0, 1, 0), "heron": (0, 1, 0), "tone": (3, 1, 0)}
    assert row.answered_at is not None
    assert row.ended_at is not None
    assert row.started_at <= row.answered_at <= row.ended_at
    assert await Finding.objects.filter(session=row).acount() == 3
    entries = [entry.kind async for entry in AuditEntry.objects.order_by("seq")]
    assert row.timing["audit_rows"] == 1 + len(entries) + 3
    assert entries == ["opened", "sealed"]
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


async def test_calls_that_come_twice_count_once() -> None:
    row = await streamed(Client(await new_key(policy="counted")), doubled=True)
    assert characters(row) == COUNTED
    assert (row.timing["chunks"], row.timing["checks"], row.timing["calls"]) == (len(CHUNKS), 3, len(CHUNKS) + 2)
    assert totals(row) == {"pii": (0, 1, 0), "heron": (0, 1, 0), "tone": (3, 1, 0)}
    assert await Finding.objects.filter(session=row).acount() == 3


async def test_a_store_that_lost_everything_takes_no_counter_with_it_and_doubles_none() -> None:
    client = Client(await new_key(policy="counted"))
    session_id = (await client.start())["session_id"]
    for seq, chunk in enumerate(CHUNKS, start=1):
        await forget_store()
        assert (await client.update(session_id, seq, chunk))[0] == 200
    await forget_store()
    assert (await client.finish(session_id, seq=len(CHUNKS) + 1))[0] == 200
    row = await judged(session_id)
    assert characters(row) == COUNTED
    assert totals(row) == {"pii": (0, 1, 0), "heron": (0, 1, 0), "tone": (3, 1, 0)}
    assert (row.timing["chunks"], row.timing["checks"], row.timing["calls"]) == (len(CHUNKS), 3, len(CHUNKS) + 2)
    assert await Finding.objects.filter(session=row).acount() == 3


async def test_a_session_begins_with_its_call_however_long_the_first_text_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = await new_key(policy="counted")
    before = timezone.now()
    late = SimpleNamespace(now=lambda: before + timedelta(minutes=1))  # when the judges have spoken
    monkeypatch.setattr(rows, "timezone", late)
    monkeypatch.setattr(sessions, "timezone", late)
    client = Client(key)
    streamed = (await client.start(delta=CHUNKS[0]))["session_id"]
    await client.finish(streamed)
    response = await AsyncClient().post(
        "/v1/check", json.dumps({"text": TEXT, "kind": "response"}),
        content_type="application/json", headers={"Authorization": f"Bearer {key}"},
    )  # fmt: skip
    for session_id in (streamed, json.loads(response.content)["session_id"]):
        row = await stored(session_id)
        assert before <= row.started_at < before + timedelta(seconds=50)
        assert row.answered_at == late.now()
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


async def test_a_single_check_counts_alike() -> None:
    response = await AsyncClient().post(
        "/v1/check", json.dumps({"text": TEXT, "kind": "response", "accepts": ["redact"]}),
        content_type="application/json", headers={"Authorization": f"Bearer {await new_key(policy='counted')}"},
    )  # fmt: skip
    row = await judged(json.loads(response.content)["session_id"])
    assert (row.origin, characters(row)) == ("check", COUNTED)
    assert (row.timing["chunks"], row.timing["calls"], row.timing["checks"]) == (1, 1, 3)
    assert totals(row) == {"pii": (0, 1, 0), "heron": (0, 1, 0), "tone": (3, 1, 0)}
    rows = 1 + await AuditEntry.objects.acount() + await Finding.objects.filter(session=row).acount()
    assert row.timing["audit_rows"] == rows


async def test_a_finding_that_a_worker_makes_of_the_whole_text_is_a_row_like_others() -> None:
    client = Client(await new_key(policy="demo"))
    began = await client.start(delta=f"The number is {SSN}. First you mix the poison, then you wait.")
    _, done = await client.finish(began["session_id"])
    before = await stored(began["session_id"])
    row = await judged(began["session_id"], doubled=True)
    assert (done["state"], row.state) == ("MONITORING", "COMPLETE")
    entries, findings = await AuditEntry.objects.acount(), await Finding.objects.filter(session=row).acount()
    assert (before.timing["audit_rows"], row.timing["audit_rows"]) == (3 + 1, 3 + 2)
    assert row.timing["audit_rows"] == 1 + entries + findings
    assert row.exposed == before.exposed, "what a rule let through does not change by that"


async def test_an_answer_of_ours_counts_alike() -> None:
    async with connected() as visitor:
        await visitor.send(type="start", provider="scripted", policy="counted", scenario="own_text", text=TEXT)
        await visitor.over()
    row = await AuditSession.objects.alatest("started_at")
    assert (row.origin, characters(row)) == ("chat", COUNTED)
    assert row.timing["chunks"] == row.timing["naive_calls"] > 0
    assert row.timing["checks"] == sum(one[0] for one in totals(row).values()) > 0
    findings = await Finding.objects.filter(session=row).acount()
    assert sum(one[1] for one in totals(row).values()) == findings > 0
    assert row.state == AuditSession.State.COMPLETE
    entries = await AuditEntry.objects.acount()
    assert (row.timing["audit_rows"], entries) == (1 + entries + findings, 2)


def test_a_question_that_nobody_was_asked_because_a_circuit_is_open_failed_too() -> None:
    sums: AllTotals = {}
    assert add(sums, statuses=[GuardrailStatus("judge", "BATCHED", "circuit_open", 0.0)]) == 1
    assert sums["judge"] == {
        "checks": 1, "hits": 0, "errors": 1, "ms": 0.0, "last_ms": 0.0, "state": "circuit_open",
    }  # fmt: skip


def test_times_and_failures_are_added_up() -> None:
    sums: AllTotals = {}
    said = [("passed", 4.0), ("error", 2.5), ("timeout", None), ("hit", 0.25)]
    statuses = [GuardrailStatus("judge", "BATCHED", state, ms) for state, ms in said]
    assert add(sums, statuses=statuses[:2]) == 2
    assert add(sums, statuses=statuses[2:]) == 2
    assert sums == {"judge": {"checks": 4, "hits": 0, "errors": 2, "ms": 6.75, "last_ms": 0.25, "state": "hit"}}


async def test_one_id_leads_from_the_socket_to_the_session_and_to_what_the_worker_logs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected(**{"x-correlation-id": "order-4711"}) as visitor:
        await visitor.send(type="start", prompt="", scenario="pii")
        await visitor.over()
    async with connected(**{"x-correlation-id": "<forged>\n"}) as visitor:
        await visitor.send(type="start", prompt="", scenario="pii")
        await visitor.over()
    ids = [row.correlation_id async for row in AuditSession.objects.order_by("started_at")]
    assert ids[0] == "order-4711"
    assert re.fullmatch(r"[0-9a-f]{32}", ids[1])
    bound: list[object] = []

    async def checked(*args: object) -> bool:
        bound.append(structlog.contextvars.get_contextvars().get("correlation_id"))
        return True

    monkeypatch.setattr(deferred, "_make", checked)
    async for check in DeferredCheck.objects.order_by("id"):
        assert await deferred.run_deferred(check.pk, MemoryLog())
    assert bound
    assert set(bound) == set(ids)
    assert "correlation_id" not in structlog.contextvars.get_contextvars()
