"""How many answers a key may have under way at once, and how many may be under way at an upstream.

Exists because one client's loop must not take all connections to an upstream, and an upstream of the house may take no
more. Protects the rule that the limit is one limit however many processes serve: places are kept in the store, renewed
while the answer is under way, and given back when it is over; those of a process that died come free by themselves.
While the store is away nobody is refused: it is the guardrails that protect readers, not this. A caller who leaves
while a place is being taken keeps none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

import structlog

from streaming.log import LogUnavailable
from streaming.log_redis import shared_log

logger = structlog.get_logger(__name__)

LONGEST_S = 960.0
"""Seconds after which a place is free that nobody gave back or renewed: longer than judging a prompt may take."""
RENEWED_S = LONGEST_S / 4
"""Seconds from one renewal to the next."""

TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_RENEW = """
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1]), ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
_GIVE_BACK = "return redis.call('ZREM', KEYS[1], ARGV[1])"


def key_of(client: str) -> str:
    """Where the places of this client are kept, or of this upstream."""
    return f"sg:places:{{{client}}}"


@dataclass(frozen=True, slots=True)
class Place:
    """A place that was taken, or may have been when the store was away; empty where none is needed."""

    key: str = ""
    member: str = field(default_factory=lambda: uuid4().hex)

    async def renew(self) -> None:
        """The answer is under way; one that is over already has no place, and gets none."""
        if self.key:
            with suppress(LogUnavailable):
                await shared_log().evaluate(_RENEW, [self.key], [round(LONGEST_S * 1000), self.member])

    async def give_back(self) -> None:
        """The answer is over."""
        if self.key:
            with suppress(LogUnavailable):
                await shared_log().evaluate(_GIVE_BACK, [self.key], [self.member])


_leaving: set[asyncio.Task[None]] = set()
"""Places that are given back for callers who have gone."""


async def taking(place: Place, script: str, keys: Sequence[str], args: Sequence[str | float | bytes]) -> object:
    """What the store says to a script that may take this place. Raises ``LogUnavailable``; the place may be taken then.

    The store does what it was asked to also when nobody waits for it any more.
    """
    log = shared_log()
    log.hasten()
    work = asyncio.ensure_future(log.evaluate(script, keys, args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        leaving = asyncio.create_task(_leave(place, work))
        _leaving.add(leaving)
        leaving.add_done_callback(_leaving.discard)
        raise


async def _leave(place: Place, work: asyncio.Future[object]) -> None:
    with suppress(LogUnavailable):
        await work
    await place.give_back()


async def take(client: str, most: int) -> Place | None:
    """A place for one answer of this client, or at this upstream; None when all are taken."""
    place = Place(key_of(client))
    try:
        taken = await taking(place, TAKE, [place.key], [most, round(LONGEST_S * 1000), place.member])
    except LogUnavailable:
        logger.warning("places_not_counted", client=client)
        return place
    return place if taken else None
