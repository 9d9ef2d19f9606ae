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
from collections.abc import Iterable, Sequence

from guardrails.patterns.charset import SENTINEL
from guardrails.patterns.folding import MAX_RUN, table
from guardrails.patterns.nfa import ASSERT, CHAR, END, REP, START, Program, Source

DEFAULT_BUDGET = 48 * 1024 * 1024
_LONG_REPEAT = 4  # turns; shorter repeats are kept exact
_WIDE_EDGES = 160  # edges by non-ASCII character that one state may keep
_STATE_COST, _THREAD_COST, _EDGE_COST, _MOVE_COST = 640, 120, 60, 400  # bytes, measured on CPython 3.11
_EXACT = 8  # characters by which a thread may be older than its shortest way here before its age is rounded
_NO_LIMIT = 1 << 30

Threads = tuple[tuple[int, int], ...]
"""Resting positions with their age, sorted by position."""

First = tuple[dict[int, int], tuple[int, ...], int]
"""What starts with a character: resting positions with their age, rules that accept at once, turns of long repeats."""

Rests = tuple[tuple[int, int], ...]
"""Where a thread rests after a step, and the most its age may be there (0: it holds nothing any more)."""


class Move:
    """One step from a resting position, worked out once: the hot part of making a state."""

    __slots__ = ("accepts", "asserts", "crowds", "last", "least", "mask", "most", "rests", "rounds")

    def __init__(self, scanner: Scanner, position: int) -> None:
        program = scanner.program
        instr = program.at(position)
        self.asserts = instr.op == ASSERT
        self.last = instr.op == REP and position - instr.base == instr.high - 1
        self.rounds = position == instr.base  # ages are rounded where a thread leaves an instruction's first turn
        self.mask = 0
        self.least = self.most = 0
        self.rests: Rests = ()
        self.accepts: tuple[int, ...] = ()
        self.crowds = 0
        if not self.asserts:
            self.mask = 1 << instr.set_
            target = program.consume(position)
            self.least, self.most = program.depths(target)
            there, self.accepts = program.arrive(target)
            self.rests = tuple(map(scanner.rest, there))
            self.crowds = sum(map(scanner.is_long, (position for position, _ in self.rests)))


class State(dict["str | int", "State"]):
    """One state; maps a character (or, as an int, an edge key) to the next state."""

    __slots__ = ("age", "live", "prev", "run", "scanner", "seen", "skew", "threads")

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
        self.age = max([age for _, age in threads]) if threads else 0  # of the oldest thread that holds
        self.live = bool(seen) or skew  # the caller must look

    def __missing__(self, char: str) -> State:
        scanner = self.scanner
        code = ord(char)
        key = (scanner.pages.get(code >> 10) or scanner.page(code >> 10))[code & 1023]
        following = self.get(key)  # another thread may drop all edges at any moment
        if following is None:
            following = scanner.step(self, key)
            self[key] = following
            scanner.spend(_EDGE_COST)
        if code < 128 or len(self) < _WIDE_EDGES:
            self[char] = following
            scanner.spend(_EDGE_COST)
        return following

    @property
    def rule(self) -> int:
        """Index of the oldest thread's rule, or -1 if nothing is held."""
        for position, age in self.threads:
            if age == self.age > 0:
                return self.scanner.program.rule_of(position)
        return -1

    def __hash__(self) -> int:  # type: ignore[override]  # identity: states are interned
        return id(self)


def _rounded(age: int, move: Move) -> int:
    """An age to remember: never below the true one, at most a quarter above, and few different ones.

    Each age is a state of its own, and what counts for the states is how much longer the way here was than the
    shortest one.
    """
    excess = age - move.least
    step = 1 << (excess.bit_length() - 3)
    return min(move.least + -(-excess // step) * step, move.most)


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
        self._firsts: dict[tuple[int, int], First] = {}
        self._moves: dict[int, Move] = {}
        self._resolved: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
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
        fired: list[int] = []
        threads, prev, run, skew = state.threads, state.prev, 0, state.skew
        if key >= 0:
            threads, prev = self._advance(threads, prev, key, fired)
        elif key == -1:
            skew = True
            run = min(state.run + 1, MAX_RUN + 1)
            if state.run == MAX_RUN:
                threads, prev = self._advance(threads, prev, self._sentinel_part, fired)
        else:
            skew = True
            for part in self._many_parts[-2 - key]:
                threads, prev = self._advance(threads, prev, part, fired)
        seen = tuple(sorted({*state.seen, *fired})) if fired else state.seen
        return self._state(threads, prev, run, seen, skew=skew)

    def _advance(self, threads: Threads, prev: int, part: int, fired: list[int]) -> tuple[Threads, int]:
        alphabet, moves = self.program.alphabet, self._moves
        bits, after = alphabet.bits[part], alphabet.masks[part]
        first, accepts, crowd = self._firsts.get((prev, part)) or self._first(prev, part)
        reached = dict(first)
        fired.extend(accepts)
        last = False
        todo: Iterable[tuple[int, int]] = threads
        while todo:
            waiting: list[tuple[int, int]] = []
            for position, age in todo:
                move = moves.get(position) or self._move(position)
                if bits & move.mask:
                    last = last or move.last
                    crowd += move.crowds
                    if move.accepts:
                        fired.extend(move.accepts)
                    age += 1
                    if move.rounds and age - move.least > _EXACT:
                        age = _rounded(age, move)
                    for other, most in move.rests:
                        since = age if age < most else most
                        if since >= reached.get(other, -1):
                            reached[other] = since
                elif move.asserts:
                    found, accepted = self._resolve(position, prev, part)
                    fired.extend(accepted)
                    waiting.extend((other, age) for other in found)
            todo = waiting
        if last:
            self._keep_between(threads, bits, reached)
        if crowd > 2:
            self._merge_turns(reached)
        return tuple(sorted(reached.items())), after & self._care

    def _move(self, position: int) -> Move:
        known = self._moves[position] = Move(self, position)
        self.spend(_MOVE_COST)
        return known

    def _resolve(self, position: int, prev: int, part: int) -> tuple[list[int], list[int]]:
        """A waiting assertion, now that the character behind it is known."""
        key = (position, prev, part)
        known = self._resolved.get(key)
        if known is None:
            known = self.program.resolve((position,), prev, self.program.alphabet.masks[part])
            self._resolved[key] = known
            self.spend(_MOVE_COST)
        return known

    def rest(self, position: int) -> tuple[int, int]:
        """Where a thread that gets to ``position`` rests, and the most its age may be there."""
        if self.program.is_sure(position):
            return position, 0
        instr = self.program.at(position)
        if instr.base in self._leading and position - instr.base >= instr.low:
            # every character of the run started a thread of its own, so one position stands for all turns
            return instr.base + instr.low, instr.high - 1
        return position, _NO_LIMIT

    def is_long(self, position: int) -> bool:
        """Is this a turn of a repeat whose turns are kept as an interval?"""
        instr = self.program.at(position)
        return instr.op == REP and instr.high - instr.low >= _LONG_REPEAT

    def _keep_between(self, threads: Threads, bits: int, reached: dict[int, int]) -> None:
        """Where the oldest of two merged turns has just ended, the next older one (not kept) is the oldest now."""
        program = self.program
        for (low, _), (high, _) in itertools.pairwise(threads):
            instr = program.at(high)
            if instr.op != REP or high - instr.base != instr.high - 1 or low < instr.base or high - low < 2:
                continue
            if bits >> instr.set_ & 1:
                position, most = self.rest(high)
                reached[position] = max(reached.get(position, -1), min(program.depths(high)[1], most))

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

    def _first(self, prev: int, part: int) -> First:
        """Threads that start with this very character, rules of one character that accept by it, long turns."""
        program, alphabet = self.program, self.program.alphabet
        rest: dict[int, int] = {}
        accepts: set[int] = set()
        for conditions, by_set in self._initial.items():
            if all(program.holds(program.at(c), prev, alphabet.masks[part]) for c in conditions):
                for set_ in alphabet.sets[part]:
                    for position in by_set.get(set_, ()):
                        there, accepted = program.arrive(program.consume(position))
                        for other, most in map(self.rest, there):
                            rest[other] = max(rest.get(other, -1), min(1, most))
                        accepts.update(accepted)
        known = self._firsts[prev, part] = (rest, tuple(accepts), sum(map(self.is_long, rest)))
        return known

    # -- states -------------------------------------------------------------------------------------------------

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
                    self._moves.clear()
                    self._resolved.clear()
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
