"""What benchmarks of real servers share: an empty policy beside the starter's, sockets, figures of processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from guardrails import services
from guardrails.policy import Policy, compile_policy
from tests.bench import stamps
from tests.stack.servers import ROOT, Stack, stack

STARTER, EMPTY = "basic", "bench_empty"
SLOW_LOG = "log_unavailable"
"""Told to a reader whose server had no time for the store; the reader gets the answer from the database then."""
LIMIT_S = 600.0
"""For one answer on a machine that does much else."""
_INSTALL = """
import json, sys
import django
django.setup()
from guardrails.services import install
install(document=json.loads(sys.argv[1]))
"""


def starter(name: str) -> Policy:
    """A starter policy, compiled in this process."""
    path = Path(services.__file__).parent / "starters" / f"{name}.json"
    return compile_policy(json.loads(path.read_text("utf-8")))


@contextmanager
def serving(application: str, processes: int = 1, **more: str) -> Iterator[Stack]:
    """Web processes with the starter policies and an empty one; no worker."""
    with (
        tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder,
        stack(Path(folder), "sqlite", processes=processes, application=application, **more) as servers,
    ):
        document = json.dumps({"policy": EMPTY, "guardrails": []})
        subprocess.run([sys.executable, "-c", _INSTALL, document], cwd=ROOT, env=servers.env, check=True,
                       capture_output=True)  # fmt: skip
        yield servers


@asynccontextmanager
async def socket(url: str, key: str) -> AsyncIterator[ClientConnection]:
    """An open ``/ws/stream/``."""
    address = url.replace("http://", "ws://") + "/ws/stream/"
    headers = {"Authorization": f"Bearer {key}"}
    async with connect(address, additional_headers=headers, proxy=None, compression=None, open_timeout=LIMIT_S,
                       ping_interval=None) as made:  # fmt: skip
        yield made


async def shown(made: ClientConnection, **frame: object) -> AsyncGenerator[tuple[float, str], None]:
    """Ask for an answer: when each piece of its text came, and the piece. Raises ``RuntimeError`` if it fails."""
    await made.send(json.dumps({"type": "start", **frame}))
    async for text in made:
        now = time.monotonic()
        event = json.loads(text)
        if event["type"] == "message_stream" and event["channel"] == "text":
            yield now, event["chunk"]
        elif event["type"] == "error" and event["code"] != SLOW_LOG:
            raise RuntimeError(f"the answer failed: {event}")
        elif event["type"] == "done":
            return


async def lateness(made: ClientConnection, policy: str, tokens: int, rate: float) -> list[float]:
    """How late every token of an answer by ``tests.bench.stamped_app`` was, in ms.

    Fewer than ``tokens`` when the server had no time for its store: then the answer came in one piece, at its end.
    """
    text, late = "", list[float]()
    async with asyncio.timeout(LIMIT_S):
        async for now, piece in shown(made, prompt=f"{tokens} {rate:g}", provider="stamped", policy=policy):
            text += piece
            while (len(late) + 1) * stamps.SIZE <= len(text) + 1:  # the space after it may be on its way
                at = len(late) * stamps.SIZE
                late.append(stamps.late_ms(text[at : at + stamps.LETTERS], now))
    return late


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """Bytes of a process that are in memory and its own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return found["Private_Clean"] + found["Private_Dirty"]
