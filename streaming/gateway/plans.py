"""Who is asked for an answer, in which order, and within which limits.

Exists so that a request which one upstream does not take goes to the next. Protects two rules: the next one is asked
only as long as nothing of an answer has come, and an upstream is asked for no more answers at once than it may be.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from streaming import metrics
from streaming.gateway import places
from streaming.gateway.record import Record
from streaming.gateway.upstream import Dialect, Trouble, guarded_by_breaker
from streaming.gateway.walker import Json
from streaming.providers.base import Provider, ProviderError, ProviderRateLimited

Ask = Callable[[], AsyncGenerator[Json, None]]
"""Asks an upstream."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One upstream, how to ask it, and how many answers it may be asked for at once; 0: as many as clients want."""

    provider: Provider
    ask: Ask
    at_once: int = 0


async def answered(plans: list[Plan], record: Record, dialect: Dialect) -> AsyncGenerator[Json, None]:
    """The answer of the first upstream that gives one. Raises the first one's ``ProviderError``."""
    first: ProviderError | None = None
    for plan in plans:
        begun = False
        if first is not None:
            record.fallback, record.provider, record.model = (
                first.code,
                plan.provider.called,
                plan.provider.default_model,
            )
            metrics.fell_back(dialect, record.provider, record.fallback)
        called = plan.provider.called
        place = await places.take(f"upstream {called}", plan.at_once) if plan.at_once else places.Place()
        if place is None:
            first = first or ProviderRateLimited(f"{called} is asked for {plan.at_once} answers already", 1.0)
            continue
        record.held.append(place)
        try:
            async with guarded_by_breaker(plan.provider), aclosing(plan.ask()) as found:
                async for chunk in found:
                    begun = True
                    yield chunk
            return
        except ProviderError as error:
            if begun or (error.permanent and not isinstance(error, Trouble)):
                raise
            first = first or error
        finally:
            await place.give_back()
    if first is not None:
        raise first
