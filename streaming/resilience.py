"""Asking providers so that one that fails is not the end: retries, the next provider, the standard path.

Exists so that the pump reads one stream of events whoever answers. Protects two rules. Nothing is silent: every retry
and every change of provider or path is an event of its own. And nothing is said twice: once a first token has come the
answer belongs to who gave it, and a failure ends it with what there is (docs/adr/0201).

Before the first token a provider is tried ``TRIES`` times where another try may help, each provider in its order; then
the same again without streaming. Where streaming is switched off meanwhile, the next request is one without. All of it
has one deadline, the longest limit for an answer that any of the providers has: then nobody is asked any more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import inf

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
    joined,
)
from streaming.providers.base import (
    Deadline,
    Provider,
    ProviderAuthError,
    ProviderError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderTimeout,
    ProviderUnavailable,
    available,
)
from streaming.written_calls import without_markup

TRIES = 3
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 10.0
JITTER_S = 1.0
ITS_TIME = 0.9
"""The share of a provider's own limit for an answer that it must have had, before not answering says anything of it."""


class _SwitchedOff(Exception):
    """Streaming was switched off before another try of it."""


class CircuitBroken(ProviderUnavailable):
    """The provider failed again and again and is left alone for a while."""

    code = "circuit_open"


Calls = list[AsyncGenerator[ProviderEvent, None]]
"""Where a call is put that has given its first token."""
Still = Callable[[], Awaitable[bool]]
"""Whether it still streams."""


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Providers in the order in which they are asked; ``streaming`` False asks for whole answers only.

    ``still`` is asked before every request for a stream but the first: False leads to the standard path at once.
    """

    providers: tuple[Provider, ...]
    streaming: bool = True
    still: Still | None = None

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

    async def ask(self, request: ProviderRequest, handed: Calls | None = None) -> AsyncGenerator[ProviderEvent, None]:
        """The answer's events; raises the first provider's ``ProviderError`` when nobody answers.

        With ``handed`` they end with the first token, and the call that gave it lies in there: who asked goes on with
        it, and closes it. Nothing stands around it any more, which a stream that waits for hours would have to keep.

        ``ProviderTimeout`` where the request's deadline passed before; a request without one gets it here.
        ``ProviderRefused`` at once where several choices are to have tools: what came of the calls of one of them would
        go back behind the text of another.
        """
        if request.choices > 1 and request.tools:
            raise ProviderRefused("tools can be offered for one choice only; ask for one choice, or offer no tools")
        deadline = request.deadline or Deadline.after(answer_s(self.providers))
        if request.deadline is None:
            request = replace(request, deadline=deadline)
        trials: dict[str, _Trial] = {}
        failures: list[ProviderError] = []
        try:
            for streaming in (True, False) if self.streaming else (False,):
                for provider in self.providers:
                    trial = trials.setdefault(provider.name, _Trial(provider, self.still))
                    if isinstance(trial.error, ProviderAuthError | CircuitBroken):
                        continue  # asking without streaming changes nothing about these
                    if deadline.left_s <= 0:
                        raise ProviderTimeout(deadline.words)
                    if failures:
                        if streaming and self.still is not None and not await self.still():
                            break
                        words = _moving_on(failures[-1], provider, streaming=streaming)
                        yield ProviderNotice("provider_fallback", words)
                    yield ProviderChosen(provider.name, streaming, *_reasons(failures))
                    # A model's name means something to the provider that was asked for, and nothing to the others.
                    asked = request if provider is self.providers[0] else replace(request, model="")
                    try:
                        async with aclosing(trial.events(asked, handed, streaming=streaming)) as events:
                            async for event in events:
                                yield event
                        return
                    except _SwitchedOff:
                        assert trial.latest is not None
                        trial.failed(trial.latest)
                        failures.append(trial.latest)
                        break
                    except ProviderError as error:
                        if trial.begun:
                            raise
                        trial.failed(error)
                        failures.append(error)
        finally:
            for trial in trials.values():
                await trial.settle()
        if deadline.left_s <= 0:
            raise ProviderTimeout(deadline.words)
        first = next(trial.first for trial in trials.values() if trial.first is not None)
        raise first


def answer_s(providers: Sequence[Provider]) -> float:
    """Seconds that an answer may take in all, whoever of these gives it."""
    return max(provider.answer_s for provider in providers)


def _left_s(request: ProviderRequest) -> float:
    return inf if request.deadline is None else request.deadline.left_s


def _reasons(failures: list[ProviderError]) -> tuple[str, str]:
    """Why another one is asked: all that failed, and what the last one failed of."""
    return joined(*(error.code for error in failures)), failures[-1].code if failures else ""


def _moving_on(error: ProviderError, provider: Provider, *, streaming: bool) -> str:
    said = str(error)
    path = "" if streaming else " without streaming"
    return f"{said[:1].upper()}{said[1:]}. Asking {provider.label or provider.name}{path}."


class _Trial:
    """One provider within one answer, on either path. ``begun``: a first token has come.

    Its breaker counts answers and not tries: one reader's bad luck must not open it for everybody. And not what the
    answer's deadline cut short: whoever is asked last has what the others left, which says nothing of it.
    """

    def __init__(self, provider: Provider, still: Still | None = None) -> None:
        self._provider = provider
        self._still = still
        self._breaker: breakers.Breaker | None = None
        self.begun = False
        self._late = False  # another try would begin behind the answer's deadline
        self.error: ProviderError | None = None
        self.first: ProviderError | None = None
        self.latest: ProviderError | None = None
        self._told: ProviderError | None = None  # the latest that speaks of the provider

    def failed(self, error: ProviderError) -> None:
        """One more way in which it did not answer."""
        self.error = error
        self.first = self.first or error

    async def events(
        self, request: ProviderRequest, handed: Calls | None, *, streaming: bool
    ) -> AsyncGenerator[ProviderEvent, None]:
        """Up to ``TRIES`` times. Raises ``ProviderError``, and ``_SwitchedOff`` where a next try would not stream."""
        await self._enter()
        begun: Calls = [] if handed is None else handed
        try:
            async with aclosing(self._tries(request, begun, streaming=streaming)) as tries:
                async for event in tries:
                    yield event
            del tries  # what is kept for another try weighs more than the stream that needs none
            for call in begun if handed is None else ():
                async for event in call:
                    yield event
        finally:
            for call in begun if handed is None else ():
                await call.aclose()
        await self._answered()  # an answer of nothing is an answer

    async def _tries(
        self, request: ProviderRequest, begun: Calls, *, streaming: bool
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
                if streaming and attempt.num > 1 and self._still is not None and not await self._still():
                    raise _SwitchedOff
                had_s = _left_s(request)
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
                    self.latest = error
                    if not self._cut_short(error, request, had_s):
                        self._told = error
                    wait = self._again(error)
                    wait_s = attempt.next_wait if wait is True else wait
                    if request.deadline is not None and request.deadline.left_s <= wait_s:
                        wait, self._late = False, True
                    if wait is not False and attempt.num < TRIES:
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
        if self.error is None or self._told is None:
            await breaker.given_up()
        elif isinstance(self._told, ProviderRefused):
            await breaker.succeeded()  # it is well: it is the request that is not
        else:
            await breaker.failed(self._told)

    def _cut_short(self, error: ProviderError, request: ProviderRequest, had_s: float) -> bool:
        """Whether the answer's deadline ended the call, which had less time than the provider may take."""
        over = isinstance(error, ProviderTimeout) and _left_s(request) <= 0
        return over and had_s < self._provider.answer_s * ITS_TIME

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
        if not isinstance(error, ProviderError) or error.permanent or isinstance(error, CircuitBroken):
            return False
        if self.begun or self._late:
            return False
        if isinstance(error, ProviderRateLimited) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= LONGEST_WAIT_S else False
        return True
