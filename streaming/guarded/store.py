"""Where the records of open streams are: one key each in Redis/Valkey, changed by compare-and-set alone.

Exists because two calls for one stream may reach two processes. Protects three rules: of two writers that began from
the same state one wins and the other is told; time is the store's own, so that processes with different clocks agree
on what has expired; nothing stays for ever, every key expires.

Fields of the key: ``rev`` (what a writer must have seen), ``blob`` (the sealed record), ``at`` (last call, ms),
``kept_at`` (when the database was last written, ms).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from streaming.log import Payload
from streaming.log_redis import RedisLog

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "

READ = (
    _NOW
    + """
local f = redis.call('HMGET', KEYS[1], 'rev', 'blob', 'at', 'kept_at')
if not f[1] then return false end
return {tonumber(f[1]), f[2], now - tonumber(f[3]), now - tonumber(f[4] or '0')}
"""
)

SWAP = (
    _NOW
    + """
local f = redis.call('HMGET', KEYS[4], 'rev', 'kept_at', 'at')
if f[1] and f[1] ~= ARGV[4] then return false end
local quiet = tonumber(ARGV[8])
if f[3] and quiet > 0 and now - tonumber(f[3]) < quiet then return false end
local seq = tonumber(redis.call('GET', KEYS[2]) or '0')
local before = tonumber(ARGV[10])
if seq < before then return {{seq, {}}, -1, 0} end
local first = 12
if ARGV[11] == '0' then first = first + seq - before end
local told = append(seq, first)
redis.call('HSET', KEYS[4], 'rev', ARGV[5], 'blob', ARGV[6], 'at', now)
if ARGV[9] == '1' then redis.call('HSET', KEYS[4], 'kept_at', now) end
redis.call('PEXPIRE', KEYS[4], ARGV[7])
return {told, now, now - tonumber(f[2] or '0')}
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

DROP = "return redis.call('DEL', KEYS[1])"

REVS = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HGET', key, 'rev') end
return found
"""

TOUCH = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'at', now)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
)

NOW = _NOW + "return now"


@dataclass(frozen=True, slots=True)
class Found:
    """A stored record: which state it is, its bytes, and for how long (seconds) no call has come.

    ``unkept_s``: for how long the database has not been written.
    """

    rev: int
    blob: bytes
    idle_s: float
    unkept_s: float


@dataclass(frozen=True, slots=True)
class Swapped:
    """The store's time (ms since 1970) and for how long (seconds) the database has not been written."""

    now_ms: int
    unkept_s: float


@dataclass(frozen=True, slots=True)
class Behind:
    """Nothing was stored: the log has lost events, ``seq`` is its last one."""

    seq: int


@dataclass(frozen=True, slots=True)
class Following:
    """Events that follow from a state, behind the first ``before`` of the session.

    While a stream is open its n-th event has seq n, so those that the log has already (of a state that was lost and is
    judged anew) are not appended again. ``last``: these are the ones that end the answer, and come after all others.
    """

    before: int
    payloads: Sequence[Payload] = ()
    last: bool = False


class Store:
    """The records in the log's store. Every call raises ``LogUnavailable`` while it is away."""

    def __init__(self, log: RedisLog) -> None:
        self._log = log

    async def read(self, session_id: str) -> Found | None:
        """The record, or None when the store has none."""
        answer = await self._log.evaluate(READ, [_key(session_id)], [])
        if not answer:
            return None
        rev, blob, idle_ms, unkept_ms = cast("tuple[int, bytes, int, int]", answer)
        return Found(int(rev), blob, int(idle_ms) / 1000, int(unkept_ms) / 1000)

    async def swap(
        self,
        session_id: str,
        seen: int,
        rev: int,
        blob: bytes,
        events: Following,
        *,
        ms: int,
        ttl_s: float,
        quiet_s: float = 0.0,
        kept: bool = False,
    ) -> Swapped | Behind | None:
        """Put ``blob`` in the place of the state ``seen`` (or of none), with its events; None: another was first.

        ``ms`` is the time since the session's start. ``quiet_s``: only when no call has come for so long. ``kept``: the
        database has this state already.
        """
        times = [round(ttl_s * 1000), round(quiet_s * 1000)]
        arguments: list[str | float | bytes] = [str(seen), str(rev), blob, *times, int(kept)]
        arguments += [events.before, int(events.last)]
        answer = await self._log.commit(SWAP, session_id, _key(session_id), arguments, events.payloads, ms=ms)
        if answer is None:
            return None
        seq, now_ms, unkept_ms = cast("tuple[int, int, int]", answer)
        return Behind(seq) if now_ms < 0 else Swapped(now_ms, unkept_ms / 1000)

    async def kept(self, session_id: str) -> None:
        """The database has been written now."""
        await self._log.evaluate(KEPT, [_key(session_id)], [])

    async def drop(self, session_id: str) -> None:
        """Forget the state; its events stay."""
        await self._log.evaluate(DROP, [_key(session_id)], [])

    async def revs(self, session_ids: Sequence[str]) -> list[int | None]:
        """Which states these are, in this order, in one call; None for each that the store has not."""
        answer = await self._log.evaluate(REVS, [_key(session_id) for session_id in session_ids], [])
        return [None if rev is None else int(rev) for rev in cast("list[bytes | None]", answer)]

    async def touch(self, session_id: str, ttl_s: float) -> bool:
        """A call has come that changes nothing; False where the store has no such stream."""
        return bool(await self._log.evaluate(TOUCH, [_key(session_id)], [round(ttl_s * 1000)]))

    async def now_ms(self) -> int:
        """The store's time, ms since 1970."""
        return int(cast("int", await self._log.evaluate(NOW, [], [])))


def _key(session_id: str) -> str:
    return f"sg:guarded:{{{session_id}}}"
