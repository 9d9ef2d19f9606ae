"""Generated secrets: private, written once, the same for every process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from project import environment

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("SLUICEGATE_SECRET_KEY", raising=False)
    directory = environment.data_dir(tmp_path)
    key, generated = environment.secret_key(directory)
    assert generated
    assert len(key) >= 50
    assert environment.secret_key(directory) == (key, True)
    assert mode(directory) == 0o700
    assert mode(directory / "secret_key") == 0o600


def test_a_given_secret_is_used_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SECRET_KEY", "given")
    assert environment.secret_key(tmp_path) == ("given", False)
    assert list(tmp_path.iterdir()) == []


def test_a_lax_umask_does_not_widen_a_secret(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        environment.private_file(tmp_path / "secret", b"x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "secret") == 0o600


def test_the_second_writer_gets_the_first_ones_secret(tmp_path: Path) -> None:
    assert environment.private_file(tmp_path / "secret", b"first") == b"first"
    assert environment.private_file(tmp_path / "secret", b"second") == b"first"


def test_an_empty_secret_file_is_an_error_and_not_an_empty_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(RuntimeError, match="remove it"):
        environment.private_file(tmp_path / "secret", b"second")


@pytest.mark.parametrize(("value", "meant"), [("1", True), ("TRUE", True), (" yes ", True), ("0", False), ("", False)])
def test_flags_are_read_as_people_write_them(value: str, meant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SG_TEST_FLAG", value)
    assert environment.flag("SG_TEST_FLAG", default=not meant) is meant


def settings_value(expression: str, tmp_path: Path, **env: str) -> str:
    """The value of an expression under settings that were loaded in a fresh process."""
    code = f"from django.conf import settings; print({expression})"
    inherited = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL", "DEBUG")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "SLUICEGATE_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "project.settings", **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_sqlite_in_the_data_directory_unless_a_database_is_named(tmp_path: Path) -> None:
    name = settings_value("settings.DATABASES['default']['NAME']", tmp_path)
    assert name == str(tmp_path / "sluicegate.sqlite3")
    engine = "settings.DATABASES['default']['ENGINE'], settings.DATABASES['default']['HOST']"
    other = settings_value(engine, tmp_path, DATABASE_URL="postgres://gate:pw@db.example:5432/gate")
    assert other == "django.db.backends.postgresql db.example"


def test_one_redis_url_serves_the_channel_layer_and_the_broker(tmp_path: Path) -> None:
    expression = "settings.CELERY_BROKER_URL, settings.CHANNEL_LAYERS['default']['CONFIG']['hosts'][0]"
    url = "redis://127.0.0.1:6399/3"
    assert settings_value(expression, tmp_path, REDIS_URL=url) == f"{url} {url}"
    assert "InMemory" in settings_value("settings.CHANNEL_LAYERS", tmp_path)
