"""What the guardrails cost readers and servers: the starter policy beside an empty one, in turns, on real sockets.

An empty policy goes through the very same gate, pump and log; so the difference is what rules cost and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
from websockets.asyncio.client import ClientConnection

from tests.bench.clock import percentile
from tests.bench.readers import EMPTY, STARTER, cpu_s, lateness, serving, socket
from tests.bench.registry import Row, at_most, bench, context
from tests.stack.servers import Stack

ARMS = {"on": STARTER, "off": EMPTY, "again": EMPTY}
"""What is compared; "again" is the noise."""
STREAMS, RATE, ROUNDS = 200, 50.0, 3
TOKENS, FULL_TOKENS = 400, 100
"""Of an answer, paced (a usual one: what begins and ends it then weighs as it does in use), and as fast as it goes."""
BUSY = 0.6
"""Of the server's one core, when streams are paced: above it queues form, and what is late is late because of them."""
MORE_CPU, MORE_MS = 10.0, 5.0


@dataclass
class Arm:
    """Seconds of the server's processor, chunks that were sent, and how late those that were streamed came (ms)."""

    cpu: float = 0.0
    sent: int = 0
    late: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_chunk_us(self) -> float:
        """Microseconds of the server's processor."""
        return self.cpu * 1e6 / self.sent

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return percentile(self.late, 0.99)


@bench("guardrails_on_off")
def guardrails_on_off() -> Iterable[Row]:
    """The starter policy against an empty one on concurrent WebSocket streams: CPU per chunk and p99, paced and not."""
    with serving("tests.bench.stamped_app:application") as servers:
        full, paced, carried = asyncio.run(_measured(servers))
    what = f"{STREAMS} WebSocket streams, as fast as they go"
    yield from _cpu("saturated", what, full, judged=False)
    on, off, again = (full[name].sent / full[name].seconds for name in ("on", "off", "again"))
    yield context("guardrails_saturated", "… chunks per second, guardrails on / off", on / off, "x",
                  f"off / off {again / off:.3f} x; off {off:,.0f} chunks/s")  # fmt: skip
    what = f"{carried} WebSocket streams at {RATE:g} tokens/s"
    if carried < STREAMS:
        what += f" ({STREAMS} are more than {BUSY:.0%} of the server's core)"
    yield from _cpu("paced", what, paced, judged=True)
    noise = abs(paced["again"].p99 - paced["off"].p99)
    quiet = percentile(paced["off"].late + paced["again"].late, 0.99)
    if missing := sum(arm.sent - len(arm.late) for arm in paced.values()):
        yield context("guardrails_unstreamed", "… tokens that came at their answer's end only", missing, "tokens")
    limit = round(max(MORE_MS, 2 * noise), 2)
    yield at_most("guardrails_p99", "… p99 of a token, more by", paced["on"].p99 - quiet, limit, "ms",
                  f"off {quiet:.1f} ms; off and off differ by {noise:.2f} ms")  # fmt: skip


def _cpu(name: str, what: str, arms: dict[str, Arm], *, judged: bool) -> Iterable[Row]:
    both = (arms["off"].cpu + arms["again"].cpu) * 1e6 / (arms["off"].sent + arms["again"].sent)
    more = 100 * (arms["on"].per_chunk_us / both - 1)
    noise = 100 * abs(arms["again"].per_chunk_us - arms["off"].per_chunk_us) / both
    figure, anchor = f"{what}: server CPU per chunk, more by", f"off {both:.0f} µs; off and off differ by {noise:.1f} %"
    if judged:
        yield at_most(f"guardrails_cpu_{name}", figure, more, MORE_CPU, "%", anchor)
    else:
        yield context(f"guardrails_cpu_{name}", figure, more, "%", anchor)


async def _measured(servers: Stack) -> tuple[dict[str, Arm], dict[str, Arm], int]:
    """As fast as they go; paced; and how many streams were paced: all, or as many as the server carries."""
    async with _sockets(servers, STREAMS) as made:
        for policy in set(ARMS.values()):
            await _answers(made, policy, 10, 0)
        full = await _arms(servers, made, FULL_TOKENS, 0)
        streamed = await _arms(servers, made[: max(1, STREAMS // 20)], TOKENS, RATE, rounds=1)
        each = max(arm.per_chunk_us for arm in streamed.values()) / 1e6 * RATE
        carried = max(1, min(STREAMS, int(BUSY / each)))
        return full, await _arms(servers, made[:carried], TOKENS, RATE), carried


async def _arms(
    servers: Stack, made: list[ClientConnection], tokens: int, rate: float, rounds: int = 0
) -> dict[str, Arm]:
    """The arms take turns in changing order, so that a busy moment hits all of them."""
    arms = {name: Arm() for name in ARMS}
    names = list(ARMS)
    for turn in range(rounds or ROUNDS):
        for name in names[turn % 3 :] + names[: turn % 3]:
            began, used = time.monotonic(), cpu_s(servers.webs[0].process.pid)
            arms[name].late += await _answers(made, ARMS[name], tokens, rate)
            arms[name].sent += tokens * len(made)
            arms[name].cpu += cpu_s(servers.webs[0].process.pid) - used
            arms[name].seconds += time.monotonic() - began
    return arms


async def _answers(made: list[ClientConnection], policy: str, tokens: int, rate: float) -> list[float]:
    return [ms for late in await asyncio.gather(*(lateness(one, policy, tokens, rate) for one in made)) for ms in late]


@asynccontextmanager
async def _sockets(servers: Stack, number: int) -> AsyncIterator[list[ClientConnection]]:
    async with AsyncExitStack() as all_of_them:
        yield [
            await all_of_them.enter_async_context(socket(servers.webs[0].url, servers.keys["owner"]))
            for _ in range(number)
        ]


# -- updates over REST -------------------------------------------------------------------------------------------------

MESSAGES, CHUNKS = 50, 20
"""Answers for each arm, and the chunks of each."""
CHUNK = "The lock fills from above, so "


@bench("rest_update")
def rest_update() -> Iterable[Row]:
    """An update over REST with the starter policy against the same call with an empty one, call by call in turns."""
    with serving("project.asgi:application") as servers:
        times = _updates(servers)
    p99 = {name: percentile(one, 0.99) for name, one in times.items()}
    noise = abs(p99["again"] - p99["off"])
    quiet = percentile(times["off"] + times["again"], 0.99)
    middle = percentile(times["off"] + times["again"], 0.5)
    name = f"{len(times['on']):,} REST updates, starter policy against an empty one: p99 more by"
    yield at_most("rest_update_p99", name, p99["on"] - quiet, round(max(MORE_MS, 2 * noise), 2), "ms",
                  f"empty {quiet:.1f} ms; empty and empty differ by {noise:.2f} ms")  # fmt: skip
    yield context("rest_update_p50", "… at p50, more by", percentile(times["on"], 0.5) - middle, "ms",
                  f"empty {middle:.1f} ms")  # fmt: skip


def _updates(servers: Stack) -> dict[str, list[float]]:
    """Milliseconds of each call; the first message of each arm is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    names = list(ARMS)
    headers = {"Authorization": f"Bearer {servers.keys['owner']}"}
    with httpx.Client(base_url=servers.webs[0].url, headers=headers, trust_env=False, timeout=60) as http:
        for message in range(MESSAGES + 1):
            ids = {name: _post(http, "start", {"policy": policy})["session_id"] for name, policy in ARMS.items()}
            for seq in range(1, CHUNKS + 1):
                for name in names[seq % 3 :] + names[: seq % 3]:
                    began = time.perf_counter()
                    _post(http, "update", {"session_id": ids[name], "seq": seq, "delta": CHUNK})
                    if message:
                        times[name].append((time.perf_counter() - began) * 1000)
            for session_id in ids.values():
                _post(http, "finish", {"session_id": session_id})
    return times


def _post(http: httpx.Client, call: str, body: dict[str, object]) -> dict[str, object]:
    response = http.post(f"/v1/stream/{call}", json=body)
    response.raise_for_status()
    found: dict[str, object] = response.json()
    return found
