"""What is misconfigured is said with a stable id and a hint, and keys are made whole, private and once."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.core.checks import Error, run_checks
from django.core.management import CommandError, call_command
from pytest_django import Settings

from guardrails import checks, keys
from guardrails.signing import Purpose, SigningKey, new_key_pem


@pytest.fixture
def production(settings: Settings, tmp_path: Path) -> Settings:
    """Settings in which nothing is wrong."""
    settings.SLUICEGATE_PRODUCTION = True
    settings.SLUICEGATE_SECRET_KEY_GENERATED = False
    settings.SLUICEGATE_DEMO = settings.DEBUG = False
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(tmp_path / "heads")
    settings.SLUICEGATE_TEXT_KEYS = [Fernet.generate_key().decode()]
    settings.DATABASE_URL = "postgres://gate@127.0.0.1/gate"
    settings.REDIS_URL = "redis://127.0.0.1:6379/0"
    for purpose in Purpose:
        path = tmp_path / f"{purpose.name}.pem"
        path.write_bytes(new_key_pem())
        setattr(settings, f"SLUICEGATE_{purpose.name}_KEY_FILE", str(path))
    return settings


def ids() -> list[str | None]:
    return [message.id for message in run_checks() if (message.id or "").startswith("sluicegate.")]


def test_it_works(production: Settings) -> None:
    assert ids() == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SLUICEGATE_SECRET_KEY_GENERATED", True, "sluicegate.E001"),
        ("DEBUG", True, "sluicegate.E002"),
        ("SLUICEGATE_DEMO", True, "sluicegate.E003"),
        ("SLUICEGATE_VERSION_KEY_FILE", "", "sluicegate.E004"),
        ("SLUICEGATE_ACTIVATION_KEY_FILE", "", "sluicegate.E004"),
        ("SLUICEGATE_AUDIT_KEY_FILE", "", "sluicegate.E004"),
        ("SLUICEGATE_TEXT_KEYS", [], "sluicegate.E008"),
        ("SLUICEGATE_TEXT_KEYS", ["short"], "sluicegate.E009"),
        ("DATABASE_URL", "", "sluicegate.E005"),
        ("REDIS_URL", "", "sluicegate.E005"),
        ("SLUICEGATE_VERSION_KEY_FILE", "/nonexistent/key.pem", "sluicegate.E006"),
        ("SLUICEGATE_VERSION_KEY_FILE", __file__, "sluicegate.E006"),
    ],
)
def test_each_mistake_stops_production_with_a_hint(
    production: Settings, name: str, value: object, expected: str
) -> None:
    setattr(production, name, value)
    (message,) = (m for m in run_checks() if (m.id or "").startswith("sluicegate."))
    assert isinstance(message, Error)
    assert message.id == expected
    assert message.hint
    production.SLUICEGATE_PRODUCTION = False
    if expected not in ("sluicegate.E006", "sluicegate.E009"):
        assert expected not in ids()


def test_one_key_for_two_purposes_is_refused(production: Settings) -> None:
    production.SLUICEGATE_ACTIVATION_KEY_FILE = production.SLUICEGATE_VERSION_KEY_FILE
    assert ids() == ["sluicegate.E007"]


def test_message_about_a_bad_key_shows_nothing_of_the_file(production: Settings, tmp_path: Path) -> None:
    path = tmp_path / "bad.pem"
    path.write_text("hunter2")
    production.SLUICEGATE_VERSION_KEY_FILE = str(path)
    assert "hunter2" not in str(checks.check_signing_keys(None))


def test_without_a_broker_there_is_a_warning_only(settings: Settings) -> None:
    settings.REDIS_URL = ""
    assert ids() == ["sluicegate.W001"]


def test_production_without_a_file_for_the_heads_is_warned_and_runs(production: Settings) -> None:
    production.SLUICEGATE_AUDIT_HEADS_FILE = ""
    (message,) = (m for m in run_checks() if (m.id or "").startswith("sluicegate."))
    assert (message.id, message.is_serious()) == ("sluicegate.W002", False)
    assert message.hint
    call_command("check", fail_level="ERROR")
    production.SLUICEGATE_PRODUCTION = False
    assert ids() == []


def test_generated_key_is_private_and_made_once(settings: Settings, tmp_path: Path) -> None:
    settings.SLUICEGATE_DATA_DIR = tmp_path
    key = keys.signing_key(Purpose.VERSION)
    path, named = keys.key_file(Purpose.VERSION)
    assert not named
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert SigningKey.from_pem(path.read_bytes(), Purpose.VERSION) == key
    assert keys.signing_key(Purpose.ACTIVATION).public.x != key.public.x
    assert sorted(p.name for p in path.parent.iterdir()) == ["activation.pem", "version.pem"]


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "version.pem"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: keys.write_new_key(path), range(32)))
    assert made.count(True) == 1
    assert list(path.parent.iterdir()) == [path]
    SigningKey.from_pem(path.read_bytes(), Purpose.VERSION)


def test_command_makes_a_key_and_never_overwrites_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "version.pem"
    call_command("make_signing_key", str(path))
    first = path.read_bytes()
    assert first.decode().splitlines()[1] not in capsys.readouterr().out
    with pytest.raises(CommandError, match="never overwritten") as refused:
        call_command("make_signing_key", str(path))
    assert refused.value.returncode == 1
    assert path.read_bytes() == first
    with pytest.raises(CommandError):
        call_command("make_signing_key", str(path / "below a file"))
