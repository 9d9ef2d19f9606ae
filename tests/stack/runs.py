"""Runs of several processes that tests judge and benchmarks measure: killed workers, writers side by side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import redis

from project.demo.valkey import choose_port, embedded
from tests.prepared import fill
from tests.stack.postgresql import prepared_database
from tests.stack.servers import ROOT, Stack, listening, stop, tied, until

LIMIT_S = 3_600.0
"""Of the longest work, on a busy machine; ten thousand sessions are as many flushes of a disk, and more."""
_INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR")
Attempt = tuple[int, int]
"""A check by its key, and which attempt at it."""
OPEN = "('waiting', 'checking')"


class Result(TypedDict):
    """What has become of the checks; see ``tests.stack.work``."""

    states: dict[str, int]
    wrong: int
    made_again: int
    texts_kept: int
    all: int
    complete: int
    sealed: int
    twice: int


class Appended(TypedDict):
    """When a process began and ended, on the clock that all processes share, and what each transaction took (ms)."""

    first: float
    last: float
    took: list[float]


@dataclass(frozen=True, slots=True)
class Run:
    """A run's result, how many seconds the workers took, and what ``audit verify`` said."""

    result: Result
    seconds: float
    verified: str


@contextlib.contextmanager
def installed(folder: Path, database: str) -> Iterator[dict[str, str]]:
    """The environment of an installation that ``prepare`` is still to finish; its server runs until the end."""
    env = environment(folder)
    with contextlib.ExitStack() as all_of_it:
        if database == "postgresql":
            env["DATABASE_URL"] = all_of_it.enter_context(prepared_database(folder))
        else:
            fill(folder)
        yield env


def environment(folder: Path) -> dict[str, str]:
    """Of an installation on SQLite in ``folder``, of which this process's own variables say nothing."""
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    settings = {"DJANGO_SETTINGS_MODULE": "tests.stack.settings_checks", "PYTHONPATH": str(ROOT)}
    return env | settings | {"PYTHONUNBUFFERED": "1", "SLUICEGATE_DATA_DIR": str(folder)}


def begin(env: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    """``tests.stack.work`` in a process of its own."""
    command = [sys.executable, "-m", "tests.stack.work", *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def end(process: subprocess.Popen[str]) -> object:
    """What it printed. Raises ``AssertionError`` when it failed."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err[-4000:]
    return json.loads(out)


def appended(
    env: dict[str, str], processes: int, each: int, at_once: int, what: str = "appends"
) -> tuple[float, list[float]]:
    """Processes that append ``each`` entries, ``at_once`` in a transaction, and begin together once all are ready.

    Seconds from the first append to the last, and milliseconds of every transaction. ``what``: or other work of the
    same form.
    """
    running = [begin(env, what, each, at_once) for _ in range(processes)]
    try:
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n", one.communicate()[1][-4000:]
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        done = [cast("Appended", end(one)) for one in running]
    finally:
        for one in running:
            one.kill()
    seconds = max(one["last"] for one in done) - min(one["first"] for one in done)
    return seconds, [ms for one in done for ms in one["took"]]


@contextlib.contextmanager
def workers(folder: Path, database: str = "sqlite") -> Iterator[Stack]:
    """Valkey and a database without sessions; the caller starts workers."""
    with contextlib.ExitStack() as all_of_it:
        env = all_of_it.enter_context(installed(folder, database))
        service, env["REDIS_URL"] = embedded(folder, choose_port(folder), os.environ)
        all_of_it.callback(stop, tied(list(service.argv), os.environ, folder / "valkey.log"))
        made = Stack(folder, env, all_of_it.enter_context(contextlib.closing(listening())))
        with made.store() as store:
            until("Valkey answers", lambda: _answers(store))
        end(begin(env, "prepare"))
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.terminate()
            for worker in made.workers:
                stop(worker)


def _answers(store: redis.Redis) -> bool:
    try:
        return bool(store.ping())
    except redis.RedisError:
        return False


def kill_workers_midway(folder: Path, number: int, database: str = "sqlite") -> Run:
    """``number`` checks, two workers; each is killed while it is making a check; two new ones make the rest."""
    with workers(folder, database) as servers:
        queued = end(begin(servers.env, "fill", number))
        assert queued == number
        began = time.monotonic()
        for beat in (True, False):
            servers.start_worker(beat=beat)
        held: set[Attempt] = set()
        for victim in (0, 1):
            held |= _kill_midway(servers, victim, number * (victim + 1) // 3, held)
        for beat in (True, False):
            servers.start_worker(beat=beat)
        until("all checks are over", lambda: _done(servers) == number, LIMIT_S)
        until("all sessions are complete", lambda: _complete(servers) == number, LIMIT_S)
        seconds = time.monotonic() - began
        result = cast("Result", end(begin(servers.env, "result")))
        verified = servers.manage("audit", "verify")
        return Run(result, seconds, verified.stdout + verified.stderr if verified.returncode else "")


def _kill_midway(servers: Stack, victim: int, done: int, held: set[Attempt]) -> set[Attempt]:
    until(f"{done} checks are over", lambda: _done(servers) >= done, LIMIT_S)
    return until("every worker is making a check", lambda: _kill_one(servers, victim, held), LIMIT_S)


def _done(servers: Stack) -> int:
    return _count(servers, f"SELECT count(*) FROM streaming_deferredcheck WHERE state NOT IN {OPEN}")


def _complete(servers: Stack) -> int:
    return _count(servers, "SELECT count(*) FROM streaming_auditsession WHERE state = 'COMPLETE'")


def _count(servers: Stack, query: str) -> int:
    ((number,),) = servers.rows(query)
    return int(str(number))


def _kill_one(servers: Stack, victim: int, held: set[Attempt]) -> set[Attempt] | None:
    """Stand all still; when as many checks are under way as there are workers, each has one, and the victim dies.

    ``held``: attempts that were under way at an earlier death and may still look so.
    """
    alive = [worker for worker in servers.workers if worker.poll() is None]
    trees = {worker.pid: [worker.pid, *below(worker.pid)] for worker in alive}
    _signal(trees, signal.SIGSTOP)
    try:
        under_way = _under_way(servers)
        if len(under_way - held) < len(alive):
            return None
        dying = servers.workers[victim]
        _signal({dying.pid: trees[dying.pid]}, signal.SIGKILL)
        dying.wait(30)
        return under_way
    finally:
        _signal(trees, signal.SIGCONT)


def _under_way(servers: Stack) -> set[Attempt]:
    """Checks that are being made; none when one of those who stand still has the whole of a SQLite file locked."""
    try:
        found = servers.rows(
            "SELECT id, attempts FROM streaming_deferredcheck WHERE state = 'checking'", patience_s=0.1
        )
    except sqlite3.OperationalError:
        return set()
    return {(int(str(key)), int(str(attempt))) for key, attempt in found}


def _signal(trees: dict[int, list[int]], number: signal.Signals) -> None:
    for pids in trees.values():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def below(pid: int) -> list[int]:
    """Process ids of everything that ``pid`` has started."""
    found, todo = [], [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(one) for one in task.read_text().split()]
                found += children
                todo += children
    return found
