"""``manage.py demo`` itself: real processes, killed one after the other."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.prepared import fill

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).parents[2]
LIMIT_S = 60


def environment(data_dir: Path) -> dict[str, str]:
    ours = ("SLUICEGATE_", "REDIS_URL", "DATABASE_URL", "PORT", "DEBUG", "DJANGO_SETTINGS_MODULE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**inherited, "SLUICEGATE_DATA_DIR": str(data_dir)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def processes_below(pid: int) -> dict[int, str]:
    """Process ids and command lines of all descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    below, wave = set[int](), {pid}
    while wave := {child for child, parent in parents.items() if parent in wave}:
        below |= wave
    return {child: Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in below}


def alive(pid: int) -> bool:
    """Running, not merely unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Demo:
    """A running demo and its log."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir, self.port = data_dir, port
        command = [sys.executable, "manage.py", "demo", "--port", str(port)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(data_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.log: list[str] = []

    def said(self, pattern: str) -> str:
        """The first line since the start that matches, whether it was read already or is still to come."""
        return next((line for line in self.log if re.search(pattern, line)), None) or self.until(pattern)

    def until(self, pattern: str) -> str:
        """Read on to the next line that matches; the suite's own time limit ends a wait in vain."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern!r}:\n" + "".join(self.log))

    def until_all(self, *patterns: str) -> None:
        """Read on until every pattern has matched, in whatever order the children's lines come."""
        start = len(self.log)
        for pattern in patterns:
            if not any(re.search(pattern, line) for line in self.log[start:]):
                self.until(pattern)

    def pid_of(self, word: str) -> int:
        """The direct child whose command line has the word."""
        below = processes_below(self.process.pid)
        stat = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in below}
        (found,) = [pid for pid, line in below.items() if word in line and stat[pid] == str(self.process.pid)]
        return found

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=20)

    def stop(self) -> int:
        self.process.terminate()
        self.log.extend(self.process.stdout or ())
        return self.process.wait(LIMIT_S)


@contextmanager
def running(data_dir: Path, port: int) -> Iterator[Demo]:
    """A demo that is up; whatever the test does, nothing of it is left afterwards."""
    started = Demo(data_dir, port)
    try:
        started.until("Ctrl-C ends everything")
        yield started
    finally:
        below = processes_below(started.process.pid)
        started.process.kill()
        started.process.communicate()
        for pid in filter(alive, below):  # only what this test started, and only if it outlived a failing test
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Not the first one in its directory."""
    fill(tmp_path / "data")
    with running(tmp_path / "data", free_port()) as started:
        yield started


@pytest.fixture
def first_demo(tmp_path: Path) -> Iterator[Demo]:
    with running(tmp_path / "data", free_port()) as started:
        yield started


def run(data_dir: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", "demo", *arguments],
        cwd=ROOT,
        env={**environment(data_dir), **env},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_it_works_and_a_second_start_keeps_login_and_key(first_demo: Demo) -> None:
    assert first_demo.get("/health").status_code == 200
    access = json.loads((first_demo.data_dir / "demo.json").read_text())
    assert access["url"] == f"http://127.0.0.1:{first_demo.port}"
    answer = httpx.post(
        f"{access['url']}/v1/check",
        headers={"Authorization": f"Bearer {access['api_key']}"},
        json={"text": "my SSN is 536-22-1234", "kind": "response", "accepts": ["redact"]},
        trust_env=False,
    )
    assert answer.json()["action"] == "redact"
    first_demo.said(r"worker\|.*ready")  # the children start side by side: it may have been ready before the web

    readable = [path for path in first_demo.data_dir.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert not readable

    below = processes_below(first_demo.process.pid)
    assert len(below) >= 5  # valkey, web, worker with its pool and beat
    assert first_demo.stop() == 0
    assert not list(filter(alive, below))
    assert not any("Traceback" in line for line in first_demo.log)

    with running(first_demo.data_dir, first_demo.port) as again:
        assert json.loads((first_demo.data_dir / "demo.json").read_text()) == access
        assert again.stop() == 0


def test_a_killed_worker_and_a_killed_valkey_come_back(demo: Demo) -> None:
    demo.said(r"worker\|.*ready")
    first_valkey = demo.pid_of("valkey-server")
    port = re.search(r"port=(\d+)", "".join(demo.log))
    assert port

    os.kill(demo.pid_of("celery"), signal.SIGKILL)
    demo.until(r"the worker process ended \(SIGKILL\); starting it again in 5 s")
    assert not [line for line in processes_below(demo.process.pid).values() if "celery" in line]  # nor an orphaned beat
    assert demo.get("/health").status_code == 200
    demo.until(r"worker\|.*ready")

    os.kill(first_valkey, signal.SIGKILL)
    demo.until(r"the valkey process ended \(SIGKILL\); starting it again in 5 s")
    down = demo.get("/ready")
    assert (down.status_code, down.json()["status"]) == (503, "down")
    demo.until_all(rf"valkey\|.*port={port[1]}\b", r"worker\|.*Connected to redis")
    assert demo.get("/ready").status_code == 200
    assert demo.stop() == 0


def test_the_end_of_the_web_server_ends_everything(demo: Demo) -> None:
    below = processes_below(demo.process.pid)
    os.kill(demo.pid_of("daphne"), signal.SIGKILL)
    demo.until(r"the web process ended \(SIGKILL\); stopping everything")
    demo.until("everything has stopped")
    assert demo.process.wait(LIMIT_S) == 1
    assert not list(filter(alive, below))


def test_a_port_in_use_is_one_clear_line_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        result = run(tmp_path, "--port", port)
        by_variable = run(tmp_path, PORT=port)
    for refused in (result, by_variable):
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert refused.stderr.count("\n") == 1
        assert f"port {port} on 127.0.0.1 is in use" in refused.stderr
    assert not (tmp_path / "sluicegate.sqlite3").exists()


@pytest.mark.parametrize(
    "port", ["0", pytest.param("65536", marks=pytest.mark.long), pytest.param("-1", marks=pytest.mark.long)]
)
def test_what_is_no_port_is_refused(tmp_path: Path, port: str) -> None:
    result = run(tmp_path, f"--port={port}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_a_second_demo_on_the_same_data_is_refused(demo: Demo) -> None:
    result = run(demo.data_dir, "--port", str(free_port()))
    assert result.returncode == 2
    assert "a demo runs on" in result.stderr


def test_production_has_no_demo(tmp_path: Path) -> None:
    result = run(tmp_path, SLUICEGATE_ENV="production")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
