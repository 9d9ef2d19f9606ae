"""The same answer three ways on one clock: as it comes, checked when it is whole, and gated.

Exists so that a visitor sees what a gate is for. Protects honesty and safety at once: the three lanes are one answer
and not three; the gated one is a session like any other, with its pump and its record; and what is shown unguarded is
the scripted provider's made-up text and nothing else, for no other provider's answer ever gets here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from guardrails.findings import HIDING, AppliesTo, Finding
from guardrails.policy import Policy
from streaming.checks import CheckedText, check_text
from streaming.core.events import ProviderEvent, TextDelta
from streaming.providers.base import Provider, ProviderRequest, never_rest
from streaming.providers.scripted import OWN_TEXT, SCENARIOS, Scenario

OFFERED: Mapping[str, Scenario] = {
    name: SCENARIOS[name] for name in ("pii", "api_key", "blocked_phrase", "clean", "slow")
}
"""Scenarios whose answer can be compared: text alone, and a prompt that no guardrail stops."""

Clock = Callable[[], float]


def offered(scenario: str) -> bool:
    """Can this scenario be compared? The visitor's own text can."""
    return scenario in OFFERED or scenario == OWN_TEXT


class Teed(Provider):
    """The scripted provider, whose text somebody else reads along, to its end whatever the gate says to it.

    ``tell`` gets each text at the provider's own pace, and None at the end.
    """

    scripted = True

    def __init__(self, inner: Provider, tell: Callable[[str | None], object]) -> None:
        if not inner.scripted:
            raise ValueError("only a scripted provider's answer may be shown unguarded")
        self.name = inner.name  # type: ignore[misc]  # a class attribute elsewhere, because classes register by it
        self._inner = inner
        self._tell = tell
        self._events: asyncio.Queue[ProviderEvent | None] = asyncio.Queue()
        self._playing: asyncio.Task[None] | None = None
        self._closed = self._stopped = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> None:
        """Never configured: one is made for each comparison."""

    @property
    def default_model(self) -> str:
        """The inner provider's."""
        return self._inner.default_model

    @property
    def scenarios(self) -> Mapping[str, str]:
        """The inner provider's."""
        return self._inner.scenarios

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The inner provider's stream. Who closes it, as a gate that blocks does, does not end what is read along.

        Where nobody reads along any more, the answer is the gate's alone.
        """
        if self._stopped:
            async with aclosing(self._inner.stream(request)) as alone:
                async for said in alone:
                    yield said
            return
        self._playing = asyncio.get_running_loop().create_task(self._play(request))
        try:
            while (event := await self._events.get()) is not None:
                yield event
        finally:
            self._closed = True
            if self._stopped:
                self.stop()

    async def _play(self, request: ProviderRequest) -> None:
        try:
            async with aclosing(self._inner.stream(replace(request, rest_s=never_rest))) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        self._tell(event.text)
                    self._events.put_nowait(event)
        finally:
            self._tell(None)
            self._events.put_nowait(None)

    def stop(self) -> None:
        """End the answer for those who read along too, as soon as the gate has let go of it."""
        self._stopped = True
        if self._playing is None:
            self._tell(None)  # stopped before the provider was asked: nothing will come to be read along
        elif self._closed:
            self._playing.cancel()


@dataclass(frozen=True, slots=True)
class Figures:
    """What a lane came to. Times in milliseconds from the start of the comparison, None while there is nothing to say.

    ``first_ms``: the first character that a reader saw. ``done_ms``: the last. ``values``: findings that the policy
    hides and that stood there to be read; ``characters``: theirs; ``leaked_ms``: when the first of them did.
    """

    first_ms: float | None = None
    done_ms: float | None = None
    values: int = 0
    characters: int = 0
    leaked_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the unguarded text; ``hit``: the guardrail that would have hidden it, empty where none would."""

    text: str
    hit: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Both lanes without a gate, when the answer is over."""

    raw: Figures
    pieces: Sequence[Piece]
    buffered: Figures
    checked: CheckedText


@dataclass(slots=True)
class Race:
    """The two lanes without a gate. ``tell`` takes the provider's text; ``run`` reads it."""

    policy: Policy
    clock: Clock = time.monotonic
    began: float = 0.0
    _texts: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def tell(self, text: str | None) -> None:
        """More of the answer; None: it is over."""
        self._texts.put_nowait(text)

    def ms(self) -> float:
        """Milliseconds since the comparison began."""
        return (self.clock() - self.began) * 1000

    async def run(self, show: Callable[[str, int], Awaitable[None]]) -> Result:
        """``show`` is given every text as it comes, and how many characters wait in the buffered lane."""
        whole = ""
        arrivals: list[tuple[int, float]] = []  # characters so far, and when that was shown
        while (text := await self._texts.get()) is not None:
            whole += text
            await show(text, len(whole))
            arrivals.append((len(whole), self.ms()))
        over = self.ms()
        checked = await check_text(self.policy, whole, applies_to=AppliesTo.RESPONSE)
        ready = self.ms()
        hidden = hits(checked.findings)
        readable = set().union(*(range(hit.start, hit.end) for hit in hidden)) if hidden else set()
        raw = Figures(
            first_ms=arrivals[0][1] if arrivals else None,
            done_ms=over,
            values=len(hidden),
            characters=len(readable),
            leaked_ms=next((at for n, at in arrivals if readable and n > min(readable)), None),
        )
        shown = checked.visible != ""
        return Result(raw, cut(whole, hidden), Figures(ready if shown else None, ready), checked)


def hits(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that the policy hides, in text order."""
    return sorted((f for f in findings if f.action in HIDING and not f.would_have), key=lambda f: (f.start, f.end))


def cut(text: str, hidden: Sequence[Finding]) -> list[Piece]:
    """The text in pieces, with what should have been hidden apart. Overlapping findings become one piece."""
    out: list[Piece] = []
    done = 0
    for finding in hidden:
        start, end = max(done, finding.start), min(len(text), finding.end)
        if start >= end:
            continue
        if start > done:
            out.append(Piece(text[done:start]))
        out.append(Piece(text[start:end], finding.guardrail))
        done = end
    if done < len(text):
        out.append(Piece(text[done:]))
    return out
