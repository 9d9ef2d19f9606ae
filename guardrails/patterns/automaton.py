"""The scanner: a lazily determinised automaton over all rules of a policy at once.

Its inner loop is ``state = state[char]``: a state is a dict whose ``__missing__`` computes an edge the first time it
is taken, so cost does not grow with the number of rules. Shared by every session of the process.

What a state knows besides its threads: ``age``, how many (folded) characters ago the oldest live thread started (no
character before that can become part of a match any more); ``seen``, the rules that have accepted since the caller
last looked; ``skew``, that offsets of folded and original text have parted. ``seen`` and ``skew`` are sticky, so the
caller asks once per chunk and not once per character. Threads that have matched already, whatever comes (a swallowing
repeat at its cap), have no age: their match is settled, they hold nothing.

Memory is bounded by ``budget`` bytes: when it is reached every state is forgotten and rebuilt as needed (as RE2
does). Edges of characters outside ASCII are kept per part of the alphabet, so that 100,000 distinct characters make
no more edges than there are parts.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Sequence

from guardrails.patterns.charset import SENTINEL
from guardrails.patterns.folding import MAX_RUN, table
from guardrails.patterns.nfa import ASSERT, CHAR, END, REP, START, Program, Source

DEFAULT_BUDGET = 48 * 1024 * 1024
_LONG_REPEAT = 4  # turns; shorter repeats are kept exact
_WIDE_EDGES = 160  # edges by non-ASCII character that one state may keep
_STATE_COST, _THREAD_COST, _EDGE_COST = 640, 120, 60  # bytes, measured on CPython 3.11

Threads = tuple[tuple[int, int], ...]
"""Resting positions with their age, sorted by position."""


class State(dict["str | int", "State"]):
    """One state; maps a character (or, as an int, an edge key) to the next state."""

    __slots__ = ("age", "live", "prev", "rule", "run", "scanner", "seen", "skew", "threads")

    def __init__(
        self,
        scanner: Scanner,
        threads: Threads,
        prev: int,
        run: int,
        seen: tuple[int, ...],
        skew: bool,
    ) -> None:
        super().__init__()
        self.scanner = scanner
        self.threads = threads
        self.prev = prev
        self.run = run
        self.seen = seen
        self.skew = skew
        self.age, self.rule = scanner.oldest(threads)
        self.live = bool(seen) or skew  # the caller must look

    def __missing__(self, char: str) -> State:
        scanner = self.scanner
        code = ord(char)
        key = (scanner.pages.get(code >> 10) or scanner.page(code >> 10))[code & 1023]
        following = self.get(key)
        if following is None:
            following = scanner.step(self, key)
            self[key] = following
            scanner.spend(_EDGE_COST)
        if code < 128 or len(self) < _WIDE_EDGES:
            self[char] = following
            scanner.spend(_EDGE_COST)
        return following

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
        self._states: dict[tuple[Threads, int, int, tuple[int, ...], bool], State] = {}
        self._firsts: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._initial: dict[tuple[int, ...], dict[int, list[int]]] = {}
        self._leading: set[int] = set()
        self._canonical: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._care = self._context_bits()
        self._find_initial()
        self._sentinel_part = self.program.alphabet.part(SENTINEL)
        self.start = self._state((), START, 0, (), skew=False)

    # -- one edge -----------------------------------------------------------------------------------------------

    def page(self, number: int) -> array[int]:
        """Edge keys of 1,024 characters: a part of the alphabet, -1 for an ignorable, below for several characters."""
        page = self.program.alphabet.page(number << 10, 1024)
        for char in self._odd_pages.get(number, ()):
            page[ord(char) & 1023] = self._key(char)
        self.pages[number] = page
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
        seen = set(state.seen)
        threads, prev, run, skew = state.threads, state.prev, 0, state.skew
        if key >= 0:
            threads, prev = self._advance(threads, prev, key, seen)
        elif key == -1:
            skew = True
            run = min(state.run + 1, MAX_RUN + 1)
            if state.run == MAX_RUN:
                threads, prev = self._advance(threads, prev, self._sentinel_part, seen)
        else:
            skew = True
            for part in self._many_parts[-2 - key]:
                threads, prev = self._advance(threads, prev, part, seen)
        return self._state(threads, prev, run, tuple(sorted(seen)), skew=skew)

    def _advance(self, threads: Threads, prev: int, part: int, seen: set[int]) -> tuple[Threads, int]:
        program, alphabet = self.program, self.program.alphabet
        bits, after = alphabet.bits[part], alphabet.masks[part]
        reached: dict[int, int] = {}
        for position, age in threads:
            if program.at(position).op != ASSERT:
                self._move(position, age, bits, reached, seen)
                continue
            waiting, accepts = program.resolve((position,), prev, after)
            seen.update(accepts)
            for other in waiting:
                self._move(other, age, bits, reached, seen)
        first, accepts_now = self._first(prev, part)
        seen.update(accepts_now)
        for position in first:
            self._rest(position, 1, reached)
        self._keep_between(threads, bits, reached)
        self._merge_turns(reached)
        return tuple(sorted(reached.items())), after & self._care

    def _move(self, position: int, age: int, bits: int, reached: dict[int, int], seen: set[int]) -> None:
        program = self.program
        if bits >> program.waits_for(position) & 1:
            target = program.consume(position)
            there, accepts = program.arrive(target)
            seen.update(accepts)
            age += 1
            if position == program.at(position).base:
                age = self._round_up(target, age)
            for other in there:
                self._rest(other, age, reached)

    def _round_up(self, position: int, age: int) -> int:
        """An age to remember: never below the true one, at most a quarter above, and few different ones.

        Each age is a state of its own, and what counts for the states is how much longer the way here was than the
        shortest one.
        """
        least, most = self.program.depths(position)
        excess = age - least
        if excess > 8:
            step = 1 << (excess.bit_length() - 3)
            age = min(least + -(-excess // step) * step, most)
        return age

    def _rest(self, position: int, age: int, reached: dict[int, int]) -> None:
        program = self.program
        if program.is_sure(position):
            age = 0
        else:
            instr = program.at(position)
            if instr.base in self._leading and position - instr.base >= instr.low:
                # every character of the run started a thread of its own, so one position stands for all turns
                position, age = instr.base + instr.low, min(age, instr.high - 1)
        if age >= reached.get(position, -1):
            reached[position] = age

    def _keep_between(self, threads: Threads, bits: int, reached: dict[int, int]) -> None:
        """Where the oldest of two merged turns has just ended, the next older one (not kept) is the oldest now."""
        program = self.program
        for (low, _), (high, _) in itertools.pairwise(threads):
            instr = program.at(high)
            if instr.op != REP or high - instr.base != instr.high - 1 or low < instr.base or high - low < 2:
                continue
            if bits >> instr.set_ & 1:
                self._rest(high, program.depths(high)[1], reached)

    def _merge_turns(self, reached: dict[int, int]) -> None:
        """Of many turns of one long repeat keep the youngest and the oldest, and take all between for alive.

        Which turns are alive can be any subset, and every subset would be a state of its own. The interval is what
        matters: no accept is missed, nothing is held beyond the rule's bound, and the youngest still ends exactly.
        """
        turns: dict[int, list[int]] = {}
        for position in reached:
            instr = self.program.at(position)
            if instr.op == REP and instr.high - instr.low >= _LONG_REPEAT:
                turns.setdefault(instr.base, []).append(position)
        for positions in turns.values():
            if len(positions) > 2:
                youngest, oldest = min(positions), max(positions)
                for position in positions:
                    if position not in (youngest, oldest):
                        del reached[position]

    def _first(self, prev: int, part: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where threads rest that start with this very character, and rules of one character that accept by it."""
        known = self._firsts.get((prev, part))
        if known is None:
            program, alphabet = self.program, self.program.alphabet
            rest: set[int] = set()
            accepts: set[int] = set()
            for conditions, by_set in self._initial.items():
                if all(program.holds(program.at(c), prev, alphabet.masks[part]) for c in conditions):
                    for set_ in alphabet.sets[part]:
                        for position in by_set.get(set_, ()):
                            there, accepted = program.arrive(program.consume(position))
                            rest.update(there)
                            accepts.update(accepted)
            known = self._firsts[prev, part] = (tuple(rest), tuple(accepts))
        return known

    # -- states -------------------------------------------------------------------------------------------------

    def oldest(self, threads: Threads) -> tuple[int, int]:
        """Age of the oldest thread that still holds, and its rule (-1: none)."""
        age, best = 0, -1
        for position, since in threads:
            if since > age:
                age, best = since, position
        return age, self.program.rule_of(best) if best >= 0 else -1

    def _state(self, threads: Threads, prev: int, run: int, seen: tuple[int, ...], *, skew: bool) -> State:
        key = (threads, prev, run, seen, skew)
        known = self._states.get(key)
        if known is None:
            known = State(self, threads, prev, run, seen, skew)
            self.spend(_STATE_COST + _THREAD_COST * len(threads))
            known = self._states.setdefault(key, known)
        return known

    def unmark(self, state: State) -> State:
        """The same state with the sticky marks taken off."""
        return self._state(state.threads, state.prev, state.run, (), skew=False) if state.live else state

    def resume(self, *, before: str, run: int) -> State:
        """A state with no threads: ``before`` is the last folded character (empty at the start of the text)."""
        alphabet = self.program.alphabet
        prev = alphabet.masks[alphabet.part(before)] & self._care if before else START & self._care
        return self._state((), prev, run, (), skew=False)

    def accepts_at_end(self, state: State) -> list[int]:
        """Rules that accept because the text ends here."""
        pending = [position for position, _ in state.threads if self.program.at(position).op == ASSERT]
        return self.program.resolve(pending, state.prev, END)[1]

    def spend(self, cost: int) -> None:
        """Account for memory; forget every state when the budget is reached."""
        self.used += cost
        if self.used > self.budget:
            with self._lock:
                if self.used > self.budget:
                    states = list(self._states.values())
                    self._states.clear()
                    for state in states:
                        state.clear()
                    self._firsts.clear()
                    self.used = 0
                    self.flushes += 1

    # -- preparation --------------------------------------------------------------------------------------------

    def _context_bits(self) -> int:
        """The context bits any assertion of the program looks at; others would only multiply states."""
        care = 0
        for instr in self.program.instrs:
            if instr.op == ASSERT:
                care |= {"boundary": 1, "not_boundary": 1, "line_start": START | 2, "text_start": START}.get(
                    instr.kind, 0
                )
                care |= instr.bit if instr.kind == "not_after" else 0
        return care

    def _find_initial(self) -> None:
        """Index the rules' first positions by the conditions before them and by the set they wait for."""
        program = self.program
        for entry in program.entries:
            todo: list[tuple[tuple[int, ...], int]] = [((), entry)]
            while todo:
                conditions, at = todo.pop()
                for position in program.arrive(at)[0]:
                    instr = program.at(position)
                    if instr.op == ASSERT:
                        todo.append(((*conditions, position), instr.targets[0]))
                        continue
                    if instr.op == REP and not conditions and not instr.swallow and instr.high - 2 >= instr.low >= 1:
                        self._leading.add(instr.base)
                    by_set = self._initial.setdefault(self._merge(conditions), {})
                    by_set.setdefault(instr.set_, []).append(position)
        if self._leading:  # only where every thread that gets there starts there
            for instr in program.instrs:
                for target in instr.targets if instr.op in (CHAR, REP, ASSERT) else ():
                    self._leading.difference_update(program.arrive(target)[0])

    def _merge(self, conditions: tuple[int, ...]) -> tuple[int, ...]:
        """Conditions that mean the same share one key, so that 10,000 keywords are asked for once."""
        key = []
        for condition in conditions:
            instr = self.program.at(condition)
            key.append(self._canonical.setdefault((instr.kind, instr.bit), condition))
        return tuple(key)
