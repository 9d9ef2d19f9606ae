"""Where exactly a rule matched: candidates, validators, groups.

The scanner says *that* a rule accepted; this module says *where*, over text that is still retained. Matching of one
rule is defined here for stream and whole text alike: starts ascending; for one start, ends descending among the ends
the automaton accepts; the first candidate the validator accepts wins, and matching resumes at its end. A greedy
engine's single match is not enough: ``4111 1111 1111 1111 12/27`` fails Luhn as a whole and leaks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import re2

from guardrails.patterns.folding import Folded
from guardrails.patterns.nfa import ASSERT, END, START, Program, Source
from guardrails.patterns.rule import Candidate, Validator

_MAX_STATES = 4_000


class Anchored(dict[str, "Anchored"]):
    """A state of one rule's automaton that looks for matches from one start only."""

    __slots__ = ("accepts", "dead", "hopeless", "late", "matcher", "only_sure", "positions", "prev", "sure")

    def __init__(self, matcher: Matcher, positions: tuple[int, ...], prev: int, late: bool, accepts: bool) -> None:
        super().__init__()
        program = matcher.program
        self.matcher = matcher
        self.positions = positions
        self.prev = prev
        self.late = late  # accepted just before the last character, now that it is known
        self.accepts = accepts
        self.sure = any(map(program.is_sure, positions))
        self.only_sure = self.sure and all(map(program.is_sure, positions))
        self.dead = not positions
        self.hopeless = self.dead and not accepts and not late

    def __missing__(self, char: str) -> Anchored:
        following = self.matcher.step(self, char)
        self[char] = following
        return following


@dataclass(slots=True)
class Match:
    """One accepted match in folded indices of the text it was looked for in.

    ``first`` and ``last`` delimit the finding's span (its secret group). ``open`` is the state to go on with when the
    match is swallowing and the text seen so far did not end that; None when the match is complete.
    """

    start: int
    end: int
    first: int
    last: int
    open: Anchored | None = None


class Matcher:
    """The anchored automaton of one rule, with its validator and its secret group."""

    def __init__(
        self,
        source: Source,
        *,
        validator: Validator | None = None,
        re2_pattern: str = "",
        groups: tuple[int, ...] = (),
        context_width: int = 0,
    ) -> None:
        self._source = source
        self.validator = validator
        self.context_width = context_width
        self._groups = groups
        self._re2_pattern = re2_pattern
        self._re2: Callable[[str, int, int], re2._Match[str] | None] | None = None
        self._states: dict[tuple[tuple[int, ...], int, bool, bool], Anchored] = {}
        self._starts: dict[str, Anchored] = {}

    @functools.cached_property
    def program(self) -> Program:
        """The rule's own positions, made when it first fires: of a list of 20,000 words few ever do."""
        return Program([self._source])

    @functools.cached_property
    def _entry(self) -> tuple[int, ...]:
        return self.program.arrive(self.program.entries[0])[0]

    def start(self, before: str) -> Anchored:
        """The state before the first character; ``before`` is the folded character in front, or empty."""
        known = self._starts.get(before)
        if known is None:
            alphabet = self.program.alphabet
            prev = alphabet.masks[alphabet.part(before)] if before else START
            known = self._state(self._entry, prev, late=False, accepts=False)
            if before < "\x80":
                self._starts[before] = known
        return known

    def _state(self, positions: tuple[int, ...], prev: int, *, late: bool, accepts: bool) -> Anchored:
        key = (positions, prev, late, accepts)
        known = self._states.get(key)
        if known is None:
            if len(self._states) > _MAX_STATES:
                for state in list(self._states.values()):
                    state.clear()
                self._states.clear()
                self._starts.clear()
            known = self._states[key] = Anchored(self, positions, prev, late, accepts)
        return known

    def step(self, state: Anchored, char: str) -> Anchored:
        """The state after one more folded character."""
        program, alphabet = self.program, self.program.alphabet
        part = alphabet.part(char)
        bits, after = alphabet.bits[part], alphabet.masks[part]
        pending = [position for position in state.positions if program.at(position).op == ASSERT]
        waiting, late = program.resolve(pending, state.prev, after)
        waiting.extend(position for position in state.positions if program.at(position).op != ASSERT)
        reached: set[int] = set()
        accepts = False
        for position in waiting:
            if bits >> program.waits_for(position) & 1:
                target = program.consume(position)
                there, accepted = program.arrive(target)
                reached.update(there)
                accepts = accepts or bool(accepted and not program.is_sure(target))
        return self._state(tuple(sorted(reached)), after, late=bool(late), accepts=accepts)

    def accepts_at_end(self, state: Anchored) -> bool:
        """Does the state accept because the text ends here?"""
        pending = [position for position in state.positions if self.program.at(position).op == ASSERT]
        return bool(self.program.resolve(pending, state.prev, END)[1])

    def match(self, folded: Folded, i: int, before: str, *, lead: str, final: bool) -> Match | None:
        """The match that starts at folded index ``i``, or None.

        ``before`` is the folded character in front of the text, ``lead`` the (folded) text in front of it that
        allow-lists may look at. Every thread from ``i`` must have ended, or be sure, within the text; ``final`` says
        that the text is complete.
        """
        text = folded.text
        state = self.start(text[i - 1] if i else before)
        ends: set[int] = set()
        cap_end = run = -1
        running: Anchored | None = None
        for at in range(i, len(text)):
            state = state[text[at]]
            if state.late:
                ends.add(at)
            if state.accepts:
                ends.add(at + 1)
            if state.sure:
                cap_end, run = at + 1 if cap_end < 0 else cap_end, at + 1
            if state.dead:
                break
            if state.only_sure:
                running = state
                break
        else:
            if final and self.accepts_at_end(state):
                ends.add(len(text))
        for end in sorted((e for e in ends if e > run), reverse=True):
            if found := self._judge(text, i, end, before, lead):
                return found
        if cap_end >= 0 and (found := self._judge(text, i, cap_end, before, lead)):
            return self._swallow(found, text, run, running, final=final)
        for end in sorted((e for e in ends if e <= run and e != cap_end), reverse=True):
            if found := self._judge(text, i, end, before, lead):
                return found
        return None

    def go_on(self, state: Anchored, text: str, at: int) -> tuple[int, Anchored | None]:
        """Swallow on from ``at``: where the swallowed run ends, and the state if it may go on behind the text."""
        while at < len(text):
            state = state[text[at]]
            if not state.sure:
                return at, None
            at += 1
        return at, state

    def reopen(self, positions: tuple[int, ...]) -> Anchored:
        """The swallowing state that was serialised as ``positions``; it has no assertion left to resolve."""
        return self._state(positions, START, late=False, accepts=False)

    def _swallow(self, found: Match, text: str, run: int, running: Anchored | None, *, final: bool) -> Match:
        to_cap = found.last == found.end
        if running is not None:
            run, running = self.go_on(running, text, run)
        found.end = run
        if to_cap:
            found.last = run
        found.open = None if final else running
        return found

    def _judge(self, text: str, start: int, end: int, before: str, lead: str) -> Match | None:
        first, last = self._span(text, start, end, before) if self._groups else (start, end)
        if self.validator is not None:
            left = (lead + text[:start])[-self.context_width :] if self.context_width else ""
            if not self.validator(Candidate(text[first:last], text[start:end], left + text[start:end])):
                return None
        return Match(start, end, first, last)

    def _span(self, text: str, start: int, end: int, before: str) -> tuple[int, int]:
        """The secret group within a known match; RE2 finds it in linear time."""
        if self._re2 is None:
            options = re2.Options()
            options.max_mem = 64 << 20
            options.log_errors = False
            self._re2 = re2.compile(self._re2_pattern, options).fullmatch
        left = text[start - 1 : start] if start else before
        window = left + text[start : end + 1]
        try:
            window.encode()
        except UnicodeEncodeError:  # a lone surrogate: any other unlisted character of the same length does
            window = window.encode("utf-8", "replace").decode()
        found = self._re2(window, len(left), len(left) + end - start)
        if found is not None:
            for group in self._groups:
                first, last = found.span(group)
                if last > first >= 0:
                    return first - len(left) + start, last - len(left) + start
        return start, end
