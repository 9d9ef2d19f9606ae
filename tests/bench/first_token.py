"""How soon the first words come: what the gate has to do with it, and every adapter from end to end.

Adapters ask an upstream of this process that answers at once, so what is measured is ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import aclosing

from websockets.asyncio.client import ClientConnection

from tests.bench.clock import percentile
from tests.bench.guardrails import ARMS
from tests.bench.readers import STARTER, serving, shown, socket
from tests.bench.registry import Row, at_most, bench
from tests.streaming.providers.strict import vendor
from tests.streaming.providers.strict_openai import KEY

ANSWERS, WARM_UP = 60, 3
"""For each arm and adapter."""
GATE_MS, WHOLE_MS = 1.0, 500.0
ADAPTERS = ("openai", "anthropic", "ollama")


@bench("first_token")
def first_token() -> Iterable[Row]:
    """From sending the prompt to the first words at the socket: the gate's share, and end to end for every adapter."""
    arms, adapters = asyncio.run(_measured())
    middle = {name: percentile(times, 0.5) for name, times in arms.items()}
    noise = abs(middle["again"] - middle["off"])
    quiet = percentile(arms["off"] + arms["again"], 0.5)
    yield at_most("first_token_gate", "first words, starter policy against an empty one: p50 more by",
                  middle["on"] - quiet, round(max(GATE_MS, 2 * noise), 2), "ms",
                  f"empty {quiet:.1f} ms; empty and empty differ by {noise:.2f} ms")  # fmt: skip
    for name, times in {"scripted": arms["on"], **adapters}.items():
        said = f"p50 {percentile(times, 0.5):.1f} ms, {len(times)} answers"
        yield at_most(
            f"first_token_{name}", f"… {name}, end to end, p95", percentile(times, 0.95), WHOLE_MS, "ms", said
        )


async def _measured() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of every answer by arm (scripted provider), and by adapter."""
    arms: dict[str, list[float]] = {name: [] for name in ARMS}
    adapters: dict[str, list[float]] = {name: [] for name in ADAPTERS}
    names = list(ARMS)
    async with vendor() as upstream:
        upstreams = {
            "OPENAI_BASE_URL": f"{upstream.base_url}/v1",
            "OPENAI_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": upstream.base_url,
            "ANTHROPIC_API_KEY": KEY,
            "OLLAMA_HOST": upstream.base_url,
        }
        context = serving("project.asgi:application", SLUICEGATE_SCRIPTED_RATE="50", **upstreams)
        servers = await asyncio.to_thread(context.__enter__)
        try:
            async with socket(servers.webs[0].url, servers.keys["owner"]) as made:
                for turn in range(ANSWERS + WARM_UP):
                    for name in names[turn % 3 :] + names[: turn % 3]:
                        took = await _first(made, "scripted", ARMS[name])
                        arms[name] += [took] * (turn >= WARM_UP)
                    for name, times in adapters.items():
                        took = await _first(made, name, STARTER)
                        times += [took] * (turn >= WARM_UP)
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    return arms, adapters


async def _first(made: ClientConnection, provider: str, policy: str) -> float:
    """Milliseconds until the first words are here; the rest of the answer is read, or stopped if it is long."""
    began, took = time.monotonic(), 0.0
    frame = {"prompt": "How does a lock on a canal work?", "provider": provider, "policy": policy}
    async with aclosing(shown(made, **frame)) as pieces:
        async for now, _ in pieces:
            if not took:
                took = (now - began) * 1000
                await made.send('{"type": "interrupt"}')
    if not took:
        raise RuntimeError(f"{provider} answered without a word")
    return took
