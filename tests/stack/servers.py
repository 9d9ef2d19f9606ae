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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import redis

from project.demo.valkey import choose_port, embedded
from tests.prepared import fill
from tests.stack.postgresql import OWN_POSTGRESQL, Postgres, postgres, prepared_database
from tests.stack.processes import COMMAND_S, INHERITED, ROOT, stop, tied, until


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
    """With ``OWN_POSTGRESQL``."""
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


@contextlib.contextmanager
def stack(folder: Path, database: str, *, processes: int = 2, application: str = "", **more: str) -> Iterator[Stack]:
    """Start all of it on ``database`` ("sqlite", "postgresql" or ``OWN_POSTGRESQL``) and stop it in the end.

    ``processes``: as many web processes and as many workers. ``application`` is served in place of the project's own,
    by web processes alone. ``more``: environment variables.
    """
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
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
        if database == OWN_POSTGRESQL:
            served = all_of_it.enter_context(postgres(env, folder / "postgres.log"))
            env["DATABASE_URL"] = served.uri
        elif database == "postgresql":
            env["DATABASE_URL"] = all_of_it.enter_context(prepared_database(folder))
        elif not more:
            fill(folder)
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
