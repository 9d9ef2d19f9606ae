"""Circuit breakers: what fails again and again is left alone for a while.

Exists because asking a provider that is down costs every reader its time limit. Protects the rule that a breaker is
one breaker however many processes there are: its state stands in the store. While the store is away every process
counts for itself, which is told once and fails no answer.

The breaker itself is ``purgatory``'s: closed, after ``THRESHOLD`` failed answers in a row open for ``OPEN_S`` seconds,
then half open; the next answer closes it or opens it again.

    CircuitOpen     not asked now
"""

from __future__ import annotations

import asyncio
import json
from typing import cast
from weakref import WeakKeyDictionary

import structlog
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import Context, OpenedState
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker
from purgatory.service._async.repository import AsyncAbstractRepository, AsyncInMemoryRepository
from purgatory.service._async.unit_of_work import AsyncAbstractUnitOfWork

from streaming.log import LogUnavailable
from streaming.log_redis import shared_log

logger = structlog.get_logger(__name__)

THRESHOLD = 5
OPEN_S = 30.0
KEPT_S = 3_600
"""Seconds that the store remembers a breaker nobody asks about."""

PROVIDER = "provider:"
"""Names of providers' breakers begin so."""

_STATES = {"closed": "closed", "opened": "open", "half-opened": "half_open"}
_GET = "return redis.call('GET', KEYS[1])"
_SET = "return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])"


class CircuitOpen(Exception):
    """The breaker is open: nobody is asked."""


class Breaker:
    """One try under a breaker: ``enter``, then ``succeeded`` or ``failed``; neither when it was given up by us."""

    def __init__(self, inner: AsyncCircuitBreaker) -> None:
        self._inner = inner

    async def enter(self) -> None:
        """Raises ``CircuitOpen``."""
        try:
            await self._inner.__aenter__()
        except OpenedState:
            raise CircuitOpen from None

    async def succeeded(self) -> None:
        """The other side answered."""
        await self._inner.__aexit__(None, None, None)

    async def failed(self, error: Exception) -> None:
        """It did not."""
        await self._inner.__aexit__(type(error), error, None)


async def breaker(name: str) -> Breaker:
    """The breaker of that name."""
    return Breaker(await _factory().get_breaker(name))


async def states(names: list[str]) -> dict[str, str]:
    """``closed``, ``open`` or ``half_open`` of breakers that anybody has asked about."""
    repository = _factory().uow.contexts
    found = {name: await repository.get(name) for name in names}
    return {name: _STATES[context.state] for name, context in found.items() if context is not None}


def forget() -> None:
    """Start anew (tests)."""
    _factories.clear()


class _SharedRepository(AsyncAbstractRepository):
    """Breakers in the store that the session log is in, and in memory for as long as that is away."""

    def __init__(self) -> None:
        self.messages = []
        self._memory = AsyncInMemoryRepository()
        self._away = False

    async def get(self, name: str) -> Context | None:
        """The breaker as the store has it."""
        found = await self._reach(_GET, name)
        if found is None:
            return await self._memory.get(name)
        return Context(**json.loads(cast("bytes", found))) if found else None

    async def register(self, context: Context) -> None:
        """A new breaker."""
        await self._memory.register(context)
        await self._store(context)

    async def update_state(self, name: str, state: str, opened_at: float | None) -> None:
        """It opened, half opened or closed."""
        await self._change(name, state=state, opened_at=opened_at, failure_count=0)

    async def inc_failures(self, name: str, failure_count: int) -> None:
        """One more failure."""
        await self._change(name, failure_count=failure_count)

    async def reset_failure(self, name: str) -> None:
        """An answer."""
        await self._change(name, failure_count=0)

    async def _change(self, name: str, **values: object) -> None:
        found = await self._reach(_GET, name)
        if not found:
            return
        await self._reach(_SET, name, json.dumps({**json.loads(cast("bytes", found)), **values}), KEPT_S)

    async def _store(self, context: Context) -> None:
        value = {
            "name": context.name,
            "threshold": context.threshold,
            "ttl": context.ttl,
            "state": context.state,
            "failure_count": context.failure_count or 0,
            "opened_at": context.opened_at,
        }
        await self._reach(_SET, context.name, json.dumps(value), KEPT_S)

    async def _reach(self, script: str, name: str, *args: str | float) -> object | None:
        """The store's answer, ``b""`` for nothing; None while it is away."""
        try:
            found = await shared_log().evaluate(script, [f"sg:breaker:{{{name}}}"], args)
        except LogUnavailable:
            if not self._away:
                logger.warning("breakers_not_shared")
            self._away = True
            return None
        self._away = False
        return b"" if found is None else found


class _UnitOfWork(AsyncAbstractUnitOfWork):
    def __init__(self) -> None:
        self.contexts = _SharedRepository()

    async def commit(self) -> None:
        """Every change is written at once."""

    async def rollback(self) -> None:
        """There is nothing to take back."""


_factories: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncCircuitBreakerFactory] = WeakKeyDictionary()


def _factory() -> AsyncCircuitBreakerFactory:
    loop = asyncio.get_running_loop()
    if loop not in _factories:
        _factories[loop] = AsyncCircuitBreakerFactory(THRESHOLD, OPEN_S, uow=_UnitOfWork())
    return _factories[loop]
