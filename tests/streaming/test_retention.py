"""Texts are removed when their time has come; what happened stays on record, and the chain stays whole."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from unittest.mock import Mock

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection, transaction
from django.db.utils import OperationalError
from django.utils import timezone

from guardrails.findings import Outcome
from streaming import sessions
from streaming.audit import retention
from streaming.audit.people import record_review
from streaming.audit.retention import due, parse_retention, purge
from streaming.audit.verify import log_faults
from streaming.models import AuditEntry, AuditSession, Message, Review
from streaming.sessions import Ending, NewSession, Visitor

from .test_audit_chain import session

pytestmark = pytest.mark.django_db


class Keys:
    SLUICEGATE_TEXT_KEYS: list[str]


@pytest.fixture
def aged() -> list[str]:
    """Three sessions of policy ``p`` that ended 1, 10 and 100 days ago, as the log has it from the start."""
    found = []
    for days in (1, 10, 100):
        with pytest.MonkeyPatch.context() as patch:
            past = timezone.now() - timedelta(days=days)
            patch.setattr(timezone, "now", lambda past=past: past)
            found.append(session(f"answer of day {days}"))
    return found


def test_it_works(aged: list[str]) -> None:
    assert due(timezone.now(), {"*": 5}) == [aged[2], aged[1]]
    assert purge([aged[1]]) == 1
    kept = AuditSession.objects.get(pk=aged[1])
    assert kept.answer is not None
    assert (kept.outcome, kept.answer.content, kept.answer.salt) == ("redacted", "", "")
    assert kept.findings.count() == 1
    entry = AuditEntry.objects.get(kind="purge")
    assert (entry.session, entry.body) == (aged[1], {"texts": ["assistant", "user"]})
    assert list(log_faults()) == []
    assert purge([aged[1], aged[1]]) == 0, "what is gone is not removed twice"
    assert due(timezone.now(), {"*": 5}) == [aged[2]]


def test_many_are_removed_in_steps_and_each_is_an_entry(aged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", {connection.vendor: 2})
    monkeypatch.setattr(retention, "sleep", rest := Mock())
    monkeypatch.setattr(retention, "append_all", asked := Mock(wraps=retention.append_all))
    assert purge([aged[0], aged[0], aged[1], aged[2], aged[2]]) == 3
    assert [len(call.args[0]) for call in asked.call_args_list] == [1, 2], "a step with nothing left takes no lock"
    assert sorted(AuditEntry.objects.filter(kind="purge").values_list("session", flat=True)) == sorted(aged)
    assert list(log_faults()) == []
    stored = AuditEntry.objects.order_by("-seq").values_list("session", flat=True)[:3]
    assert list(stored) == [aged[2], aged[1], aged[0]]
    if connection.vendor == "sqlite":
        assert rest.call_count == 2, (
            "between steps whoever waits for the lock has time to try; after the last nobody rests"
        )


def test_a_step_that_fails_removes_nothing(aged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "append_all", Mock(side_effect=OperationalError("the database is locked")))
    with pytest.raises(OperationalError), transaction.atomic():
        purge(aged)
    assert not AuditSession.objects.filter(answer__salt="").exists()
    assert list(log_faults()) == [], "no text is gone that no entry tells of"


def test_a_text_that_no_key_opens_waits_for_its_key_and_the_record_stays_true(settings: Keys) -> None:
    """There is no text to tell by, only what stands beside it: provider and usage outlive the words."""
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    settings.SLUICEGATE_TEXT_KEYS = [old]
    started = sessions.start_session(
        NewSession(Visitor(session_key="b"), "", {"name": "p", "version": 1, "digest": "d"}, "x", "m", blocked=True)
    )
    ending = Ending(
        Outcome.ALLOWED, Message.Status.COMPLETE, metadata={"thinking": "quiet words", "provider": "x", "usage": {}}
    )
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    settings.SLUICEGATE_TEXT_KEYS = [new]
    assert "text_unreadable" in [fault.code for fault in log_faults()]
    purge([started.session_id])
    settings.SLUICEGATE_TEXT_KEYS = [new, old]
    answer = Message.objects.get(pk=started.answer_id)
    assert answer.metadata == {"thinking": "quiet words", "provider": "x", "usage": {}}
    assert answer.salt, "it is due as before"
    assert list(log_faults()) == []
    assert purge([started.session_id]) == 1
    answer.refresh_from_db()
    assert (answer.metadata, answer.salt) == ({"provider": "x", "usage": {}}, "")
    assert list(log_faults()) == []


def test_words_that_can_be_read_are_removed_and_what_no_key_opens_beside_them_waits(
    aged: list[str], settings: Keys
) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    beside = {"thinking": "quiet words", "provider": "x"}
    settings.SLUICEGATE_TEXT_KEYS = [old]
    answer = Message.objects.get(sessions_answered__pk=aged[1])
    answer.metadata = beside
    answer.save(update_fields=["metadata"])
    settings.SLUICEGATE_TEXT_KEYS = [new]
    assert purge([aged[1]]) == 1
    assert purge([aged[1]]) == 0, "there is nothing more to remove without the key"
    answer.refresh_from_db()
    assert (answer.content, answer.metadata) == ("", {}), "no words, and nothing that could be read"
    assert "text_unreadable" in [fault.code for fault in log_faults()]
    settings.SLUICEGATE_TEXT_KEYS = [new, old]
    answer.refresh_from_db()
    assert answer.metadata == beside, "it is as it was found"
    assert aged[1] in due(timezone.now(), {"*": 5}), "and words that the key brings back are due"
    assert purge([aged[1]]) == 1
    answer.refresh_from_db()
    assert (answer.content, answer.metadata, answer.salt) == ("", {"provider": "x"}, "")
    assert aged[1] not in due(timezone.now(), {"*": 5})


def test_every_policy_may_have_a_time_of_its_own(aged: list[str]) -> None:
    now = timezone.now()
    assert due(now, {}) == []
    assert due(now, {"q": 1}) == []
    assert due(now, {"*": 5, "p": 50}) == [aged[2]]
    assert due(now, {"p": 5}) == [aged[2], aged[1]]
    AuditSession.objects.filter(pk=aged[2]).update(state="MONITORING")
    assert due(now, {"p": 5}) == [aged[1]], "a session that is not over keeps its text"


def test_a_text_that_somebody_removed_by_hand_is_pointed_at(aged: list[str]) -> None:
    Message.objects.filter(sessions_answered__pk=aged[0]).update(content="", salt="")
    assert [fault.code for fault in log_faults()] == ["text_missing"]


def test_another_text_in_the_place_of_a_removed_one_is_pointed_at(aged: list[str]) -> None:
    purge([aged[0]])
    assert list(log_faults()) == []
    Message.objects.filter(sessions_answered__pk=aged[0]).update(content="a kinder answer")
    assert [fault.code for fault in log_faults()] == ["text_altered"]


def test_another_note_in_the_place_of_a_removed_one_is_pointed_at(aged: list[str]) -> None:
    finding = AuditSession.objects.get(pk=aged[0]).findings.get()
    user = get_user_model().objects.create_user("reviewer")
    record_review(finding=finding, by=user, label=Review.Label.UNCLEAR, note="so so", seen=0)
    purge([aged[0]])
    assert list(log_faults()) == []
    Review.objects.update(note="a kinder word")
    assert [fault.code for fault in log_faults()] == ["review_altered"]


def test_the_timeline_and_the_findings_outlive_the_texts_and_hold_none_of_them(aged: list[str]) -> None:
    rows = AuditSession.objects.filter(pk=aged[1])
    before = rows.values().get()
    findings = list(rows.get().findings.values())
    purge(aged)
    assert rows.values().get() == before
    assert before["timing"]["arrivals"] == [[1, 2]], "milliseconds and lengths"
    assert list(rows.get().findings.values()) == findings
    words = json.dumps([before, findings, *AuditEntry.objects.values()], default=str)
    assert "answer of day" not in words
    assert "the prompt" not in words


def test_metadata_keeps_nothing_of_the_words(aged: list[str]) -> None:
    answer = Message.objects.get(sessions_answered__pk=aged[0])
    answer.metadata = {"provider": "scripted", "thinking": "words", "redactions": [[1, "[SSN]"]], "usage": {"a": 1}}
    answer.save()
    purge([aged[0]])
    answer.refresh_from_db()
    assert answer.metadata == {"provider": "scripted", "usage": {"a": 1}}


class Settings:
    SLUICEGATE_RETENTION: str


def test_the_command_removes_what_is_due(aged: list[str], settings: Settings) -> None:
    settings.SLUICEGATE_RETENTION = "5 q=1"
    out = StringIO()
    call_command("audit", "purge", stdout=out)
    assert out.getvalue() == "texts of 2 sessions removed\n"
    settings.SLUICEGATE_RETENTION = ""
    call_command("audit", "purge", stdout=out)
    assert out.getvalue().endswith("texts of 0 sessions removed\n")


def test_the_setting_is_read_strictly() -> None:
    assert parse_retention(" 90, medical=3650 demo=7") == {"*": 90, "medical": 3650, "demo": 7}
    assert parse_retention("") == {}
    for wrong in ("soon", "p=", "=", "p=-1", "0", "1.5", "p=99999999", "٣"):
        with pytest.raises(ValueError, match="number of days"):
            parse_retention(wrong)
