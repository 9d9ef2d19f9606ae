"""The highest serials that were seen on this machine: a file beside the signing keys, shared by all processes.

Exists because the database is what signatures guard: whoever can write to it could put an activation back that was at
work today, with its statement, which still holds, and a process that has just started would have seen nothing else.
Protects the rule that a lower serial is refused also after a restart, and by every process of the machine at once.

It guards against who has the database alone. Another machine has a file of its own; one that is lost begins anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from pathlib import Path
from threading import Lock

import structlog
from django.conf import settings

logger = structlog.get_logger(__name__)
Place = tuple[str, str, str]
"""Issuer, policy, cohort."""

_lock = Lock()
_read: tuple[tuple[str, int, int, int], dict[str, int]] | None = None


def file() -> Path:
    """Where they are kept."""
    return Path(settings.SLUICEGATE_DATA_DIR) / "serials.json"


def highest(place: Place) -> int:
    """The highest serial that any process of this machine has seen there; 0 if none has."""
    with _lock:
        return _kept().get(_name(place), 0)


def note(place: Place, serial: int) -> None:
    """Keep a serial that was seen. Where that fails it is told, and the process goes by what it knows itself."""
    name, path = _name(place), file()
    with _lock:
        if _kept().get(name, 0) >= serial:
            return
        try:
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = _kept()
                _write(path, {**known, name: max(serial, known.get(name, 0))})
        except OSError as error:
            logger.warning("serials_not_kept", file=str(path), error=error.strerror)


def _kept() -> dict[str, int]:
    """What the file says; read again when it has changed."""
    global _read
    path = file()
    try:
        found = path.stat()
        stamp = (str(path), found.st_ino, found.st_mtime_ns, found.st_size)
        if _read is None or _read[0] != stamp:
            said = json.loads(path.read_text("utf-8"))
            _read = (stamp, {str(name): int(serial) for name, serial in said.items()})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        logger.error("serials_unreadable", file=str(path), error=str(error))
        return {}
    return _read[1]


def _write(path: Path, serials: dict[str, int]) -> None:
    """Whole or not at all."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".serials-")
    with os.fdopen(descriptor, "w") as whole:
        json.dump(serials, whole, sort_keys=True)
    os.replace(draft, path)


def _name(place: Place) -> str:
    return "\n".join(place)
