"""The shadow of a request through the gateway: a second version's rules over the texts that the active one looked at.

Exists apart from ``streaming.shadow.running`` because here a request has thousands of texts and the answer's first word
must not wait for any of them: what was looked at is noted while the answer runs, and read when the client has all of
it. Protects the same rules: the answer is the active version's alone, what fails in here ends the shadow, loudly, and
nothing else, and "clean" is said only of a session that was looked at in full. IMMEDIATE guardrails run here; all
others are left to workers (``streaming.shadow.asked``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from guardrails.findings import AppliesTo, Finding
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from guardrails.selectors import ShadowPolicy
from streaming.checks import Looked, Outside
from streaming.core import gate as gates
from streaming.core.gate import Gate
from streaming.gateway.by_name import without_limits
from streaming.shadow.asked import Late
from streaming.shadow.record import ShadowRecord, recorded, with_exposure

logger = structlog.get_logger(__name__)

MOST_CHARS = 200_000
"""Characters of a session that a shadow looks at: a tenth of a second of a processor, when nobody waits any more."""
MOST_TEXTS = 5_000
SLICE = 4_096
"""Characters that are looked at in one go; then others have their turn."""


@dataclass(slots=True)
class Text:
    """A text that the active version looks at. ``gate``: its own, which knows how much it released and where it
    stopped; without one ``released`` says it. ``asked`` False: only rules look at it, ``limits`` False: none of those
    that say how long a text may be."""

    applies_to: AppliesTo
    channel: str
    parts: list[str] = field(default_factory=list)
    found: list[Finding] = field(default_factory=list)
    gate: Gate | None = None
    released: int = 0
    asked: bool = True
    limits: bool = True

    def seen(self) -> tuple[str, int]:
        """Up to the end of what stopped it, and how much of it was shown."""
        text = "".join(self.parts)
        if self.gate is None:
            return text, self.released
        end = len(text) if self.gate.block is None else self.gate.block.end
        return text[:end], self.gate.counters.released


class Noted:
    """The texts of one session, in the order in which they began. Strings are kept, none is copied."""

    def __init__(self) -> None:
        self.missed = 0
        """Texts, or parts of some, that were too many."""
        self._texts: dict[int, Text] = {}
        self._whole: list[Text] = []
        self._left = MOST_CHARS

    @classmethod
    def of(cls, texts: Iterable[Looked]) -> Noted:
        """With those of the request."""
        noted = cls()
        for text in texts:
            noted.whole(
                text.applies_to, text.channel, text.text, text.findings, text.released,
                asked=text.asked, limits=text.limits,
            )  # fmt: skip
        return noted

    def __iter__(self) -> Iterator[Text]:
        yield from self._whole
        yield from self._texts.values()

    def came(self, gate: Gate, text: str) -> None:
        """More of a channel's text."""
        if (known := self._texts.get(id(gate))) is None:
            known = self._texts[id(gate)] = Text(gate.applies_to, gate.channel, gate=gate)
        self._take(known, text)

    def found(self, gate: Gate, finding: Finding) -> None:
        """What the active version found in it."""
        if (known := self._texts.get(id(gate))) is not None:
            known.found.append(finding)

    def whole(
        self, applies_to: AppliesTo, channel: str, text: str, found: Iterable[Finding] = (), released: int = 0,
        *, asked: bool = False, limits: bool = True,
    ) -> None:  # fmt: skip
        """A text that was there at once."""
        made = Text(applies_to, channel, found=list(found), released=released, asked=asked, limits=limits)
        self._take(made, text)
        if made.parts:
            self._whole.append(made)

    def _take(self, known: Text, text: str) -> None:
        if len(text) > self._left or len(self._whole) + len(self._texts) > MOST_TEXTS:
            self.missed += 1
            self._left = 0  # what comes behind a gap is another text
        elif text:
            self._left -= len(text)
            known.parts.append(text)


Asking = Callable[[Late], Awaitable[Callable[[str, AppliesTo], Awaitable[Outside]] | None]]
"""Puts together what DEFERRED guardrails are asked; returns what hides values of the request from sentences of it."""


async def looked(
    which: ShadowPolicy, wide: Policy | None, noted: Noted, *, acted: bool, session: str, ask: Asking | None = None
) -> ShadowRecord:
    """What the shadow makes of all that. ``wide``: its version as the gateway runs it. Never raises."""
    found: list[Finding] = []
    error, spent_s = which.reason, 0.0
    late: Late | None = None
    try:
        rules = None if wide is None else wide.only(Checkpoint.IMMEDIATE)
        objects = None if rules is None else without_limits(rules)
        late = None if wide is None else Late(wide, paid=which.paid)
        hidden = None if late is None or ask is None else await ask(late)
        for text in noted if rules is not None else ():
            assert rules is not None
            assert objects is not None
            assert late is not None
            whole, released = text.seen()
            gate, here = Gate(rules if text.limits else objects, text.applies_to, text.channel, monitor=True), []
            for at in range(0, len(whole), SLICE):
                began = time.perf_counter()
                here += _found(gate.feed(whole[at : at + SLICE]))
                spent_s += time.perf_counter() - began
                await asyncio.sleep(0)
            here += _found(gate.finish())
            found += with_exposure(here, text.found, released)
            if text.asked:
                outside = text.gate is None and any(map(late.tells, late.policy.batched(text.applies_to)))
                told = await hidden(whole, text.applies_to) if hidden is not None and outside else None
                await late.sentences(text.applies_to, text.channel, whole, text.found, released, outside=told)
    except Exception as failed:
        logger.error("shadow_failed", session=session, version=which.version, exc_info=failed)
        error = error or f"the shadow failed ({type(failed).__name__})"
    return recorded(
        version=which.version,
        digest=which.digest,
        policy=wide,
        active_acted=acted,
        findings=found,
        error=error,
        unanswered=noted.missed + (late.missed if late else 0),
        not_run=late.not_run if late else (),
        late=late.checks if late else (),
        shared=late.shared if late else (),
        ms=spent_s * 1000,
    )


def _found(effects: Sequence[gates.Effect]) -> list[Finding]:
    return [effect[1] for effect in effects if effect[0] == gates.FOUND]
