"""Processes that write sessions side by side, and one that purges meanwhile, keep one chain that verifies."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.runs import begin, end, environment
from tests.stack.servers import ROOT


def manage(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)


def write(folder: Path, number: int) -> None:
    env = environment(folder)
    end(begin(env, "prepare"))
    first = [begin(env, "sessions", number // 2) for _ in range(2)]
    assert [end(one) for one in first] == [number // 2] * 2
    verified = manage(env, "audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    exported = manage(env, "audit", "export").stdout.splitlines()
    entries = [json.loads(line) for line in exported]
    assert [entry["seq"] for entry in entries] == list(range(1, 2 * number + 1))
    assert [entry["before"] for entry in entries[1:]] == [entry["hash"] for entry in entries[:-1]]
    writer, purger = begin(env, "sessions", number // 10), begin(env, "purge")
    assert end(writer) == number // 10
    removed = end(purger)
    assert isinstance(removed, int)
    assert removed >= number // 3
    verified = manage(env, "audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    with contextlib.closing(sqlite3.connect(folder / "sluicegate.sqlite3")) as file:
        file.execute("UPDATE streaming_finding SET action = 'warn' WHERE id = 7")
        file.commit()
    pointed = manage(env, "audit", "verify", "--json")
    assert pointed.returncode == 1
    assert json.loads(pointed.stdout.splitlines()[0])["code"] == "findings_altered", "and it still sees what is wrong"


def test_it_works(tmp_path: Path) -> None:
    write(tmp_path, 300)


@pytest.mark.long
def test_ten_thousand(tmp_path: Path) -> None:
    write(tmp_path, 10_000)
