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
from streaming.written_calls import without_markup

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
    def configured(cls, provider: Provider, request: ProviderRequest) -> Upstreams:
        """The provider and, behind it, those that ``SLUICEGATE_FALLBACKS`` names.

        The scripted one has nobody behind it but whom it names itself: where it plays an outage.
        """
        if provider.scripted:
            return cls((provider, *provider.stand_ins(request)))
        offered = available()
        names = [name for name in settings.SLUICEGATE_FALLBACKS if name != provider.name and name in offered]
        return cls((provider, *(offered[name] for name in dict.fromkeys(names))))

    async def ask(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer's events; raises the first provider's ``ProviderError`` when nobody answers."""
        trials: dict[str, _Trial] = {}
        last: ProviderError | None = None
        try:
            for streaming in (True, False) if self.streaming else (False,):
                for provider in self.providers:
                    trial = trials.setdefault(provider.name, _Trial(provider))
                    if isinstance(trial.error, ProviderAuthError | CircuitBroken):
                        continue  # asking without streaming changes nothing about these
                    if last is not None:
                        yield ProviderNotice("provider_fallback", _moving_on(last, provider, streaming=streaming))
                    yield ProviderChosen(provider.name, streaming, last.code if last is not None else "")
                    # A model's name means something to the provider that was asked for, and nothing to the others.
                    asked = request if provider is self.providers[0] else replace(request, model="")
                    try:
                        async with aclosing(trial.events(asked, streaming=streaming)) as events:
                            async for event in events:
                                yield event
                        return
                    except ProviderError as error:
                        if trial.begun:
                            raise
                        last = trial.error = error
                        trial.first = trial.first or error
        finally:
            for trial in trials.values():
                await trial.settle()
        first = next(trial.first for trial in trials.values() if trial.first is not None)
        raise first


def _moving_on(error: ProviderError, provider: Provider, *, streaming: bool) -> str:
    said = str(error)
    path = "" if streaming else " without streaming"
    return f"{said[:1].upper()}{said[1:]}. Asking {provider.label or provider.name}{path}."


class _Trial:
    """One provider within one answer, on either path. ``begun``: a first token has come.

    Its breaker counts answers and not tries: one reader's bad luck must not open it for everybody.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._breaker: breakers.Breaker | None = None
        self.begun = False
        self.error: ProviderError | None = None
        self.first: ProviderError | None = None

    async def events(self, request: ProviderRequest, *, streaming: bool) -> AsyncGenerator[ProviderEvent, None]:
        """Up to ``TRIES`` times. Raises ``ProviderError``."""
        await self._enter()
        begun: list[AsyncGenerator[ProviderEvent, None]] = []
        try:
            async with aclosing(self._tries(request, begun, streaming=streaming)) as tries:
                async for event in tries:
                    yield event
            del tries  # what is kept for another try weighs more than the stream that needs none
            for call in begun:
                async for event in call:
                    yield event
        finally:
            for call in begun:
                await call.aclose()
        await self._answered()  # an answer of nothing is an answer

    async def _tries(
        self, request: ProviderRequest, begun: list[AsyncGenerator[ProviderEvent, None]], *, streaming: bool
    ) -> AsyncGenerator[ProviderEvent, None]:
        """Events up to the first token, however many tries that takes; the call that goes on is put into ``begun``."""
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
                events = self._call(request, streaming=streaming)
                try:
                    async for event in events:
                        if isinstance(event, TextDelta | ThinkingDelta | ToolCallDelta):
                            await self._answered()
                            begun.append(events)
                        yield event
                        if begun:
                            return
                except ProviderError as error:
                    wait = self._again(error)
                    if wait is not False and attempt.num < TRIES:
                        wait_s = attempt.next_wait if wait is True else wait
                        words = f"{error}; trying again ({attempt.num + 1} of {TRIES})"
                        yield ProviderNotice(error.code, words, attempt=attempt.num, delay_s=wait_s)
                    raise
                finally:
                    if not begun:
                        await events.aclose()

    def _call(self, request: ProviderRequest, *, streaming: bool) -> AsyncGenerator[ProviderEvent, None]:
        events = self._provider.stream(request) if streaming else self._provider.standard(request)
        return without_markup(events, request.tools) if self._provider.calls_in_text else events

    async def settle(self) -> None:
        """The answer is over, or nobody wants it any more: what failed until then has failed."""
        breaker, self._breaker = self._breaker, None
        if breaker is None:
            return
        if self.error is None:
            await breaker.given_up()
        elif isinstance(self.error, ProviderRefused):
            await breaker.succeeded()  # it is well: it is the request that is not
        else:
            await breaker.failed(self.error)

    async def _enter(self) -> None:
        if self._breaker is not None:
            return
        breaker = await breakers.breaker(breakers.PROVIDER + (self._provider.circuit or self._provider.name))
        try:
            await breaker.enter()
        except breakers.CircuitOpen:
            name = self._provider.label or self._provider.name
            raise CircuitBroken(f"{name} has failed again and again and is left alone for a while") from None
        self._breaker = breaker

    async def _answered(self) -> None:
        self.begun = True
        if (breaker := self._breaker) is not None:
            self._breaker = None
            await breaker.succeeded()

    def _again(self, error: Exception) -> bool | float:
        """Whether another try may help, and after how many seconds if the provider says so."""
        if self.begun or not isinstance(error, ProviderError) or error.permanent or isinstance(error, CircuitBroken):
            return False
        if isinstance(error, ProviderRateLimited) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= LONGEST_WAIT_S else False
        return True
