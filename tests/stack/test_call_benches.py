"""The benchmarks of calls and of recovery say what they promise; the second one on a number that means little."""

from __future__ import annotations

import pytest

from tests.bench import calls
from tests.bench.registry import Row, benchmarks


def rows(name: str) -> dict[str, Row]:
    found = {row.name: row for row in benchmarks()[name]()}
    for row in found.values():
        assert (row.ok is None) == (not row.target)
    return found


def test_it_works() -> None:
    """Calls and rows do not depend on how busy the machine is; times do, and are the benchmark's own matter."""
    assert len(calls.TEXT) == calls.CHARS
    for size in (30, 15):
        assert calls.TEXT.index(calls.SSN) % size + len(calls.SSN) > size, "over the edge of two chunks"
    found = rows("calls")
    assert {name for name, row in found.items() if row.ok is None} == {"audit_rows_checks"}
    assert found["calls_rules"].ok
    assert found["audit_rows_20"].ok
    assert found["audit_rows_40"].ok
    assert 2 <= found["calls_rules"].measured < found["calls"].measured <= 6
    assert found["audit_rows_checks"].measured == 60, "session and two entries a check; none sees the number"
    assert 0 < found["calls_gap_rules"].measured < found["calls_gap_none"].measured


@pytest.mark.long
def test_what_does_not_resume_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FAILURES", 50)
    assert rows("recovery")["recovery"].ok
    monkeypatch.setattr(calls.recovering.sg, "FIRST_WAIT_S", 1e9)
    assert rows("recovery")["recovery"].ok is False, "a client that gives up at its first failure resumes nothing"
