"""Calls that answer once never wait for a check in MONITOR; a worker makes it over the same sentences, losing none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient
from django.utils import timezone

from guardrails.findings import Action, AppliesTo, Finding, Mode
from guardrails.kinds import base
from guardrails.policy import Policy, compile_policy
from guardrails.selectors import Running
from streaming import deferred, tasks
from streaming.aside import judge_sentences, set_aside, shown_of
from streaming.audit.verify import log_faults, stored_entries
from streaming.checks import check_text
from streaming.conf import conf
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, DeferredCheck, Message
from streaming.models import Finding as StoredFinding
from streaming.sweep import sweep

from .test_monitor_delays_nothing import LIMIT_S, Slow
from .test_stream_api import Client, forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SSN = "536-22-8145"
TEXT = f"It was a calm day. My number is {SSN}, I think. Then came the rain."


def policy(mode: str = "MONITOR", action: str = "block", time_limit_s: float = 60) -> Policy:
    """The slow check beside rules that redact."""
    slow = {"name": "slow", "kind": "trial_slow", "mode": mode, "action": action, "time_limit_s": time_limit_s,
            "applies_to": ["prompt", "response"]}  # fmt: skip
    pii = {"name": "pii", "kind": "pii", "action": "redact", "applies_to": ["prompt", "response"]}
    return compile_policy({"policy": "t", "guardrails": [slow, pii]}, version=1, digest="sha256:t")


@pytest.fixture(autouse=True)
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Policy]]:
    """The policy that all calls and workers here find: the last of the list."""
    base.all_kinds()
    monkeypatch.setattr(Slow, "name", "trial_slow", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_slow", Slow)  # type: ignore[arg-type]
    monkeypatch.setattr(Slow, "go", asyncio.Event(), raising=False)
    monkeypatch.setattr(Slow, "asked", [], raising=False)
    given = [policy()]

    async def load(name: str, whose: object) -> Running:
        return Running(given[-1])

    async def queue(session_id: str) -> None:
        """Whoever is to make the checks is called by the tests."""

    monkeypatch.setattr("streaming.api.check.load_running", load)
    monkeypatch.setattr("streaming.api.stream.load_running", load)
    monkeypatch.setattr("streaming.guarded.service.policy_by_digest", lambda digest: given[-1])
    monkeypatch.setattr("streaming.deferred.policy_by_digest", lambda digest: given[-1])
    monkeypatch.setattr(tasks, "queue_session", queue)
    yield given
    await close_shared_log()


async def streamed(client: Client, *deltas: str) -> tuple[str, str]:
    """A stream from start to finish; its id, and what was shown. A call that waits ends in a time-out here."""
    async with asyncio.timeout(LIMIT_S):
        began = await client.start(delta=deltas[0])
        shown = str(began["released"])
        for seq, delta in enumerate(deltas[1:], start=2):
            status, said = await client.update(began["session_id"], seq, delta)
            assert status == 200, said
            shown += str(said["released"])
        status, done = await client.finish(began["session_id"])
        assert (status, done["state"]) == (200, "MONITORING")
    return str(began["session_id"]), shown + str(done["released"])


async def findings() -> list[tuple[int, int, str, int]]:
    rows = StoredFinding.objects.filter(guardrail="slow").order_by("n")
    return [(row.start, row.end, row.would_have, row.exposed) async for row in rows]


async def faults() -> list[str]:
    return await database_sync_to_async(lambda: [fault.code for fault in log_faults()])()


async def make(pk: int) -> bool:
    """What a worker does."""
    async with asyncio.timeout(LIMIT_S):
        return await deferred.run_deferred(pk, shared_log())


async def asked() -> None:
    """Until the slow check is out."""
    while not Slow.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_it_works() -> None:
    client = Client(await new_key())
    session_id, shown = await streamed(client, TEXT[:20], TEXT[20:50], TEXT[50:])
    assert shown == TEXT.replace(SSN, "[SSN]")
    assert Slow.asked == [], "neither start nor update nor finish has asked"
    row = await DeferredCheck.objects.aget()
    assert (row.guardrail, row.state, row.sentences) == ("slow", "waiting", True)
    Slow.go.set()
    assert await make(row.pk)
    assert not await make(row.pk), "a task that runs twice"
    ends = [TEXT.index("My"), TEXT.index("Then"), len(TEXT)]
    assert [text for _, text in Slow.asked] == [TEXT[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert await findings() == [
        (0, ends[0], "blocked", ends[0]),
        (ends[0], ends[1], "blocked", ends[1] - ends[0] - len(SSN)),
        (ends[1], ends[2], "blocked", ends[2] - ends[1]),
    ]
    session = await AuditSession.objects.aget(pk=session_id)
    assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "redacted", "blocked")
    counted = session.timing["guardrails"]["slow"]
    assert (counted["checks"], counted["hits"], session.timing["checks"], session.exposed) == (3, 3, 3, len(TEXT) - 11)
    told = [event["type"] for event in await shared_log().read(session_id, 0)]
    assert (told.count("finding"), told.count("done")) == (4, 1)
    assert told.index("done") < len(told) - 4, "what is found comes after the answer's end"
    assert await faults() == []


async def test_one_check_answers_while_the_slow_one_is_out() -> None:
    headers = {"Authorization": f"Bearer {await new_key('check')}"}
    body = json.dumps({"text": TEXT, "kind": "response", "accepts": ["redact"]})
    async with asyncio.timeout(LIMIT_S):
        answer = await AsyncClient().post("/v1/check", body, content_type="application/json", headers=headers)
    said = json.loads(answer.content)
    assert (said["action"], said["text"]) == ("redact", TEXT.replace(SSN, "[SSN]"))
    assert said["metadata"]["guardrails_triggered"] == ["pii"]
    assert Slow.asked == []
    session = await AuditSession.objects.aget(pk=said["session_id"])
    assert session.state == "MONITORING"
    Slow.go.set()
    assert await make((await DeferredCheck.objects.aget()).pk)
    await session.arefresh_from_db()
    assert (session.state, session.would_have, len(await findings())) == ("COMPLETE", "blocked", 3)
    assert await faults() == []


@pytest.mark.parametrize("action", ["block", "warn"])
async def test_what_the_answer_says_is_waited_for(action: str, running: list[Policy]) -> None:
    running.append(policy("BLOCK", action))
    client = Client(await new_key())
    async with asyncio.timeout(LIMIT_S):
        calling = asyncio.create_task(client.start(delta="One sentence. And"))
        await asked()
        assert not calling.done()
        Slow.go.set()
        assert (await calling)["action"] == action
    assert not await DeferredCheck.objects.aexists()


async def test_the_sentences_are_those_that_the_call_would_have_asked_about() -> None:
    Slow.go.set()
    text = "One. Two has a number, 3.14! “Three?” she said.\n\nFour is the last; it has no end"
    given = policy()
    at_once = await check_text(given, text, applies_to=AppliesTo.RESPONSE)
    called = list(Slow.asked)
    Slow.asked.clear()
    judged = await judge_sentences(given, given.guardrail("slow"), text, AppliesTo.RESPONSE, limit_s=60)
    assert Slow.asked == called
    places = [(finding.start, finding.end, finding.rule, finding.would_have) for finding in judged.findings]
    assert places == [(f.start, f.end, f.rule, f.would_have) for f in at_once.findings]
    assert len(places) >= 3


async def test_a_worker_that_dies_amid_the_sentences_loses_and_doubles_nothing() -> None:
    session_id, _ = await streamed(Client(await new_key()), TEXT)
    row = await DeferredCheck.objects.aget()
    async with asyncio.timeout(LIMIT_S):
        dying = asyncio.create_task(deferred.run_deferred(row.pk, shared_log()))
        await asked()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    assert await findings() == []
    later = timezone.now() + timedelta(seconds=conf().check_lease_s + 1)
    assert (await sweep(later, shared_log(), lambda pk: None)).requeued == [row.pk]
    Slow.go.set()
    assert await make(row.pk)
    assert len(await findings()) == 3
    assert (await AuditSession.objects.aget(pk=session_id)).state == "COMPLETE"
    assert await faults() == []


async def test_a_stream_whose_store_is_lost_is_judged_as_a_whole_all_the_same() -> None:
    client = Client(await new_key())
    began = await client.start(delta=TEXT[:30])
    await forget_store()
    status, _ = await client.update(began["session_id"], 2, TEXT[30:])
    assert status == 200
    await client.finish(began["session_id"])
    Slow.go.set()
    assert await make((await DeferredCheck.objects.aget()).pk)
    assert "".join(text for _, text in Slow.asked) == TEXT


async def test_what_a_silent_client_was_shown_is_judged_too() -> None:
    client = Client(await new_key())
    half = f"It was a calm day. My number is {SSN[:8]}"
    began = await client.start(delta=half)
    later = timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1)
    await shared_log().evaluate(
        "redis.call('HSET', KEYS[1], 'at', 1) return 1", [f"sg:guarded:{{{began['session_id']}}}"], []
    )
    assert (await sweep(later, shared_log(), lambda pk: None)).expired == [began["session_id"]]
    session = await AuditSession.objects.aget()
    assert (session.state, session.outcome) == ("MONITORING", "expired")
    Slow.go.set()
    assert await make((await DeferredCheck.objects.aget()).pk)
    await session.arefresh_from_db()
    assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "expired", "blocked")
    answer = await Message.objects.aget(sessions_answered=session)
    assert answer.content == began["released"], "what was held stays so"
    assert sum(exposed for _, _, _, exposed in await findings()) == len(answer.content) < len(half)


async def test_findings_that_come_after_the_limit_are_entries_of_their_own() -> None:
    await streamed(Client(await new_key()), TEXT)
    row = await DeferredCheck.objects.aget()
    async with asyncio.timeout(LIMIT_S):
        late = asyncio.create_task(deferred.run_deferred(row.pk, shared_log()))
        await asked()
        await sweep(timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1), shared_log(), lambda pk: None)
        Slow.go.set()
        assert not await late
    kinds = await database_sync_to_async(lambda: [entry.kind for entry in stored_entries()])()
    assert kinds == ["opened", "sealed", "finding", "finding", "finding"]
    assert await faults() == []


async def test_a_sentence_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(self: Slow, request: base.CheckRequest, services: base.Services) -> base.Verdict:
        if "number" in request.text:
            raise base.CheckFailed("away")
        return base.Verdict(hit=True, score=0.9, category="slow")

    monkeypatch.setattr(Slow, "check", check)
    await streamed(Client(await new_key()), TEXT)
    row = await DeferredCheck.objects.aget()
    assert await make(row.pk)
    await row.arefresh_from_db()
    assert (row.state, row.error, row.sealed_text) == ("error", "away (1 of 3 sentences)", None)
    assert [start for start, _, _, _ in await findings()] == [0, TEXT.index("Then")]
    assert (await AuditSession.objects.aget()).would_have == "blocked"


async def test_a_text_that_takes_too_long_says_so_and_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.aside.AT_ONCE", 1)
    Slow.go.set()
    given, text = policy(), "A sentence. " * 100

    def clock() -> float:
        return 2.0 * len(Slow.asked)

    judged = await judge_sentences(given, given.guardrail("slow"), text, AppliesTo.RESPONSE, limit_s=100, clock=clock)
    assert (len(Slow.asked), len(judged.findings)) == (50, 50)
    assert judged.checked.timed_out
    assert judged.checked.verdict.error == "not asked: the text took longer than 100 s (50 of 100 sentences)"


async def test_only_what_is_in_monitor_is_set_aside_and_only_once() -> None:
    moved, names = set_aside(policy(), AppliesTo.RESPONSE)
    assert names == ("slow",)
    assert set_aside(moved, AppliesTo.RESPONSE) == (moved, ())
    assert dict(moved.demotions) == {"slow": "DEFERRED"}
    blocking = policy("BLOCK")
    assert set_aside(blocking, AppliesTo.RESPONSE) == (blocking, ())


@pytest.mark.parametrize(
    ("hidden", "released", "expected"),
    [
        ([], 100, 10),
        ([], 25, 5),
        ([], 20, 0),
        ([(22, 25)], 97, 7),
        ([(0, 10)], 15, 5),
        ([(0, 10), (22, 25)], 12, 2),
        ([(0, 50)], 10, 0),
        ([(5, 12), (5, 8)], 18, 5),
    ],
)
def test_of_a_span_is_exposed_what_was_shown_of_it(hidden: list[tuple[int, int]], released: int, expected: int) -> None:
    found = Finding("g", "k", "r", "", 20, 30, Mode.MONITOR, Action.BLOCK, "text")
    assert shown_of(found, hidden, released) == expected
