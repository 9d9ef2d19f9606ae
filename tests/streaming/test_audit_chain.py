"""The audit log: one flipped byte, one missing row, one moved row, one cut-off tail, and each is pointed at."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import rfc8785
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.db.utils import DatabaseError

from guardrails.findings import Action, Finding, Mode, Outcome
from guardrails.keys import signing_key
from guardrails.signing import Purpose, SignatureRefused, SigningKey, new_key_pem
from streaming import sessions, tasks
from streaming.audit.chain import GENESIS, Entry, faults, next_entry
from streaming.audit.services import Draft, append, append_all
from streaming.audit.verify import log_faults, one_moment, read_head, session_faults, signed_head, stored_entries
from streaming.models import AuditEntry, AuditHead, AuditSession, Message
from streaming.sessions import Ending, NewSession, Visitor
from tests.streaming.statements import asked

HIT = Finding(
    guardrail="pii", kind="pii", rule="ssn", category="ssn", start=3, end=14, mode=Mode.BLOCK, action=Action.REDACT,
    channel="text", n=1,
)  # fmt: skip


class Settings:
    SLUICEGATE_AUDIT_HEADS_FILE: str


def session(text: str = "the answer") -> str:
    """A session from its first to its last row; its id."""
    policy = {"name": "p", "version": 1, "digest": "sha256:x"}
    started = sessions.start_session(NewSession(Visitor(client="sg_a"), "the prompt", policy, "scripted", "m"))  # type: ignore[arg-type]
    ending = Ending(
        Outcome.REDACTED, Message.Status.COMPLETE, content=text, findings=(HIT,), chars_in=20, released=9,
        timing={"arrivals": [[1, 2]], "calls": 1},
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return started.session_id


@pytest.fixture
def log(db: None) -> list[str]:
    return [session() for _ in range(3)]


@pytest.fixture
def unlocked(db: None) -> Iterator[None]:
    """As somebody who owns the database can do it."""
    with connection.cursor() as cursor:
        of = "" if connection.vendor == "sqlite" else " ON streaming_auditentry"
        cursor.execute(f"DROP TRIGGER streaming_auditentry_stays{of}")
        yield


def alter(sql: str, *values: object) -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql" and sql.startswith("DELETE FROM streaming_auditentry"):
            # as whoever owns the table can do it; who only writes to it is refused (test_audit_damage_postgresql)
            cursor.execute("DROP TRIGGER IF EXISTS streaming_auditentry_kept ON streaming_auditentry")
        cursor.execute(sql, values)


def codes(*heads: tuple[int, str]) -> list[tuple[int, str]]:
    return [(fault.seq, fault.code) for fault in log_faults(heads)]


def test_it_works(log: list[str]) -> None:
    entries = list(stored_entries())
    assert [(e.seq, e.kind, e.session) for e in entries] == [
        (2 * n + m + 1, kind, one) for n, one in enumerate(log) for m, kind in enumerate(("opened", "sealed"))
    ]
    assert entries[0].before == GENESIS
    assert codes() == []


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize(
    ("column", "value"), [("kind", "reveal"), ("session", "other"), ("at", "2020-01-01"), ("body", '{"policy": "q"}')]
)
def test_an_altered_entry_is_pointed_at(log: list[str], column: str, value: str) -> None:
    alter(f"UPDATE streaming_auditentry SET {column} = %s WHERE seq = 3", value)
    assert (3, "altered") in codes()


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("seq", [1, 2, 5, 6])
@pytest.mark.parametrize("column", ["kind", "session", "at", "body", "before", "hash"])
def test_one_flipped_byte_is_pointed_at(log: list[str], column: str, seq: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM streaming_auditentry WHERE seq = %s", [seq])
        stored = cursor.fetchone()[0]
    letter = stored.index("x") if column == "body" and "x" in stored else len(stored) // 2
    flipped = chr(ord(stored[letter]) ^ 1)
    alter(
        f"UPDATE streaming_auditentry SET {column} = %s WHERE seq = %s",
        stored[:letter] + flipped + stored[letter + 1 :],
        seq,
    )
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("audit", "verify", "--json", stdout=out)
    assert json.loads(out.getvalue().splitlines()[0])["seq"] == seq


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("body", ["{}", '{"findings": 1, "row": [], "texts": "x"}'])
def test_a_sealed_entry_of_no_form_is_pointed_at(log: list[str], body: str) -> None:
    alter("UPDATE streaming_auditentry SET body = %s WHERE seq = 4", body)
    assert {(4, "altered"), (4, "session_altered"), (4, "findings_altered")} <= set(codes())


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL stores no text that is not JSON")
@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("body", ['{"findings', "", "17"])
def test_a_body_that_is_no_json_any_more_is_pointed_at(log: list[str], body: str) -> None:
    alter("PRAGMA ignore_check_constraints = ON")
    alter("UPDATE streaming_auditentry SET body = %s WHERE seq = 4", body)
    alter("PRAGMA ignore_check_constraints = OFF")
    assert (4, "altered") in codes()


@pytest.mark.usefixtures("unlocked")
def test_an_entry_made_to_fit_itself_breaks_the_one_behind_it(log: list[str]) -> None:
    third = list(stored_entries())[2]
    forged = next_entry(
        last_seq=2, last_hash=third.before, kind=third.kind, session=third.session, at=third.at, body={"policy": "q"}
    )
    alter("UPDATE streaming_auditentry SET body = %s, hash = %s WHERE seq = 3", '{"policy": "q"}', forged.hash)
    assert codes() == [(4, "broken")]


def test_a_deleted_entry_is_pointed_at(log: list[str]) -> None:
    alter("DELETE FROM streaming_auditentry WHERE seq = 3")
    assert codes() == [(4, "gap")]


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_the_first_entries_deleted_are_pointed_at(log: list[str], gone: int) -> None:
    alter("DELETE FROM streaming_auditentry WHERE seq <= %s", gone)
    assert (gone + 1, "gap") in codes()
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("audit", "verify", "--json", stdout=out)
    assert json.loads(out.getvalue().splitlines()[0])["seq"] == gone + 1


@pytest.mark.usefixtures("unlocked")
def test_reordered_entries_are_pointed_at(log: list[str]) -> None:
    for old, new in ((3, 99), (5, 3), (99, 5)):
        alter("UPDATE streaming_auditentry SET seq = %s WHERE seq = %s", new, old)
    assert {seq for seq, _ in codes()} >= {3, 5}


def test_a_cut_off_tail_is_pointed_at_by_the_head_row_and_by_an_exported_head(log: list[str]) -> None:
    key = signing_key(Purpose.AUDIT)
    head = read_head(signed_head(key), {key.public.kid: key.public})
    alter("DELETE FROM streaming_auditentry WHERE seq > 4")
    assert codes() == [(4, "cut_off"), (4, "session_added")]
    last = list(stored_entries())[-1]
    AuditHead.objects.update(seq=last.seq, hash=last.hash)  # whoever can delete entries can do this too
    assert codes() == [(4, "session_added")]
    AuditSession.objects.filter(pk=log[2]).delete()  # and this
    assert codes() == []
    assert codes(head) == [(4, "cut_off")]


def test_a_history_written_anew_is_pointed_at_by_an_exported_head(log: list[str]) -> None:
    entries = list(stored_entries())
    head = entries[-1].seq, entries[-1].hash
    rewritten: list[Entry] = []
    before = GENESIS
    for entry in entries:
        body = {"policy": "another"} if entry.seq == 1 else entry.body
        made = next_entry(
            last_seq=entry.seq - 1, last_hash=before, kind=entry.kind, session=entry.session, at=entry.at, body=body
        )
        rewritten.append(made)
        before = made.hash
    assert list(faults(rewritten)) == []
    assert [fault.code for fault in faults(rewritten, heads=[head])] == ["rewritten"]


def test_a_head_signed_by_another_key_or_altered_is_not_believed(log: list[str]) -> None:
    key = signing_key(Purpose.AUDIT)
    keys = {key.public.kid: key.public}
    compact = signed_head(key)
    other = SigningKey.from_pem(new_key_pem(), Purpose.AUDIT)
    for forged in (
        signed_head(other),
        compact[:-4] + "AAAA",
        "",
        "x.y.z",
        signed_head(signing_key(Purpose.AUDIT))[:-1],
    ):
        with pytest.raises(SignatureRefused):
            read_head(forged, keys)
    assert read_head(compact + "\n", keys)[0] == 6


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("UPDATE streaming_auditsession SET outcome = 'allowed' WHERE id = %s", "session_altered"),
        ("UPDATE streaming_auditsession SET released = 0 WHERE id = %s", "session_altered"),
        ("UPDATE streaming_auditsession SET timing = '{}' WHERE id = %s", "session_altered"),
        ("UPDATE streaming_finding SET rule = 'x' WHERE session_id = %s", "findings_altered"),
        ("DELETE FROM streaming_finding WHERE session_id = %s", "findings_altered"),
        (
            "UPDATE streaming_message SET content = 'kinder' WHERE id = "
            "(SELECT answer_id FROM streaming_auditsession WHERE id = %s)",
            "text_altered",
        ),
    ],
)
def test_an_altered_row_is_pointed_at(log: list[str], sql: str, code: str) -> None:
    alter(sql, log[1].replace("-", ""))
    assert codes() == [(4, code)]


def test_a_finding_that_was_added_later_is_pointed_at(log: list[str]) -> None:
    sessions.finding_row(log[0], replace(HIT, n=2)).save()
    assert codes() == [(2, "findings_altered")]


def test_a_text_that_is_gone_with_its_row_is_pointed_at(log: list[str]) -> None:
    Message.objects.filter(sessions_answered__pk=log[2]).delete()
    assert codes() == [(6, "text_missing")]


def test_a_session_that_is_gone_is_pointed_at(log: list[str]) -> None:
    AuditSession.objects.filter(pk=log[2]).delete()
    assert codes() == [(6, "session_missing")]


def begun() -> str:
    policy = {"name": "p", "version": 1, "digest": "sha256:x"}
    new = NewSession(Visitor(client="sg_a"), "the prompt", policy, "scripted", "m")  # type: ignore[arg-type]
    return sessions.start_session(new).session_id


def test_a_session_that_never_began_is_pointed_at(log: list[str]) -> None:
    AuditSession.objects.create(state=AuditSession.State.COMPLETE, outcome="allowed")
    assert codes() == [(6, "session_added")]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"state": AuditSession.State.COMPLETE}, "entry_missing"),
        ({"policy_name": "milder"}, "session_altered"),
        ({"policy_version": 2}, "session_altered"),
        ({"policy_digest": "sha256:y"}, "session_altered"),
        ({"client": "sg_b"}, "session_altered"),
        ({"origin": "check"}, "session_altered"),
    ],
    ids=lambda one: one if isinstance(one, str) else next(iter(one)),
)
def test_a_session_that_is_not_over_is_compared_with_its_beginning(
    log: list[str], change: dict[str, object], code: str
) -> None:
    under_way = begun()
    assert codes() == []
    AuditSession.objects.filter(pk=under_way).update(**change)
    assert codes() == [(7, code)]
    _, found = session_faults(AuditSession.objects.get(pk=under_way))
    assert [(fault.seq, fault.code) for fault in found] == [(7, code)], "its page says the same"


def test_a_session_that_is_gone_before_it_is_over_is_pointed_at(log: list[str]) -> None:
    AuditSession.objects.filter(pk=begun()).delete()
    assert codes() == [(7, "session_missing")]


def test_a_head_that_was_kept_is_not_hidden_by_a_later_one_of_the_same_number(log: list[str], tmp_path: Path) -> None:
    """A new history of the same length is written; the head that is kept next has the number of the one before."""
    (tmp_path / "heads").write_text(run("head"))
    alter("DELETE FROM streaming_auditentry")
    AuditSession.objects.all().delete()
    AuditHead.objects.update(seq=0, hash=GENESIS)
    for _ in range(3):
        session("a kinder answer")
    with (tmp_path / "heads").open("a") as file:
        file.write(run("head"))
    assert codes() == []
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("audit", "verify", "--head", str(tmp_path / "heads"), "--json", stdout=out)
    assert [(line["seq"], line["code"]) for line in map(json.loads, out.getvalue().splitlines())] == [(6, "rewritten")]


def test_the_database_refuses_to_alter_an_entry(log: list[str]) -> None:
    with pytest.raises(DatabaseError, match="cannot be changed"):
        alter("UPDATE streaming_auditentry SET kind = 'reveal' WHERE seq = 1")


def test_an_entry_falls_with_its_transaction(db: None) -> None:
    session()
    with contextlib.suppress(RuntimeError), transaction.atomic():
        append(kind="reveal", body={"who": "nobody"})
        raise RuntimeError
    append(kind="reveal")
    assert [entry.seq for entry in stored_entries()] == [1, 2, 3]
    assert codes() == []


def test_several_entries_are_one_step_with_one_lock(db: None) -> None:
    append(kind="reveal")
    with asked() as statements:
        made = append_all([Draft("purge", "a", {"texts": ["é\u0001"]}), Draft(AuditEntry.Kind.REVEAL), Draft("purge")])
    of_the_head = [one for one in statements if "audithead" in one]
    assert len(of_the_head) == 2, "read, and moved"
    assert "UPDATE streaming_audithead" not in of_the_head[0]
    assert "UPDATE streaming_audithead" in of_the_head[1]
    assert [entry.seq for entry in made] == [2, 3, 4]
    assert list(stored_entries())[1:] == made
    assert codes() == []
    with pytest.raises(ValueError, match="inf"):
        append_all([Draft("purge", "b"), Draft("purge", "c", {"texts": float("inf")})])
    append(kind="reveal")
    assert [entry.session for entry in stored_entries()] == ["", "a", "", "", ""], "all of them or none"
    assert codes() == []


def test_a_thousand_entries_are_no_more_statements_than_one(db: None) -> None:
    append(kind="reveal")
    with asked() as one:
        append(kind="reveal")
    with asked() as many:
        made = append_all([Draft("reveal", "", {"by": "Reviewer", "texts": [str(n)]}) for n in range(1_000)])
    repeated = {statement.partition("VALUES")[0] for statement in many}
    assert len(repeated) == len(one) == len({statement.partition("VALUES")[0] for statement in one})
    assert list(stored_entries())[2:] == made
    assert codes() == []


STRANGE = ["", "é\u0001\u2028", '"\\/', "\U0001f600", "100 % %s {}", "\u007f\t\r\n"]


@pytest.mark.parametrize("n", range(len(STRANGE)))
def test_what_is_hashed_in_a_hurry_is_the_form_that_auditors_compute(db: None, n: int) -> None:
    text = STRANGE[n]
    body = {text: [text, 1.5, -3, None, True, {"b": text, "a": []}], "\ue000": 1, "\U0001f600": 2}
    for kind, session_id, at in ((text, "", ""), ("reveal", text, ""), ("reveal", "", text)):
        made = next_entry(last_seq=4, last_hash="0" * 64, kind=kind, session=session_id, at=at, body=body)
        signed = {name: value for name, value in made.as_dict().items() if name != "hash"}
        assert made.hash == hashlib.sha256(rfc8785.dumps(signed)).hexdigest()  # type: ignore[arg-type]
    [stored] = append_all([Draft("reveal", "s", body)])
    assert list(stored_entries()) == [stored]
    assert codes() == []


def test_a_lone_surrogate_is_refused_and_nothing_is_stored(db: None) -> None:
    for draft in (Draft("reveal", "", {"texts": ["\ud800"]}), Draft("reveal", "\ud800")):
        with pytest.raises(ValueError, match="surrogate"):
            append_all([Draft("reveal"), draft])
    assert list(stored_entries()) == []


@pytest.mark.django_db(transaction=True)
def test_two_writers_keep_one_gapless_chain() -> None:
    def work(number: int) -> None:
        for _ in range(25):
            append(kind="reveal", session_id=f"writer {number}")
        connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    entries = list(stored_entries())
    assert [entry.seq for entry in entries] == list(range(1, 51))
    assert len({entry.session for entry in entries[:30]}) == 2  # they did write side by side
    assert codes() == []


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("audit", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.django_db(transaction=True)
def test_who_verifies_sees_one_moment_and_keeps_nobody_from_writing() -> None:
    session()

    def write() -> None:
        try:
            session()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with one_moment():
            assert len(list(stored_entries())) == 2
            pool.submit(write).result(60)
            assert len(list(stored_entries())) == 2
            assert codes() == []
        assert len(list(stored_entries())) == 4
        with transaction.atomic():  # and whoever writes afterwards takes the lock at once, as always
            session()
    assert codes() == []


def test_the_command_verifies_exports_and_takes_heads(log: list[str], tmp_path: Path) -> None:
    (tmp_path / "head").write_text(run("head"))
    (tmp_path / "log").write_text(run("export"))
    assert "6 entries, all as they were written" in run("verify")
    assert "every kept head among them" in run("verify", "--head", str(tmp_path / "head"))
    assert "6 entries" in run("verify", str(tmp_path / "log"), "--head", str(tmp_path / "head"))
    lines = (tmp_path / "log").read_text().splitlines()
    (tmp_path / "log").write_text("\n".join([*lines[:2], lines[2].replace("opened", "sealed"), *lines[3:]]))
    out = StringIO()
    with pytest.raises(CommandError) as failed:
        call_command("audit", "verify", str(tmp_path / "log"), "--json", stdout=out)
    assert failed.value.returncode == 1
    assert json.loads(out.getvalue().splitlines()[0])["seq"] == 3


def test_heads_are_kept_hour_by_hour_and_all_of_them_count(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(tmp_path / "heads")
    for _ in range(3):
        session()
        tasks.keep_audit_head()
    kept = (tmp_path / "heads").read_text().splitlines()
    assert len(kept) == 3
    assert "every kept head" in run("verify", "--head", str(tmp_path / "heads"))
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(tmp_path / "no" / "such" / "place")
    tasks.keep_audit_head()  # told in the log; the next hour tries again
    settings.SLUICEGATE_AUDIT_HEADS_FILE = ""
    tasks.keep_audit_head()


def test_the_command_believes_a_head_of_the_key_in_the_file_and_of_no_other(log: list[str], tmp_path: Path) -> None:
    """Somebody with the database writes a new history and signs its head with a key of their own."""
    ours, theirs = (tmp_path / "ours.pem", tmp_path / "theirs.pem")
    for file in (ours, theirs):
        file.write_bytes(new_key_pem())
    old = SigningKey.from_pem(ours.read_bytes(), Purpose.AUDIT)
    (tmp_path / "head").write_text(signed_head(old))
    kept = ("--head", str(tmp_path / "head"))
    with pytest.raises(CommandError) as failed:
        run("verify", *kept)
    assert failed.value.returncode == 1, "the key was changed since, and nobody says which it was"
    assert "every kept head among them" in run("verify", *kept, "--key", str(ours))
    (tmp_path / "head").write_text(signed_head(SigningKey.from_pem(theirs.read_bytes(), Purpose.AUDIT)))
    with pytest.raises(CommandError, match="not trusted") as failed:
        run("verify", *kept, "--key", str(ours))
    assert failed.value.returncode == 1
    (tmp_path / "head").write_text(signed_head(old))
    alter("DELETE FROM streaming_auditentry WHERE seq > 4")
    last = list(stored_entries())[-1]
    AuditHead.objects.update(seq=last.seq, hash=last.hash)
    AuditSession.objects.filter(pk=log[2]).delete()
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("audit", "verify", *kept, "--key", str(ours), "--json", stdout=out)
    assert [json.loads(line)["code"] for line in out.getvalue().splitlines()] == ["cut_off"]


@pytest.mark.parametrize("content", ["", "not a head", "a.b.c"])
def test_the_command_refuses_a_head_that_is_none(log: list[str], tmp_path: Path, content: str) -> None:
    (tmp_path / "head").write_text(content)
    with pytest.raises(CommandError) as failed:
        run("verify", "--head", str(tmp_path / "head"))
    assert failed.value.returncode == 1
    with pytest.raises(CommandError) as failed:
        run("verify", "--head", str(tmp_path / "missing"))
    assert failed.value.returncode == 2


def test_an_entry_is_of_a_known_kind(db: None) -> None:
    assert set(AuditEntry.Kind.values) == {"opened", "sealed", "finding", "review", "reveal", "purge", "shadow"}
