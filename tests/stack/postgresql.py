"""PostgreSQL for tests: a server of one's own, or a database on one that all tests of this process share.

Making a server and filling it takes many seconds of a processor; a copy of a filled database takes less than one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, cast

import psycopg

from tests.prepared import PREPARE
from tests.stack.processes import COMMAND_S, INHERITED, ROOT, tied

OWN_POSTGRESQL = "own postgresql"
"""Of an installation whose server a test stops."""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server that can be stopped and started again with the data that it had."""

    uri: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """It is gone when this returns, and whoever was connected is cut off."""
        self._do(b"stop\n")

    def start(self) -> None:
        """It takes connections at the same address when this returns."""
        self._do(b"start\n")

    def _do(self, line: bytes) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        assert self.process.stdout.readline().decode().strip() == self.uri


@contextlib.contextmanager
def postgres(env: Mapping[str, str], log: Path) -> Iterator[Postgres]:
    """A PostgreSQL server. Its directory is one that the server's own system user can reach."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        places = {name: Path(folder) / name for name in ("data", "run")}
        for place in places.values():
            place.mkdir(mode=0o700)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        env = {**env, "XDG_RUNTIME_DIR": str(places["run"])}
        server = tied([sys.executable, "-m", "tests.stack.postgres", str(places["data"])], env, log, **pipes)
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            uri = server.stdout.readline().decode().strip()
            assert uri, f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-4000:]}"
            yield Postgres(uri, server)
        finally:
            server.stdin.close()
            server.wait(60)
            server.stdout.close()


@contextlib.contextmanager
def prepared_database(folder: Path) -> Iterator[str]:
    """URI of a database with tables and starter policies; the keys that signed are put into ``folder``."""
    uri, data = _shared()
    shutil.copytree(data, folder, dirs_exist_ok=True)
    name = f"copy_{next(_numbers)}"
    _execute(uri, f"CREATE DATABASE {name} TEMPLATE prepared")
    yield _at(uri, name)
    _execute(uri, f"DROP DATABASE {name} WITH (FORCE)")


@functools.cache
def _shared() -> tuple[str, Path]:
    """The URI of a server that runs for as long as this process, and the data directory that its policies belong to."""
    until_the_end = contextlib.ExitStack()
    atexit.register(until_the_end.close)
    folder = Path(until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="sluicegate-prepared-")))
    data = folder / "data"
    data.mkdir(mode=0o700)
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    uri = until_the_end.enter_context(postgres(env, folder / "postgres.log")).uri
    _execute(uri, "CREATE DATABASE prepared")
    env |= {"DJANGO_SETTINGS_MODULE": "project.settings", "PYTHONPATH": str(ROOT), "SLUICEGATE_DATA_DIR": str(data)}
    made = subprocess.run(
        [sys.executable, "-c", PREPARE],
        cwd=ROOT, env={**env, "DATABASE_URL": _at(uri, "prepared")},
        capture_output=True, text=True, timeout=COMMAND_S, check=False, umask=0o077,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-4000:]
    return uri, data


def _at(uri: str, name: str) -> str:
    """The URI of another database of the same server."""
    server, _, place = uri.partition("?")
    return f"{server.rpartition('/')[0]}/{name}?{place}"


def _execute(uri: str, statement: str) -> None:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(cast("LiteralString", statement))
