"""Every damage to the audit log and to what it commits to is pointed at on PostgreSQL as well.

The same tests as on a file, in a run of their own: settings name one database for good.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.postgresql import postgres
from tests.stack.servers import ROOT

ELSEWHERE = "not two_writers and not sees_one_moment"
"""Several connections at once: ``test_audit_writers`` and ``test_recovery`` have them on this database."""
FILES = ("test_audit_chain.py", "test_audit_fields.py", "test_audit_damage_postgresql.py", "test_retention.py")


@pytest.mark.long
@pytest.mark.timeout(1_500)
def test_it_works(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["XDG_RUNTIME_DIR"] = str(tmp_path)
    with postgres(env, tmp_path / "postgres.log") as served:
        there = env | {"TESTS_DATABASE_URL": served.uri}
        options = ("-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not long", "-k", ELSEWHERE)
        command = [sys.executable, "-m", "pytest", *options]
        ran = subprocess.run(
            [*command, *(f"tests/streaming/{name}" for name in FILES)],
            cwd=ROOT, env=there, capture_output=True, text=True, timeout=1_400, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4_000:] + ran.stderr[-2_000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed, ran.stdout
    assert int(passed[1]) > 200
    skipped = re.search(r"(\d+) skipped", ran.stdout)
    assert skipped is None or int(skipped[1]) < 10, "what a file can hold and PostgreSQL cannot"
