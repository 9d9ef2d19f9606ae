"""How guardrails are doing shows alike in readiness, in metrics, on the page and in the admin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from channels.db import database_sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import AsyncClient, Client
from django.urls import reverse

from guardrails import loading, selectors, services
from guardrails.policy import Policy
from streaming import breakers, demotion, health
from streaming.at_work import guardrails_at_work, guardrails_at_work_now
from streaming.breakers import THRESHOLD
from streaming.demotion import scheduled
from streaming.models import Demotion
from streaming.verdicts import ENOUGH_TIMES, book
from tests.conftest import Cast

pytestmark = pytest.mark.django_db
LIST = "admin:streaming_demotion_changelist"


def entry(name: str, kind: str, mode: str, **more: object) -> dict[str, object]:
    return {"name": name, "kind": kind, "mode": mode, **more}


DOCUMENT = {
    "policy": "trial",
    "guardrails": [
        entry("words", "keywords", "MONITOR", config={"keywords": ["heron"]}),
        entry("tone", "toxicity", "MONITOR"),
        entry("sharp", "toxicity", "BLOCK", action="block", config={"threshold": 0.8}),
        entry("harm", "ai_judge", "MONITOR", config={"rubric": "harm"}),
        entry("gate", "ai_judge", "BLOCK", on_error="block", config={"rubric": "other harm"}),
        entry("off", "ai_judge", "DISABLED", config={"rubric": "nothing"}),
    ],
}


@pytest.fixture
def active(db: None) -> Iterator[Policy]:
    """A policy at work, in a process that has measured nothing."""
    loading.forget()
    demotion.forget()
    services.install(document=json.loads(json.dumps(DOCUMENT)))
    yield selectors.active_policy("trial")
    selectors.forget()
    demotion.forget()
    loading.forget()


def slow(policy: Policy, name: str, ms: float) -> None:
    kept = book(policy.guardrail(name).impl)
    kept.times.clear()
    for n in range(ENOUGH_TIMES):
        kept.measured(ms, lambda at=n: float(at))  # type: ignore[misc]


def at(_: int = 0) -> float:
    return float(ENOUGH_TIMES)


async def trip(policy: Policy, name: str) -> None:
    breaker = await breakers.breaker(breakers.GUARDRAIL + policy.guardrail(name).circuit)
    for _ in range(THRESHOLD):
        await breaker.enter()
        await breaker.failed(ConnectionError())


def test_it_works(active: Policy) -> None:
    found = {one.guardrail: one for one in guardrails_at_work_now()}
    assert list(found) == ["words", "tone", "sharp", "harm", "gate"]
    assert {name: one.breaker for name, one in found.items()} == {
        "words": "", "tone": "", "sharp": "", "harm": "closed", "gate": "closed",
    }  # fmt: skip
    assert not any(one.trouble for one in found.values())
    slow(active, "tone", 2_000.0)
    slow(active, "sharp", 2_000.0)
    scheduled(active, at)
    said = {one.guardrail: one.trouble for one in guardrails_at_work_now() if one.trouble}
    assert said == {
        "tone": "slower than declared, runs DEFERRED and not BATCHED",
        "sharp": "slower than declared (MODERATE), p95 2,000 ms",
    }


@pytest.mark.django_db(transaction=True)
async def test_readiness_names_what_is_wrong_and_stays_ready(active: Policy) -> None:
    """All processes share the breakers: without this process the others would be no better off."""
    client = AsyncClient()
    assert (await client.get("/ready")).json()["parts"]["guardrails"] == {
        "state": "ok", "detail": "all breakers are closed, none is slower than declared",
    }  # fmt: skip
    await trip(active, "harm")
    response = await client.get("/ready")
    part = response.json()["parts"]["guardrails"]
    assert (response.status_code, part) == (200, {"state": "degraded", "detail": "trial/harm: circuit open"})
    await trip(active, "gate")
    slow(active, "tone", 2_000.0)
    await database_sync_to_async(scheduled)(active, at)
    response = await client.get("/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["parts"]["guardrails"]["detail"].split("; ") == [
        "trial/tone: slower than declared, runs DEFERRED and not BATCHED",
        "trial/harm: circuit open",
        "trial/gate: circuit open, which blocks",
    ]


@pytest.mark.django_db(transaction=True)
async def test_guardrails_that_nobody_can_speak_for_make_no_process_unready(
    active: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "guardrails_at_work", never)
    monkeypatch.setattr(health, "PART_LIMIT_S", 1.0)
    response = await AsyncClient().get("/ready")
    part = response.json()["parts"]["guardrails"]
    assert (response.status_code, part) == (200, {"state": "degraded", "detail": "no answer within 1 s"})


@pytest.mark.django_db(transaction=True)
async def test_metrics_tell_what_was_demoted_and_what_is_slow(active: Policy) -> None:
    slow(active, "tone", 2_000.0)
    slow(active, "sharp", 2_000.0)
    await database_sync_to_async(scheduled)(active, at)
    text = (await AsyncClient().get("/metrics")).content.decode()
    assert 'sluicegate_guardrail_demoted{checkpoint="DEFERRED",guardrail="tone",policy="trial"} 1.0' in text
    assert 'sluicegate_guardrail_demoted{checkpoint="DEFERRED",guardrail="sharp"' not in text
    slow_line = 'sluicegate_guardrail_slower_than_declared{{guardrail="{}",mode="{}",policy="trial"}} {}'
    for name, mode, value in (("sharp", "BLOCK", "1.0"), ("words", "MONITOR", "0.0")):
        assert slow_line.format(name, mode, value) in text
    assert 'sluicegate_guardrail_breaker_state{guardrail="harm",policy="trial",state="closed"} 1.0' in text
    assert 'sluicegate_guardrail_breaker_state{guardrail="words"' not in text
    row = await Demotion.objects.aget()
    await database_sync_to_async(lambda: demotion.lift(demotion=row))()
    text = (await AsyncClient().get("/metrics")).content.decode()
    assert "sluicegate_guardrail_demoted{checkpoint" not in text


@pytest.mark.django_db(transaction=True)
async def test_code_without_an_event_loop_sees_the_same(active: Policy) -> None:
    await trip(active, "harm")
    told = await guardrails_at_work()
    assert await database_sync_to_async(guardrails_at_work_now)() == told
    assert {one.guardrail: one.breaker for one in told}["harm"] == "open"


@pytest.mark.django_db(transaction=True)
async def test_a_store_that_is_away_costs_no_page(active: Policy, settings: object) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"  # type: ignore[attr-defined]
    assert breakers.states_now([breakers.GUARDRAIL + "x"]) == {}
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    breakers.forget()
    await trip(active, "harm")
    assert breakers.states_now([breakers.GUARDRAIL + active.guardrail("harm").circuit]) == {
        breakers.GUARDRAIL + active.guardrail("harm").circuit: "open"
    }


def test_the_page_shows_it_in_the_lane_where_it_runs(active: Policy, client: Client, settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    slow(active, "tone", 2_000.0)
    slow(active, "sharp", 2_000.0)
    scheduled(active, at)
    page = client.get("/", {"policy": "trial"}).content.decode()
    deferred, before = page.rindex("in a worker, after the answer"), page.index("every chunk, before it is shown")
    assert before < page.index('id="g-sharp"') < deferred < page.index('id="g-tone"')
    tone = page[page.index('id="g-tone"') :]
    assert "records only, was at sentence ends" in tone[: tone.index("</tr>") if "</tr>" in tone else 2_000]
    assert page.count("slower than declared") >= 2


def test_the_operator_sees_the_state_and_lifts_what_was_demoted(active: Policy, client: Client, cast: Cast) -> None:
    slow(active, "tone", 2_000.0)
    scheduled(active, at)
    row = Demotion.objects.get()
    lift = {"action": "lift", "_selected_action": [row.pk]}
    cast.reviewer.user_permissions.add(Permission.objects.get(codename="view_demotion"))
    client.force_login(cast.reviewer)
    page = client.get(reverse(LIST)).content.decode()
    assert "Guardrails of active policies now" in page
    assert "slower than declared, runs DEFERRED and not BATCHED" in page
    assert "circuit" not in page
    client.post(reverse(LIST), lift)
    row.refresh_from_db()
    assert row.lifted_at is None, "who may look may not lift"
    cast.operator.user_permissions.add(*Permission.objects.filter(codename__endswith="_demotion"))
    client.force_login(cast.operator)
    client.post(reverse(LIST), lift)
    row.refresh_from_db()
    assert row.lifted_by == cast.operator
    assert LogEntry.objects.filter(user=cast.operator, object_id=str(row.pk)).count() == 1
    assert scheduled(active, at).demotions == ()
    client.force_login(cast.outsider)
    assert client.get(reverse(LIST)).status_code == 302


def test_nobody_makes_changes_or_removes_a_demotion(active: Policy, admin_client: Client) -> None:
    slow(active, "tone", 2_000.0)
    scheduled(active, at)
    row = Demotion.objects.get()
    assert admin_client.get(reverse("admin:streaming_demotion_add")).status_code == 403
    change = reverse("admin:streaming_demotion_change", args=[row.pk])
    assert admin_client.post(change, {"checkpoint": "IMMEDIATE"}).status_code == 403
    assert (
        admin_client.post(reverse("admin:streaming_demotion_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    )


def test_the_admin_names_an_open_breaker(active: Policy, admin_client: Client, store: object) -> None:
    name = breakers.GUARDRAIL + active.guardrail("harm").circuit
    store.hset(breakers._key(name), "state", "open")  # type: ignore[attr-defined]
    assert "▲ circuit open" in admin_client.get(reverse(LIST)).content.decode()
