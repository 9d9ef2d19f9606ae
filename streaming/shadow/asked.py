"""What a shadow is to be asked when the answer is over, by workers: put together from the texts of a session.

Exists so that chats, checks, client-owned streams and the gateway decide alike which guardrails are asked about what.
Protects three rules: only what would decide is asked, because nothing else changes the comparison; where the active
version asks the very same, nobody is paid twice; and what is not asked is named, so that the session is not called
clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from guardrails.findings import AppliesTo, Finding
from guardrails.kinds.base import Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from streaming import conversing
from streaming.checks import Outside
from streaming.core.effects import CHECK, SentenceCheck
from streaming.core.gate import Gate
from streaming.sessions import DeferredText
from streaming.shadow.late import alike
from streaming.shadow.record import LateCheck, Piece, exposure
from streaming.slices import fed

MOST_PIECES = 1_000
"""Sentences of one kind of text that one guardrail is asked about."""
AT_A_TIME = 100
"""Of them in one task of a worker; whole texts have a task each."""


@dataclass(slots=True)
class Late:
    """``whole`` and ``sentence`` while there are texts; then ``checks`` are for workers.

    ``policy``: the shadow's. ``paid``: whether guardrails that go over the network are asked. ``shared``: names of
    those that the active version asks as well; ``not_run``: those that nobody asks. ``missed``: sentences too many.
    """

    policy: Policy
    paid: bool = True
    shared: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    missed: int = 0
    _pieces: dict[tuple[str, AppliesTo], list[Piece]] = field(default_factory=dict)
    _turns: dict[tuple[str, AppliesTo], tuple[Turn, ...]] = field(default_factory=dict)

    def tells(self, guardrail: Guardrail) -> bool:
        """Whether this one is asked, over the network."""
        return self.paid and guardrail.decides and guardrail.impl.performance.network

    def asks(self, guardrail: Guardrail) -> bool:
        """Whether this one is asked; one that is not is named as such."""
        if guardrail.decides and (self.paid or not guardrail.impl.performance.network):
            return True
        self.not_run.append(guardrail.name)
        return False

    def wholes(
        self, texts: Iterable[DeferredText], active: Policy, asked: Iterable[DeferredText], released: int
    ) -> None:
        """Texts for DEFERRED guardrails of the shadow. ``asked``: what workers are asked for the active version.

        ``released``: characters of an answer that were shown.
        """
        same = {(one.guardrail, one.applies_to, one.part) for one in asked if not (one.sentences or one.held)}
        for one in texts:
            mine = self.policy.guardrail(one.guardrail)
            if (one.guardrail, one.applies_to, one.part) in same and alike(active.guardrail(one.guardrail), mine):
                self.shared.append(one.guardrail)
            elif self.asks(mine):
                applies_to = AppliesTo(one.applies_to)
                shown = released if one.shown is None else one.shown
                exposed = 0 if applies_to is AppliesTo.PROMPT else min(shown, len(one.text))
                piece = Piece(_channel(one), 0, len(one.text), exposed, one.text)
                self._add(mine, applies_to, piece, one.turns or ())

    async def sentences(
        self, applies_to: AppliesTo, channel: str, text: str, found: Sequence[Finding], released: int,
        turns: Sequence[Turn] = (), outside: Outside | None = None,
    ) -> None:  # fmt: skip
        """A text for BATCHED guardrails of the shadow. ``found``, ``released``: what the active version made of it.

        ``outside``: what those that go over the network are told of a sentence.
        """
        rules = self.policy.only(Checkpoint.BATCHED)
        asked = [guardrail for guardrail in rules.running(applies_to) if self.asks(guardrail)] if text else []
        if not asked:
            return
        gate = Gate(rules, applies_to, channel, monitor=True)
        effects = [*await fed(gate, text), *gate.finish()]
        exposed = exposure(found, released)
        for effect in effects:
            if effect[0] == CHECK:
                for guardrail in asked:
                    self.sentence(guardrail, applies_to, channel, effect[1], exposed(effect[1].start, effect[1].end),
                                  turns, outside)  # fmt: skip

    def sentence(
        self, guardrail: Guardrail, applies_to: AppliesTo, channel: str, check: SentenceCheck, exposed: int,
        turns: Sequence[Turn] = (), outside: Outside | None = None,
    ) -> None:  # fmt: skip
        """One sentence for one of those that are asked."""
        hidden = outside is not None and guardrail.impl.performance.network
        text = outside(check) if outside is not None and hidden else check.text
        self._add(guardrail, applies_to, Piece(channel, check.start, check.end, exposed, text), turns)

    def _add(self, guardrail: Guardrail, applies_to: AppliesTo, piece: Piece, turns: Sequence[Turn]) -> None:
        key = (guardrail.name, applies_to)
        if key not in self._pieces:
            self._turns[key] = conversing.told(guardrail, turns)
        pieces = self._pieces.setdefault(key, [])
        if len(pieces) < MOST_PIECES:
            pieces.append(piece)
        else:
            self.missed += 1

    @property
    def checks(self) -> list[LateCheck]:
        """For workers, a few sentences each."""
        made = []
        for (name, applies_to), pieces in self._pieces.items():
            deferred = self.policy.guardrail(name).checkpoint is Checkpoint.DEFERRED
            size = 1 if deferred else AT_A_TIME
            for part, at in enumerate(range(0, len(pieces), size)):
                some = tuple(pieces[at : at + size])
                made.append(LateCheck(name, applies_to.value, some, self._turns[name, applies_to], part))
        return made


def _channel(one: DeferredText) -> str:
    """Where a whole text was said, as findings of the session's own checks say it."""
    if one.shown is not None or one.applies_to == AppliesTo.PROMPT.value:
        return one.applies_to
    return f"choices[{one.part}]" if one.part else "text"
