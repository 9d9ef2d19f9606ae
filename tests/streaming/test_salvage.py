"""A pump that died: its session's record says what its readers have seen, out of the log that it left."""

from __future__ import annotations

from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from guardrails.findings import Action, Finding, Mode
from streaming import demotion, sessions, unjudged
from streaming.audit.verify import log_faults
from streaming.conf import conf
from streaming.core.events import FindingEvent, MessageStream, Redaction, ServerEvent
from streaming.log import LogUnavailable, MemoryLog
from streaming.models import AuditSession, DeferredCheck, Demotion, Message
from streaming.models import Finding as Row
from streaming.sessions import NewSession, Started, Visitor
from streaming.sweep import sweep
from tests.streaming.pumping import policy_of

pytestmark = pytest.mark.django_db(transaction=True)
HIT = Finding("pii", "pii", "ssn", "pii", 14, 25, Mode.BLOCK, Action.REDACT, n=1, would_have=None)


async def begun() -> Started:
    """A session whose pump has written through once and will not again."""
    new = NewSession(
        visitor=Visitor(session_key="b"), prompt="p", provider="scripted", model="m",
        policy={"name": "trial", "version": 3, "digest": "sha256:trial"},
    )  # fmt: skip
    started: Started = await database_sync_to_async(sessions.start_session)(new)
    kept = await database_sync_to_async(sessions.keep_partial)(
        session_id=started.session_id, content="The number", released=10, chars_in=12, last_seq=1
    )
    assert kept
    return started


def told(started: Started) -> list[ServerEvent]:
    of = started.answer_id
    return [
        MessageStream(of, "text", 0, "The number is "),
        MessageStream(of, "thinking", 0, "I think."),
        FindingEvent(HIT),
        Redaction(of, "text", 14, "[SSN]"),
        MessageStream(started.prompt_id, "text", 0, "not of the answer"),
        MessageStream(of, "text", 0, ", I say."),
        MessageStream(of, "text", 0, "", is_final=True),
    ]


async def swept(log: MemoryLog) -> tuple[AuditSession, Message, list[Row]]:
    """What the database has when the sweep has been there, twice."""
    later = timezone.now() + timedelta(seconds=conf().stale_s + 1)
    assert len((await sweep(later, log, lambda _: None)).lost) == 1
    assert (await sweep(later, log, lambda _: None)).lost == []
    session = await AuditSession.objects.select_related("answer").aget()
    assert isinstance(session.answer, Message)
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "error", "pump_lost")
    assert session.answer.status == "error"
    assert await database_sync_to_async(lambda: list(log_faults()))() == []
    return session, session.answer, [row async for row in Row.objects.order_by("n")]


async def test_it_works() -> None:
    started, log = await begun(), MemoryLog()
    await log.append(started.session_id, [event.payload() for event in told(started)], ms=5)
    session, answer, findings = await swept(log)
    assert answer.content == "The number is [SSN], I say."
    assert answer.metadata["redactions"] == [[14, "[SSN]"]]
    assert [(row.n, row.rule, row.start, row.end) for row in findings] == [(1, "ssn", 14, 25)]
    assert (session.released, session.last_seq) == (22, 7)
    assert session.chars_in >= session.released
    assert session.timing == {"findings": 1, "audit_rows": 4}, "the session, opened and sealed, and the finding"
    last = (await log.read(started.session_id, 7))[-2]
    assert (last["type"], last["final"]) == ("done", answer.content), "readers are told what is on record"


async def test_a_finding_that_was_stored_before_is_there_once() -> None:
    started, log = await begun(), MemoryLog()
    await database_sync_to_async(sessions.finding_row(started.session_id, HIT).save)()
    await log.append(started.session_id, [event.payload() for event in told(started)], ms=5)
    assert len((await swept(log))[2]) == 1


async def test_a_log_without_its_beginning_tells_findings_and_no_text() -> None:
    started, log = await begun(), MemoryLog(max_events=6)
    await log.append(started.session_id, [event.payload() for event in told(started)], ms=5)
    session, answer, findings = await swept(log)
    assert answer.content == "The number", "what had been written through"
    assert [row.n for row in findings] == [1]
    assert session.last_seq == 7


async def test_text_that_may_belong_to_another_choice_is_not_made_up() -> None:
    started, log = await begun(), MemoryLog()
    other = MessageStream(started.answer_id, "text", 1, "Another an")
    await log.append(started.session_id, [event.payload() for event in (other, *told(started))], ms=5)
    _, answer, findings = await swept(log)
    assert answer.content == "The number"
    assert [row.n for row in findings] == [1]


async def test_a_finding_in_an_unknown_form_does_not_stop_the_repair() -> None:
    started, log = await begun(), MemoryLog()
    events = [event.payload() for event in told(started)]
    await log.append(started.session_id, [{**events[2], "mode": "SOME", "n": 2}, {"type": "finding"}, *events], ms=5)
    _, answer, findings = await swept(log)
    assert answer.content == "The number is [SSN], I say."
    assert [row.n for row in findings] == [1]


async def test_without_a_log_what_was_written_through_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    await begun()

    async def away(*_: object, **__: object) -> None:
        raise LogUnavailable

    log = MemoryLog()
    monkeypatch.setattr(log, "read", away)
    monkeypatch.setattr(log, "append", away)
    _, answer, findings = await swept(log)
    assert (answer.content, findings) == ("The number", [])


BOTH = {"name": "both", "kind": "ai_judge", "applies_to": ["prompt", "response"], "config": {"rubric": "harm"}}
DECIDES = {**BOTH, "name": "decides", "mode": "BLOCK", "action": "block"}


@pytest.mark.parametrize("came", [True, False], ids=["text-was-shown", "nothing-came"])
async def test_what_nobody_will_judge_is_on_record_and_told(monkeypatch: pytest.MonkeyPatch, came: bool) -> None:
    policy = policy_of(BOTH, DECIDES)
    assert policy.guardrail("decides").decides
    monkeypatch.setattr(unjudged, "policy_by_digest", lambda digest: policy)
    started, log = await begun(), MemoryLog()
    if not came:
        await AuditSession.objects.aupdate(chars_in=0, released=0)
    events = told(started) if came else told(started)[4:5]
    await log.append(started.session_id, [event.payload() for event in events], ms=5)
    session, *_ = await swept(log)
    rows = [row async for row in DeferredCheck.objects.order_by("id")]
    named = [(row.guardrail, row.applies_to) for row in rows]
    assert named == [("both", "prompt"), *([("harm", "response"), ("both", "response")] if came else [])]
    assert {(row.state, row.error, row.finished_at is None) for row in rows} == {("error", unjudged.GONE, False)}
    lines = [event for event in await log.read(started.session_id, 0) if event["type"] in ("guardrail_status", "state")]
    assert {line["guardrail"] for line in lines[:-1]} == {name for name, _ in named}
    assert {line["state"] for line in lines[:-1]} == {"error"}
    assert lines[-1]["state"] == session.state, "who is told COMPLETE has been told of every check"


@pytest.mark.parametrize(
    ("origin", "demoted", "expected"),
    [("stream", False, [True]), ("chat", True, [False]), ("chat", False, []), ("gateway", True, [])],
)
async def test_what_workers_would_have_been_given_is_what_the_session_left_to_them(
    monkeypatch: pytest.MonkeyPatch, origin: str, demoted: bool, expected: list[bool]
) -> None:
    """Streams that their clients own wait for no sentence in MONITOR; chats run what is slow where it was moved."""
    policy = policy_of({"name": "rude", "kind": "toxicity", "mode": "MONITOR", "applies_to": ["response"]})
    monkeypatch.setattr(unjudged, "policy_by_digest", lambda digest: policy)
    started = await begun()
    await AuditSession.objects.aupdate(origin=origin)
    if demoted:
        measured = {"policy_version": 3, "declared": "BATCHED", "p95_ms": 900.0, "measurements": 20}
        where = {"policy_name": "trial", "policy_digest": policy.digest, "guardrail": "rude", "checkpoint": "DEFERRED"}
        await Demotion.objects.acreate(**where, **measured)
    demotion.forget()
    ahead = timezone.now() + timedelta(seconds=5)
    assert await database_sync_to_async(sessions.end_lost)(
        session_id=started.session_id, stale_before=ahead, error="gone"
    )
    demotion.forget()
    rows = DeferredCheck.objects.filter(guardrail="rude")
    assert [row.sentences async for row in rows] == expected
    assert {row.error async for row in rows} <= {unjudged.GONE}


async def test_a_policy_that_does_not_load_keeps_no_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(digest: str) -> object:
        raise RuntimeError(digest)

    monkeypatch.setattr(unjudged, "policy_by_digest", broken)
    await begun()
    await swept(MemoryLog())
    assert not await DeferredCheck.objects.aexists()
