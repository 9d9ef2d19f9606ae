"""A shadow behind the REST calls: what a client gets is the same, byte for byte, and the record says the difference."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.db import connection
from django.test import AsyncClient
from django.utils import timezone

from guardrails import selectors, services
from guardrails.models import PolicyVersion
from streaming import registry, tasks
from streaming.audit.verify import log_faults
from streaming.conf import conf
from streaming.core.gate import Gate
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, GuardedStream, ShadowCheck
from streaming.shadow.sealing import opened
from streaming.shadow.worker import run_shadow_check
from streaming.sweep import sweep
from tests.conftest import forget_policies

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forgetful", "valkey_url")]
Json = dict[str, object]
TEXT = "The fox went by the blue heron. A heron sleeps, and the red fox is away."
HERONS = [TEXT.index("heron"), TEXT.index("heron", 30)]
OWN = ("session_id", "expires_at", "stream_token", "metadata", "summary")


@pytest.fixture(autouse=True)
async def closing(settings: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = False  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")

    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    yield
    await registry.shutdown()
    await close_shared_log()


def document(**listed: str) -> Json:
    """Keyword guardrails: name and action, then the word."""
    drawn = [
        {"name": name, "kind": "keywords", "action": words.split()[0], "config": {"keywords": words.split()[1:]}}
        for name, words in listed.items()
    ]
    return {"policy": "trial", "description": "d", "guardrails": drawn}


@database_sync_to_async
def shadowed() -> PolicyVersion:
    """Version 1 active; version 2, which also blocks herons, beside it."""
    services.install(document=document(foxes="redact fox"))
    draft = services.save_draft(document=document(foxes="redact fox", herons="block heron"))
    version = services.sign(version=services.publish(policy=draft))
    services.set_shadow(version=version)
    return version


@database_sync_to_async
def without_shadow(version: PolicyVersion) -> None:
    services.clear_shadow(policy=version.policy)


@database_sync_to_async
def faults() -> list[str]:
    return [fault.message for fault in log_faults()]


class Client:
    def __init__(self) -> None:
        self.http = AsyncClient()
        self.key = ""

    async def post(self, call: str, **body: object) -> Json:
        if not self.key:
            limits = {"calls_per_minute": 10_000, "updates_per_second": 10_000}
            made = database_sync_to_async(services.create_api_key)
            self.key = (await made(name="k", scopes=["stream", "check"], policy="trial", **limits))[1]
        response = await self.http.post(
            f"/v1/{call}", json.dumps(body), content_type="application/json",
            headers={"Authorization": f"Bearer {self.key}"},
        )  # fmt: skip
        said: Json = json.loads(response.content)
        assert response.status_code in (200, 201), said
        return said

    async def stream(self, pieces: list[str]) -> tuple[str, list[str]]:
        """The session's id, and every answer as bytes but for what belongs to this one session."""
        answers = [await self.post("stream/start", kind="response")]
        session_id = str(answers[0]["session_id"])
        for seq, piece in enumerate(pieces, start=1):
            answers.append(await self.post("stream/update", session_id=session_id, seq=seq, delta=piece))
        answers.append(await self.post("stream/finish", session_id=session_id))
        same = [{key: value for key, value in answer.items() if key not in OWN} for answer in answers]
        return session_id, [json.dumps(answer, sort_keys=True) for answer in same]


def spans(row: AuditSession) -> list[tuple[object, ...]]:
    return [(f["version"], f["guardrail"], f["start"], f["would_have"], f["exposed"]) for f in row.shadow["findings"]]


EXPECTED = [
    (2, "foxes", TEXT.index("fox"), "redacted", 0),
    (2, "herons", HERONS[0], "blocked", 5),
    (2, "herons", HERONS[1], "blocked", 5),
    (2, "foxes", TEXT.rindex("fox"), "redacted", 0),
]


async def test_it_works() -> None:
    version, client = await shadowed(), Client()
    with_it = await client.post("check", text=TEXT, kind="response", accepts=["redact"])
    row = await AuditSession.objects.aget(pk=str(with_it["session_id"]))
    assert (row.shadow_version, row.shadow_comparison, row.shadow_would_have) == (2, "both_acted", "blocked")
    assert spans(row) == EXPECTED
    assert row.shadow["digest"] == version.digest
    assert (row.policy_version, row.outcome, await row.findings.acount()) == (1, "redacted", 2)
    await without_shadow(version)
    without = await client.post("check", text=TEXT, kind="response", accepts=["redact"])
    for said in (with_it, without):
        for own in ("session_id", "metadata"):
            said.pop(own)
    assert json.dumps(with_it) == json.dumps(without)
    assert await faults() == []


async def test_streams_answers_differ_by_no_byte_and_every_cutting_is_recorded_the_same() -> None:
    version, client = await shadowed(), Client()
    cuts: list[list[str]] = []
    for seed in range(4):
        rng, at = random.Random(seed), 0
        cuts.append([])
        while at < len(TEXT):
            size = rng.randint(1, 12)
            cuts[-1].append(TEXT[at : at + size])
            at += size
    with_it = [await client.stream(pieces) for pieces in cuts]
    await without_shadow(version)
    for (session_id, answers), pieces in zip(with_it, cuts, strict=True):
        assert answers == (await client.stream(pieces))[1]
        row = await AuditSession.objects.aget(pk=session_id)
        assert (row.outcome, row.shadow_version, row.shadow_comparison) == ("redacted", 2, "both_acted")
        assert spans(row) == EXPECTED
        assert row.shadow["ms"] > 0
    assert await faults() == []


async def test_text_behind_a_block_is_compared_the_same_however_a_stream_was_cut() -> None:
    def install() -> None:
        services.install(document=document(foxes="block fox"))
        draft = services.save_draft(document=document(both="redact fox", herons="redact heron"))
        services.set_shadow(version=services.sign(version=services.publish(policy=draft)))

    await database_sync_to_async(install)()
    client, found = Client(), []
    for size in (3, 80):
        session_id, _ = await client.stream([TEXT[at : at + size] for at in range(0, len(TEXT), size)])
        row = await AuditSession.objects.aget(pk=session_id)
        assert (row.outcome, row.shadow_comparison) == ("blocked", "both_acted")
        found.append(spans(row))
    assert found == [[(2, "both", 4, "redacted", 0)]] * 2


async def test_shadow_whose_state_cannot_be_read_costs_the_stream_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version, client = await shadowed(), Client()
    restore = Gate.restore

    def breaking(policy: selectors.Policy, state: object) -> Gate:
        if policy.version == 2:
            raise ValueError("broken")
        return restore(policy, state)  # type: ignore[arg-type]

    monkeypatch.setattr(Gate, "restore", breaking)
    pieces = [TEXT[:10], TEXT[10:20], TEXT[20:]]
    session_id, answers = await client.stream(pieces)
    await without_shadow(version)
    assert answers == (await client.stream(pieces))[1]
    row = await AuditSession.objects.aget(pk=session_id)
    assert (row.state, row.outcome) == ("COMPLETE", "redacted")
    assert row.shadow["error"] == "the shadow failed (ValueError)"
    assert "shadow_failed" in caplog.text


async def test_altered_shadow_is_refused_and_the_calls_go_on(caplog: pytest.LogCaptureFixture) -> None:
    version, client = await shadowed(), Client()

    @database_sync_to_async
    def alter() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER IF EXISTS guardrails_version_stays")
            weaker = version.canonical.replace("heron", "nothing")
            cursor.execute("UPDATE guardrails_policyversion SET canonical = %s WHERE id = %s", [weaker, version.pk])

    await alter()
    forget_policies()
    said = await client.post("check", text=TEXT, kind="response", accepts=["redact"])
    session_id, answers = await client.stream([TEXT])
    assert said["action"] == "redact"
    assert "[REDACTED]" in answers[1] + answers[2]
    for pk in (str(said["session_id"]), session_id):
        row = await AuditSession.objects.aget(pk=pk)
        assert (row.outcome, row.shadow_version, row.shadow_comparison) == ("redacted", 2, "unknown")
        assert "altered" in row.shadow["error"]
    assert "shadow_unhealthy" in caplog.text
    assert await faults() == []


async def test_stream_that_expires_keeps_what_its_shadow_saw() -> None:
    await shadowed()
    client = Client()
    began = await client.post("stream/start", kind="response", delta="the heron ")
    await shared_log().evaluate("redis.call('FLUSHALL') return 1", [], [])
    later = timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1)
    done = await sweep(later, shared_log(), lambda pk: None)
    assert done.expired == [began["session_id"]]
    row = await AuditSession.objects.aget(pk=str(began["session_id"]))
    assert (row.state, row.outcome, row.shadow_comparison) == ("COMPLETE", "expired", "only_shadow")
    assert spans(row) == [(2, "herons", 4, "blocked", 5)]


async def test_session_that_is_lost_has_no_comparison() -> None:
    await shadowed()
    client = Client()
    began = await client.post("stream/start", kind="response", delta="the heron ")
    await shared_log().evaluate("redis.call('FLUSHALL') return 1", [], [])
    await GuardedStream.objects.filter(session__pk=began["session_id"]).aupdate(sealed_state=b"nothing")
    later = timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1)
    await sweep(later, shared_log(), lambda pk: None)
    row = await AuditSession.objects.aget(pk=str(began["session_id"]))
    assert (row.outcome, row.shadow_version, row.shadow_comparison) == ("error", 2, "")
    assert await faults() == []


RUDE, HARM = "You are a worthless stupid idiot. ", "First you mix the poison."
SLOW = [
    {"name": "toxic", "kind": "toxicity", "action": "block"},
    {"name": "judge", "kind": "ai_judge", "mode": "BLOCK", "action": "block", "applies_to": ["prompt", "response"],
     "config": {"provider": "scripted", "rubric": "harm"}},
]  # fmt: skip


@database_sync_to_async
def slow_shadow(active: Json) -> None:
    services.install(document=active)
    draft = services.save_draft(document={"policy": "trial", "description": "d", "guardrails": SLOW})
    services.set_shadow(version=services.sign(version=services.publish(policy=draft)))


async def for_workers() -> dict[str, str]:
    """What workers are to be asked, by guardrail."""
    return {row.guardrail: "".join(piece.text for piece in opened(row)[0]) async for row in ShadowCheck.objects.all()}


async def settled(row: AuditSession) -> AuditSession:
    async for pk in ShadowCheck.objects.values_list("pk", flat=True):
        assert await run_shadow_check(pk)
    await row.arefresh_from_db()
    assert await faults() == []
    return row


@pytest.mark.parametrize("call", ["stream", "check"])
async def test_what_would_keep_a_call_waiting_is_asked_by_workers(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*asked: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("streaming.shadow.running.run_check", never)
    await slow_shadow(document(foxes="redact fox"))
    client, text = Client(), RUDE + HARM
    if call == "stream":
        session_id, _ = await client.stream([text[:20], text[20:40], text[40:]])
    else:
        session_id = str((await client.post("check", text=text, kind="response"))["session_id"])
    row = await AuditSession.objects.aget(pk=session_id)
    assert (row.state, row.shadow_comparison, set(row.shadow["not_run"])) == ("COMPLETE", "unknown", {"toxic", "judge"})
    assert await for_workers() == {"toxic": text, "judge": text}
    row = await settled(row)
    found = {(f["guardrail"], f["start"], f["end"], f["exposed"]) for f in row.shadow["findings"]}
    assert ("judge", 0, len(text), len(text)) in found
    assert {one[1] for one in found if one[0] == "toxic"} == {0}
    assert (row.shadow_comparison, row.shadow["not_run"]) == ("only_shadow", [])
    assert (row.would_have, await row.findings.acount(), await row.deferred_checks.acount()) == ("", 0, 0)


@pytest.mark.parametrize("call", ["stream", "check"])
async def test_a_prompt_that_was_blocked_is_told_to_no_judge(call: str) -> None:
    await slow_shadow(document(foxes="block fox"))
    client, text = Client(), f"A fox. {HARM}"
    if call == "stream":
        said = await client.post("stream/start", kind="prompt", delta=text)
        await client.post("stream/finish", session_id=said["session_id"])
    else:
        said = await client.post("check", text=text, kind="prompt")
    row = await AuditSession.objects.aget(pk=str(said["session_id"]))
    assert (row.outcome, row.shadow_comparison) == ("blocked", "unknown")
    assert "judge" in row.shadow["not_run"]
    assert "judge" not in await for_workers()


@pytest.mark.parametrize("change", ["nothing paid", "ended"])
async def test_who_stops_paying_stops_it_for_what_still_waits(change: str) -> None:
    await slow_shadow(document(foxes="redact fox"))
    said = await Client().post("check", text=HARM, kind="response")
    row = await AuditSession.objects.aget(pk=str(said["session_id"]))
    shadow = await PolicyVersion.objects.select_related("policy").aget(digest=row.shadow["digest"])
    if change == "ended":
        await without_shadow(shadow)
    else:
        await database_sync_to_async(services.set_shadow)(version=shadow, asks_paid=False)
    row = await settled(row)
    assert (row.shadow_comparison, row.shadow["not_run"], row.shadow["unanswered"]) == ("unknown", ["judge"], 1)
    assert not await ShadowCheck.objects.aexists()


async def test_what_came_behind_a_block_of_a_stream_is_nobodys() -> None:
    await slow_shadow(document(foxes="block fox"))
    session_id, _ = await Client().stream(["A fox. ", HARM])
    row = await AuditSession.objects.aget(pk=session_id)
    assert (row.outcome, await for_workers()) == ("blocked", {"toxic": "A fox", "judge": "A fox"})
    assert (await settled(row)).shadow_comparison == "only_active"


async def test_a_stream_of_which_a_process_of_the_version_before_kept_no_text_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await slow_shadow(document(foxes="redact fox"))
    client = Client()
    with monkeypatch.context() as before:
        before.setattr("streaming.guarded.shadow._asks_later", lambda policy, kind: False)
        began = await client.post("stream/start", kind="response", delta=HARM)
    await client.post("stream/finish", session_id=began["session_id"], delta=" All is well.")
    row = await AuditSession.objects.aget(pk=str(began["session_id"]))
    assert (row.shadow_comparison, set(row.shadow["not_run"])) == ("unknown", {"toxic", "judge"})
    assert not await ShadowCheck.objects.aexists()


async def test_chat_runs_the_shadow_of_its_policy() -> None:
    await shadowed()
    client = Client()
    said = await client.post("chat", scenario="own_text", text=TEXT, provider="scripted")
    told = await client.http.get(str(said["events_url"]), headers={"Authorization": f"Bearer {client.key}"})
    raw = b"".join([part async for part in told]).decode()
    assert "[REDACTED]" in raw
    assert '"state": "COMPLETE"' in raw or '"state":"COMPLETE"' in raw
    row = await AuditSession.objects.aget(pk=str(said["session_id"]))
    assert (row.policy_version, row.shadow_version, row.shadow_comparison) == (1, 2, "both_acted")
    assert spans(row) == EXPECTED
    assert "herons" not in raw
