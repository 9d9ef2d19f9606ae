"""Asking providers so that one that fails is not the end: retries, the next provider, the standard path.

Exists so that the pump reads one stream of events whoever answers. Protects two rules. Nothing is silent: every retry
and every change of provider or path is an event of its own. And nothing is said twice: once a first token has come the
answer belongs to who gave it, and a failure ends it with what there is (docs/adr/0201).

Before the first token a provider is tried ``TRIES`` times where another try may help, each provider in its order; then
the same again without streaming.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import stamina
from django.conf import settings

from streaming import breakers
from streaming.core.events import (
    ProviderChosen,
    ProviderEvent,
    ProviderNotice,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from streaming.providers.base import (
    Provider,
    ProviderAuthError,
    ProviderError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderUnavailable,
    available,
)

TRIES = 3
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 10.0
JITTER_S = 1.0


class CircuitBroken(ProviderUnavailable):
    """The provider failed again and again and is left alone for a while."""

    code = "circuit_open"


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Providers in the order in which they are asked; ``streaming`` False asks for whole answers only."""

    providers: tuple[Provider, ...]
    streaming: bool = True

    @classmethod
    def configured(cls, provider: Provider) -> Upstreams:
        """The provider and, behind it, those that ``SLUICEGATE_FALLBACKS`` names; the scripted one stands alone."""
        if provider.scripted:
            return cls((provider,))
        offered = available()
        names = [name for name in settings.SLUICEGATE_FALLBACKS if name != provider.name and name in offered]
        return cls((provider, *(offered[name] for name in dict.fromkeys(names))))

    async def ask(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer's events; raises the first provider's ``ProviderError`` when nobody answers."""
        errors: dict[str, ProviderError] = {}
        last = ""
        for streaming in (True, False) if self.streaming else (False,):
            for provider in self.providers:
                if isinstance(errors.get(provider.name), ProviderAuthError | CircuitBroken):
                    continue  # asking without streaming changes nothing about these
                if last:
                    yield ProviderNotice("provider_fallback", _moving_on(errors[last], provider, streaming=streaming))
                yield ProviderChosen(provider.name, streaming, errors[last].code if last else "")
                tried = _Try(provider, streaming)
                # A model's name means something to the provider that was asked for, and nothing to the others.
                asked = request if provider is self.providers[0] else replace(request, model="")
                try:
                    async with aclosing(tried.events(asked)) as events:
                        async for event in events:
                            yield event
                    return
                except ProviderError as error:
                    if tried.begun:
                        raise
                    errors.setdefault(provider.name, error)
                    errors[last := provider.name] = error
        raise next(iter(errors.values()))


def _moving_on(error: ProviderError, provider: Provider, *, streaming: bool) -> str:
    said = str(error)
    path = "" if streaming else " without streaming"
    return f"{said[:1].upper()}{said[1:]}. Asking {provider.label or provider.name}{path}."


class _Try:
    """One provider on one path, up to ``TRIES`` times. ``begun``: a first token has come."""

    def __init__(self, provider: Provider, streaming: bool) -> None:
        self._provider = provider
        self._call = provider.stream if streaming else provider.standard
        self.begun = False

    async def events(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Raises ``ProviderError``."""
        attempts = stamina.retry_context(
            on=self._again,
            attempts=TRIES,
            timeout=None,
            wait_initial=FIRST_WAIT_S,
            wait_max=LONGEST_WAIT_S,
            wait_jitter=JITTER_S,
        )
        async for attempt in attempts:
            with attempt:
                try:
                    async with aclosing(self._once(request)) as events:
                        async for event in events:
                            yield event
                except ProviderError as error:
                    wait = self._again(error)
                    if wait is not False and attempt.num < TRIES:
                        wait_s = attempt.next_wait if wait is True else wait
                        words = f"{error}; trying again ({attempt.num + 1} of {TRIES})"
                        yield ProviderNotice(error.code, words, attempt=attempt.num, delay_s=wait_s)
                    raise

    async def _once(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        breaker = await breakers.breaker(breakers.PROVIDER + (self._provider.circuit or self._provider.name))
        try:
            await breaker.enter()
        except breakers.CircuitOpen:
            name = self._provider.label or self._provider.name
            raise CircuitBroken(f"{name} has failed again and again and is left alone for a while") from None
        try:
            async with aclosing(self._call(request)) as events:
                async for event in events:
                    if not self.begun and isinstance(event, TextDelta | ThinkingDelta | ToolCallDelta):
                        self.begun = True
                        await breaker.succeeded()
                    yield event
        except ProviderError as error:
            if not self.begun:
                # One that refuses a request is well: it is the request that is not.
                await (breaker.succeeded() if isinstance(error, ProviderRefused) else breaker.failed(error))
            raise
        if not self.begun:
            await breaker.succeeded()  # an answer of nothing is an answer

    def _again(self, error: Exception) -> bool | float:
        """Whether another try may help, and after how many seconds if the provider says so."""
        if self.begun or not isinstance(error, ProviderError) or error.permanent or isinstance(error, CircuitBroken):
            return False
        if isinstance(error, ProviderRateLimited) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= LONGEST_WAIT_S else False
        return True
