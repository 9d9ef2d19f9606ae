"""`manage.py bench library`: the rows of the browser library, from Chromium and real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.calls import CHARS
from tests.e2e.conftest import chromium
from tests.e2e.server import INHERITED, ROOT

LIMIT_S = 900
ROWS = {f"library_{what}_{whose}" for what in ("calls", "gap", "wait") for whose in ("rules", "none")}


def bench(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: os.environ[name] for name in (*INHERITED, "CHROMIUM") if name in os.environ} | environment
    command = [sys.executable, "manage.py", "bench", "library", *more]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.long
@pytest.mark.browser
def test_it_works(tmp_path: Path) -> None:
    """Calls do not depend on how busy the machine is; times do, and are the benchmark's own matter."""
    if chromium() is None:
        message = "no Chromium found (set CHROMIUM to its path)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    file = tmp_path / "rows.json"
    done = bench("--json", str(file), COLUMNS="300")
    assert file.exists(), done.stderr
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert set(rows) == ROWS
    assert done.returncode == (0 if all(row["ok"] for row in rows.values()) else 1), done.stderr
    assert [rows[f"library_calls_{whose}"]["ok"] for whose in ("rules", "none")] == [True, True]
    assert 2 <= rows["library_calls_rules"]["measured"] < rows["library_calls_none"]["measured"] <= 6
    for name, row in rows.items():
        assert row["measured"] > 0, name
        assert row["target"], name
    assert f"{CHARS} characters" in done.stdout


@pytest.mark.long
def test_without_chromium_it_says_so_and_gives_no_row() -> None:
    done = bench(CHROMIUM="", PATH="/nowhere")
    assert "not measured: there is no Chromium" in done.stderr
    assert "calls" not in done.stdout
