"""What one long stream costs: gate, pump, log, response buffer and the text for the socket, nothing left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from project.demo import child
from project.demo.valkey import choose_port, embedded
from tests.bench.registry import Row, at_most, bench, context

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 10_000
RATE = 100.0
"""Tokens a second."""

STREAMS = 20
"""A process that serves as many is busy; one stream alone mostly pays for being woken out of sleep."""


@bench("stream")
def stream() -> Iterable[Row]:
    """One stream of 10,000 tokens, pump included: CPU at 100 tokens/s on the log that servers have, and memory."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder, _valkey(Path(folder)) as url:
        found = _child(folder, RATE, REDIS_URL=url)
        paced, woken, rested = (found[f"{what}_ms_per_token"] for what in ("cpu", "woken", "rested"))
        shared = _child(folder, RATE, streams=STREAMS, REDIS_URL=url)["cpu_ms_per_token"]
        local = _child(folder, RATE)["cpu_ms_per_token"]
        peak = _child(folder, 0)["peak_bytes"]
    share = paced * RATE / 10
    yield at_most("stream_cpu", f"{TOKENS:,} tokens, CPU at {RATE:g} tokens/s", share, 2, "% of a core",
                  f"{paced:.3f} ms per token; a loop that is only woken as often {rested:.3f}, by every token "
                  f"{woken:.3f}")  # fmt: skip
    yield context("stream_cpu_shared", f"… each of {STREAMS} such streams in one process", shared * RATE / 10,
                  "% of a core", f"{shared:.3f} ms per token")  # fmt: skip
    yield context("stream_cpu_local", "… with the terminal's log in memory", local * RATE / 10, "% of a core",
                  f"{local:.3f} ms per token")  # fmt: skip
    yield at_most("stream_memory", f"{TOKENS:,} tokens, memory at its peak", peak / 1e6, 10, "MB",
                  "the log in this process included")  # fmt: skip


def _child(folder: str, rate: float, streams: int = 1, **more: str) -> dict[str, float]:
    """Measure in a process that has only this directory."""
    ours = ("SLUICEGATE_", "REDIS_", "DATABASE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"SLUICEGATE_DATA_DIR": folder, "DJANGO_SETTINGS_MODULE": "project.settings", **more}
    command = [sys.executable, "-m", "tests.bench.stream_child", str(TOKENS // streams), str(rate), str(streams)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the measured process failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _valkey(folder: Path) -> Iterator[str]:
    """A store of our own; readers and writers wait for it as they would for any that is starting."""
    service, url = embedded(folder, choose_port(folder), os.environ)
    tether = Path(child.__file__).with_name("tether.py")
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", str(tether), str(os.getpid()), *service.argv],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield url
    finally:
        server.terminate()
        server.wait(20)
