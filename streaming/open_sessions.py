"""How many sessions a key may have open at once: streams that its clients own, and answers that the server streams.

Exists because a limit of calls a minute says nothing of sessions that are never ended: they hold state in the store,
rows and, of answers, a pump each. Protects two rules: of two that begin at one moment the last place goes to one, in
whatever process (the store counts); and no process that dies keeps a place. When all places are taken the database is
asked which of them are still open, and the others are free again.

    TooManyOpen     all places are taken by open sessions
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import structlog

from streaming import selectors
from streaming.conf import Conf
from streaming.database import in_database
from streaming.log import LogUnavailable, SessionLog
from streaming.log_redis import RedisLog
from streaming.registry import own_context

logger = structlog.get_logger(__name__)

RETRY_S = 10
"""Seconds after which it is worth another try: sessions end by themselves, and sweeps come that often."""
FRESH_S = 60.0
"""So long a place is believed of which the database knows nothing: its session is just being stored."""
TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if ARGV[4] == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
local new = redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1 + new
"""
TAKEN = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
return {redis.call('ZRANGE', KEYS[1], 0, -1), redis.call('ZRANGEBYSCORE', KEYS[1], now - tonumber(ARGV[1]), '+inf')}
"""
KNOWN = """
local t = redis.call('TIME')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'NX', t[1] * 1000, ARGV[i]) end
if #ARGV > 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return 1
"""
FREE = "return redis.call('ZREM', KEYS[1], unpack(ARGV))"
AT_ONCE = 1_000
"""Places that are freed by one call: a script has room for a few thousand arguments."""


class TooManyOpen(Exception):
    """The key has as many open sessions as it may have."""

    code = "too_many_sessions"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The API key has {limit:,} sessions open, as many as it may; finish some of them.")


@asynccontextmanager
async def place(
    log: SessionLog, client: str, session_id: str, settings: Conf, *, repeatable: bool = False
) -> AsyncIterator[None]:
    """Prepare a session in a place of its own: who has none left asks no judge.

    ``repeatable``: other calls may begin the same session. Raises ``TooManyOpen``, and ``LogUnavailable`` while the
    store is away: nothing can begin there.

    What fails inside gives the place back at once. Leave it before the session is stored: from then on the place is
    the session's, and it is free when the database says that the session is over.
    """
    try:
        new = await take_place(log, client, session_id, settings)
    except (asyncio.CancelledError, LogUnavailable):
        if not repeatable:  # else the same call takes the same place, or another has it
            # The store may have given it, and said so too late. Whoever was refused does not wait for it once more.
            freeing = asyncio.get_running_loop().create_task(_free(log, client, session_id), context=own_context())
            _freeing.add(freeing)
            freeing.add_done_callback(_freeing.discard)
        raise
    try:
        yield
    except BaseException:
        if new:
            await _free(log, client, session_id)
        raise


_freeing: set[asyncio.Task[None]] = set()


async def _free(log: SessionLog, client: str, session_id: str) -> None:
    if client and isinstance(log, RedisLog):
        try:
            await log.evaluate(FREE, [_key(client)], [session_id])
        except LogUnavailable:
            logger.warning("open_session_not_freed", client=client)


async def take_place(log: SessionLog, client: str, session_id: str, settings: Conf) -> bool:
    """A place for this session of the key; the same session takes one. Raises ``TooManyOpen``, ``LogUnavailable``.

    Returns whether it had none before.

    Who has no key is limited elsewhere. A store that knows of no place, for it has lost them or none was taken for
    long, is told which sessions are open.
    """
    if not client or not isinstance(log, RedisLog):
        return False
    key, limit = _key(client), settings.sessions_at_once
    taken = await _take(log, key, session_id, settings)
    if taken < 0:
        names = await in_database(selectors.open_of)(client, limit)
        for at in range(0, len(names), AT_ONCE):
            await log.evaluate(KNOWN, [key], [settings.log_ttl_s, *names[at : at + AT_ONCE]])
        taken = await _take(log, key, session_id, settings, anew=True)
    if not taken and (over := await _over(log, key)):
        for at in range(0, len(over), AT_ONCE):
            await log.evaluate(FREE, [key], list[str | float | bytes](over[at : at + AT_ONCE]))
        taken = await _take(log, key, session_id, settings, anew=True)
    if not taken:
        raise TooManyOpen(limit)
    return taken > 1


async def _take(log: RedisLog, key: str, session_id: str, settings: Conf, *, anew: bool = False) -> int:
    """1: it had a place, 2: it has one now, 0: there is none left.

    -1: nothing is known of this key's places; that is not said when they begin ``anew``.
    """
    arguments: list[str | float | bytes] = [session_id, settings.sessions_at_once, settings.log_ttl_s, int(anew)]
    return int(cast("int", await log.evaluate(TAKE, [key], arguments)))


async def _over(log: RedisLog, key: str) -> list[str]:
    """Sessions that have a place and are over."""
    answer = await log.evaluate(TAKEN, [key], [round(FRESH_S * 1000)])
    taken, fresh = cast("tuple[list[bytes], list[bytes]]", answer)
    names = [name.decode() for name in taken]
    standing = await in_database(selectors.standing)(names)
    young = {name.decode() for name in fresh}
    return [name for name in names if not standing.get(name, name in young)]


def _key(client: str) -> str:
    return f"sg:open:{{{client}}}"
