"""A whole installation for tests: web processes that share one listening socket, Celery workers, Valkey, a database.

Real servers, each tied to this process: they go when it goes, however it ends. A web process has an address of its
own beside the shared one, so that a test can say which of them gets a call.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import psycopg
import redis

from project.demo import child
from project.demo.valkey import choose_port, embedded

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 90.0
"""For a start on a machine that does much else; usually it takes a few seconds."""
COMMAND_S = 4 * LIMIT_S
"""For a command, a start and work together: on PostgreSQL, beside much else, all tables and policies took 300 s."""
_INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR")
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


@dataclass
class Web:
    """A web process with an address of its own."""

    name: str
    own: socket.socket
    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def url(self) -> str:
        """Leads to this process and to no other."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL, and it is gone when this returns; whoever it had not answered is cut off."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.own.close()  # ours is the last hold on it, and who waits in its queue would wait for ever

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None


@dataclass
class Stack:
    """The installation. ``url`` leads to any of its web processes."""

    folder: Path
    env: dict[str, str]
    shared: socket.socket
    webs: list[Web] = field(default_factory=list)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    database: Postgres | None = None
    _started: int = 0

    @property
    def url(self) -> str:
        """The address that all web processes share."""
        return f"http://127.0.0.1:{self.shared.getsockname()[1]}"

    def rows(self, query: str, patience_s: float = 20) -> list[tuple[object, ...]]:
        """Rows of the database, read from outside; a SQLite file that stays locked for longer is an error."""
        if uri := self.env.get("DATABASE_URL"):
            with psycopg.connect(uri) as connection:
                return connection.execute(query.encode()).fetchall()
        path = f"file:{self.folder / 'sluicegate.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True, timeout=patience_s)) as file:
            return file.execute(query).fetchall()

    def store(self) -> redis.Redis:
        """The installation's Valkey, seen from outside."""
        return redis.Redis.from_url(self.env["REDIS_URL"])

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A management command, as an operator runs it."""
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )

    def start_web(self, application: str = "project.asgi:application") -> None:
        """One more web process; not ready yet."""
        self._started += 1
        name = f"web-{self._started}"
        own = listening()
        fds = (self.shared.fileno(), own.fileno())
        argv = [sys.executable, "-m", "daphne", "-v", "1", "--access-log", os.devnull, "--fd", str(fds[0])]
        argv += ["-e", f"fd:fileno={fds[1]}", application]
        log = self.folder / f"{name}.log"
        self.webs.append(Web(name, own, tied(argv, self.env, log, pass_fds=fds), log, own.getsockname()[1]))

    def start_worker(self, *, beat: bool) -> None:
        """One more worker; not ready yet."""
        argv = [sys.executable, "-m", "celery", "--quiet", "--app", "project", "worker", "--pool", "prefork"]
        argv += [
            "--concurrency",
            "1",
            "--loglevel",
            "INFO",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
        argv += ["--hostname", f"worker-{len(self.workers)}@%h", *(["--beat"] if beat else [])]
        self.workers.append(tied(argv, self.env, self.folder / f"worker-{len(self.workers)}.log"))

    def wait_for_webs(self) -> None:
        """Until every web process answers at its own address; the dead are forgotten."""
        for web in [web for web in self.webs if not web.alive]:
            self.webs.remove(web)
            web.own.close()
        for web in self.webs:
            until(f"{web.name} answers", lambda web=web: self._answers(web))  # type: ignore[misc]

    def _answers(self, web: Web) -> bool | None:
        assert web.alive, f"{web.name} ended:\n{web.log.read_text(errors='replace')[-4000:]}"
        with contextlib.suppress(httpx.HTTPError), httpx.Client(trust_env=False, timeout=5) as client:
            return client.get(f"{web.url}/health").status_code == 200
        return None

    def wait_for_workers(self) -> None:
        """Until all workers say that they take tasks."""
        with self.store() as store:
            until("the workers are there", lambda: len(list(store.scan_iter("sg:worker:*"))) >= len(self.workers))


def listening() -> socket.socket:
    """A socket that listens; connections wait in it until a process takes them."""
    made = socket.create_server(("127.0.0.1", 0), backlog=128)
    made.set_inheritable(True)
    return made


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
def stack(folder: Path, database: str, *, processes: int = 2, application: str = "", **more: str) -> Iterator[Stack]:
    """Start all of it on ``database`` ("sqlite" or "postgresql") and stop it in the end.

    ``processes``: as many web processes and as many workers. ``application`` is served in place of the project's own,
    by web processes alone. ``more``: environment variables.
    """
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    env |= {
        "DJANGO_SETTINGS_MODULE": "tests.stack.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "SLUICEGATE_DATA_DIR": str(folder),
        "SLUICEGATE_SCRIPTED_RATE": "60",
        **more,
    }
    with contextlib.ExitStack() as all_of_it:
        service, env["REDIS_URL"] = embedded(folder, choose_port(folder), os.environ)
        all_of_it.callback(stop, tied(list(service.argv), os.environ, folder / "valkey.log"))
        served = None
        if database == "postgresql":
            served = all_of_it.enter_context(postgres(env, folder / "postgres.log"))
            env["DATABASE_URL"] = served.uri
        made = Stack(folder, env, all_of_it.enter_context(contextlib.closing(listening())))
        made.database = served
        prepare = [sys.executable, "-m", "tests.stack.prepare"]
        done = subprocess.run(
            prepare, cwd=ROOT, env=env, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        made.keys = json.loads(done.stdout)
        try:
            for number in range(processes):
                if application:
                    made.start_web(application)
                else:
                    made.start_web()
                    made.start_worker(beat=number == 0)
            made.wait_for_webs()
            made.wait_for_workers()
            yield made
        finally:
            running = [*(web.process for web in made.webs), *made.workers]
            for process in running:
                process.terminate()
            for process in running:
                stop(process)
            for web in made.webs:
                web.own.close()
