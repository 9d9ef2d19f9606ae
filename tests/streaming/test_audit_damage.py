"""Rows that cannot be read: each is pointed at, everything else is still compared, and nobody sees a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection

from streaming.audit.people import record_review
from streaming.audit.verify import stored_entries
from streaming.models import AuditSession, Finding, Review

from .test_audit_chain import alter, session

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL's columns hold their own type and no other"),
]
NO_TEXT = "CAST(x'ff00fe' AS TEXT)"
"""Bytes that are no UTF-8, in a column of text."""


class Settings:
    SLUICEGATE_TEXT_KEYS: list[str]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Three sessions, of which others damage the second (entries 3 and 4), and everything can be altered."""
    made = [session() for _ in range(3)]
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER streaming_auditentry_stays")
        cursor.execute("PRAGMA ignore_check_constraints = ON")
        yield made
        cursor.execute("PRAGMA ignore_check_constraints = OFF")


def told(*arguments: str) -> list[tuple[int, str]]:
    """What the command says, with exit status 1."""
    out = StringIO()
    with pytest.raises(CommandError) as failed:
        call_command("audit", "verify", "--json", *arguments, stdout=out)
    assert failed.value.returncode == 1
    return [(line["seq"], line["code"]) for line in map(json.loads, out.getvalue().splitlines())]


def also_altered(log: list[str]) -> None:
    """Something else that is wrong, behind the damage: it must still be found."""
    AuditSession.objects.filter(pk=log[2]).update(released=8)


SESSION = "UPDATE streaming_auditsession SET {} WHERE id = %s"
FINDING = "UPDATE streaming_finding SET {} WHERE session_id = %s"
ANSWER = "UPDATE streaming_message SET {} WHERE id = (SELECT answer_id FROM streaming_auditsession WHERE id = %s)"


def test_it_works(log: list[str]) -> None:
    alter(SESSION.format(f"error = {NO_TEXT}"), log[1].replace("-", ""))
    also_altered(log)
    assert told() == [(4, "session_unreadable"), (6, "session_altered")]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        (SESSION.format("timing = '[1e999]'"), "session_unreadable"),
        (SESSION.format("timing = '{\"arrivals'"), "session_altered"),
        (SESSION.format("started_at = 'yesterday'"), "session_altered"),
        (SESSION.format("started_at = '2026-02-31 00:00:00'"), "session_unreadable"),
        (SESSION.format("ended_at = x'00'"), "session_altered"),
        (SESSION.format("chars_in = 'many'"), "session_altered"),
        (SESSION.format("released = 9007199254740993"), "session_unreadable"),
        (SESSION.format("released = x'00ff'"), "session_unreadable"),
        (FINDING.format("score = 'high'"), "findings_altered"),
        (FINDING.format("score = 9e999"), "findings_unreadable"),
        (FINDING.format("start = x'01'"), "findings_unreadable"),
        (FINDING.format(f"rule = {NO_TEXT}"), "findings_unreadable"),
        (FINDING.format("n = 'first'"), "findings_altered"),
        (FINDING.format("created = '2026-02-31 00:00:00'"), "findings_unreadable"),
        (ANSWER.format(f"content = {NO_TEXT}"), "text_unreadable"),
        (ANSWER.format("content = x'00'"), "text_unreadable"),
        (ANSWER.format("content = 'sg1:damaged'"), "text_unreadable"),
        (ANSWER.format("content = 'sg1:é'"), "text_unreadable"),
        (ANSWER.format("created = '2026-02-31 00:00:00'"), "text_unreadable"),
        (ANSWER.format("metadata = x'ff'"), "text_unreadable"),
        (ANSWER.format("salt = 17"), "text_altered"),
    ],
)
def test_a_damaged_column_is_pointed_at_and_the_rest_still_compared(log: list[str], sql: str, code: str) -> None:
    alter(sql, log[1].replace("-", ""))
    also_altered(log)
    assert told() == [(4, code), (6, "session_altered")]


def test_a_session_that_names_no_messages_that_could_be(log: list[str]) -> None:
    alter(SESSION.format("answer_id = 'x'"), log[1].replace("-", ""))
    also_altered(log)
    texts = [(4, "text_unreadable")] * 2
    assert told() == [(4, "session_unreadable"), *texts, (6, "session_altered")]
    alter(SESSION.format("answer_id = NULL"), log[1].replace("-", ""))  # for the database's own look at it in the end


def test_a_text_under_a_key_that_is_gone_is_pointed_at(settings: Settings) -> None:
    settings.SLUICEGATE_TEXT_KEYS = [Fernet.generate_key().decode()]
    session()
    settings.SLUICEGATE_TEXT_KEYS = []
    session()
    assert told() == [(2, "text_unreadable"), (2, "text_unreadable")]


@pytest.mark.parametrize("column", ["kind", "session", "at", "body", "before", "hash"])
@pytest.mark.parametrize("value", [NO_TEXT, "x'ff00'", "17", "''"])
def test_a_damaged_entry_is_pointed_at_and_the_rest_still_compared(log: list[str], column: str, value: str) -> None:
    alter(f"UPDATE streaming_auditentry SET {column} = {value} WHERE seq = 3")
    also_altered(log)
    found = told()
    assert found[0][0] == 3
    assert {seq for seq, _ in found} <= {3, 4, 6}, "what is sound is not blamed; the entry behind may not fit"
    assert (6, "session_altered") in found


def test_an_entry_whose_number_is_none_is_pointed_at(log: list[str]) -> None:
    alter("UPDATE streaming_auditentry SET seq = 'three' WHERE seq = 3")
    found = told()
    assert found[0] == (4, "gap")
    assert (-1, "altered") in found


@pytest.mark.parametrize("body", ['{"finding": [1], "version": {}}', '{"texts": [[1], {}]}', "[" * 100_000, "NaN"])
@pytest.mark.parametrize("kind", ["review", "purge", "finding", "sealed"])
def test_a_body_of_any_form_is_pointed_at(log: list[str], kind: str, body: str) -> None:
    alter("UPDATE streaming_auditentry SET kind = %s, body = %s WHERE seq = 3", kind, body)
    assert told()[0] == (3, "altered")


@pytest.mark.parametrize("change", ["seq = 'x'", f"hash = {NO_TEXT}", "hash = x'00'", "seq = -7"])
def test_a_damaged_head_row_is_pointed_at(log: list[str], change: str) -> None:
    alter(f"UPDATE streaming_audithead SET {change}")
    assert told() == [(6, "cut_off")]


@pytest.mark.parametrize("change", [f"note = {NO_TEXT}", "at = 'soon'", f'"by" = {NO_TEXT}'])
def test_a_damaged_review_is_pointed_at(log: list[str], change: str) -> None:
    reviewer = get_user_model().objects.create_user("Reviewer")
    for one in log[:2]:
        finding = Finding.objects.get(session__pk=one)
        record_review(finding=finding, label=Review.Label.UNCLEAR, note="why", by=reviewer, seen=0)
    alter(f"UPDATE streaming_review SET {change} WHERE id = (SELECT min(id) FROM streaming_review)")
    also_altered(log)
    assert told() == [(6, "session_altered"), (8, "review_unreadable"), (7, "review_missing")]


def test_many_sound_rows_beside_a_damaged_one_are_all_read(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.audit.verify.AT_ONCE", 2)
    alter(f"UPDATE streaming_auditentry SET session = {NO_TEXT} WHERE seq = 3")
    assert [entry.seq for entry in stored_entries()] == [1, 2, 3, 4, 5, 6]


def test_a_line_of_an_export_that_is_no_entry_is_pointed_at_and_the_rest_still_compared(
    log: list[str], tmp_path: Path
) -> None:
    out = StringIO()
    call_command("audit", "export", stdout=out)
    lines = out.getvalue().splitlines()
    for line in ("no JSON", "[]", '{"seq": 3}', lines[2].replace('"seq":3', '"seq":"3"'), "\udcff", "[" * 100_000):
        damaged = [*lines[:2], line, lines[3], lines[4].replace("opened", "sealed"), lines[5]]
        (tmp_path / "log").write_bytes("\n".join(damaged).encode("utf-8", "surrogateescape"))
        assert told(str(tmp_path / "log")) == [(2, "unreadable"), (4, "gap"), (5, "altered")]
    (tmp_path / "log").write_text(
        "\n".join([*lines[:2], lines[2].replace('"body":{', '"body":{"x":1e999,'), *lines[3:]])
    )
    assert told(str(tmp_path / "log"))[0][0] in (2, 3)
