"""Two workers are killed (SIGKILL) amid many deferred checks: every check ends, and no result is there twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stack.runs import kill_workers_midway

JUDGED = {"passed", "would_block"}
SAID = {"error", "timeout", "expired"}
"""Failures that everybody sees."""


def survive(folder: Path, number: int, database: str) -> None:
    run = kill_workers_midway(folder, number, database)
    result = run.result
    assert sum(result["states"].values()) == result["all"] == result["complete"] == result["sealed"] == number
    assert set(result["states"]) <= JUDGED | SAID, "each check is done or has visibly failed"
    assert set(result["states"]) <= JUDGED, "and two dead workers are fewer than the attempts that a check has"
    assert result["twice"] == 0, "no finding, no end and no telling twice"
    assert result["wrong"] == 0
    assert result["texts_kept"] == 0
    assert result["made_again"] >= 2, "what each dead worker held was made by another one"
    assert run.verified == ""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_it_works(tmp_path: Path, database: str) -> None:
    survive(tmp_path, 100 if database == "sqlite" else 40, database)


@pytest.mark.long
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_thousand(tmp_path: Path, database: str) -> None:
    survive(tmp_path, 1_000, database)
