"""The benchmarks that start processes run, on numbers too small to mean anything, and say all that they promise."""

from __future__ import annotations

import pytest

from tests.bench import audit, monitor
from tests.bench.registry import Row, benchmarks


def rows(name: str) -> dict[str, Row]:
    found = {row.name: row for row in benchmarks()[name]()}
    for row in found.values():
        assert (row.ok is None) == (not row.target)
    return found


def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "APPENDS", 200)
    monkeypatch.setattr(audit, "SESSIONS", 10)
    monkeypatch.setattr(audit, "NAMES", {"sqlite": "SQLite"})
    found = rows("audit")
    assert set(found) == {f"audit_sqlite_{name}" for name in ("appends", "singly", "bare", "p50", "p99", "crowd")} | {
        "disk_flush"
    }
    assert 0 < found["audit_sqlite_p50"].measured <= found["audit_sqlite_p99"].measured
    assert found["disk_flush"].measured > 0


@pytest.mark.long
def test_killed_workers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CHECKS", 60)
    found = rows("deferred")
    assert found["deferred_ended"].ok
    assert found["deferred_twice"].ok


@pytest.mark.long
def test_an_ai_check_in_monitor_is_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "ROUNDS", 1)
    found = rows("monitor")
    assert set(found) == {"monitor_p99", "monitor_p50", "monitor_p99_equal", "monitor_p50_equal"}
    assert "without it" in found["monitor_p99"].anchor
