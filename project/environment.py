"""What the machine tells the project: data directory, secrets, database, broker.

Secrets that nobody supplied are generated on first run into the data directory (mode 0600, directory 0700), so that a
stranger's first `make demo` works; production refuses them (system checks ``sluicegate.E00x``).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

TOO_MUCH = 1_000_000_000
_WHOLE = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")


def flag(name: str, default: bool = False) -> bool:
    """An environment variable as a yes or no."""
    return os.environ.get(name, "1" if default else "0").strip().lower() in ("1", "true", "yes", "on")


def words(name: str) -> list[str]:
    """A comma-separated environment variable as a list."""
    return [word.strip() for word in os.environ.get(name, "").split(",") if word.strip()]


def numbers(prefix: str, defaults: Mapping[str, int | float]) -> dict[str, int | float]:
    """Those of the numbers that the environment says, by ``prefix`` and upper-cased name, in the type of their default.

    Raises ``ImproperlyConfigured`` that names the variable.
    """
    found: dict[str, int | float] = {}
    for name, default in defaults.items():
        variable = f"{prefix}{name.upper()}"
        if text := os.environ.get(variable, "").strip():
            found[variable] = _number(variable, text, whole=isinstance(default, int))
    return found


def _number(variable: str, text: str, *, whole: bool) -> int | float:
    if not (_WHOLE if whole else _DECIMAL).fullmatch(text) or not 0 < float(text) < TOO_MUCH:
        kind = "a whole number" if whole else "a number such as 30 or 0.5"
        raise ImproperlyConfigured(f"{variable} is {kind} above 0 and below {TOO_MUCH:,}")
    return int(text) if whole else float(text)


def counts(name: str) -> dict[str, int]:
    """Names with a whole number above 0 each, as in ``openai=20,anthropic=5``. Raises ``ImproperlyConfigured``."""
    found: dict[str, int] = {}
    for word in words(name):
        of, _, number = word.partition("=")
        if not of or not number.isdecimal() or int(number) < 1:
            raise ImproperlyConfigured(f"{name} has names with a number each, as in openai=20; not {word}")
        found[of] = int(number)
    return found


def data_dir(base: Path) -> Path:
    """``$SLUICEGATE_DATA_DIR`` or ``var/`` beside manage.py; made, readable by its owner alone, if it is not there."""
    path = Path(os.environ.get("SLUICEGATE_DATA_DIR") or base / "var").expanduser().resolve()
    if not path.exists():
        path.mkdir(parents=True, mode=0o700)
    return path


def private_file(path: Path, make: bytes) -> bytes:
    """The content of a secret file; written with ``make`` and mode 0600 if absent. Two processes agree on one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _settled(path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(make)
    return make


def _settled(path: Path) -> bytes:
    """Another process may be between creating and writing: its content is there in an instant."""
    for _ in range(1_000):
        if content := path.read_bytes():
            return content
        os.sched_yield()
    raise RuntimeError(f"{path} is empty; remove it to have it generated again")


def secret_key(directory: Path) -> tuple[str, bool]:
    """Django's secret key and whether it was generated here."""
    if given := os.environ.get("SLUICEGATE_SECRET_KEY"):
        return given, False
    return private_file(directory / "secret_key", secrets.token_urlsafe(50).encode()).decode().strip(), True
