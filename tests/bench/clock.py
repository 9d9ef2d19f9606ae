"""How things are timed: contenders take turns, the best turn of each counts, and collections do not interrupt one."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guardrails.findings import AppliesTo
from guardrails.policy import Policy
from streaming.core.gate import Gate
from tests.bench.registry import SkipBench


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def best(contenders: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """CPU seconds of each contender's best turn; they take turns, so that a busy moment hits all of them."""
    times: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            with quiet():
                started = time.process_time()
                run()
                took = time.process_time() - started
            times[name] = min(took, times.get(name, took))
    return times


def feed_all(policy: Policy, chunks: list[str]) -> Gate:
    """One session: every chunk, then the end."""
    gate = Gate(policy)
    feed = gate.feed
    for chunk in chunks:
        feed(chunk)
    gate.finish()
    return gate


def each_chunk(gate: Gate, chunks: list[str]) -> list[int]:
    """Nanoseconds of every single ``feed``."""
    feed, clock = gate.feed, time.perf_counter_ns
    out: list[int] = []
    add = out.append
    with quiet():
        for chunk in chunks:
            started = clock()
            feed(chunk)
            add(clock() - started)
    return out


def percentile(values: list[int] | list[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))])


def allocated(run: Callable[[], object]) -> tuple[int, object]:
    """Bytes that are still allocated when ``run`` has returned (with what it returned), and its result."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = run()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before, kept


_GROWTH = """
import importlib, os, sys
from tests.bench.clock import resident
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
module, name = sys.argv[1].split(":")
run = getattr(importlib.import_module(module), name)()
before = resident("VmRSS")
kept = run()
print(resident("VmHWM") - before)
"""


def resident(figure: str) -> int:
    """Bytes of this process in memory: ``VmRSS`` now, ``VmHWM`` at the most. Raises ``SkipBench`` where none tells.

    Not ``getrusage``: its maximum outlives ``exec``, so that a child begins with its parent's and never grows.
    """
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        raise SkipBench("this system has no /proc/self/status") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{figure}:"))


def peak_growth(prepare: str) -> int:
    """Bytes by which a fresh process's peak grows when it runs what ``module:function`` returns.

    Counts what ``allocated`` cannot see: memory of native engines, caches filled for the first time, and garbage.
    """
    resident("VmRSS")  # says at once where it cannot be done
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, prepare], cwd=root, check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout)


def automata_bytes(policy: Policy) -> int:
    """What the automata of a policy's answers account for, in bytes: what text has made of them, which their budgets
    bound, and the rules themselves."""
    scanners = [lane.scanner for lane in policy.plan(AppliesTo.RESPONSE).lanes]
    return sum(scanner.used + scanner.program.weight for scanner in scanners)


def automata_shape(policy: Policy) -> str:
    """States and flushes per automaton, for the notes of a row."""
    lanes = policy.plan(AppliesTo.RESPONSE).lanes
    return ", ".join(
        f"{len(lane.entries)} rules: {len(lane.scanner.states()):,} states, {lane.scanner.flushes} flushes"
        for lane in lanes
    )
