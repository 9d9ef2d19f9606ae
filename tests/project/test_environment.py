"""Generated secrets: private, written once, the same for every process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

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


NUMBERS: dict[str, int | float] = {"expiry_s": 300.0, "at_once": 20}
NO_NUMBERS = ("0", "-1", "x", "nan", "inf", "1e3", "\u0663", "9" * 5_000)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("EXPIRY_S", "7", 7.0), ("EXPIRY_S", " 0.5 ", 0.5), ("AT_ONCE", "3", 3), ("AT_ONCE", "", None)],
)
def test_numbers_have_the_type_of_their_default(
    name: str, text: str, value: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SG_TEST_{name}", text)
    found = environment.numbers("SG_TEST_", NUMBERS)
    assert found == ({} if value is None else {f"SG_TEST_{name}": value})
    assert [type(one) for one in found.values()] == ([] if value is None else [type(value)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (name, text)
        for name in ("EXPIRY_S", "AT_ONCE")
        for text in ("0", "-1", "x", "nan", "inf", "1e3", "٣", "9" * 5_000)
    ]
    + [("EXPIRY_S", "0.0"), ("EXPIRY_S", ".5"), ("AT_ONCE", "1.5")],
    ids=lambda value: value[:8],
)
def test_what_is_no_number_is_refused_by_name(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SG_TEST_{name}", text)
    with pytest.raises(ImproperlyConfigured, match=f"^SG_TEST_{name} is "):
        environment.numbers("SG_TEST_", NUMBERS)


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


def test_limits_and_times_of_the_environment_are_those_that_hold(tmp_path: Path) -> None:
    given = {"STREAM_EXPIRY_S": "12.5", "MONITORING_LIMIT_S": "90", "CHECK_ATTEMPTS": "5", "GATEWAY_AT_ONCE": "7"}
    expression = (
        "__import__('streaming.conf').conf.conf() == __import__('streaming.conf').conf.Conf("
        "stream_expiry_s=12.5, monitoring_limit_s=90.0, check_attempts=5, gateway_at_once=7)"
    )
    assert settings_value(expression, tmp_path, **{f"SLUICEGATE_{k}": v for k, v in given.items()}) == "True"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        settings_value("settings.DEBUG", tmp_path, SLUICEGATE_TOMBSTONE_S="soon")
    assert "SLUICEGATE_TOMBSTONE_S is a number" in refused.value.stderr


def test_one_redis_url_serves_the_channel_layer_and_the_broker(tmp_path: Path) -> None:
    expression = "settings.CELERY_BROKER_URL, settings.CHANNEL_LAYERS['default']['CONFIG']['hosts'][0]"
    url = "redis://127.0.0.1:6399/3"
    assert settings_value(expression, tmp_path, REDIS_URL=url) == f"{url} {url}"
    assert "InMemory" in settings_value("settings.CHANNEL_LAYERS", tmp_path)
