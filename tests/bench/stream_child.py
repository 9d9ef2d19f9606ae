"""One stream of many tokens through gate, pump, log, buffer and socket text, measured in a process of its own.

Run as ``python -m tests.bench.stream_child TOKENS RATE STREAMS`` with a fresh data directory; prints one JSON object.
It exists apart because a benchmark must touch neither database nor memory of whoever runs it. With ``REDIS_URL``
set the session log is the one that servers have, else the terminal's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import django

TOKEN = "words, "
WARM_UP = 300
"""What a process does once (imports, automata, the first connection) is not the stream's."""


def main(tokens: int, rate: float, streams: int) -> dict[str, float]:
    """CPU per token at ``rate`` tokens a second in each of ``streams``; with rate 0, memory at its peak."""
    django.setup()
    from guardrails.bootstrap import prepare_database

    prepare_database()
    return asyncio.run(_measured(tokens, rate, streams))


async def _measured(tokens: int, rate: float, streams: int) -> dict[str, float]:
    from streaming.core.buffer import PACE_S
    from streaming.log_redis import close_shared_log

    try:
        await _stream(WARM_UP, 0)
        if rate:
            return {
                "cpu_ms_per_token": await _stream(tokens, rate),
                "woken_ms_per_token": await _woken(tokens // 4, rate, 0),
                "rested_ms_per_token": await _woken(tokens // 4, rate, PACE_S),
            }
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await _stream(tokens, 0)
        return {"peak_bytes": tracemalloc.get_traced_memory()[1] - before}
    finally:
        await close_shared_log()


async def _paced(tokens: int, rate: float, rest_s: Callable[[], float]) -> AsyncGenerator[str, None]:
    """The tokens, each when its time has come; what came while nobody looked is there at once, as in a socket."""
    from streaming.providers.schedule import Schedule

    schedule = Schedule(rest_s)
    for _ in range(tokens):
        if rate:
            await schedule.after(1 / rate)
        else:
            await asyncio.sleep(0)
        yield TOKEN


async def _woken(tokens: int, rate: float, rest_s: float) -> float:
    """What being woken so often costs by itself, with nothing done; milliseconds of CPU per token."""
    began = time.process_time()
    async for _ in _paced(tokens, rate, lambda: rest_s):
        pass
    return (time.process_time() - began) * 1000 / tokens


async def _stream(tokens: int, rate: float) -> float:
    """One answer, read to its end; milliseconds of CPU per token."""
    from streaming.chat import Asked, Own, start_chat
    from streaming.conf import conf, redis_url
    from streaming.core.events import ProviderEvent, Stopped, TextDelta
    from streaming.core.wire import to_json
    from streaming.frames import StartFrame
    from streaming.log import MemoryLog, SessionLog
    from streaming.log_redis import shared_log
    from streaming.providers.base import Provider, ProviderRequest
    from streaming.reader import follow
    from streaming.sessions import Visitor

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
            """The tokens at their pace."""
            async for token in _paced(tokens, rate, request.rest_s):
                yield TextDelta(token)
            yield Stopped("stop")

    log: SessionLog = shared_log() if redis_url() else MemoryLog()
    asked = Asked(Visitor(session_key="bench"), "basic", own=Own(Steady(), flagged=False))
    began, chars = time.process_time(), 0
    started = await start_chat(StartFrame(type="start", prompt="go on"), asked, log)
    async with aclosing(follow(log, started.session_id, 0, conf(), correlation_id="")) as batches:
        async for batch in batches:
            for event in batch:
                to_json(event).encode()
                if event["type"] == "message_stream":
                    chars += len(str(event["chunk"]))
    assert chars == tokens * len(TOKEN), "every token has come"
    return (time.process_time() - began) * 1000 / tokens


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))
