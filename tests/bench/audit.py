"""What the record costs: appends to the audit log by two processes, and deferred checks whose workers are killed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from streaming.audit.retention import AT_ONCE, USUAL
from tests.bench.clock import percentile
from tests.bench.registry import Row, at_least, at_most, bench, context
from tests.stack.runs import appended, begin, end, installed, kill_workers_midway

APPENDS = 10_000
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
CHECKS = 1_000
SESSIONS, VISITORS = 200, 40


@bench("audit")
def audit() -> Iterable[Row]:
    """10,000 appends by two processes to one log, as many in a transaction as a purge has, and each its own.

    The head is locked until its transaction is over, and PostgreSQL flushes its log to the disk at the end of each, so
    the anchor of single ones is what 10,000 changes of one row by two processes take, each a transaction, on this disk.
    """
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder:
        yield context("disk_flush", "a flush of 8 kB to the disk, p50", _flush_ms(Path(folder)), "ms")
    for database in NAMES:
        step = AT_ONCE.get(database, USUAL)
        with (
            tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder,
            installed(Path(folder), database) as env,
        ):
            end(begin(env, "prepare"))
            appended(env, 1, 500, 1)
            in_bulk, _ = appended(env, 2, APPENDS // 2, step)
            alone, singly = appended(env, 1, APPENDS // 2, 1)
            seconds, took = appended(env, 2, APPENDS // 2, 1)
            appended(env, 1, 1, 1, "commits")  # makes the table
            bare, _ = appended(env, 2, APPENDS // 2, 1, "commits")
            lone, crowd = (cast("float", end(begin(env, "crowd", SESSIONS, at_once))) for at_once in (1, VISITORS))
        middle, late = (percentile(singly, share) for share in (0.5, 0.99))
        single = f"one process alone, {APPENDS // 2:,}: {alone:.2f} s, p50 {middle:.2f} ms, p99 {late:.1f} ms"
        floor = f"as many changes of one row, each a transaction: {bare:.2f} s"
        name = f"{NAMES[database]}: {APPENDS:,} appends by two processes"
        yield at_most(f"audit_{database}_appends", f"{name}, {step} in a transaction as in a purge", in_bulk, 1, "s")
        yield at_most(
            f"audit_{database}_singly", "… each in its own transaction", seconds, max(1, 2 * bare), "s", floor
        )
        yield context(f"audit_{database}_bare", "… nothing but the transactions", bare, "s", f"{seconds / bare:.1f} x")
        yield context(f"audit_{database}_p50", "… each, with commit, p50", percentile(took, 0.5), "ms", single)
        yield context(f"audit_{database}_p99", "… each, with commit, p99", percentile(took, 0.99), "ms", single)
        name = f"{SESSIONS} sessions begun and ended by {VISITORS} visitors of one process"
        yield context(f"audit_{database}_crowd", name, crowd, "s", f"one after another: {lone:.2f} s")


def _flush_ms(folder: Path, times: int = 100) -> float:
    took = []
    with (folder / "flushed").open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(8_192))
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return percentile(took, 0.5)


@bench("deferred")
def deferred() -> Iterable[Row]:
    """1,000 deferred checks, two workers, each killed (SIGKILL) while it makes one: how many end, what is twice."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder:
        run = kill_workers_midway(Path(folder), CHECKS)
    states = run.result["states"]
    ended = 100 * sum(n for state, n in states.items() if state not in ("waiting", "checking")) / CHECKS
    judged = states.get("passed", 0) + states.get("would_block", 0)
    said = f"{judged:,} done, {CHECKS - judged:,} visibly failed, {run.result['made_again']} made again"
    yield at_least("deferred_ended", f"{CHECKS:,} deferred checks, two workers killed: ended", ended, 100, "%", said)
    yield at_most("deferred_twice", "… results that are there twice", run.result["twice"], 0, "sessions")
    yield context("deferred_seconds", "… time until all sessions are COMPLETE", run.seconds, "s",
                  f"{CHECKS / run.seconds:.0f} checks a second, restarts and leases included")  # fmt: skip
