"""How often a key may call.

Exists because one client's loop must not be everybody's outage. Protects the rule that a limit is one limit however
many processes serve: the count is kept in the store, in a window that opens with the first call and is timed by the
store's own clock. While the store is away calls are let through: it is the guardrails that protect readers, not this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import cast

import structlog

from streaming.log import LogUnavailable
from streaming.log_redis import shared_log

logger = structlog.get_logger(__name__)

TAKE = """
local used = redis.call('INCR', KEYS[1])
if used == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {used, redis.call('PTTL', KEYS[1])}
"""


class Spends(Enum):
    """What a call uses up, with the length of its window in seconds."""

    START = 60.0
    UPDATE = 1.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left after a call. ``reset_s``: until the window is over."""

    limit: int
    used: int
    reset_s: float

    @property
    def exceeded(self) -> bool:
        """This call is one too many."""
        return self.used > self.limit

    @property
    def retry_after(self) -> int:
        """Whole seconds until a new window opens; at least one."""
        return max(1, ceil(self.reset_s))

    def headers(self) -> dict[str, str]:
        """``X-RateLimit-*``; the reset is in seconds from now."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(max(0, self.limit - self.used)),
            "X-RateLimit-Reset": str(self.retry_after),
        }


def rate_key(client: str, spends: Spends) -> str:
    """Where the calls of this client are counted."""
    return f"sg:rate:{{{client}}}:{spends.name.lower()}"


async def take(client: str, spends: Spends, limit: int) -> Allowance | None:
    """Count one call of this client; None when the store is away and nothing can be counted."""
    key = rate_key(client, spends)
    try:
        log = shared_log()
        log.hasten()
        answer = await log.evaluate(TAKE, [key], [round(spends.value * 1000)])
    except LogUnavailable:
        logger.warning("rate_limit_not_counted", client=client)
        return None
    used, left_ms = cast("list[int]", answer)
    return Allowance(limit, used, max(0, left_ms) / 1000)
