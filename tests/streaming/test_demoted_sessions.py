"""Sessions under a demoted guardrail, through the calls that clients make: it is checked later, and by no one twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from guardrails import loading, selectors, services
from guardrails.policy import Policy
from streaming import demotion
from streaming.deferred import run_deferred
from streaming.log import MemoryLog
from streaming.models import AuditSession, DeferredCheck, Demotion, Finding
from streaming.verdicts import ENOUGH_TIMES, book
from tests.streaming.test_stream_api import Client, closing, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url", closing.__name__)]
INSULT = "Shut up, you stupid moron. "
DOCUMENT = {
    "policy": "trial",
    "guardrails": [
        {"name": "tone", "kind": "toxicity", "mode": "MONITOR", "action": "block"},
        {"name": "words", "kind": "keywords", "mode": "MONITOR", "config": {"keywords": ["moron"]}},
    ],
}


@pytest.fixture
async def active() -> AsyncIterator[Policy]:
    def begin() -> Policy:
        loading.forget()
        demotion.forget()
        services.install(document=json.loads(json.dumps(DOCUMENT)))
        return selectors.active_policy("trial")

    yield await database_sync_to_async(begin)()
    for module in (selectors, demotion, loading):
        module.forget()


@pytest.fixture
async def client(active: Policy) -> Client:
    return Client(await new_key(policy="trial"))


def demote(active: Policy, name: str, ms: float) -> None:
    """From now on this process has measured that; the next session that begins draws the conclusion."""
    for _ in range(ENOUGH_TIMES):
        book(active.guardrail(name).impl).measured(ms, lambda: 1e12)


async def checks(session_id: object) -> list[tuple[str, str]]:
    rows = DeferredCheck.objects.filter(session_id=str(session_id)).order_by("id")
    return [(row.guardrail, row.state) async for row in rows]


async def made(session_id: object) -> None:
    """What workers do."""
    async for row in DeferredCheck.objects.filter(session_id=str(session_id)):
        assert await run_deferred(row.pk, MemoryLog())


async def test_it_works(client: Client, active: Policy) -> None:
    """Own stream: what began before is asked about sentences, what begins afterwards about the whole text."""
    before = await client.start(delta=INSULT)
    demote(active, "tone", 2_000.0)
    after = await client.start(delta=INSULT)
    assert await Demotion.objects.acount() == 1
    for began in (before, after):
        status, said = await client.update(began["session_id"], 2, "And a calm end.")
        assert (status, said["action"]) == (200, "allow")
    places = {"before": (0, len(INSULT)), "after": (0, len(INSULT + "And a calm end."))}
    for began, sentences in ((before, True), (after, False)):
        _, said = await client.finish(began["session_id"])
        assert (said["state"], await checks(began["session_id"])) == ("MONITORING", [("tone", "waiting")])
        assert (await DeferredCheck.objects.aget(session_id=str(began["session_id"]))).sentences is sentences
        await made(began["session_id"])
        assert await checks(began["session_id"]) == [("tone", "would_block")]
        finding = await Finding.objects.aget(session_id=str(began["session_id"]), guardrail="tone")
        assert (finding.start, finding.end) == places["before" if sentences else "after"]
    for began in (before, after):
        session = await AuditSession.objects.aget(pk=str(began["session_id"]))
        found = [(f.guardrail, f.would_have) async for f in session.findings.order_by("guardrail", "n")]
        assert found == [("tone", "blocked"), ("words", "blocked")]
        assert (session.state, session.would_have) == ("COMPLETE", "blocked")


async def test_a_stream_ends_as_it_began_although_the_demotion_is_lifted_meanwhile(
    client: Client, active: Policy
) -> None:
    demote(active, "tone", 2_000.0)
    began = await client.start(delta=INSULT)
    row = await Demotion.objects.aget()
    assert await database_sync_to_async(lambda: demotion.lift(demotion=row))()
    loading.forget()  # another process gets the next call
    assert (await client.update(began["session_id"], 2, "The end."))[0] == 200
    _, said = await client.finish(began["session_id"])
    assert (said["state"], await checks(began["session_id"])) == ("MONITORING", [("tone", "waiting")])


async def test_rules_that_were_demoted_twice_are_run_by_a_worker(client: Client, active: Policy) -> None:
    demote(active, "words", 2_000.0)
    began = await client.start(delta=INSULT)
    await client.finish(began["session_id"])
    loading.forget()  # the worker is another process and knows the version alone
    await made(began["session_id"])
    assert sorted(await checks(began["session_id"])) == [("tone", "would_block"), ("words", "would_block")]


async def test_a_whole_text_that_is_checked_at_once_leaves_it_to_a_worker_too(client: Client, active: Policy) -> None:
    demote(active, "tone", 2_000.0)
    response = await client.http.post(
        "/v1/check", json.dumps({"text": INSULT, "kind": "response"}), content_type="application/json",
        headers=client.headers,
    )  # fmt: skip
    assert response.status_code == 200, response.content
    session = await AuditSession.objects.aget(origin="check")
    assert await checks(session.pk) == [("tone", "waiting")]
