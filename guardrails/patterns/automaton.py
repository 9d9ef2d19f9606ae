"""The scanner: a lazily determinised automaton over all rules of a policy at once.

Its inner loop is ``state = state[char]``: a state is a dict whose ``__missing__`` computes an edge the first time it
is taken, so cost does not grow with the number of rules. Shared by every session of the process.

A state is a set of strands (``strands.py``), one for each rule that a match may be under way of. What it knows
besides: ``age``, how many (folded) characters ago the oldest live thread started (no
character before that can become part of a match any more); ``seen``, the rules that have accepted since the caller
last looked; ``skew``, that offsets of folded and original text have parted. ``seen`` and ``skew`` are sticky, so the
caller asks once per chunk and not once per character. Threads that have matched already, whatever comes (a swallowing
repeat at its cap), have no age: their match is settled, they hold nothing.

Memory is bounded by ``budget`` bytes: when it is reached every state is forgotten and rebuilt as needed (as RE2
does). Edges of characters outside ASCII are kept per part of the alphabet, so that 100,000 distinct characters make
no more edges than there are parts.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence

from guardrails.patterns.charset import SENTINEL
from guardrails.patterns.folding import MAX_RUN, table
from guardrails.patterns.nfa import END, START, Program, Source
from guardrails.patterns.strands import Strand, Strands

DEFAULT_BUDGET = 48 * 1024 * 1024
_WIDE_EDGES = 160  # edges by non-ASCII character that one state may keep
_STATE_COST, _MEMBER_COST, _EDGE_COST = 1000, 50, 70  # bytes, measured on CPython 3.11

Set = frozenset[Strand]


class State(dict["str | int", "State"]):
    """One state; maps a character (or, as an int, an edge key) to the next state."""

    __slots__ = ("age", "contexts", "live", "plain", "prev", "run", "scanner", "seen", "skew", "strands")

    def __init__(
        self,
        scanner: Scanner,
        strands: Set,
        prev: int,
        run: int,
        seen: tuple[int, ...],
        skew: bool,
    ) -> None:
        self.scanner = scanner
        self.strands = strands
        self.prev = prev
        self.contexts = scanner.strands.contexts[prev]
        self.run = run
        self.seen = seen
        self.skew = skew
        age = 0
        for strand in strands:
            if strand.age > age:
                age = strand.age
        self.age = age  # of the oldest thread that holds
        self.live = bool(seen) or skew  # the caller must look
        self.plain: State | None = None  # the same without marks, once somebody has asked for it

    def __missing__(self, char: str) -> State:
        scanner = self.scanner
        code = ord(char)
        key = (scanner.pages.get(code >> 10) or scanner.page(code >> 10))[code & 1023]
        following = self.get(key)  # another thread may drop all edges at any moment
        if following is None:
            following = self[key] = scanner.step(self, key)
            scanner.used += _EDGE_COST
        if code < 128 or len(self) < _WIDE_EDGES:
            self[char] = following
            scanner.spend(_EDGE_COST)
        return following

    @property
    def rule(self) -> int:
        """Index of the oldest thread's rule (the first of several), or -1 if nothing is held."""
        return min((strand.rule for strand in self.strands if strand.age == self.age > 0), default=-1)

    def __hash__(self) -> int:  # type: ignore[override]  # identity: states are interned
        return id(self)


class Scanner:
    """The automaton over a list of rules. ``folds``: read text through the folding table."""

    def __init__(self, sources: Sequence[Source], *, folds: bool, budget: int = DEFAULT_BUDGET) -> None:
        self.program = Program(sources)
        self.folds = folds
        self.budget = budget
        self.used = 0
        self.flushes = 0
        self._fold = table().fold if folds else {SENTINEL: "\ufffd"}
        self._odd_pages = table().by_page if folds else {ord(SENTINEL) >> 10: [SENTINEL]}
        self.pages: dict[int, array[int]] = {}
        self._many: dict[tuple[int, ...], int] = {}
        self._many_parts: list[tuple[int, ...]] = []
        self._by_prev: dict[int, dict[Set, State]] = {}  # those without marks, which nearly all are
        self._marked: dict[tuple[Set, int, int, tuple[int, ...], bool], State] = {}
        self._lock = threading.Lock()
        self.strands = Strands(self.program, self.spend)
        self._after = [mask & self.strands.outline.care for mask in self.program.alphabet.masks]
        self._plain = [self._by_prev.setdefault(prev, {}) for prev in self._after]
        self._sentinel_part = self.program.alphabet.part(SENTINEL)
        self.start = self._state(frozenset(), START & self.strands.outline.care, 0, (), skew=False)

    # -- one edge -----------------------------------------------------------------------------------------------

    def page(self, number: int) -> array[int]:
        """Edge keys of 1,024 characters: a part of the alphabet, -1 for an ignorable, below for several characters."""
        page = self.program.alphabet.page(number << 10, 1024)
        for char in self._odd_pages.get(number, ()):
            page[ord(char) & 1023] = self._key(char)
        self.pages[number] = page
        self.used += page.itemsize * len(page)  # the edge that needs it asks whether that is too much
        return page

    def _key(self, char: str) -> int:
        folded = self._fold[char]
        part = self.program.alphabet.part
        if len(folded) == 1:
            return part(folded)
        if not folded:
            return -1
        parts = tuple(map(part, folded))
        known = self._many.get(parts)
        if known is None:
            self._many_parts.append(parts)
            known = self._many[parts] = -1 - len(self._many_parts)
        return known

    def step(self, state: State, key: int) -> State:
        """The state after one more character of the original text."""
        if key < 0 or state.live:
            return self._marked_step(state, key)
        context = state.contexts.get(key)
        if context is None:
            context = self.strands.context(state.prev, key)
        bits, news, begun = context.bits, context.news, context.begun
        reached = begun.copy()
        for strand in state.strands:
            seen = bits & strand.waits
            if seen:
                rule = strand.rule  # as in Strand.follow, without the call
                following = strand[~context[rule] if strand.asks or rule in begun else seen]
                if following is not None:
                    reached[rule] = following
                    if following.fires:
                        news = True
        if news:
            return self._marked_step(state, key)
        strands = frozenset(reached.values())
        states = self._plain[key]
        known = states.get(strands)
        if known is None:
            known = states.setdefault(strands, State(self, strands, self._after[key], 0, (), False))
            self.used += _STATE_COST + _MEMBER_COST * len(strands)  # the new edge asks whether that is too much
        return known

    def _marked_step(self, state: State, key: int) -> State:
        """The same for what is rare: rules that accept, characters that fold to none or to several."""
        fired: list[int] = []
        strands, prev, run, skew = state.strands, state.prev, 0, state.skew
        parts: Sequence[int] = ()
        if key >= 0:
            parts = (key,)
        elif key == -1:
            skew = True
            run = min(state.run + 1, MAX_RUN + 1)
            if state.run == MAX_RUN:
                parts = (self._sentinel_part,)
        else:
            skew = True
            parts = self._many_parts[-2 - key]
        for part in parts:
            context = self.strands.context(prev, part)
            strands = frozenset(self.strands.advance(strands, context, fired))
            prev = self._after[part]
        seen = tuple(sorted({*state.seen, *fired})) if fired else state.seen
        return self._state(strands, prev, run, seen, skew=skew)

    # -- states -------------------------------------------------------------------------------------------------

    def _state(self, strands: Set, prev: int, run: int, seen: tuple[int, ...], *, skew: bool) -> State:
        if not (run or seen or skew):
            plain = self._by_prev.setdefault(prev, {})
            known = plain.get(strands)
            if known is None:
                known = plain.setdefault(strands, self._new(strands, prev, run, seen, skew=skew))
            return known
        key = (strands, prev, run, seen, skew)
        known = self._marked.get(key)
        if known is None:
            known = self._marked.setdefault(key, self._new(strands, prev, run, seen, skew=skew))
        return known

    def _new(self, strands: Set, prev: int, run: int, seen: tuple[int, ...], *, skew: bool) -> State:
        self.spend(_STATE_COST + _MEMBER_COST * len(strands))
        return State(self, strands, prev, run, seen, skew)

    def states(self) -> list[State]:
        """All that are known now."""
        return [*self._marked.values(), *(state for known in self._by_prev.values() for state in known.values())]

    def unmark(self, state: State) -> State:
        """The same state with the sticky marks taken off."""
        if not state.live:
            return state
        plain = state.plain
        if plain is None:
            plain = state.plain = self._state(state.strands, state.prev, state.run, (), skew=False)
        return plain

    def resume(self, *, before: str, run: int) -> State:
        """A state with no threads: ``before`` is the last folded character (empty at the start of the text)."""
        prev = self._after[self.program.alphabet.part(before)] if before else START & self.strands.outline.care
        return self._state(frozenset(), prev, run, (), skew=False)

    def accepts_at_end(self, state: State) -> list[int]:
        """Rules that accept because the text ends here."""
        return [rule for strand in state.strands for rule in self.strands.accepts_at_end(strand, state.prev, END)]

    def spend(self, cost: int) -> None:
        """Account for memory; forget every state when the budget is reached."""
        self.used += cost
        if self.used > self.budget:
            with self._lock:
                if self.used > self.budget:
                    known = self.states()
                    for states in self._by_prev.values():
                        states.clear()
                    self._marked.clear()
                    self.pages.clear()
                    for state in known:
                        state.clear()
                    self.strands.forget()
                    self.used = 0
                    self.flushes += 1
