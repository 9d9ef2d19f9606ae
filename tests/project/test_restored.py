"""How the test database is put back: a lock that stays is told, not waited for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.restored import copy


def test_a_lock_that_stays_ends_the_copy(tmp_path: Path) -> None:
    file = tmp_path / "db"
    with (
        closing(sqlite3.connect(":memory:")) as kept,
        closing(sqlite3.connect(file, isolation_level=None)) as other,
        closing(sqlite3.connect(file, timeout=0)) as target,
    ):
        kept.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TimeoutError):
            copy(kept, target, limit_s=0)
        other.execute("ROLLBACK")
        copy(kept, target, limit_s=0)
        assert target.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
