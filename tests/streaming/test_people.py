"""Reviewing and revealing: whoever judges or looks is in the log by name; two reviewers never overwrite each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone

from streaming.audit.people import NOTE_CHARS, REASON_CHARS, ReviewedMeanwhile, record_review, reveal_text
from streaming.audit.retention import due, purge
from streaming.audit.verify import log_faults
from streaming.models import AuditEntry, Finding, Message, Review
from tests.conftest import Cast

from .test_audit_chain import alter, session

Label = Review.Label


@pytest.fixture
def finding(db: None) -> Finding:
    return Finding.objects.get(session_id=session())


def codes() -> list[str]:
    return [fault.code for fault in log_faults()]


def test_it_works(finding: Finding, cast: Cast) -> None:
    review = record_review(finding=finding, label=Label.FALSE_POSITIVE, note=" a part no ", by=cast.reviewer, seen=0)
    assert (review.version, review.by, review.note) == (1, "reviewer", "a part no")
    entry = AuditEntry.objects.get(kind="review")
    assert (entry.session, entry.body["by"], entry.body["label"]) == (
        str(finding.session_id), "reviewer", "false_positive"
    )  # fmt: skip
    assert (entry.body["finding"], entry.body["version"]) == (finding.n, 1)
    assert "part no" not in str(entry.body), "a note may quote a text, and the log is for ever"
    revealed = reveal_text(session_id=str(finding.session_id), by=cast.reviewer, reason=" complaint  17 ")
    assert dict(revealed.texts) == {"prompt": "the prompt", "answer": "the answer"}
    entry = AuditEntry.objects.get(kind="reveal")
    assert entry.body == {"by": "reviewer", "reason": "complaint 17", "texts": ["answer", "prompt"]}
    assert codes() == []


def test_a_reviewer_who_comes_second_is_told_of_the_first_and_changes_nothing(finding: Finding, cast: Cast) -> None:
    record_review(finding=finding, label=Label.TRUE_POSITIVE, note="", by=cast.reviewer, seen=0)
    with pytest.raises(ReviewedMeanwhile, match=r"reviewer has judged this finding.*true positive") as refused:
        record_review(finding=finding, label=Label.UNCLEAR, note="", by=cast.operator, seen=0)
    assert refused.value.newest.version == 1
    assert [review.label for review in finding.reviews.all()] == ["true_positive"]
    record_review(finding=finding, label=Label.UNCLEAR, note="", by=cast.operator, seen=1)
    assert [(r.version, r.by) for r in finding.reviews.all()] == [(1, "reviewer"), (2, "operator")]
    assert AuditEntry.objects.filter(kind="review").count() == 2
    assert codes() == []


@pytest.mark.django_db(transaction=True)
def test_of_many_reviewers_at_once_one_is_first(cast: Cast) -> None:
    finding = Finding.objects.get(session_id=session())

    def judge(number: int) -> bool:
        try:
            record_review(finding=finding, label=Label.UNCLEAR, note=str(number), by=cast.reviewer, seen=0)
        except ReviewedMeanwhile:
            return False
        finally:
            connections.close_all()
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(judge, range(6))) == [False] * 5 + [True]
    assert finding.reviews.count() == AuditEntry.objects.filter(kind="review").count() == 1


@pytest.mark.parametrize("reason", ["", " \n ", "x" * (REASON_CHARS + 1)])
def test_without_a_reason_nothing_is_shown(finding: Finding, cast: Cast, reason: str) -> None:
    with pytest.raises(ValueError, match="reason"):
        reveal_text(session_id=str(finding.session_id), by=cast.reviewer, reason=reason)
    assert not AuditEntry.objects.filter(kind="reveal").exists()


def test_a_note_that_is_too_long_is_refused(finding: Finding, cast: Cast) -> None:
    with pytest.raises(ValueError, match="2,000"):
        record_review(finding=finding, label=Label.UNCLEAR, note="x" * (NOTE_CHARS + 1), by=cast.reviewer, seen=0)
    assert not finding.reviews.exists()


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("UPDATE streaming_review SET label = 'false_positive'", "review_altered"),
        ("UPDATE streaming_review SET note = 'kinder'", "review_altered"),
        ("UPDATE streaming_review SET \"by\" = 'somebody else'", "review_altered"),
        ("UPDATE streaming_review SET at = '2020-01-01 00:00:00'", "review_altered"),
        ("UPDATE streaming_review SET note = '', salt = ''", "text_missing"),
        ("DELETE FROM streaming_review", "review_missing"),
    ],
    ids=["label", "note", "name", "time", "purged by hand", "deleted"],
)
def test_an_altered_review_is_pointed_at(finding: Finding, cast: Cast, sql: str, code: str) -> None:
    record_review(finding=finding, label=Label.TRUE_POSITIVE, note="why", by=cast.reviewer, seen=0)
    alter(sql)
    assert codes() == [code]


def test_a_review_that_nobody_made_is_pointed_at(finding: Finding, cast: Cast) -> None:
    Review.objects.create(finding=finding, version=1, label=Label.FALSE_POSITIVE, by="reviewer")
    assert codes() == ["review_added"]


def test_a_note_is_stored_encrypted_and_goes_with_the_texts(finding: Finding, cast: Cast) -> None:
    record_review(finding=finding, label=Label.TRUE_POSITIVE, note="quotes the answer", by=cast.reviewer, seen=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT note FROM streaming_review")
        assert "quotes" not in str(cursor.fetchall())
    assert purge([str(finding.session_id)])
    review = finding.reviews.get()
    assert (review.note, review.salt, review.label) == ("", "", "true_positive")
    assert AuditEntry.objects.get(kind="purge").body == {"texts": ["assistant", "note", "user"]}
    assert codes() == []
    assert reveal_text(session_id=str(finding.session_id), by=cast.reviewer, reason="late").texts == {}

    record_review(finding=finding, label=Label.UNCLEAR, note="after the purge", by=cast.reviewer, seen=1)
    past = timezone.now() - timedelta(days=9)
    later = timezone.now() + timedelta(days=9)
    assert due(past, {"*": 1}) == []
    assert due(later, {"*": 1}) == [str(finding.session_id)], "a later note becomes due again"
    assert purge([str(finding.session_id)])
    assert codes() == []


def test_an_answer_removed_by_hand_is_not_covered_by_the_purge_of_a_note(finding: Finding, cast: Cast) -> None:
    record_review(finding=finding, label=Label.TRUE_POSITIVE, note="n", by=cast.reviewer, seen=0)
    Message.objects.update(content="", salt="")
    assert purge([str(finding.session_id)])
    assert AuditEntry.objects.get(kind="purge").body == {"texts": ["note"]}
    assert codes() == ["text_missing", "text_missing"]
