"""What readers notice of an AI check in MONITOR: nothing, or it is a finding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.bench.clock import percentile
from tests.bench.monitor_child import ANSWERS, LANES, RATE
from tests.bench.registry import Row, at_most, bench, context
from tests.stack.runs import below, workers
from tests.stack.servers import ROOT

ROUNDS = 6
LOW, PLANNED_MS = 19, 15.0
"""The lowest priority (as for ``nice``); what the plan allowed a worker on equal terms to cost."""
FLOOR_MS = 1.0
"""Two runs of the same may by chance agree to less than a timer tells."""


@bench("monitor")
def monitor() -> Iterable[Row]:
    """An AI check in MONITOR on and off: how late tokens are at p99, beside the difference of two runs without it.

    Twice: with a worker that gets what nobody else wants of the processors, as the docs advise where it shares a
    machine, and with one on equal terms. What the second is above the first is the processors that both want, not what
    a reader's own process does for a check.
    """
    for priority, how in ((LOW, "a worker of low priority"), (0, "a worker on equal terms")):
        late = _measured(priority)
        p99 = {name: percentile(times, 0.99) for name, times in late.items()}
        noise = abs(p99["off"] - p99["again"])
        without = percentile(late["off"] + late["again"], 0.99)
        more, limit = p99["on"] - without, round(max(2 * noise, FLOOR_MS), 2)
        off = f"without it {without:.1f} ms; two runs without it differ by {noise:.2f} ms; {os.cpu_count()} processors"
        if priority:
            name = (
                f"AI check in MONITOR, {LANES * ANSWERS * ROUNDS:,} answers at {RATE:g} tokens/s, {how}: p99, more by"
            )
            yield at_most("monitor_p99", name, more, limit, "ms", off)
        else:
            yield at_most("monitor_p99_equal", f"… {how}: p99, more by", more, max(limit, PLANNED_MS), "ms", off)
        middle = percentile(late["off"] + late["again"], 0.5)
        name = "monitor_p50" if priority else "monitor_p50_equal"
        yield context(name, "… at p50, more by", percentile(late["on"], 0.5) - middle, "ms",
                      f"without it {middle:.1f} ms")  # fmt: skip


def _measured(priority: int) -> dict[str, list[float]]:
    """Milliseconds that every token was late, by what was on, beside a worker of this priority (19: the lowest)."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder, workers(Path(folder)) as servers:
        servers.start_worker(beat=False)
        servers.wait_for_workers()
        for worker in servers.workers:
            for pid in (worker.pid, *below(worker.pid)):
                os.setpriority(os.PRIO_PROCESS, pid, priority)
        command = [sys.executable, "-m", "tests.bench.monitor_child", str(ROUNDS)]
        done = subprocess.run(command, cwd=ROOT, env=servers.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the measured process failed:\n{done.stderr[-2000:]}")
        late: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return late
