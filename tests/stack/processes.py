"""Processes that tests start, tied to this one, and waiting for what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from project.demo import child

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 90.0
"""For a start on a machine that does much else; usually it takes a few seconds."""
COMMAND_S = 4 * LIMIT_S
"""For a command, a start and work together: on PostgreSQL, beside much else, all tables and policies took 300 s."""
INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR")
T = TypeVar("T")


def until(what: str, ask: Callable[[], T | None], limit_s: float = LIMIT_S) -> T:
    """The first answer of ``ask`` that is something; fails by name when there is none in time."""
    end = time.monotonic() + limit_s
    while (answer := ask()) is None or answer is False:
        assert time.monotonic() < end, f"{what}: not within {limit_s:g} s"
        threading.Event().wait(0.02)
    return answer


def tied(arguments: list[str], env: Mapping[str, str], log: Path, *, pass_fds: tuple[int, ...] = (), **more: int
         ) -> subprocess.Popen[bytes]:  # fmt: skip
    """A process that is killed when this one dies, in whatever way."""
    tether = Path(child.__file__).with_name("tether.py")
    command = [sys.executable, "-I", "-S", str(tether), str(os.getpid()), *arguments]
    with log.open("ab") as out:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, **more}
        return subprocess.Popen(command, cwd=ROOT, env=dict(env), pass_fds=pass_fds, **pipes)  # type: ignore[call-overload,no-any-return]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end it when it does not."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
