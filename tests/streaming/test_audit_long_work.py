"""Work on the audit log that takes long: how much memory it needs, what is seen of it, and what ends it."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.utils import timezone

from streaming import tasks
from streaming.audit import retention, verify
from streaming.audit.chain import GENESIS, Entry, next_entry
from streaming.audit.verify import log_faults
from streaming.models import AuditSession, Message
from streaming.system_checks import check_retention

from .test_audit_chain import session

pytestmark = pytest.mark.django_db
ENTRIES = 4_000
WORDS = "x" * 4_000


class Settings:
    SLUICEGATE_RETENTION: str
    SLUICEGATE_TEXT_KEYS: list[str]


class Terminal(io.StringIO):
    """Where a bar may be drawn."""

    def isatty(self) -> bool:
        return True


def sealed(number: int) -> Iterator[Entry]:
    """A log of sessions of which no row is left, a body of 4 kB each."""
    last, before = 0, GENESIS
    for _ in range(number):
        key = f"00000000-0000-4000-8000-{last:012d}"
        body = {"row": WORDS + str(last)}
        entry = next_entry(last_seq=last, last_hash=before, kind="sealed", session=key, at="2026-01-01", body=body)
        last, before = entry.seq, entry.hash
        yield entry


def old(days: int = 100) -> str:
    with pytest.MonkeyPatch.context() as patch:
        past = timezone.now() - timedelta(days=days)
        patch.setattr(timezone, "now", lambda: past)
        return session()


def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is compared while it is walked: what it needs in memory does not grow with it."""
    monkeypatch.setattr(verify, "stored_entries", lambda: sealed(ENTRIES))
    tracemalloc.start()
    try:
        found = sum(fault.code == "session_missing" for fault in log_faults())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == ENTRIES
    assert peak < ENTRIES * len(WORDS) / 2, f"{peak / 1e6:.0f} MB of {ENTRIES * len(WORDS) / 1e6:.0f}"


def test_what_came_after_a_session_was_sealed_is_known_where_its_rows_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The entry of a purge stands far behind that of the session, which has been compared by then."""
    monkeypatch.setattr(verify, "AT_ONCE", 2)
    keys = [session() for _ in range(5)]
    retention.purge(keys[:3])
    assert list(log_faults()) == []
    AuditSession.objects.filter(pk=keys[0]).update(released=8)
    AuditSession.objects.filter(pk=keys[4]).update(released=8)
    assert [fault.code for fault in log_faults()] == ["session_altered"] * 2


def test_an_export_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(entry.line() + "\n" for entry in sealed(ENTRIES)))
    out = io.StringIO()
    tracemalloc.start()
    try:
        call_command("audit", "verify", str(tmp_path / "log"), stdout=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out.getvalue() == f"{ENTRIES:,} entries, all as they were written\n"
    assert peak < ENTRIES * len(WORDS) / 2


@pytest.mark.parametrize("verb", ["verify", "purge", "rotate", "export"])
def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(verb: str, settings: Settings) -> None:
    settings.SLUICEGATE_RETENTION = "5"
    old()
    out, elsewhere = io.StringIO(), io.StringIO()
    call_command("audit", verb, stdout=out, stderr=elsewhere)
    assert elsewhere.getvalue() == ""
    old()
    terminal = Terminal()
    call_command("audit", verb, stdout=(drawn := io.StringIO()), stderr=terminal)
    assert verb in terminal.getvalue()
    assert "\x1b" not in drawn.getvalue(), "what other programs read has none of it"


def test_no_bar_beside_lines_for_programs_nor_among_lines_on_a_terminal() -> None:
    session()
    terminal = Terminal()
    call_command("audit", "verify", "--json", stdout=io.StringIO(), stderr=terminal)
    call_command("audit", "export", stdout=terminal, stderr=terminal)
    assert "\x1b" not in terminal.getvalue()


def test_a_retention_that_cannot_be_read_is_told_before_anything_is_kept_too_long(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.SLUICEGATE_RETENTION = "90d"
    assert [message.id for message in check_retention(None)] == ["sluicegate.E024"]
    with pytest.raises(CommandError, match="90d") as refused:
        call_command("audit", "purge", stdout=io.StringIO())
    assert refused.value.returncode == 2
    with pytest.raises(CommandError, match=r"E024") as refused:
        call_command("audit", "purge", skip_checks=False, stdout=io.StringIO(), stderr=io.StringIO())
    assert refused.value.returncode == 2, "1 says that the log is not as it was written"
    tasks.purge()
    assert "retention_refused" in caplog.text
    settings.SLUICEGATE_RETENTION = "90 medical=3650"
    assert check_retention(None) == []


def test_a_backlog_is_worked_off_one_budget_after_the_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SLUICEGATE_RETENTION = "5"
    for _ in range(5):
        old()
    monkeypatch.setattr(retention, "at_once", lambda: 2)
    monkeypatch.setattr(tasks, "PURGE_S", 0.0)
    again: list[dict[str, object]] = []
    monkeypatch.setattr(tasks.purge, "apply_async", lambda args, **said: again.append(said))
    left = []
    for _ in range(4):
        tasks.purge()
        left.append(len(retention.due(timezone.now(), {"*": 5})))
    assert left == [3, 1, 0, 0], "a step at least, then its time is over"
    assert [said["priority"] for said in again] == [tasks.CHECKS] * 2, "and it goes on while anything is left"
    assert list(log_faults()) == []


def test_a_purge_asks_for_no_more_than_it_may_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SLUICEGATE_RETENTION = "5"
    keys = [old(days) for days in (10, 30, 20)]
    assert retention.due(timezone.now(), {"*": 5}, most=2) == [keys[1], keys[2]], "oldest first"
    times = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(retention, "at_once", lambda: 1)
    steps: list[int] = []
    assert retention.purge(keys, budget_s=2.0, told=steps.append, clock=lambda: next(times)) == 2
    assert steps == [1, 1]


def test_texts_behind_ones_that_no_key_opens_are_reached_and_the_log_tells_of_those_in_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings.SLUICEGATE_RETENTION = "5"
    was, now = (Fernet.generate_key().decode() for _ in range(2))
    settings.SLUICEGATE_TEXT_KEYS = [was]
    locked = [old() for _ in range(5)]
    for message in Message.objects.all():
        message.metadata = {"provider": "scripted"}
        message.save(update_fields=["metadata"])
    settings.SLUICEGATE_TEXT_KEYS = [now]
    behind = [old(50), old(40)]
    monkeypatch.setattr(retention, "PAGE", 2)
    monkeypatch.setattr(retention, "at_once", lambda: 3)
    monkeypatch.setattr(tasks, "PURGE_S", 0.0)
    again: list[tuple[str, ...]] = []
    monkeypatch.setattr(tasks.purge, "apply_async", lambda args, **said: again.append(args))
    lines, args = [], ()
    for _ in range(4):
        caplog.clear()
        tasks.purge(*args)
        lines.append(sum("text_not_removed" in one.getMessage() for one in caplog.records))
        assert "stored_text_cannot_be_opened" not in caplog.text
        if not again:
            break
        args = again.pop()
    assert sorted(retention.due(timezone.now(), {"*": 5})) == sorted(locked), "what is behind them is gone"
    assert not Message.objects.filter(sessions_answered__pk__in=behind).exclude(salt="").exists()
    assert lines == [1, 1, 0], "a line for each run that met any; three runs of three, and no more"


def test_all_that_is_due_is_named_once_though_it_stays_due(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [old(days) for days in (30, 10, 20, 40, 50)]
    monkeypatch.setattr(retention, "PAGE", 2)
    moment = timezone.now()
    assert list(retention.all_due(moment, {"*": 5})) == retention.due(moment, {"*": 5})
    AuditSession.objects.update(ended_at=moment - timedelta(days=9))
    found = list(retention.all_due(moment, {"*": 5}))
    assert sorted(found) == sorted(keys), "of one moment, too"
    assert list(retention.all_due(moment, {"*": 5}, begin=found[3])) == found[3:]
    assert list(retention.all_due(moment, {"*": 5}, begin=str(uuid4()))) == found, "a session that is gone"
