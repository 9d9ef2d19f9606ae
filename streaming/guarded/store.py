"""Where the records of open streams are: one key each in Redis/Valkey, changed by compare-and-set alone.

Exists because two calls for one stream may reach two processes. Protects three rules: of two writers that began from
the same state one wins and the other is told; time is the store's own, so that processes with different clocks agree
on what has expired; nothing stays for ever, every key expires.

Fields of the key: ``rev`` (what a writer must have seen), ``blob`` (the sealed record), ``at`` (last call, ms),
``kept_at`` (when the database was last written, ms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from streaming.log_redis import RedisLog

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "

READ = (
    _NOW
    + """
local f = redis.call('HMGET', KEYS[1], 'rev', 'blob', 'at')
if not f[1] then return false end
return {tonumber(f[1]), f[2], now - tonumber(f[3])}
"""
)

SWAP = (
    _NOW
    + """
local f = redis.call('HMGET', KEYS[1], 'rev', 'kept_at', 'at')
if f[1] and f[1] ~= ARGV[1] then return false end
local quiet = tonumber(ARGV[5])
if f[3] and quiet > 0 and now - tonumber(f[3]) < quiet then return false end
redis.call('HSET', KEYS[1], 'rev', ARGV[2], 'blob', ARGV[3], 'at', now)
if ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'kept_at', now) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {now, now - tonumber(f[2] or '0')}
"""
)

KEPT = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'kept_at', now)
return 1
"""
)

TOUCH = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'at', now) end
return now
"""
)


@dataclass(frozen=True, slots=True)
class Found:
    """A stored record: which state it is, its bytes, and for how long (seconds) no call has come."""

    rev: int
    blob: bytes
    idle_s: float


@dataclass(frozen=True, slots=True)
class Swapped:
    """The store's time (ms since 1970) and for how long (seconds) the database has not been written."""

    now_ms: int
    unkept_s: float


class Store:
    """The records in the log's store. Every call raises ``LogUnavailable`` while it is away."""

    def __init__(self, log: RedisLog) -> None:
        self._log = log

    async def read(self, session_id: str) -> Found | None:
        """The record, or None when the store has none."""
        answer = await self._log.evaluate(READ, [_key(session_id)], [])
        if not answer:
            return None
        rev, blob, idle_ms = cast("tuple[int, bytes, int]", answer)
        return Found(int(rev), blob, int(idle_ms) / 1000)

    async def swap(
        self,
        session_id: str,
        seen: int,
        rev: int,
        blob: bytes,
        *,
        ttl_s: float,
        quiet_s: float = 0.0,
        kept: bool = False,
    ) -> Swapped | None:
        """Put ``blob`` in the place of the state ``seen`` (or of none); None when another writer was first.

        ``quiet_s``: only when no call has come for so long. ``kept``: the database has this state already.
        """
        times = [round(ttl_s * 1000), round(quiet_s * 1000)]
        arguments: list[str | float | bytes] = [str(seen), str(rev), blob, *times, int(kept)]
        answer = await self._log.evaluate(SWAP, [_key(session_id)], arguments)
        if not answer:
            return None
        now_ms, unkept_ms = cast("tuple[int, int]", answer)
        return Swapped(int(now_ms), int(unkept_ms) / 1000)

    async def kept(self, session_id: str) -> None:
        """The database has been written now."""
        await self._log.evaluate(KEPT, [_key(session_id)], [])

    async def touch(self, session_id: str) -> int:
        """A call has come that changes nothing; returns the store's time in ms."""
        return int(cast("int", await self._log.evaluate(TOUCH, [_key(session_id)], [])))


def _key(session_id: str) -> str:
    return f"sg:guarded:{{{session_id}}}"
