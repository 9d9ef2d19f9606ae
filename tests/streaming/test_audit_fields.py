"""Every column of a record: one flipped value is pointed at, or it stands below with the reason why it is not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import StringIO
from uuid import uuid4

import pytest
import rfc8785
from django.core.management import CommandError, call_command
from django.db import models
from django.utils import timezone

from guardrails.findings import Outcome, Verdict
from streaming import deferred, sessions, sweep
from streaming.audit.retention import purge
from streaming.audit.rows import FINDING_FIELDS, finding_digest
from streaming.audit.verify import log_faults, session_faults, stored_entries
from streaming.checks import Checked
from streaming.conf import conf
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, Message
from streaming.sessions import DeferredText, Ending, NewSession, Visitor
from tests.streaming.pumping import policy_of
from tests.streaming.test_audit_chain import HIT

pytestmark = pytest.mark.django_db

LEFT_OUT: dict[type[models.Model], dict[str, str]] = {
    AuditSession: {
        "id": "other rows refer to it: the database refuses, and a session that is gone is pointed at",
        "heartbeat_at": "a sign of life while the answer is made",
        "last_seq": "where readers go on; may lag",
    },
    Finding: {
        "id": "the database's own; a finding is named by its session and number",
        "created": "when the row was stored; the log's own entry says when that was at the latest",
    },
    DeferredCheck: {
        "id": "the database's own; a check is named by its session, guardrail and text",
        "conversed": "how the text was sealed, which is gone",
    },
    Message: {"id": "other rows refer to it: the database refuses"},
}
CODES: dict[type[models.Model], set[str]] = {
    AuditSession: {"session_altered", "text_altered", "text_missing"},
    Finding: {"findings_altered"},
    DeferredCheck: {"checks_altered"},
    Message: {"message_altered", "text_altered", "text_missing"},
}
CASES = [(model, field.name) for model in LEFT_OUT for field in model._meta.concrete_fields]


@dataclass(frozen=True, slots=True)
class Log:
    """One record that others damage, and one to borrow rows from. ``seq``: the entry that sealed the first."""

    session: str
    other: str
    seq: int


def recorded(*, late: bool) -> str:
    """A session with a finding of the gate and one of a deferred check, in time or after the check had expired."""
    new = NewSession(
        visitor=Visitor(client="sg_a"), prompt="the prompt", provider="scripted", model="m",
        policy={"name": "trial", "version": 3, "digest": "sha256:trial"}, prompt_metadata={"redactions": [[0, 3]]},
    )  # fmt: skip
    started = sessions.start_session(new)
    ending = Ending(
        Outcome.REDACTED, Message.Status.COMPLETE, content="the answer", findings=(HIT,), chars_in=20, released=9,
        metadata={"status": "complete", "thinking": "a thought", "usage": {"out": 3}, "tools": [{"n": 10**30}]},
        timing={"arrivals": [[1, 2]], "calls": 1}, deferred=[DeferredText("harm", "response", "the answer")],
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    check = DeferredCheck.objects.get(session_id=started.session_id)
    lease = deferred.take_lease(check_id=check.pk)
    assert isinstance(lease, deferred.Lease)
    if late:
        later = timezone.now() + timedelta(seconds=conf().monitoring_limit_s + 1)
        assert list(sweep.expire(session_id=started.session_id, now=later) or ()) == ["harm"]
    checked = Checked(Verdict(True, score=0.25, category="violence", reason="it says so"), 1.0)
    result = deferred.record_result(
        lease=lease, guardrail=policy_of().guardrail("harm"), checked=checked, judged_chars=10
    )
    assert (result is None) is late
    assert AuditSession.objects.get(pk=started.session_id).state == "COMPLETE"
    return started.session_id


def bare() -> str:
    """A session with neither findings nor checks."""
    new = NewSession(Visitor(client="sg_b"), "hi", {"name": "p", "version": 1, "digest": "sha256:x"}, "scripted", "m")
    started = sessions.start_session(new)
    sessions.finish_streaming(
        session_id=started.session_id, ending=Ending(Outcome.ALLOWED, Message.Status.COMPLETE, content="you too")
    )
    return started.session_id


@pytest.fixture(params=["in time", "late"])
def log(request: pytest.FixtureRequest) -> Log:
    late = request.param == "late"
    one = Log(recorded(late=late), bare(), 2)
    assert not list(log_faults())
    return one


def the_row(model: type[models.Model], log: Log) -> models.QuerySet[models.Model]:
    rows = model._default_manager.filter(
        **{{AuditSession: "pk", Message: "sessions_answered"}.get(model, "session"): log.session}
    )
    return rows.filter(pk=rows.order_by("-pk").values_list("pk", flat=True)[0])


def flipped(field: models.Field[object, object], value: object, log: Log) -> object:
    """Another value of the column's type: the smallest step away from what stands there."""
    if isinstance(field, models.ForeignKey):
        other: models.Model = AuditSession.objects.get(pk=log.other)
        if field.name != "session":
            other = getattr(other, {"in_reply_to": "prompt"}.get(field.name, field.name))
        return other.pk
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 7
    if isinstance(value, float):
        return value * 0.999
    if isinstance(value, datetime):
        return value + timedelta(microseconds=1)
    if isinstance(value, dict):
        return {**value, "x": 1}
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
    assert value is None
    kinds: dict[type[object], object] = {
        models.DateTimeField: timezone.now(), models.BinaryField: b"x", models.JSONField: {}, models.TextField: "x",
    }  # fmt: skip
    return next((one for kind, one in kinds.items() if isinstance(field, kind)), 1)


def verified() -> list[tuple[int, str]]:
    """What the command says."""
    out = StringIO()
    with pytest.raises(CommandError) as failed:
        call_command("audit", "verify", "--json", stdout=out)
    assert failed.value.returncode == 1
    return [(line["seq"], line["code"]) for line in map(json.loads, out.getvalue().splitlines())]


def test_it_works(log: Log) -> None:
    DeferredCheck.objects.filter(session_id=log.session).update(state="passed")
    assert verified() == [(log.seq, "checks_altered")]
    _, found = session_faults(AuditSession.objects.get(pk=log.session))
    assert [(fault.seq, fault.code) for fault in found] == [(log.seq, "checks_altered")], "its page says the same"


@pytest.mark.parametrize(("model", "name"), CASES, ids=[f"{model.__name__}-{name}" for model, name in CASES])
def test_one_flipped_value_is_pointed_at(log: Log, model: type[models.Model], name: str) -> None:
    field = model._meta.get_field(name)
    assert isinstance(field, models.Field)
    rows = the_row(model, log)
    [value] = rows.values_list(name, flat=True)
    if name == "id":
        return
    changed = flipped(field, value, log)
    assert changed != value
    rows.update(**{name: changed})
    if name in LEFT_OUT[model]:
        assert list(log_faults()) == [], "it is committed to: take it from the list"
        return
    found = verified()
    assert found[0][0] == log.seq, "the entry that sealed it"
    assert found[0][1] in CODES[model]


def test_what_is_left_out_are_columns_that_there_are() -> None:
    for model, names in LEFT_OUT.items():
        assert names.keys() <= {field.name for field in model._meta.concrete_fields}


@pytest.mark.parametrize("key", ["status", "thinking", "usage", "tools"])
def test_each_part_of_what_stands_beside_an_answer_is_committed_to(log: Log, key: str) -> None:
    message = Message.objects.get(sessions_answered__pk=log.session)
    assert key in message.metadata
    del message.metadata[key]
    message.save(update_fields=["metadata"])
    assert verified() == [(log.seq, "message_altered")]


def test_a_check_that_is_gone_or_was_added_is_pointed_at(log: Log) -> None:
    DeferredCheck.objects.filter(session_id=log.session).delete()
    assert verified() == [(log.seq, "checks_altered")]


def test_a_check_of_a_session_that_had_none_is_pointed_at(log: Log) -> None:
    DeferredCheck.objects.create(session_id=log.other, guardrail="kind", state="passed", digest="sha256:x")
    assert [code for _, code in verified()] == ["checks_altered"]


@pytest.mark.parametrize("change", ["words", "kept", "row"])
def test_what_is_left_of_a_removed_text_is_still_compared(log: Log, change: str) -> None:
    assert purge([log.session]) == 1
    assert list(log_faults()) == []
    message = Message.objects.get(sessions_answered__pk=log.session)
    assert message.metadata == {"status": "complete", "usage": {"out": 3}}
    if change == "words":
        message.metadata["thinking"] = "another thought"
    elif change == "kept":
        message.metadata["usage"] = {"out": 4}
    else:
        message.model = "n"
    message.save()
    assert verified() == [(log.seq, "text_altered" if change == "words" else "message_altered")]


def test_a_late_verdict_is_committed_to_by_its_finding(db: None) -> None:
    session = recorded(late=True)
    assert [entry.kind for entry in stored_entries()] == ["opened", "sealed", "finding"]
    DeferredCheck.objects.filter(session_id=session).update(result=None)  # as it was when the session was sealed
    assert verified() == [(2, "checks_altered")]


def test_a_log_begun_before_all_this_was_committed_to_stays_whole(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of earlier versions say nothing of checks, messages' rows and metadata; the rest counts as ever."""
    note = sessions.audit._note

    def as_before(draft: sessions.audit.Draft) -> None:
        later = ("beside", "checks", "messages", "metadata")
        body = {name: value for name, value in draft.body.items() if name not in later}
        note(sessions.audit.Draft(draft.kind, draft.session_id, body))

    monkeypatch.setattr("streaming.audit.services._note", as_before)
    session = recorded(late=True)
    assert AuditEntry.objects.filter(kind="sealed").get().body.keys() == {"row", "findings", "outcome", "texts"}
    assert list(log_faults()) == []
    AuditSession.objects.filter(pk=session).update(released=1)
    assert verified() == [(2, "session_altered")]


@pytest.mark.parametrize("score", [0.0, 0.05, 0.9, 1.0])
def test_the_digest_of_a_finding_is_that_of_its_canonical_json_and_written_quickly(
    score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check may have thousands, and nobody else writes meanwhile; the library takes five times as long."""
    row = Finding(session_id=uuid4(), n=1, guardrail="pii", kind="pii", channel="text", start=0, end=4, score=score)
    fields = {name: getattr(row, name) for name in FINDING_FIELDS}
    wanted = hashlib.sha256(rfc8785.dumps({"session": str(row.session_id), **fields})).hexdigest()

    def slow(value: object) -> bytes:
        raise AssertionError("the library was asked")

    monkeypatch.setattr(rfc8785, "dumps", slow)
    assert finding_digest(row) == wanted
