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
FLOOR_MS = 1.0
"""Two runs of the same may by chance agree to less than a timer tells."""


@bench("monitor")
def monitor() -> Iterable[Row]:
    """An AI check in MONITOR on and off: how late tokens are at p99, beside the difference of two runs without it.

    The worker that makes the checks gets what is left of the processors: a worker has a machine of its own where there
    is much to do, and what it takes from a machine that is too small is not what is asked here.
    """
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder, workers(Path(folder)) as servers:
        servers.start_worker(beat=False)
        servers.wait_for_workers()
        for worker in servers.workers:
            for pid in (worker.pid, *below(worker.pid)):
                os.setpriority(os.PRIO_PROCESS, pid, 19)
        command = [sys.executable, "-m", "tests.bench.monitor_child", str(ROUNDS)]
        done = subprocess.run(command, cwd=ROOT, env=servers.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the measured process failed:\n{done.stderr[-2000:]}")
        late: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    p99 = {name: percentile(times, 0.99) for name, times in late.items()}
    noise = abs(p99["off"] - p99["again"])
    without = percentile(late["off"] + late["again"], 0.99)
    off = f"without it {without:.1f} ms; two runs without it differ by {noise:.2f} ms"
    name = f"AI check in MONITOR, {LANES * ANSWERS * ROUNDS:,} answers at {RATE:g} tokens/s: p99 of a token, more by"
    yield at_most("monitor_p99", name, p99["on"] - without, round(max(2 * noise, FLOOR_MS), 2), "ms", off)
    middle = percentile(late["off"] + late["again"], 0.5)
    yield context("monitor_p50", "… at p50, more by", percentile(late["on"], 0.5) - middle, "ms",
                  f"without it {middle:.1f} ms")  # fmt: skip
