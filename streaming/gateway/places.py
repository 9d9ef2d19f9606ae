"""How many answers a key may have under way at once, and how many may be under way at an upstream.

Exists because one client's loop must not take all connections to an upstream, and an upstream of the house may take no
more. Protects the rule that the limit is one limit however many processes serve: places are kept in the store, renewed
while the answer is under way, and given back when it is over; those of a process that died come free by themselves.
While the store is away nobody is refused: it is the guardrails that protect readers, not this.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
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
    """A place that was taken; empty when the store was away."""

    key: str = ""
    member: str = ""

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


async def take(client: str, most: int) -> Place | None:
    """A place for one answer of this client, or at this upstream; None when all are taken."""
    key, member = key_of(client), uuid4().hex
    try:
        taken = await shared_log().evaluate(TAKE, [key], [most, round(LONGEST_S * 1000), member])
    except LogUnavailable:
        logger.warning("places_not_counted", client=client)
        return Place()
    return Place(key, member) if taken else None
