"""What the gateway costs a client that streams: through it and straight to the same local upstream, in one run.

The client, the upstream and the requests are the same on all ways; the upstream costs next to nothing, so that what
is measured is the gateway. It runs the starter policy, in one process. The anchor is a gateway that does nothing, on
the same server and libraries (``bare_gateway_app``).
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench.clock import percentile
from tests.bench.guardrails import BUSY
from tests.bench.readers import LIMIT_S, STARTER, cpu_s, serving
from tests.bench.registry import Row, at_least, at_most, bench, context
from tests.bench.upstream_child import TOKENS
from tests.stack.servers import ROOT, Stack

STREAMS, RATE = 200, 50.0
ANSWERS, LENGTH = 2, 200
"""Answers that each stream gets one after another when they are paced, and tokens of an answer."""
IDLE = 0.05
"""Of the server's core: with less it has done what was left to do after the answers that came before."""
FULL_LENGTH, FULL_ROUNDS = 200, 2
"""The same as fast as they go."""
THROUGHPUT, FIRST_MS = 0.9, 5.0
PATH = "/v1/chat/completions"
_CONTENT = re.compile(rb'"content": ?"([^"]*)"')
_KEY = """
import sys
import django
django.setup()
from guardrails.services import create_api_key
print(create_api_key(name="bench", scopes=["gateway"], policy=sys.argv[1], calls_per_minute=1_000_000)[1])
"""
SIZE = sum(map(len, TOKENS)) / len(TOKENS)
"""Mean characters of a token."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where a client asks, and with which key."""

    port: int
    path: str
    key: str


@dataclass
class Arm:
    """``came``: when how many characters came; ``first``: milliseconds from asking to the first words."""

    came: list[tuple[float, int]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def rate(self, begin: float, end: float) -> float:
        """Tokens a second between two moments."""
        return sum(chars for when, chars in self.came if begin <= when < end) / SIZE / (end - begin)


@bench("gateway")
def gateway() -> Iterable[Row]:
    """Streams through the gateway against streams straight to the upstream: throughput and first words."""
    with (
        _upstream() as port,
        _serving(port, "project.asgi:application") as servers,
        _serving(port, "tests.bench.bare_gateway_app:application") as bare,
    ):
        ways = {
            "on": Way(servers.webs[0].port, PATH, servers.keys["gateway"]),
            "off": Way(port, PATH, "k"),
            "bare": Way(bare.webs[0].port, PATH, "k"),
            "again": Way(port, PATH, "k"),
        }
        yield from asyncio.run(_measured(servers.webs[0].process.pid, ways))


@contextmanager
def _upstream() -> Iterator[int]:
    argv = [sys.executable, "-m", "tests.bench.upstream_child"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()


@contextmanager
def _serving(port: int, application: str) -> Iterator[Stack]:
    more = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "k",
        "SLUICEGATE_GATEWAY_AT_ONCE": str(2 * STREAMS),
    }
    with serving(application, **more) as servers:
        argv = [sys.executable, "-c", _KEY, STARTER]
        made = subprocess.run(argv, cwd=ROOT, env=servers.env, check=True, capture_output=True, text=True)
        servers.keys["gateway"] = made.stdout.strip()
        yield servers


async def _measured(pid: int, ways: dict[str, Way]) -> list[Row]:
    for one in ways.values():
        await _all(one, Arm(), 1, 20, 0, spread=False)
    full = await _full(ways)
    await _settled(pid)
    used, arm = cpu_s(pid), Arm()
    await asyncio.gather(*(_lane(ways["on"], arm, 1, LENGTH, RATE, 0.0) for _ in range(max(1, STREAMS // 20))))
    each = (cpu_s(pid) - used) / len(arm.first) / LENGTH
    rate = min(RATE, BUSY / each / STREAMS)
    paced, windows = await _paced(ways, rate)
    speed = {name: arm.rate(*windows[name]) for name, arm in paced.items()}
    quiet = (speed["off"] + speed["again"]) / 2
    what = f"{STREAMS} streams at {rate:.3g} tokens/s each"
    if rate < RATE:
        what += f" (the gateway's core is {BUSY:.0%} busy then, at {each * 1e6:.0f} µs a token)"
    first = {name: percentile(arm.first, 0.5) for name, arm in paced.items()}
    straight_ms = percentile(paced["off"].first + paced["again"].first, 0.5)
    return [
        at_least("gateway_throughput", f"{what}: throughput, gateway / straight", speed["on"] / quiet, THROUGHPUT, "x",
                 f"straight {quiet:,.0f} tokens/s; straight / straight {speed['again'] / speed['off']:.3f} x"),
        at_most("gateway_first", "… first words, p50, later by", first["on"] - straight_ms, FIRST_MS, "ms",
                f"straight {straight_ms:.1f} ms; straight and straight differ by "
                f"{abs(first['again'] - first['off']):.2f} ms; through a gateway that does nothing later by "
                f"{first['bare'] - straight_ms:.1f} ms"),
        context("gateway_first_p99", "… first words, p99, later by",
                percentile(paced["on"].first, 0.99) - percentile(paced["off"].first + paced["again"].first, 0.99),
                "ms", f"{len(paced['on'].first):,} answers"),
        context("gateway_saturated", f"{STREAMS} streams, as fast as they go: throughput, gateway / straight",
                full["on"] / full["off"], "x",
                f"straight {full['off']:,.0f} tokens/s from a server that does nothing else; "
                f"straight / straight {full['again'] / full['off']:.3f} x; a gateway that does nothing / straight "
                f"{full['bare'] / full['off']:.3f} x"),
    ]  # fmt: skip


async def _settled(pid: int) -> None:
    """Until what was put off is done: ends are stored and statistics kept behind the answers."""
    async with asyncio.timeout(LIMIT_S):
        used, now = -1.0, cpu_s(pid)
        while used < 0 or now - used > IDLE:
            used = now
            await asyncio.sleep(1)
            now = cpu_s(pid)


async def _full(ways: dict[str, Way]) -> dict[str, float]:
    """Tokens a second by arm, as fast as they go, the arms in changing order."""
    seconds = dict.fromkeys(ways, 0.0)
    names = list(ways)
    for turn in range(FULL_ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.monotonic()
            await _all(ways[name], Arm(), 1, FULL_LENGTH, 0, spread=False)
            seconds[name] += time.monotonic() - began
    return {name: FULL_ROUNDS * STREAMS * FULL_LENGTH / took for name, took in seconds.items()}


async def _paced(ways: dict[str, Way], rate: float) -> tuple[dict[str, Arm], dict[str, tuple[float, float]]]:
    """The arms one after another, and the time of each in which all streams were under way."""
    arms = {name: Arm() for name in ways}
    windows = {}
    for name, arm in arms.items():
        began = time.monotonic()
        await _all(ways[name], arm, ANSWERS, LENGTH, rate, spread=True)
        windows[name] = (began + LENGTH / rate, began + ANSWERS * LENGTH / rate)
    return arms, windows


async def _all(way: Way, arm: Arm, answers: int, length: int, rate: float, *, spread: bool) -> None:
    """All streams. ``spread``: they begin evenly over the time that an answer takes, as callers of a server do."""
    takes = length / rate if rate else 0.0
    waits = (number * takes / STREAMS * spread for number in range(STREAMS))
    await asyncio.gather(*(_lane(way, arm, answers, length, rate, wait) for wait in waits))


async def _lane(way: Way, arm: Arm, answers: int, length: int, rate: float, wait: float) -> None:
    await asyncio.sleep(wait)
    for _ in range(answers):
        async with asyncio.timeout(LIMIT_S):
            await _answer(way, arm, length, rate)


async def _answer(way: Way, arm: Arm, length: int, rate: float) -> None:
    """Ask, on a connection that is open, and read to the end. Raises ``RuntimeError`` unless all of it comes."""
    body = json.dumps(
        {"model": "m-1", "stream": True, "messages": [{"role": "user", "content": f"{length} {rate:.4g}"}]}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
    try:
        began = time.monotonic()
        writer.write(
            f"POST {way.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {way.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        buffer, chars, told = b"", 0, 0.0
        while b"data: [DONE]" not in buffer:
            data = await reader.read(1 << 16)
            now = time.monotonic()
            if not data:
                raise RuntimeError(f"the answer broke off: {buffer[-400:]!r}")
            buffer += data
            at = 0
            for found in _CONTENT.finditer(buffer):
                at = found.end()
                if size := len(found[1]):
                    chars += size
                    arm.came.append((now, size))
                    told = told or now
            buffer = buffer[at:]
        expected = sum(len(TOKENS[number % len(TOKENS)]) for number in range(length))
        if chars != expected:
            raise RuntimeError(f"{chars} of {expected} characters came: {buffer[-400:]!r}")
        arm.first.append((told - began) * 1000)
    finally:
        writer.close()
