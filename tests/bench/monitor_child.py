"""Answers with and without an AI check in MONITOR, in turns; how late each token is for its reader.

Run as ``python -m tests.bench.monitor_child ROUNDS`` beside a worker, with a data directory and ``REDIS_URL`` of their
own; prints one JSON object: milliseconds of every token for "off", "again" (off once more: the noise) and "on".
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import django

LANES, ANSWERS, TOKENS, RATE = 16, 3, 60, 50.0
"""Readers at once, answers that each gets one after another, tokens of an answer, tokens a second."""
TOKEN = "words, "
WITHOUT = "demo_without_judge"
DRAIN_LIMIT_S = 120.0


def main(rounds: int) -> dict[str, list[float]]:
    """The three take turns in changing order, so that a busy moment hits all of them."""
    django.setup()
    from guardrails import services
    from guardrails.models import PolicyVersion

    document = PolicyVersion.objects.get(policy__name="demo").document
    kept = [one for one in document["guardrails"] if one["name"] != "harm"]
    services.install(document={**document, "policy": WITHOUT, "guardrails": kept})
    return asyncio.run(_measured(rounds))


async def _measured(rounds: int) -> dict[str, list[float]]:
    from streaming.log_redis import close_shared_log

    policies = {"off": WITHOUT, "on": "demo", "again": WITHOUT}
    late: dict[str, list[float]] = {name: [] for name in policies}
    try:
        for policy in policies.values():
            await _lane(policy, 1)
        for turn in range(rounds):
            names = list(policies)
            for name in names[turn % 3 :] + names[: turn % 3]:
                for times in await asyncio.gather(*(_lane(policies[name], ANSWERS) for _ in range(LANES))):
                    late[name] += times
                await _drained()
    finally:
        await close_shared_log()
    return late


async def _drained() -> None:
    """Until the worker has made all checks: the next turn shall not pay for them."""
    from streaming.models import DeferredCheck

    async with asyncio.timeout(DRAIN_LIMIT_S):
        while await DeferredCheck.objects.filter(state__in=DeferredCheck.OPEN).aexists():  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # the worker is another process


async def _lane(policy: str, answers: int) -> list[float]:
    return [ms for _ in range(answers) for ms in await _answer(policy)]


async def _answer(policy: str) -> list[float]:
    from streaming.chat import Asked, Own, start_chat
    from streaming.conf import conf
    from streaming.core.events import ProviderEvent, Stopped, TextDelta
    from streaming.frames import StartFrame
    from streaming.log_redis import shared_log
    from streaming.providers.base import Provider, ProviderRequest
    from streaming.reader import follow
    from streaming.sessions import Visitor

    clock = asyncio.get_running_loop().time
    sent: list[float] = []

    class Steady(Provider):
        label = "Steady"

        @classmethod
        def from_environment(cls, env: Mapping[str, str]) -> None:
            """Never offered."""

        @property
        def default_model(self) -> str:
            """Its only one."""
            return "steady-1"

        async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
            """The tokens, each when its time has come, late or not."""
            began = clock()
            for n in range(TOKENS):
                await asyncio.sleep(max(began + n / RATE - clock(), 0))
                sent.append(clock())
                yield TextDelta(TOKEN)
            yield Stopped("stop")

    log = shared_log()
    asked = Asked(Visitor(session_key="bench"), policy, own=Own(Steady(), flagged=False))
    started = await start_chat(StartFrame(type="start", prompt="go on"), asked, log)
    late: list[float] = []
    chars = 0
    async with aclosing(follow(log, started.session_id, 0, conf(), correlation_id="")) as batches:
        async for batch in batches:
            if any(event["type"] == "done" for event in batch):
                chars = TOKENS * len(TOKEN)
            chars += sum(len(str(event["chunk"])) for event in batch if event["type"] == "message_stream")
            while len(late) < len(sent) and (len(late) + 1) * len(TOKEN) <= chars:
                late.append((clock() - sent[len(late)]) * 1000)
            if len(late) == TOKENS:
                break
    return late


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
