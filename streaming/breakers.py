"""Circuit breakers: what fails again and again is left alone for a while.

Exists because asking a provider that is down costs every reader its time limit. Protects two rules. A breaker is one
breaker however many processes there are: its state stands in the store, every step is one script there, and the time
is the store's; so no failure is lost between two processes, and of all who come to a half-open breaker one is let
through. And nothing is left alone for ever: a probe whose process dies loses its place after ``PROBE_S``. While the
store is away every process counts for itself, which is told once and fails no answer.

Closed, after ``THRESHOLD`` failures open for ``OPEN_S`` seconds, then half open for one probe, which closes it or
opens it again. Own scripts and no library: docs/adr/0202 says why.

    CircuitOpen     not asked now
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, cast
from uuid import uuid4

import redis
import structlog

from streaming.conf import redis_url
from streaming.log import LogUnavailable
from streaming.log_redis import shared_log

logger = structlog.get_logger(__name__)

THRESHOLD: Final = 5
OPEN_S: Final = 30.0
PROBE_S: Final = 60.0
"""Seconds that a probe is waited for; after that the next one is let through."""
ASKED_S: Final = 2.0
"""Seconds that code without an event loop waits for the store."""
KEPT_S: Final = 3_600
"""Seconds that the store remembers a breaker nobody asks about."""

PROVIDER: Final = "provider:"
"""Names of providers' breakers begin so."""
GUARDRAIL: Final = "guardrail:"
"""Names of guardrails' breakers begin so."""

State = Literal["closed", "open", "half_open"]

# KEYS[1] is a hash: state, failures (their times, oldest first), opened_at, probe (who), probe_until. Times in ms.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HGET', KEYS[1], 'state') or 'closed'
local function keep(...)
  redis.call('HSET', KEYS[1], ...)
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
local function close()
  redis.call('DEL', KEYS[1])
  keep('state', 'closed')
end
local function open()
  redis.call('DEL', KEYS[1])
  keep('state', 'open', 'opened_at', string.format('%d', now))
end
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or 0) end
"""
_ENTER = f"""{_NOW}
local me, open_ms, probe_ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if state == 'closed' then
  keep('state', 'closed')
  return 1
end
if state == 'open' and now < number('opened_at') + open_ms then return 0 end
if state == 'half_open' and now < number('probe_until') then return 0 end
keep('state', 'half_open', 'probe', me, 'probe_until', string.format('%d', now + probe_ms))
return 1
"""
_SUCCEEDED = f"""{_NOW}
local me, within_ms = ARGV[2], tonumber(ARGV[3])
if state == 'half_open' and redis.call('HGET', KEYS[1], 'probe') == me then
  close()
  return 1
end
if state == 'closed' and within_ms == 0 then redis.call('HDEL', KEYS[1], 'failures') end
return 0
"""
_FAILED = f"""{_NOW}
local me, within_ms, threshold = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if state == 'half_open' and redis.call('HGET', KEYS[1], 'probe') == me then
  open()
  return 1
end
if state ~= 'closed' then return 0 end
local count, times = 1, {{}}
for at in string.gmatch(redis.call('HGET', KEYS[1], 'failures') or '', '%d+') do
  if within_ms == 0 or tonumber(at) > now - within_ms then
    count = count + 1
    times[#times + 1] = at
  end
end
if count >= threshold then
  open()
  return 1
end
times[#times + 1] = string.format('%d', now)
keep('state', 'closed', 'failures', table.concat(times, ','))
return 0
"""
_GIVEN_UP = f"""{_NOW}
if state == 'half_open' and redis.call('HGET', KEYS[1], 'probe') == ARGV[2] then keep('probe_until', '0') end
return 0
"""
_STATE = "return redis.call('HGET', KEYS[1], 'state')"
_REFUSES = f"""{_NOW}
if state == 'open' and now < number('opened_at') + tonumber(ARGV[2]) then return 1 end
if state == 'half_open' and now < number('probe_until') then return 1 end
return 0
"""
NOT_ASKED: Final = "not asked: the circuit is open after repeated failures"
"""The failure of whoever is not let through; those that wait for that have it in their row."""


class CircuitOpen(Exception):
    """The breaker is open, or half open and already tried by somebody: nobody is asked."""


class Breaker:
    """One try under a breaker: ``enter``, then ``succeeded`` or ``failed``, or ``given_up`` when we ended it.

    ``within_s``: failures older than that do not count, and answers between them take none away. Without it failures
    in a row count, however far apart.
    """

    def __init__(self, name: str, *, within_s: float | None = None) -> None:
        self._name, self._within_s, self._me = name, within_s, uuid4().hex

    async def enter(self) -> None:
        """Raises ``CircuitOpen``."""
        let_in = await _reach(_ENTER, self._name, self._me, _ms(OPEN_S), _ms(PROBE_S))
        if let_in is None:
            let_in = _memory.enter(self._name, self._me)
        if not let_in:
            raise CircuitOpen

    async def succeeded(self) -> None:
        """The other side answered."""
        closes = await _reach(_SUCCEEDED, self._name, self._me, _ms(self._within_s))
        if closes is None:
            closes = _memory.succeeded(self._name, self._me, self._within_s)
        if closes:
            logger.info("breaker_closed", breaker=self._name)

    async def failed(self, error: Exception) -> None:
        """It did not."""
        opens = await _reach(_FAILED, self._name, self._me, _ms(self._within_s), THRESHOLD)
        if opens is None:
            opens = _memory.failed(self._name, self._me, self._within_s)
        if opens:
            logger.warning("breaker_opened", breaker=self._name, error=type(error).__name__)

    async def given_up(self) -> None:
        """We ended it and know nothing about the other side: the next one may try."""
        if await _reach(_GIVEN_UP, self._name, self._me) is None:
            _memory.given_up(self._name, self._me)


async def breaker(name: str, *, within_s: float | None = None) -> Breaker:
    """One try under the breaker of that name."""
    return Breaker(name, within_s=within_s)


async def refuses(name: str) -> bool:
    """Whether nobody would be let through now. Takes nobody's place, so that the answer may be old at once."""
    said = await _reach(_REFUSES, name, _ms(OPEN_S))
    return _memory.refuses(name) if said is None else said == 1


async def states(names: list[str]) -> dict[str, str]:
    """``closed``, ``open`` or ``half_open`` of breakers that anybody has asked about."""
    found: dict[str, str] = {}
    for name in names:
        stored = await _reach(_STATE, name)
        state = _memory.state(name) if stored is None else cast("bytes", stored).decode()
        if state:
            found[name] = state
    return found


def states_now(names: list[str]) -> dict[str, str]:
    """The same for code that has no event loop (the admin); asks once for all of them."""
    try:
        with (
            redis.Redis.from_url(redis_url(), socket_timeout=ASKED_S, socket_connect_timeout=ASKED_S) as store,
            store.pipeline(transaction=False) as pipe,
        ):
            for name in names:
                pipe.hget(_key(name), "state")
            stored = cast("list[bytes | None]", pipe.execute())
    except (redis.RedisError, ValueError):  # away, or none is configured
        return {name: state for name in names if (state := _memory.state(name))}
    return {name: state.decode() for name, state in zip(names, stored, strict=True) if state}


def forget(clock: Callable[[], float] = time.monotonic) -> None:
    """Start anew (tests). ``clock``: seconds, for breakers in memory."""
    global _memory, _away
    _memory, _away = MemoryBreakers(clock), False


@dataclass(slots=True)
class _Remembered:
    state: State = "closed"
    failures: list[float] = field(default_factory=list)
    opened_at: float = 0.0
    probe: str = ""
    probe_until: float = 0.0


class MemoryBreakers:
    """The same rules for one process, for as long as the store is away. ``clock`` gives seconds.

    Each method says what the script of its name says: whether one is let through, whether this closes or opens it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Remembered] = {}
        self._lock = threading.Lock()  # event loops of several threads share it

    def state(self, name: str) -> State | None:
        """None: nobody has asked."""
        with self._lock:
            return self._known[name].state if name in self._known else None

    def refuses(self, name: str) -> bool:
        """Whether nobody would be let through now."""
        with self._lock:
            known = self._known.get(name, _Remembered())
            until = {"closed": 0.0, "open": known.opened_at + OPEN_S, "half_open": known.probe_until}
            return self._clock() < until[known.state] and known.state != "closed"

    def enter(self, name: str, me: str) -> bool:
        """Whether this one is let through."""
        with self._lock:
            known, now = self._known.setdefault(name, _Remembered()), self._clock()
            if known.state == "closed":
                return True
            if now < (known.opened_at + OPEN_S if known.state == "open" else known.probe_until):
                return False
            known.state, known.probe, known.probe_until = "half_open", me, now + PROBE_S
            return True

    def succeeded(self, name: str, me: str, within_s: float | None = None) -> bool:
        """Whether that closes it."""
        with self._lock:
            known = self._known.get(name, _Remembered())
            if known.state == "half_open" and known.probe == me:
                self._known[name] = _Remembered()
                return True
            if known.state == "closed" and within_s is None:
                known.failures.clear()
            return False

    def failed(self, name: str, me: str, within_s: float | None = None) -> bool:
        """Whether that opens it."""
        with self._lock:
            known, now = self._known.setdefault(name, _Remembered()), self._clock()
            if known.state == "closed":
                counted = [at for at in known.failures if within_s is None or at > now - within_s]
                known.failures = [*counted, now]
                if len(known.failures) < THRESHOLD:
                    return False
            elif known.state == "open" or known.probe != me:
                return False
            self._known[name] = _Remembered("open", opened_at=now)
            return True

    def given_up(self, name: str, me: str) -> None:
        """Its place is free."""
        with self._lock:
            known = self._known.get(name, _Remembered())
            if known.state == "half_open" and known.probe == me:
                known.probe_until = self._clock()


_memory = MemoryBreakers()
_away = False


def _ms(seconds: float | None) -> int:
    """Milliseconds, 0 for no limit."""
    return 0 if seconds is None else int(seconds * 1_000)


def _key(name: str) -> str:
    return f"sg:breaker:state:{{{name}}}"


async def _reach(script: str, name: str, *args: str | float) -> object | None:
    """The store's answer, ``b""`` for nothing; None while it is away."""
    global _away
    try:
        found = await shared_log().evaluate(script, [_key(name)], [KEPT_S, *args])
    except LogUnavailable:
        if not _away:
            logger.warning("breakers_not_shared")
        _away = True
        return None
    _away = False
    return b"" if found is None else found
