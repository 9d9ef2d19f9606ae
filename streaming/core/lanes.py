"""One scanner of one gate: its state, and the matches of its rules.

A lane answers two questions about the retained text: how far is everything settled (``horizon``), and which matches
are final (``matches``). A match is final when its start lies before the horizon: no thread that started there lives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from guardrails.findings import Action, OnError
from guardrails.patterns.automaton import State
from guardrails.patterns.folding import Folded, fold_plain
from guardrails.patterns.spans import Anchored
from guardrails.policy import Guardrail, Lane, RuleEntry

logger = logging.getLogger(__name__)
_DISABLED = 1 << 62  # beyond every text


class Span:
    """Something found, in code points of the original text: ``start`` and ``end`` of what is reported and hidden.

    ``grows``: a swallowing match whose end is not known yet.
    """

    __slots__ = ("action", "category", "end", "grows", "guardrail", "order", "placeholder", "rule", "score", "start")

    def __init__(
        self,
        guardrail: Guardrail,
        rule: str,
        start: int,
        end: int,
        *,
        order: int,
        category: str = "",
        score: float = 1.0,
        placeholder: str = "[REDACTED]",
        action: Action | None = None,
        grows: bool = False,
    ) -> None:
        self.guardrail = guardrail
        self.rule = rule
        self.start = start
        self.end = end
        self.order = order
        self.category = category
        self.score = score
        self.placeholder = placeholder
        self.action = action or guardrail.action
        self.grows = grows


class RuleRun:
    """Where one rule that has fired stands: the next start to try, and up to where starts may have matched."""

    __slots__ = ("next", "reach", "span", "swallowing", "until")

    def __init__(self) -> None:
        self.next = 0
        self.until = 0
        self.reach = 0  # end of what the rule has swallowed so far
        self.swallowing: Anchored | None = None
        self.span: Span | None = None  # the span that grows with it

    @property
    def dirty(self) -> bool:
        """Is there a start that may have matched and was not tried yet, or a match that still grows?"""
        return self.swallowing is not None or self.next < self.until


_NONE_FIRED: dict[int, RuleRun] = {}
"""Of every lane none of whose rules has fired yet; nothing is put into it."""


class LaneRun:
    """A lane as one gate runs it. Offsets are code points of the original text."""

    __slots__ = ("closed", "decides", "horizon", "index", "lane", "runs", "state")

    def __init__(self, lane: Lane, index: int) -> None:
        self.lane = lane
        self.index = index
        self.decides = lane.decides
        self.closed = False  # the answer is blocked: only spans that grow still matter
        self.state: State = lane.scanner.start
        self.runs = _NONE_FIRED
        self.horizon = 0

    @property
    def dirty(self) -> bool:
        """Does any rule have something left to decide?"""
        return bool(self.runs) and any(run.dirty for run in self.runs.values())

    def note(self, n: int) -> None:
        """Take over which rules have accepted, now that ``n`` characters are read, and clear the state's marks."""
        for rule in self.state.seen if not self.closed else ():
            self.run_of(rule).until = n
        self.state = self.lane.scanner.unmark(self.state)

    def note_end(self, n: int) -> None:
        """The text ends here: rules that were waiting for context accept."""
        for rule in self.lane.scanner.accepts_at_end(self.state) if not self.closed else ():
            self.run_of(rule).until = n

    def close(self) -> bool:
        """Look for nothing new; returns whether a span still grows."""
        self.closed = True
        self.runs = {rule: run for rule, run in self.runs.items() if run.span is not None}
        for run in self.runs.values():
            run.until = 0
        return bool(self.runs)

    def run_of(self, rule: int) -> RuleRun:
        """Where this rule stands, from now on."""
        run = self.runs.get(rule)
        if run is None:
            if self.runs is _NONE_FIRED:
                self.runs = {}
            run = self.runs[rule] = RuleRun()
        return run

    def settle(self, folded: Folded | None, n: int, *, ended: bool) -> int:
        """Move the horizon: everything before it is decided as far as this lane goes."""
        age = self.state.age
        if ended or not age or self.closed:
            self.horizon = n
        elif folded is None or folded.starts is None:
            self.horizon = max(self.horizon, n - age)
        else:
            # an age is rounded up and may reach back behind the retained text
            self.horizon = max(self.horizon, folded.start(max(0, len(folded.text) - age)))
        return self.horizon

    def matches(self, folded: Folded, before: str, lead: str, *, ended: bool) -> Iterator[Span]:
        """Matches that have become final, per rule in text order. Grows the spans that still swallow."""
        for rule, run in self.runs.items():
            if not run.dirty:
                continue
            entry = self.lane.entries[rule]
            if run.swallowing is not None:
                self._grow(entry, run, folded, ended=ended)
                if run.swallowing is not None:
                    continue
            if self.closed:
                continue
            yield from self._find(entry, run, folded, before, lead, ended=ended)

    def _grow(self, entry: RuleEntry, run: RuleRun, folded: Folded, *, ended: bool) -> None:
        assert run.swallowing is not None
        at = folded.index(run.reach)
        stop, state = entry.compiled.matcher.go_on(run.swallowing, folded.text, at)
        if stop > at:
            run.reach = folded.end(stop)
        run.swallowing = None if ended else state
        if run.span is not None:
            run.span.end = run.reach
            run.span.grows = run.swallowing is not None
        if run.swallowing is None:
            run.next = max(run.next, run.reach)
            run.span = None

    def _find(
        self, entry: RuleEntry, run: RuleRun, folded: Folded, before: str, lead: str, *, ended: bool
    ) -> Iterator[Span]:
        compiled = entry.compiled
        text = folded.text
        run.next = max(run.next, folded.base)
        i = folded.index(run.next)
        last = min(self.horizon, run.until)
        stop = min(folded.index(last), len(text) - compiled.min_width + 1)
        find, first = compiled.matcher.match, compiled.matcher.start
        while i < stop:
            if first(text[i - 1] if i else before)[text[i]].hopeless:
                i += 1
                continue
            try:
                found = find(folded, i, before, lead=lead, final=ended)
            except Exception as error:  # a validator is foreign code: it may fail in any way, and on_error rules then
                run.next = run.until = _DISABLED
                yield self._failed(entry, folded.start(i), error)
                return
            if found is None:
                i += 1
                continue
            end = run.next = folded.end(found.end)
            span = self._span(entry, folded.start(found.first), folded.end(found.last))
            if found.open is not None:
                run.swallowing, run.reach = found.open, end
                if found.last == found.end:
                    span.grows, run.span = True, span
                yield span
                return
            yield span
            i = folded.index(end)
        run.next = max(run.next, last)

    def _failed(self, entry: RuleEntry, at: int, error: Exception) -> Span:
        """What a failing rule amounts to, at the first start it could not judge. The rule is not asked again."""
        guardrail = entry.guardrail
        logger.error("rule %s of guardrail %s failed: %s", entry.compiled.rule.id, guardrail.name, type(error).__name__)
        action = Action.BLOCK if guardrail.on_error is OnError.BLOCK else Action.WARN
        return Span(guardrail, "error", at, at + 1, order=entry.order, category="error", action=action)

    def _span(self, entry: RuleEntry, start: int, end: int) -> Span:
        rule = entry.compiled.rule
        return Span(
            entry.guardrail,
            rule.id,
            start,
            end,
            order=entry.order,
            category=rule.category,
            score=rule.score,
            placeholder=rule.placeholder,
        )

    def lead_of(self, text: str) -> str:
        """The text in front of the retained one, as this lane's rules read it."""
        return fold_plain(text) if self.lane.folds else text
