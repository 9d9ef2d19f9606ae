"""What a gate asks the outside, and what it waits for: sentences for BATCHED guardrails, whole answers for others.

Sans-IO like the gate, which owns one of these. Protects the rule that text a deciding guardrail was asked about stays
where it is until that guardrail has answered (``unjudged_from``), and that an answer nobody waits for is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.findings import Action, OnError, Verdict
from guardrails.policy import SENTENCE_CHARS, Guardrail, Plan, Policy
from streaming.core.effects import CHECK, Effect, SentenceCheck
from streaming.core.lanes import Span
from streaming.core.sentences import SentenceCutter

NOWHERE = 1 << 62
"""Behind every text."""


class Pending:
    """A text that guardrails were asked about and that still waits for the verdicts of those that decide."""

    __slots__ = ("check", "deciding", "open")

    def __init__(self, check: SentenceCheck, open_: set[str], deciding: set[str]) -> None:
        self.check = check
        self.open = open_
        self.deciding = deciding


class Questions:
    """The questions of one gate. ``next``: the id that the next one gets."""

    __slots__ = ("_holds_sentences", "_monitor", "_plan", "_policy", "next", "pending", "sentences")

    def __init__(self, policy: Policy, plan: Plan, *, monitor: bool) -> None:
        self._policy, self._plan, self._monitor = policy, plan, monitor
        self.sentences = SentenceCutter(SENTENCE_CHARS) if plan.batched else None
        self.pending: list[Pending] = []
        self.next = 1
        self._holds_sentences = any(map(self.decides, plan.batched))

    def decides(self, guardrail: Guardrail) -> bool:
        """Does this guardrail's verdict change what is shown?"""
        return guardrail.decides and not self._monitor

    def feed(self, text: str) -> list[Effect]:
        """More text: the sentences that have ended by it."""
        return self._about(self.sentences.feed(text)) if self.sentences is not None else []

    def finish(self, tail: str, end: int) -> list[Effect]:
        """The text has ended: the last sentence, and all of it (``tail``, up to ``end``) if anybody wants that."""
        out = self._about(self.sentences.finish()) if self.sentences is not None else []
        if self._plan.whole and end:
            out.append(self._ask(tail, end - len(tail), self._plan.whole, whole=True))
        return out

    def _about(self, sentences: Sequence[tuple[int, str]]) -> list[Effect]:
        return [self._ask(text, start, self._plan.batched, whole=False) for start, text in sentences]

    def _ask(self, text: str, start: int, guardrails: tuple[Guardrail, ...], *, whole: bool) -> Effect:
        names = tuple(guardrail.name for guardrail in guardrails)
        check = SentenceCheck(self.next, text, start, start + len(text), names, whole)
        self.next += 1
        deciding = {guardrail.name for guardrail in guardrails if self.decides(guardrail)}
        self.pending.append(Pending(check, set(names), deciding))
        return (CHECK, check)

    def answered(self, check_id: int, guardrail: str, *, moot: bool) -> SentenceCheck | None:
        """Take note of an answer; what it was about. ``moot``: a block has come before, and answers may be left over.

        Raises ``KeyError`` for answers nobody waits for.
        """
        for pending in self.pending:
            if pending.check.id == check_id and guardrail in pending.open:
                break
        else:
            if moot and 0 < check_id < self.next:
                return None
            raise KeyError(f"check {check_id} does not wait for {guardrail!r}")
        pending.open.discard(guardrail)
        pending.deciding.discard(guardrail)
        if not pending.open:
            self.pending.remove(pending)
        return pending.check

    def means(self, guardrail: Guardrail, check: SentenceCheck, verdict: Verdict) -> Span | None:
        """What a verdict means for the text it was about, or None."""
        order = self._policy.guardrails.index(guardrail)
        if verdict.error is not None:
            if guardrail.on_error is OnError.ALLOW or not self.decides(guardrail):
                return None
            action = Action.BLOCK if guardrail.on_error is OnError.BLOCK else Action.WARN
            return Span(guardrail, "error", check.start, check.end, order=order, category="error", action=action)
        if not verdict.hit:
            return None
        return Span(
            guardrail,
            verdict.category or guardrail.kind,
            check.start,
            check.end,
            order=order,
            category=verdict.category,
            score=verdict.score,
            placeholder=f"[{guardrail.name.upper()}]",
        )

    def close(self, at: int) -> None:
        """Forget what is asked about text from ``at`` on."""
        self.pending = [pending for pending in self.pending if pending.check.start < at]

    def unjudged_from(self, *, ended: bool) -> int:
        """Where the first text stands that a deciding guardrail has not passed yet."""
        if self._plan.whole and (not ended or any(p.check.whole and p.deciding for p in self.pending)):
            return 0
        for pending in self.pending:
            if pending.deciding:
                return pending.check.start
        if self._holds_sentences and self.sentences is not None and not ended:
            return self.sentences.start
        return NOWHERE

    def why(self, unjudged: int) -> tuple[str, str] | None:
        """The guardrail that holds text from ``unjudged`` on, and what it waits for."""
        for guardrail in (*self._plan.whole, *self._plan.batched):
            if self.decides(guardrail):
                return guardrail.name, "whole answer" if unjudged == 0 and self._plan.whole else "sentence"
        return None
