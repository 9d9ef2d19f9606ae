"""What a thousand open sessions hold: streams that their clients own, and answers that are streamed to sockets.

Counted where it is held: in a web process's own pages, and in what the store's allocator has given out.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import httpx
import redis
from websockets.asyncio.client import ClientConnection

from tests.bench.readers import LIMIT_S, STARTER, memory_of, serving, shown, socket
from tests.bench.registry import Row, at_most, bench, context
from tests.stack.servers import ROOT, Stack, until

SESSIONS, WARM_UP, AT_ONCE = 1_000, 100, 8
REST_MB, SOCKET_KB = 10.0, 10.0
LEFT_WEB_MB, LEFT_STORE_MB = 3.0, 0.5
"""What may be left when all are over. The store gives back what it held; a process keeps a few half-empty pages."""
CHUNK = "The lock fills from above, so the boat rises with it. "
"""Of a REST stream; it is given this many of them:"""
CHUNKS = 5
SHORT_S = 30
"""How long streams, their logs and their last answers are kept where what is left of them is weighed."""
SWEEP = "import django; django.setup(); from streaming.tasks import sweep; sweep()"
ENDLESS = "100000 0.05"
"""An answer of which a token comes every twenty seconds."""


@bench("memory")
def memory() -> Iterable[Row]:
    """1,000 open REST sessions mid-answer, store included; 1,000 WebSocket streams beside as many bare WebSockets."""
    with serving("tests.bench.stamped_app:application") as servers, servers.store() as store:
        asyncio.run(_streams(servers, WARM_UP, finished=True))
        before, kept = _web(servers), _store(store)
        asyncio.run(_streams(servers, SESSIONS, finished=False))
        web, stored = _web(servers) - before, _store(store) - kept
    said = f"web process {web / 1e6:.1f} MB, store {stored / 1e6:.1f} MB"
    yield at_most("memory_rest", f"{SESSIONS:,} open REST sessions mid-answer, store included: above idle",
                  (web + stored) / 1e6, REST_MB, "MB", said)  # fmt: skip
    yield from _left()
    with serving("tests.bench.bare_app:application") as servers:
        bare = asyncio.run(_bare(servers))
    with serving("tests.bench.stamped_app:application") as servers:
        idle, streaming, stored = asyncio.run(_sockets(servers))
    each = (streaming - bare) / SESSIONS / 1e3
    name = f"{SESSIONS:,} WebSocket streams mid-answer: more than a bare WebSocket, each"
    yield at_most("memory_sockets", name, each, SOCKET_KB, "kB", f"bare {bare / SESSIONS / 1e3:.1f} kB each")
    yield context("memory_sockets_idle", "… before they ask for an answer", (idle - bare) / SESSIONS / 1e3, "kB")
    yield context("memory_sockets_store", "… in the store", stored / SESSIONS / 1e3, "kB")


def _left() -> Iterable[Row]:
    """What sessions leave behind when they are over, half of them finished and half expired."""
    names = ("SLUICEGATE_STREAM_EXPIRY_S", "SLUICEGATE_TOMBSTONE_S", "SLUICEGATE_LOG_TTL_S")
    short = dict.fromkeys(names, str(SHORT_S))
    with serving("tests.bench.stamped_app:application", **short) as servers, servers.store() as store:
        asyncio.run(_streams(servers, WARM_UP, finished=True))
        _end(servers, store)
        before, kept = _web(servers), _store(store)
        asyncio.run(_streams(servers, SESSIONS // 2, finished=True))
        asyncio.run(_streams(servers, SESSIONS - SESSIONS // 2, finished=False))
        _end(servers, store)
        web, stored = _web(servers) - before, _store(store) - kept
    name = f"… {SESSIONS:,} of them over, half finished and half expired: web process above idle"
    yield at_most("memory_rest_left_web", name, web / 1e6, LEFT_WEB_MB, "MB")
    yield at_most("memory_rest_left_store", "… store above idle", stored / 1e6, LEFT_STORE_MB, "MB")


def _end(servers: Stack, store: redis.Redis) -> None:
    """Until every session is over and the store has forgotten it."""

    def over() -> bool:
        command = [sys.executable, "-c", SWEEP]
        subprocess.run(command, cwd=ROOT, env=servers.env, check=True, capture_output=True)
        if not _stopped(servers):
            return False
        return not any(
            next(store.scan_iter(f"sg:{name}:*", count=1_000), b"") for name in ("guarded", "log", "seq", "open")
        )

    until("all streams are over and forgotten", over, limit_s=LIMIT_S)


def _web(servers: Stack) -> int:
    return memory_of(servers.webs[0].process.pid)


def _store(store: redis.Redis) -> int:
    return int(store.info("memory")["used_memory"])


async def _streams(servers: Stack, number: int, *, finished: bool) -> None:
    """Streams that their clients own, some at a time; left open, or finished."""
    headers = {"Authorization": f"Bearer {servers.keys['owner']}"}
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(http: httpx.AsyncClient) -> None:
        async with turn:
            began = await _post(http, "start", {"policy": STARTER})
            for seq in range(1, CHUNKS + 1):
                await _post(http, "update", {"session_id": began["session_id"], "seq": seq, "delta": CHUNK})
            if finished:
                await _post(http, "finish", {"session_id": began["session_id"]})

    async with httpx.AsyncClient(
        base_url=servers.webs[0].url, headers=headers, trust_env=False, timeout=120
    ) as http:  # fmt: skip
        await asyncio.gather(*(one(http) for _ in range(number)))


async def _post(http: httpx.AsyncClient, call: str, body: dict[str, object]) -> dict[str, object]:
    response = await http.post(f"/v1/stream/{call}", json=body)
    response.raise_for_status()
    found: dict[str, object] = response.json()
    return found


async def _bare(servers: Stack) -> int:
    """Bytes of the server for sockets that do nothing."""
    async with _open(servers, WARM_UP):
        pass
    before = _web(servers)
    async with _open(servers, SESSIONS):
        return _web(servers) - before


async def _sockets(servers: Stack) -> tuple[int, int, int]:
    """Bytes of the server for open sockets and for sockets amid an answer, and of the store for the latter."""
    async with _open(servers, WARM_UP) as made:
        await _answered(made)
    await asyncio.to_thread(until, "the sockets' answers are stopped", lambda: _stopped(servers))
    before = _web(servers)
    with servers.store() as store:
        kept = _store(store)
        async with _open(servers, SESSIONS) as made:
            idle = _web(servers) - before
            await _answered(made)
            return idle, _web(servers) - before, _store(store) - kept


async def _answered(made: Sequence[ClientConnection]) -> None:
    """Every socket has the first words of an answer that does not end."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(socket: ClientConnection) -> None:
        async with turn, aclosing(shown(socket, prompt=ENDLESS, provider="stamped", policy=STARTER)) as pieces:
            await anext(pieces)

    await asyncio.gather(*(one(socket) for socket in made))


def _stopped(servers: Stack) -> bool:
    ((number,),) = servers.rows("SELECT count(*) FROM streaming_auditsession WHERE state = 'ACTIVE'")
    return number == 0


@asynccontextmanager
async def _open(servers: Stack, number: int) -> AsyncIterator[list[ClientConnection]]:
    async with AsyncExitStack() as all_of_them:
        yield [
            await all_of_them.enter_async_context(socket(servers.webs[0].url, servers.keys["owner"]))
            for _ in range(number)
        ]
