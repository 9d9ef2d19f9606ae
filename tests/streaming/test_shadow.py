"""A shadow sees what the active version sees, changes nothing of it, and what it would have done is on record."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import Action, AppliesTo, Finding, Mode, OnError, Verdict
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, Policy, compile_policy
from guardrails.selectors import ShadowPolicy
from streaming.audit.chain import digest
from streaming.audit.rows import SESSION_FIELDS, session_digest, stamp
from streaming.audit.verify import log_faults
from streaming.checks import Looked
from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.gate import Gate, gate_text
from streaming.log import LogUnavailable, MemoryLog, Payload
from streaming.metrics import REGISTRY
from streaming.models import AuditSession, ShadowCheck
from streaming.models import Finding as FindingRow
from streaming.shadow import asked, running
from streaming.shadow.record import MAX_FINDINGS, Comparison, compared, recorded, with_exposure
from streaming.shadow.sealing import opened
from tests.streaming.pumping import Time, Trial, trial

pytestmark = pytest.mark.django_db(transaction=True)
WORDS = ("red fox", "fox", "blue", "blue heron", "den", "night", "x")


def words(name: str, action: str, *listed: str, mode: str = "BLOCK", **more: object) -> dict[str, object]:
    config: dict[str, object] = {"keywords": list(listed)}
    return {"name": name, "kind": "keywords", "mode": mode, "action": action, "config": config, **more}


def policy(*guardrails: dict[str, object], version: int = 3) -> Policy:
    return compile_policy({"policy": "trial", "guardrails": list(guardrails)}, version=version, digest=f"d{version}")


def shadow(*guardrails: dict[str, object]) -> ShadowPolicy:
    return ShadowPolicy(4, "d4", policy(*guardrails, version=4))


class Sentences(Kind[Config]):
    """Hits every sentence with a word in it, when it is let go (no name: it registers nowhere)."""

    family = Family.LOCAL_ML
    Config = Config
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 200, 500, 900)

    def __init__(self, word: str, *, error: str | None = None) -> None:
        super().__init__(Config())
        self.word, self.error = word, error
        self.go = asyncio.Event()
        self.asked: list[str] = []
        self.under_way = self.most = 0

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        self.asked.append(request.text)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        return Verdict(hit=self.word in request.text, score=0.9, category="tone", error=self.error)


def with_sentences(base: Policy, kind: Sentences) -> Policy:
    guardrail = Guardrail(
        name="tone", kind="tone", impl=kind, applies_to=frozenset({AppliesTo.RESPONSE}), mode=Mode.BLOCK,
        action=Action.BLOCK, on_error=OnError.BLOCK, checkpoint=Checkpoint.BATCHED, time_limit_s=30, client=False,
        rules=(), limits=(),
    )  # fmt: skip
    return replace(base, guardrails=(*base.guardrails, guardrail), _plans={}, _scanners={}, _parts={})


@database_sync_to_async
def row_of(case: Trial) -> AuditSession:
    return AuditSession.objects.get(pk=case.session_id)


@database_sync_to_async
def left_to_workers() -> int:
    """Sentences that workers are to be asked about."""
    return sum(len(opened(row)[0]) for row in ShadowCheck.objects.all())


@database_sync_to_async
def own_findings(case: Trial) -> list[tuple[str, int, int]]:
    return [(f.guardrail, f.start, f.end) for f in FindingRow.objects.filter(session_id=case.session_id).order_by("n")]


def marks(row: AuditSession) -> list[tuple[object, ...]]:
    """The shadow's findings as they are stored."""
    return [
        (f["n"], f["version"], f["guardrail"], f["channel"], f["start"], f["end"], f["would_have"], f["exposed"])
        for f in row.shadow["findings"]
    ]


async def told(case: Trial) -> list[str]:
    """All events as bytes would be, without the session's own ids and holds; chunks that follow each other as one.

    Where one chunk ends and the next begins is up to the event loop, with a shadow or without; and what is held in
    between is told only where the loop had time for it.
    """
    ids = {case.session_id: "S", case.answer_id: "A", case.conversation_id: "C"}
    ids[str((await row_of(case)).prompt_id)] = "P"
    out: list[str] = []
    found = [event for event in await case.events() if event["type"] != "hold"]
    events = [{key: ids.get(str(value), value) for key, value in event.items()} for event in found]
    for event in events:
        event.pop("seq")
        if isinstance(metadata := event.get("metadata"), dict) and "in_reply_to" in metadata:
            event["metadata"] = {**metadata, "in_reply_to": "P"}
    for (kind, channel, choice, last), same in groupby(
        events, lambda e: (e["type"], e.get("channel"), e.get("choice"), e.get("is_final"))
    ):
        if kind == "message_stream":
            text = "".join(str(event["chunk"]) for event in same)
            out.append(json.dumps([kind, channel, choice, last, text]))
        else:
            out += [json.dumps(event, sort_keys=True) for event in same]
    return out


async def run(case: Trial) -> AuditSession:
    await asyncio.wait_for(case.pump.run(), 60)
    return await row_of(case)


async def test_it_works() -> None:
    active = policy(words("pii", "redact", "fox"))
    beside = shadow(words("pii", "redact", "fox"), words("new", "block", "heron"))
    case = await trial(["The f", "ox saw a her", "on there."], policy=active, shadow=beside)
    row = await run(case)
    assert await case.shown() == "The [REDACTED] saw a heron there."
    assert (row.outcome, row.would_have) == ("redacted", "")
    assert (row.shadow_version, row.shadow_would_have, row.shadow_comparison) == (4, "blocked", "both_acted")
    assert row.shadow["digest"] == "d4"
    assert marks(row) == [
        (1, 4, "pii", "text", 4, 7, "redacted", 0),
        (2, 4, "new", "text", 14, 19, "blocked", 5),
    ]
    assert await own_findings(case) == [("pii", 4, 7)]
    assert row.shadow["ms"] > 0


async def test_sessions_are_counted_by_comparison() -> None:
    def counted() -> list[float]:
        labels = [{"policy": "trial", "comparison": name} for name in ("only_shadow", "both_clean")]
        return [REGISTRY.get_sample_value("sluicegate_shadow_sessions_total", each) or 0.0 for each in labels]

    before = counted()
    beside = shadow(words("new", "block", "heron"))
    for text in ("a heron", "a fox", "heron"):
        await run(await trial([text], policy=policy(words("w", "redact", "den")), shadow=beside))
    await run(await trial(["a heron"], policy=policy(words("w", "redact", "den"))))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1]


async def test_text_whose_telling_failed_is_compared_as_well() -> None:
    class Deaf(MemoryLog):
        async def append(
            self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
        ) -> int:
            if any(payload["type"] == "message_stream" for payload in payloads):
                raise LogUnavailable("gone")
            return await super().append(session_id, payloads, ms=ms, floor=floor)

    active, beside = policy(words("w", "redact", "den")), shadow(words("new", "block", "heron"))
    row = await run(await trial(["a heron. "], policy=active, shadow=beside, log=Deaf()))
    assert (row.outcome, row.released, row.shadow_comparison) == ("error", len("a heron. "), "only_shadow")


async def test_no_shadow_leaves_no_trace() -> None:
    row = await run(await trial(["The fox."], policy=policy(words("w", "redact", "fox"))))
    assert (row.shadow_version, row.shadow_comparison, row.shadow_would_have, row.shadow) == (0, "", "", {})


def random_policy(rng: random.Random, version: int) -> Policy:
    drawn = [
        words(f"g{i}", rng.choice(["block", "redact", "warn"]), *rng.sample(WORDS, rng.randint(1, 3)),
              mode=rng.choice(["BLOCK", "BLOCK", "MONITOR"]),
              applies_to=rng.choice([["prompt", "response"], ["response"], ["response", "thinking", "tool_result"]]))
        for i in range(rng.randint(1, 3))
    ]  # fmt: skip
    return policy(*drawn, version=version)


def random_text(rng: random.Random) -> str:
    spoken = [rng.choice([*WORDS, "the", "a", "and so on", "went.", "Over!"]) for _ in range(rng.randint(1, 14))]
    return " ".join(spoken)


def random_script(rng: random.Random) -> list[str | ProviderEvent]:
    script: list[str | ProviderEvent] = []
    text = random_text(rng)
    while text:
        cut = rng.randint(1, 9)
        script.append(TextDelta(text[:cut], rng.choice([0, 0, 0, 1])))
        text = text[cut:]
        if rng.random() < 0.15:
            script.append(ThinkingDelta(random_text(rng)))
    if rng.random() < 0.3:
        script.append(ToolCallDelta(0, "c1", "lookup", "{}", True))
        script.append(ProviderToolResult("c1", random_text(rng), ""))
    return script


@pytest.mark.parametrize("seed", range(24))
async def test_shadow_changes_a_character_or_an_event_of_the_answer(seed: int) -> None:
    """It must not: the same answer with and without, for random policies and texts, sentence checks included."""
    rng = random.Random(seed)
    active, beside = random_policy(rng, 3), random_policy(rng, 4)
    if seed % 3 == 0:
        kind = Sentences("fox", error="away" if seed % 2 else None)
        kind.go.set()
        beside = with_sentences(beside, kind)
    script, prompt, monitor = random_script(rng), random_text(rng), rng.random() < 0.2
    told_by: list[list[str]] = []
    rows: list[AuditSession] = []
    for which in (None, ShadowPolicy(4, "d4", beside)):
        case = await trial(script, prompt=prompt, policy=active, clock=Time(), shadow=which, monitor=monitor)
        rows.append(await run(case))
        told_by.append(await told(case))
    assert told_by[0] == told_by[1]
    alone, accompanied = rows
    same = ("state", "outcome", "would_have", "released", "withheld", "exposed", "chars_in", "timing", "error_code")
    assert [getattr(alone, name) for name in same] == [getattr(accompanied, name) for name in same]
    assert accompanied.shadow_comparison in set(Comparison)
    assert not list(await database_sync_to_async(lambda: list(log_faults()))())


async def test_broken_shadow_gate_ends_the_shadow_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    active, beside = policy(words("w", "redact", "fox")), shadow(words("new", "block", "heron"))
    feed = Gate.feed

    def breaking(gate: Gate, text: str) -> object:
        if gate.policy.version == 4 and "three" in text:
            raise RuntimeError("secret heron text")
        return feed(gate, text)

    monkeypatch.setattr(Gate, "feed", breaking)
    case = await trial(["one heron ", "two fox ", "three ", "four"], policy=active, shadow=beside)
    row = await run(case)
    assert await case.shown() == "one heron two [REDACTED] three four"
    assert (row.state, row.outcome, row.error) == ("COMPLETE", "redacted", "")
    assert row.shadow["error"] == "the shadow failed (RuntimeError)"
    assert (row.shadow_comparison, row.shadow_would_have) == ("both_acted", "blocked")  # found before it failed
    assert "shadow_failed" in caplog.text


async def test_shadow_that_failed_before_it_found_anything_is_not_called_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Gate.feed

    def breaking(gate: Gate, text: str) -> object:
        if gate.policy.version == 4:
            raise MemoryError
        return feed(gate, text)

    monkeypatch.setattr(Gate, "feed", breaking)
    row = await run(
        await trial(["one"], policy=policy(words("w", "redact", "fox")), shadow=shadow(words("n", "block", "h")))
    )
    assert (row.outcome, row.shadow_comparison, row.shadow_would_have) == ("allowed", "unknown", "")


async def test_shadow_that_does_not_load_stands_in_the_record() -> None:
    which = ShadowPolicy(4, "d4", None, "trial v4 was altered after it was signed")
    case = await trial(["The fox."], policy=policy(words("w", "redact", "fox")), shadow=which)
    row = await run(case)
    assert await case.shown() == "The [REDACTED]."
    assert (row.shadow_version, row.shadow_comparison) == (4, "unknown")
    assert row.shadow["error"] == "trial v4 was altered after it was signed"
    assert row.shadow["findings"] == []


async def test_verdict_that_never_comes_holds_no_character_and_ends_with_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "GRACE_S", 0.05)
    kind = Sentences("fox")
    beside = with_sentences(policy(words("new", "warn", "zebra"), version=4), kind)
    more = asyncio.Event()
    case = await trial(
        ["A fox sat. ", "It ran. ", more, "The end."],
        policy=policy(words("w", "redact", "heron")),
        shadow=ShadowPolicy(4, "d4", beside),
    )
    task = asyncio.create_task(case.pump.run())
    await case.until_shown("A fox sat. It ran. ")
    more.set()
    await asyncio.wait_for(task, 60)
    row = await row_of(case)
    assert (row.state, row.outcome) == ("COMPLETE", "allowed")
    assert (row.shadow_comparison, row.shadow["late"]) == ("unknown", {"tone": 1})
    assert await left_to_workers() == 3
    assert kind.under_way == 0


async def test_verdict_that_never_comes_does_not_cost_what_was_found_in_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "GRACE_S", 0.05)
    kind = Sentences("fox")
    beside = with_sentences(policy(words("new", "block", "zebra"), version=4), kind)
    beside = replace(
        beside,
        guardrails=tuple(replace(g, applies_to=frozenset({AppliesTo.PROMPT})) for g in beside.guardrails),
    )
    case = await trial(
        ["ok"], prompt="A zebra. " * 2_000, policy=policy(words("w", "redact", "heron")),
        shadow=ShadowPolicy(4, "d4", beside),
    )  # fmt: skip
    row = await run(case)
    assert (row.shadow_comparison, row.shadow_would_have) == ("only_shadow", "blocked")
    assert len(row.shadow["findings"]) + row.shadow["more"] == 2_000
    assert await left_to_workers() == asked.MOST_PIECES
    assert row.shadow["unanswered"] == 2_000 - asked.MOST_PIECES
    assert kind.under_way == 0


async def test_long_text_is_read_to_its_end_however_short_the_wait_for_verdicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "MAX_WAITING", 0)
    which = shadow(words("new", "block", "zebra"))
    beside, text = running.Shadow(which, session_id="s"), "and so on " * 2_000 + "zebra"
    beside.look(Looked(text, AppliesTo.PROMPT, "prompt"))
    record = await beside.record(None, running.Compared(policy(words("w", "redact", "heron")), False), grace_s=0.0)
    assert (record.unanswered, record.comparison) == (0, "only_shadow")


async def test_flood_of_sentences_asks_few_at_a_time_and_lets_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE_S", 30.0)
    monkeypatch.setattr(running, "MAX_WAITING", 20)
    kind, more = Sentences("fox"), asyncio.Event()
    beside = with_sentences(policy(words("new", "warn", "zebra"), version=4), kind)
    script: list[str | asyncio.Event] = ["So it is here. " * 50, more, "The end."]
    case = await trial(script, policy=policy(words("w", "redact", "heron")), shadow=ShadowPolicy(4, "d4", beside))
    task = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    kind.go.set()
    more.set()
    await asyncio.wait_for(task, 60)
    row = await row_of(case)
    assert kind.most <= running.AT_ONCE
    assert await left_to_workers() >= 50 - running.MAX_WAITING - 1
    assert len(kind.asked) + await left_to_workers() >= 51
    assert row.shadow["unanswered"] == 0
    assert row.shadow_comparison == "unknown"


async def test_failed_check_of_the_shadow_blocks_nothing_and_is_counted() -> None:
    kind = Sentences("fox", error="the service is away")
    kind.go.set()
    beside = with_sentences(policy(words("new", "warn", "zebra"), version=4), kind)
    case = await trial(
        ["A fox sat. "], policy=policy(words("w", "redact", "heron")), shadow=ShadowPolicy(4, "d4", beside)
    )
    row = await run(case)
    assert await case.shown() == "A fox sat. "
    assert (row.shadow_comparison, row.shadow["failures"]) == ("unknown", {"tone": 1})


async def test_sentence_check_of_the_shadow_would_have_blocked() -> None:
    kind = Sentences("fox")
    kind.go.set()
    beside = with_sentences(policy(words("new", "warn", "zebra"), version=4), kind)
    case = await trial(
        ["All is well. ", "A fox sat. "], policy=policy(words("w", "redact", "f")), shadow=ShadowPolicy(4, "d4", beside)
    )
    row = await run(case)
    assert await case.shown() == "All is well. A fox sat. "
    assert marks(row) == [(1, 4, "tone", "text", 13, 24, "blocked", 11)]
    assert (row.shadow_comparison, row.shadow_would_have) == ("only_shadow", "blocked")


async def test_deferred_guardrails_of_a_shadow_are_named_and_never_asked() -> None:
    judge = {"name": "judge", "kind": "ai_judge", "applies_to": ["response"], "config": {"rubric": "harm"}}
    case = await trial(["All well."], policy=policy(words("w", "redact", "fox")), shadow=shadow(judge))
    row = await run(case)
    assert row.shadow["not_run"] == ["judge"]
    assert row.shadow_comparison == "both_clean"  # in MONITOR it decides nothing
    assert (row.state, case.queued) == ("COMPLETE", [])
    case = await trial(
        ["All well."], policy=policy(words("w", "redact", "fox")), shadow=shadow({**judge, "mode": "BLOCK"})
    )
    row = await run(case)
    assert await case.shown() == "All well."
    assert (row.shadow_comparison, row.shadow["not_run"]) == ("unknown", ["judge"])


async def test_guardrail_that_only_records_would_not_have_acted() -> None:
    beside = shadow(words("trial", "block", "fox", mode="MONITOR"))
    row = await run(await trial(["The fox."], policy=policy(words("w", "redact", "heron")), shadow=beside))
    assert marks(row) == [(1, 4, "trial", "text", 4, 7, None, 3)]
    assert (row.shadow_comparison, row.shadow_would_have) == ("both_clean", "")


async def test_text_behind_a_block_is_compared_the_same_however_it_was_cut() -> None:
    active, beside = policy(words("w", "block", "fox")), shadow(words("new", "redact", "heron", "fox", "den"))
    text = "A den. The fox and the heron went."
    found = []
    for size in (1, 5, 40):
        script = [text[at : at + size] for at in range(0, len(text), size)]
        row = await run(await trial(script, policy=active, shadow=beside))
        assert (row.outcome, row.shadow_comparison) == ("blocked", "both_acted")
        found.append(marks(row))
    assert found[0] == found[1] == found[2]
    assert [(entry[4], entry[5], entry[7]) for entry in found[0]] == [(2, 5, 3), (11, 14, 0)]


async def test_prompt_and_tool_results_and_thinking_are_seen_too() -> None:
    everywhere = ["prompt", "response", "thinking", "tool_arguments", "tool_result"]
    beside = shadow(words("new", "redact", "fox", applies_to=everywhere))
    script: list[str | ProviderEvent] = [
        ThinkingDelta("a fox, I think"),
        "no hit here",
        ToolCallDelta(0, "c1", "find", '{"q": "fox"}', True),
        ProviderToolResult("c1", "the fox is out", ""),
    ]
    case = await trial(script, prompt="where is the fox?", policy=policy(words("w", "redact", "heron")), shadow=beside)
    row = await run(case)
    assert sorted((entry[3], entry[4], entry[7]) for entry in marks(row)) == [
        ("prompt", 13, 3), ("thinking", 2, 3), ("tool_arguments", 7, 3), ("tool_result", 4, 3)
    ]  # fmt: skip
    assert [entry[0] for entry in marks(row)] == [1, 2, 3, 4]


async def test_blocked_prompt_is_compared() -> None:
    active, beside = policy(words("w", "block", "fox")), shadow(words("new", "redact", "heron"))
    case = await trial(["unused"], prompt="the fox", policy=active, shadow=beside)
    row = await run(case)
    assert case.provider.asked == []
    assert (row.outcome, row.shadow_comparison) == ("blocked", "only_active")


@pytest.mark.parametrize(("stopping", "asked"), [("block", 0), ("redact", 1)])
async def test_blocked_prompt_is_told_to_nobody_over_the_network(stopping: str, asked: int) -> None:
    class Elsewhere(Sentences):
        performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 200, 500, 900, network=True)

    kind = Elsewhere("night")
    kind.go.set()
    beside = with_sentences(policy(words("new", "warn", "zebra"), version=4), kind)
    prompts = tuple(replace(one, applies_to=frozenset({AppliesTo.PROMPT})) for one in beside.guardrails)
    which = ShadowPolicy(4, "d4", replace(beside, guardrails=prompts))
    case = await trial(["unused"], prompt="the fox.", policy=policy(words("w", stopping, "fox")), shadow=which)
    row = await run(case)
    assert (len(kind.asked), await left_to_workers()) == (asked, 0)
    assert (row.shadow_comparison, row.shadow["not_run"]) == (("only_active", []) if asked else ("unknown", ["tone"]))


async def test_session_wholly_in_monitor_is_compared_by_what_the_active_would_have_done() -> None:
    active, beside = policy(words("w", "block", "fox")), shadow(words("new", "redact", "fox"))
    row = await run(await trial(["A fox."], policy=active, shadow=beside, monitor=True))
    assert (row.outcome, row.would_have, row.shadow_comparison) == ("allowed", "blocked", "both_acted")


async def test_stored_shadow_cannot_be_altered_unseen() -> None:
    case = await trial(["A fox."], policy=policy(words("w", "redact", "x")), shadow=shadow(words("n", "block", "fox")))
    row = await run(case)
    faults = database_sync_to_async(lambda: [fault.code for fault in log_faults()])
    assert await faults() == []
    rows = AuditSession.objects.filter(pk=row.pk)
    for change, back in (
        ({"shadow_comparison": "both_clean"}, {"shadow_comparison": "only_shadow"}),
        ({"shadow_would_have": ""}, {"shadow_would_have": "blocked"}),
        ({"shadow_version": 0}, {"shadow_version": 4}),
        ({"shadow": {**row.shadow, "findings": []}}, {"shadow": row.shadow}),
    ):
        await database_sync_to_async(rows.update)(**change)
        assert len(await faults()) == 1
        await database_sync_to_async(rows.update)(**back)
        assert await faults() == []


def test_session_sealed_before_there_were_shadows_still_verifies() -> None:
    row = AuditSession(policy_name="p")
    plain = {name: getattr(row, name) for name in SESSION_FIELDS}
    plain["started_at"] = stamp(row.started_at)
    assert session_digest(row) == digest({"id": str(row.pk), **plain})


def test_exposure_is_what_a_gate_with_both_versions_says() -> None:
    """The shadow's rules as MONITOR guardrails of the active version itself: that gate knows what it showed."""
    rng = random.Random(6)
    compared_with = 0
    for _ in range(300):
        mine = [words(f"a{i}", rng.choice(["redact", "block"]), *rng.sample(WORDS, 2)) for i in range(2)]
        others = [words("s", "block", *rng.sample(WORDS, 2), mode="MONITOR")]
        text = random_text(rng)
        both, alone = gate_text(policy(*mine, *others), text), gate_text(policy(*mine), text)
        gate = Gate(policy(*mine))
        gate.feed(text)
        gate.finish()
        found = gate_text(policy(*others), text, monitor=True).findings
        end = gate.block.end if gate.block else len(text)
        expected = {(f.start, f.end): f.exposed for f in both.findings if f.guardrail == "s"}
        got = with_exposure([f for f in found if f.start < end], alone.findings, gate.counters.released)
        assert {span: n for span, n in _spans(got).items() if span in expected} == expected
        assert all(n == 0 for span, n in _spans(got).items() if span not in expected)
        compared_with += len(expected)
    assert compared_with > 100


def _spans(findings: list[Finding]) -> dict[tuple[int, int], int]:
    return {(finding.start, finding.end): finding.exposed for finding in findings}


def test_clean_is_said_only_of_a_shadow_that_saw_everything() -> None:
    assert compared(active=False, shadow=False, whole=True) is Comparison.BOTH_CLEAN
    assert compared(active=True, shadow=False, whole=True) is Comparison.ONLY_ACTIVE
    assert compared(active=False, shadow=True, whole=False) is Comparison.ONLY_SHADOW
    assert compared(active=True, shadow=True, whole=False) is Comparison.BOTH_ACTED
    assert compared(active=True, shadow=False, whole=False) is Comparison.UNKNOWN
    assert compared(active=False, shadow=False, whole=False) is Comparison.UNKNOWN


def test_record_of_a_shadow_that_hits_everywhere_stays_small() -> None:
    beside = policy(words("s", "block", "fox"), version=4)
    found = gate_text(beside, "fox " * 5_000, monitor=True).findings
    record = recorded(version=4, digest="d4", policy=beside, active_acted=False, findings=found)
    kept = record.details()["findings"]
    assert isinstance(kept, list)
    assert len(kept) == MAX_FINDINGS
    assert record.details()["more"] == 5_000 - MAX_FINDINGS
    assert len(json.dumps(record.details())) < 100_000
