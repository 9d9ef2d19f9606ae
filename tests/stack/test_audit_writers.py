"""Processes that write sessions side by side, and one that purges meanwhile, keep one chain that verifies."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from tests.stack.runs import appended, begin, end, installed
from tests.stack.servers import ROOT


def manage(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)


def alter(env: dict[str, str], sql: LiteralString) -> None:
    """As somebody who owns the database can do it."""
    if uri := env.get("DATABASE_URL"):
        with psycopg.connect(uri) as connection:
            connection.execute(sql)
        return
    with contextlib.closing(sqlite3.connect(Path(env["SLUICEGATE_DATA_DIR"]) / "sluicegate.sqlite3")) as file:
        file.execute(sql)
        file.commit()


def write(env: dict[str, str], number: int) -> None:
    end(begin(env, "prepare"))
    first = [begin(env, "sessions", number // 2) for _ in range(2)]
    try:
        assert [end(one) for one in first] == [number // 2] * 2
    finally:
        for one in first:
            one.kill()
    exported = manage(env, "audit", "export").stdout.splitlines()
    entries = [json.loads(line) for line in exported]
    assert [entry["seq"] for entry in entries] == list(range(1, 2 * number + 1))
    assert [entry["before"] for entry in entries[1:]] == [entry["hash"] for entry in entries[:-1]]
    writer, purger = begin(env, "sessions", number // 10), begin(env, "purge")
    assert end(writer) == number // 10
    removed = end(purger)
    assert isinstance(removed, int)
    assert removed >= number // 3
    _, took = appended(env, 2, 50, 7)
    assert len(took) == 2 * 8, "several entries in one step, by two processes"
    verified = manage(env, "audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    alter(env, "UPDATE streaming_finding SET action = 'warn' WHERE id = 7")
    pointed = manage(env, "audit", "verify", "--json")
    assert pointed.returncode == 1
    assert json.loads(pointed.stdout.splitlines()[0])["code"] == "findings_altered", "and it still sees what is wrong"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_it_works(tmp_path: Path, database: str) -> None:
    with installed(tmp_path, database) as env:
        write(env, 160 if database == "sqlite" else 100)


@pytest.mark.long
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_ten_thousand(tmp_path: Path, database: str) -> None:
    with installed(tmp_path, database) as env:
        write(env, 10_000)
