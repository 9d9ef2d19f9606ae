"""How soon the first words come: what the gate has to do with it, and every adapter from end to end.

Adapters ask an upstream of this process that answers at once, so what is measured is ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import aclosing
from statistics import mean

from websockets.asyncio.client import ClientConnection

from guardrails.findings import AppliesTo
from guardrails.policy import Policy
from streaming.core.effects import REDACTED, RELEASE
from streaming.core.events import TextDelta
from streaming.core.gate import Gate
from streaming.providers.base import ChatMessage, ProviderRequest
from streaming.providers.scripted import SCENARIOS, ScriptedProvider
from tests.bench.clock import best, percentile
from tests.bench.guardrails import ARMS
from tests.bench.readers import STARTER, serving, shown, socket, starter
from tests.bench.registry import Row, at_most, bench, context
from tests.streaming.providers.strict import vendor
from tests.streaming.providers.strict_openai import KEY

ANSWERS, WARM_UP = 60, 3
"""For each arm and adapter."""
GATE_MS, WHOLE_MS = 1.0, 500.0
TURNS = 5
PROMPT = "How does a lock on a canal work?"
ADAPTERS = ("openai", "anthropic", "ollama")


@bench("first_token")
def first_token() -> Iterable[Row]:
    """From sending the prompt to the first words at the socket: the gate's share, and end to end for every adapter."""
    texts = [_chunks(scenario) for scenario in ("", *SCENARIOS)]
    policy = starter(STARTER)
    share = [_gates_share(policy, chunks) for chunks in texts]
    took, late = [ms for ms, _ in share], [chunks for _, chunks in share]
    name = f"the gates' own time up to the first words, mean of {len(texts)} scripted answers"
    yield at_most("first_token_gate", name, mean(took), GATE_MS, "ms", f"the slowest {max(took):.2f} ms")
    name = "… chunks that the first words wait for, because they may become a finding"
    waiting = f"{sum(chunks > 0 for chunks in late)} of {len(texts)} answers wait"
    yield context("first_token_held", name, mean(late), "chunks", waiting)
    arms, adapters = asyncio.run(_measured())
    middle = {name: percentile(times, 0.5) for name, times in arms.items()}
    quiet = percentile(arms["off"] + arms["again"], 0.5)
    name = "first words at the socket, starter policy against an empty one: p50 more by"
    noise = f"empty and empty differ by {abs(middle['again'] - middle['off']):.2f} ms"
    yield context("first_token_policy", name, middle["on"] - quiet, "ms", f"empty {quiet:.1f} ms; {noise}")
    for name, times in {"scripted": arms["on"], **adapters}.items():
        said = f"p50 {percentile(times, 0.5):.1f} ms, {len(times)} answers"
        p95 = percentile(times, 0.95)
        yield at_most(f"first_token_{name}", f"… {name}, end to end, p95", p95, WHOLE_MS, "ms", said)


def _chunks(scenario: str) -> list[str]:
    """What the scripted provider says, in its pieces."""
    request = ProviderRequest(messages=(ChatMessage("user", PROMPT),), model="scripted-1", scenario=scenario)
    provider = ScriptedProvider(sleep=_at_once)

    async def all_of_it() -> list[str]:
        return [event.text async for event in provider.stream(request) if isinstance(event, TextDelta)]

    return asyncio.run(all_of_it())


async def _at_once(seconds: float) -> None:
    """Nobody watches."""


def _gates_share(policy: Policy, chunks: list[str]) -> tuple[float, int]:
    """Milliseconds of CPU that both gates take until words are released, at their best; chunks held until then."""
    late = 0

    def run() -> None:
        nonlocal late
        prompt = Gate(policy, AppliesTo.PROMPT)
        prompt.feed(PROMPT)
        prompt.finish()
        gate = Gate(policy, AppliesTo.RESPONSE)
        for late, chunk in enumerate(chunks):  # noqa: B007 - read after the loop
            if any(effect[0] in (RELEASE, REDACTED) for effect in gate.feed(chunk)):
                return

    return best({"": run}, TURNS)[""] * 1000, late


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
    frame = {"prompt": PROMPT, "provider": provider, "policy": policy}
    async with aclosing(shown(made, **frame)) as pieces:
        async for now, _ in pieces:
            if not took:
                took = (now - began) * 1000
                await made.send('{"type": "interrupt"}')
    if not took:
        raise RuntimeError(f"{provider} answered without a word")
    return took
