"""One demo per data directory: two would share a database, and each would start the other's processes again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another process holds the data directory."""


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold the directory while the block runs; the system lets go of it however the process ends."""
    descriptor = os.open(data_dir / "demo.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"a demo runs on {data_dir} already (SLUICEGATE_DATA_DIR names another place)") from None
    try:
        yield
    finally:
        os.close(descriptor)
