"""What PostgreSQL's columns can hold that nobody wrote: each is pointed at, everything else is still compared.

Run on that database by ``tests/stack/test_audit_on_postgresql.py``.
"""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.core.management.color import no_style
from django.db import connection, transaction
from django.db.utils import DatabaseError

from streaming.audit.people import record_review
from streaming.audit.retention import purge
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, Review

from .test_audit_chain import alter, codes, session, unlocked
from .test_audit_fields import recorded, verified

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "postgresql", reason="its columns hold what those of others do not"),
]
__all__ = ["unlocked"]
SESSION = "UPDATE streaming_auditsession SET {} WHERE id = %s"
FINDING = "UPDATE streaming_finding SET {} WHERE session_id = %s"
CHECK = "UPDATE streaming_deferredcheck SET {} WHERE session_id = %s"
ANSWER = "UPDATE streaming_message SET {} WHERE id = (SELECT answer_id FROM streaming_auditsession WHERE id = %s)"
ENTRY = "UPDATE streaming_auditentry SET {} WHERE seq = 3"


@pytest.fixture
def log(db: None) -> list[str]:
    """Three sessions, of which others damage the second (entries 3 and 4), which had a deferred check."""
    return [session(), recorded(late=False), session()]


def also_altered(log: list[str]) -> None:
    """Something else that is wrong, behind the damage: it must still be found."""
    AuditSession.objects.filter(pk=log[2]).update(released=8)


def test_it_works(log: list[str]) -> None:
    assert codes() == []
    alter(SESSION.format("started_at = 'infinity'"), log[1])
    also_altered(log)
    assert verified() == [(4, "session_unreadable"), (6, "session_altered")]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        (SESSION.format("timing = '[1e999]'"), "session_unreadable"),
        (SESSION.format("timing = '17'"), "session_altered"),
        (SESSION.format("ended_at = '-infinity'"), "session_unreadable"),
        (SESSION.format("released = 2147483647"), "session_altered"),
        (SESSION.format("hold_ms = NULL, tools_ok = 9"), "session_altered"),
        (FINDING.format("score = 'NaN'"), "findings_unreadable"),
        (FINDING.format("score = 'Infinity'"), "findings_unreadable"),
        (FINDING.format("created = 'infinity'"), "findings_unreadable"),
        (FINDING.format('"end" = 2147483647'), "findings_altered"),
        (CHECK.format("finished_at = 'infinity'"), "checks_unreadable"),
        (CHECK.format("result = '{}'"), "checks_altered"),
        (CHECK.format("sealed_text = '\\x00'"), "checks_altered"),
        (ANSWER.format("content = 'sg1:damaged'"), "text_unreadable"),
        (ANSWER.format("content = 'kinder'"), "text_altered"),
        (ANSWER.format("created = 'infinity'"), "text_unreadable"),
        (ANSWER.format("metadata = '[1]'"), "message_altered"),
        (ANSWER.format("metadata = '{\"sg1\": 5}'"), "message_altered"),
        (ANSWER.format("salt = '0'"), "text_altered"),
    ],
)
def test_a_damaged_column_is_pointed_at_and_the_rest_still_compared(log: list[str], sql: str, code: str) -> None:
    alter(sql, log[1])
    also_altered(log)
    assert verified() == [(4, code), (6, "session_altered")]


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize(
    "change",
    ["kind = ''", "kind = 'sealed'", "session = 'other'", "at = ''", "body = '17'", "body = 'null'", "body = '[1e999]'",
     "before = ''", "hash = ''", "seq = 99"],
)  # fmt: skip
def test_a_damaged_entry_is_pointed_at_and_the_rest_still_compared(log: list[str], change: str) -> None:
    alter(ENTRY.format(change))
    also_altered(log)
    found = verified()
    assert {seq for seq, _ in found} & {3, 4, 99}
    assert (6, "session_altered") in found


@pytest.mark.parametrize("change", ["seq = 3", "hash = ''"])
def test_a_damaged_head_row_is_pointed_at(log: list[str], change: str) -> None:
    alter(f"UPDATE streaming_audithead SET {change}")
    assert verified() == [(6, "cut_off")]


def test_a_damaged_review_is_pointed_at(log: list[str]) -> None:
    reviewer = get_user_model().objects.create_user("Reviewer")
    finding = Finding.objects.filter(session__pk=log[0]).get()
    record_review(finding=finding, label=Review.Label.UNCLEAR, note="why", by=reviewer, seen=0)
    assert codes() == []
    alter("UPDATE streaming_review SET at = 'infinity'")
    also_altered(log)
    assert {code for _, code in verified()} == {"session_altered", "review_unreadable", "review_missing"}


def test_a_deleted_row_is_pointed_at(log: list[str]) -> None:
    DeferredCheck.objects.filter(session__pk=log[1]).delete()
    alter("DELETE FROM streaming_finding WHERE session_id = %s", log[0])
    assert verified() == [(2, "findings_altered"), (4, "checks_altered")]


def test_an_entry_is_not_deleted_while_the_table_can_still_be_emptied(log: list[str]) -> None:
    """Not by a row, not by all rows, not by the model; texts that are due go, and `flush` truncates."""
    for refused in (
        lambda: alter_as_writer("DELETE FROM streaming_auditentry WHERE seq = 3"),
        lambda: alter_as_writer("DELETE FROM streaming_auditentry"),
        lambda: AuditEntry.objects.filter(seq=6).delete(),
    ):
        with pytest.raises(DatabaseError, match="cannot be deleted"), transaction.atomic():
            refused()
    assert codes() == []
    assert purge(log) == 3
    assert codes() == []
    statements = connection.ops.sql_flush(no_style(), ["streaming_auditentry"])
    assert statements == ['TRUNCATE "streaming_auditentry";']
    alter_as_writer(statements[0])
    assert not AuditEntry.objects.exists()


def alter_as_writer(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)
