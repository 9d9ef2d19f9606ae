"""What the record costs: appends to the audit log by two processes, and deferred checks whose workers are killed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from tests.bench.clock import percentile
from tests.bench.registry import Row, at_least, at_most, bench, context
from tests.stack.runs import begin, end, environment, kill_workers_midway

APPENDS = 10_000
CHECKS = 1_000


@bench("audit")
def audit() -> Iterable[Row]:
    """10,000 appends by two processes to one log on SQLite: time of all, time of each; one process as the anchor."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder:
        env = environment(Path(folder))
        end(begin(env, "prepare"))
        alone = cast("list[float]", end(begin(env, "appends", APPENDS // 2)))
        began = time.perf_counter()
        both = [begin(env, "appends", APPENDS // 2) for _ in range(2)]
        took = [ms for one in both for ms in cast("list[float]", end(one))]
        seconds = time.perf_counter() - began
    single = f"one process alone: p50 {percentile(alone, 0.5):.2f} ms, p99 {percentile(alone, 0.99):.1f} ms"
    yield context(
        "audit_appends", f"{APPENDS:,} appends by two processes, start of both included", seconds, "s", single
    )
    yield context("audit_append_p50", "… each, with commit, p50", percentile(took, 0.5), "ms", single)
    yield context("audit_append_p99", "… each, with commit, p99", percentile(took, 0.99), "ms", single)


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
