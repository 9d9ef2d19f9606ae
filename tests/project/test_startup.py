"""A misconfigured production does not come up, whichever process is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRET = "s" * 60
GOOD = {
    "SLUICEGATE_ENV": "production",
    "SLUICEGATE_SECRET_KEY": SECRET,
    "SLUICEGATE_TEXT_KEYS": "A" * 43 + "=",
    "DATABASE_URL": "postgres://gate:hunter2@127.0.0.1:9/gate",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "ALLOWED_HOSTS": "gate.example",
}
OURS = ("SLUICEGATE_", "DATABASE_URL", "REDIS_URL", "DEBUG", "ALLOWED_HOSTS")
WEB = ("-c", "import project.asgi")
WORKER = ("-m", "celery", "-A", "project", "worker", "--pool", "solo")
BEAT = ("-m", "celery", "-A", "project", "beat")


@pytest.fixture
def production(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing is wrong. The key files are named; whether they hold keys is not asked here."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    for name in ("VERSION", "ACTIVATION", "AUDIT"):
        env[f"SLUICEGATE_{name}_KEY_FILE"] = str(tmp_path / name)
    return {**env, **GOOD, "SLUICEGATE_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "project.settings"}


def start(command: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_it_works(production: dict[str, str]) -> None:
    """With nothing wrong the process comes up: the refusals below are about what they name."""
    for name in ("VERSION", "ACTIVATION", "AUDIT"):
        made = start(("manage.py", "make_signing_key", production[f"SLUICEGATE_{name}_KEY_FILE"]), production)
        assert made.returncode == 0, made.stderr
    result = start(WEB, production)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", [WEB, WORKER, BEAT], ids=["web", "worker", "beat"])
def test_no_process_starts_with_a_generated_secret(command: tuple[str, ...], production: dict[str, str]) -> None:
    del production["SLUICEGATE_SECRET_KEY"]
    result = start(command, production)
    assert result.returncode != 0
    assert "sluicegate.E001" in result.stderr
    assert "SLUICEGATE_SECRET_KEY" in result.stderr  # the hint


WRONG: list[tuple[dict[str, str], str]] = [
    ({"DEBUG": "1"}, "sluicegate.E002"),
    ({"SLUICEGATE_DEMO": "1"}, "sluicegate.E003"),
    ({"SLUICEGATE_VERSION_KEY_FILE": ""}, "sluicegate.E004"),
    ({"SLUICEGATE_ACTIVATION_KEY_FILE": ""}, "sluicegate.E004"),
    ({"SLUICEGATE_AUDIT_KEY_FILE": ""}, "sluicegate.E004"),
    ({"SLUICEGATE_TEXT_KEYS": "hunter2"}, "sluicegate.E009"),
    ({"DATABASE_URL": ""}, "sluicegate.E005"),
    ({"REDIS_URL": ""}, "sluicegate.E005"),
]
ALONE = WRONG[3], WRONG[7], ({"SLUICEGATE_TEXT_KEYS": ""}, "sluicegate.E008")
"""Each of another kind: one of several that are missing, and one that is empty where another was wrong."""


def test_the_web_server_names_all_that_is_wrong_at_once(production: dict[str, str]) -> None:
    result = start(WEB, production | {name: value for change, _ in WRONG for name, value in change.items()})
    assert result.returncode != 0
    errors = result.stderr.replace("\n\tHINT", " HINT").splitlines()
    for change, check in WRONG:
        (named,) = change
        assert any(check in line and named in line for line in errors), named
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("change", "check"), [*ALONE, *(pytest.param(*one, marks=pytest.mark.long) for one in WRONG if one not in ALONE)]
)
def test_the_web_server_refuses(change: dict[str, str], check: str, production: dict[str, str]) -> None:
    result = start(WEB, {**production, **change})
    assert result.returncode != 0
    assert check in result.stderr
    assert "hunter2" not in result.stderr
