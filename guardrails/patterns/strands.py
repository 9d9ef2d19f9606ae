"""Strands: how one rule stands at one place of the text, and its own lazily built automaton.

The scanner's states are sets of strands. Rules know nothing of each other, so a strand's way on depends on its own
threads and on the character alone; it is worked out once and serves every state that the strand is part of. What
multiplies where rules meet is then only sets of strands, which are cheap to make.

A strand keeps few threads where a plain subset construction would keep any subset: turns of long repeats are kept as
an interval or as one position that stands for many, and ages are either exact or the most that they can be. Both err
to one side only: no accept is missed, nothing is held beyond its rule's bound.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from guardrails.patterns.nfa import ASSERT, REP, Instr, Program
from guardrails.patterns.outline import Outline, is_long

_EXACT = 8  # characters by which a thread may be older than its shortest way here before it is taken for the oldest
_STRAND_COST, _THREAD_COST, _EDGE_COST, _MOVE_COST = 640, 130, 70, 500  # bytes, measured on CPython 3.11
_NO_LIMIT = 1 << 30

Threads = tuple[tuple[int, int], ...]
"""Resting positions of one rule with their age, sorted by position."""

First = tuple[dict[int, int], bool, int]
"""What starts in one rule with a character: positions with their age, does it accept at once, turns of long repeats."""

_NOTHING: First = ({}, False, 0)

Rest = tuple[int, int, int]
"""Where a thread rests after a step, and the least and the most that its age is taken for (0: it holds nothing)."""

Rests = tuple[Rest, ...]


class Context(dict[int, int]):
    """A character of one part of the alphabet behind one with certain context bits; maps a rule to what it sees of it.

    Most rules cannot tell most characters apart, so a view (``Strands.views``) serves many contexts.
    """

    __slots__ = ("after", "begun", "bits", "home", "news", "part", "prev")

    def __init__(self, home: Strands, prev: int, part: int) -> None:
        super().__init__()
        self.home = home
        self.prev = prev
        self.part = part
        self.bits = home.program.alphabet.bits[part] | home.always
        self.after = home.program.alphabet.masks[part]
        self.begun = {strand.rule: strand for strand in home.begin(self)}
        self.news = any(strand.fires for strand in self.begun.values())

    def __missing__(self, rule: int) -> int:
        view = self[rule] = self.home.view(rule, self.bits, self.prev, self.after)
        return view


class Strand(dict[int, "Strand | None"]):
    """One rule's live threads; maps what they see of a character to what becomes of them, None if nothing does.

    A key is the character's sets among those in ``waits``; or, where that is not all that counts (``asks``, or the
    rule also starts with this character), the complement of a view.

    ``age``: characters since the oldest thread started. ``fires``: the rule has accepted by the last character.
    ``waits``: the sets of characters that any thread waits for, as bits, and ``Strands.always`` for context.
    ``asks``: a thread waits for context.
    """

    __slots__ = ("age", "asks", "fires", "home", "rule", "threads", "waits")

    def __init__(self, home: Strands, rule: int, threads: Threads, *, fires: bool) -> None:
        self.home = home
        self.rule = rule
        self.threads = threads
        self.fires = fires
        self.age = self.waits = 0
        for position, age in threads:
            self.waits |= home.waits(position)
            if age > self.age:
                self.age = age
        self.asks = self.waits >= home.always

    def __missing__(self, key: int) -> Strand | None:
        following = self[key] = self.home.after(self, key)
        return following

    def follow(self, seen: int, context: Context) -> Strand | None:
        """What becomes of the strand by a character; ``seen``: the character's sets among those it waits for."""
        rule = self.rule
        return self[~context[rule] if self.asks or rule in context.begun else seen]

    def __hash__(self) -> int:  # type: ignore[override]  # identity: strands are interned
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Move:
    """One step from a resting position, worked out once: the hot part of making a strand."""

    __slots__ = ("accepts", "asserts", "crowds", "last", "least", "mask", "most", "rests", "rounds")

    def __init__(self, home: Strands, position: int) -> None:
        program = home.program
        instr = program.at(position)
        self.asserts = instr.op == ASSERT
        self.mask = home.always if self.asserts else 1 << instr.set_
        self.last = instr.op == REP and position - instr.base == instr.high - 1
        self.rounds = position == instr.base  # ages are rounded where a thread leaves an instruction's first turn
        self.least = self.most = 0
        self.accepts = False
        self.rests: Rests = ()
        if not self.asserts:
            target = program.consume(position)
            if self.rounds:
                self.least, self.most = program.depths(target)
            if instr.op == REP and target - instr.base < instr.high:
                self.rests = (home.rest(target),)
                if target - instr.base >= instr.low:
                    way_on, self.accepts = home.way_on(instr)
                    self.rests += way_on
            else:
                there, accepts = program.arrive(target)
                self.accepts = bool(accepts)
                self.rests = tuple(map(home.rest, there))
                if home.is_many(position):
                    self.rests += ((position, instr.high - 1, instr.high - 1),)
        self.crowds = sum([home.is_long(rest) for rest, _, _ in self.rests])


class Strands:
    """All strands of a program. ``spend``: told the bytes that each new thing takes."""

    def __init__(self, program: Program, spend: Callable[[int], None]) -> None:
        self.program = program
        self.outline = Outline(program)
        self.always = 1 << len(program.sets)
        """A set of their own that every character is in."""
        self._spend = spend
        self._known: dict[tuple[int, Threads, bool], Strand] = {}
        self.contexts: defaultdict[int, dict[int, Context]] = defaultdict(dict)
        """Those known, by the context bits of the character before, and by part of the alphabet."""
        self._firsts: dict[tuple[int, int], First] = {}
        self._moves: dict[int, Move] = {}
        self._ways_on: dict[int, tuple[Rests, bool]] = {}
        self._resolved: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        self._views: list[tuple[int, int, int]] = []
        self._view_of: dict[tuple[int, int, int], int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def forget(self) -> None:
        """Drop everything; it is made again as needed."""
        strands = list(self._known.values())
        for cache in cast(
            "list[dict[object, object]]",
            [self._known, self._firsts, self._moves, self._resolved, *self.contexts.values()],
        ):
            cache.clear()
        for strand in strands:
            strand.clear()

    # -- one step -----------------------------------------------------------------------------------------------

    def context(self, prev: int, part: int) -> Context:
        """What a character of this part of the alphabet is, behind one with these context bits."""
        contexts = self.contexts[prev]
        known = contexts.get(part)
        if known is None:
            known = contexts[part] = Context(self, prev, part)
            self._spend(_STRAND_COST + _EDGE_COST * len(known.begun))
        return known

    def view(self, rule: int, bits: int, prev: int, after: int) -> int:
        """A number for what one rule sees of a context: its own sets, and the bits that its assertions ask for."""
        sets, before, behind = self.outline.looks[rule]
        seen = (bits & sets, prev & before, after & behind)
        known = self._view_of.get(seen)
        if known is None:
            self._views.append(seen)
            known = self._view_of[seen] = len(self._views) - 1
        self._spend(_EDGE_COST)
        return known

    def begin(self, context: Context) -> list[Strand]:
        """What a character starts."""
        program = self.program
        rules: set[int] = set()
        for conditions, by_set in self.outline.begins.items():
            if all(program.holds(program.at(c), context.prev, context.after) for c in conditions):
                for set_ in program.alphabet.sets[context.part]:
                    rules.update(by_set.get(set_, ()))
        out = []
        for rule in sorted(rules):
            reached, fires, _ = self._first(rule, context[rule])
            out.append(self._strand(rule, reached, fires=fires))
        return out

    def waits(self, position: int) -> int:
        """The set of characters that a thread waits for, as a bit; ``always`` if it waits for context."""
        return (self._moves.get(position) or self._move(position)).mask

    def advance(self, strands: Iterable[Strand], context: Context, fired: list[int]) -> Iterator[Strand]:
        """All strands' way on by a character, without the news; rules that accept by it are added to ``fired``."""
        reached = context.begun.copy()
        for strand in strands:
            if (seen := context.bits & strand.waits) and (following := strand.follow(seen, context)) is not None:
                reached[following.rule] = following
        for strand in reached.values():
            if not strand.fires:
                yield strand
                continue
            fired.append(strand.rule)
            if strand.threads:
                yield self._strand(strand.rule, dict(strand.threads), fires=False)

    def after(self, strand: Strand, key: int) -> Strand | None:
        """One strand's way on by a character, with what that character starts in the same rule."""
        moves, view = self._moves, ~key
        bits = key if key >= 0 else self._views[view][0]
        first, fires, crowd = _NOTHING if key >= 0 else self._first(strand.rule, view)
        reached = dict(first)
        last = False
        todo: Iterable[tuple[int, int]] = strand.threads
        while todo:
            waiting: list[tuple[int, int]] = []
            for position, age in todo:
                move = moves.get(position) or self._move(position)
                if move.asserts:
                    found, accepted = self._resolve(position, view)
                    fires = fires or bool(accepted)
                    waiting.extend((other, age) for other in found)
                elif bits & move.mask:
                    last = last or move.last
                    crowd += move.crowds
                    fires = fires or move.accepts
                    age += 1
                    if move.rounds and age - move.least > _EXACT:
                        age = move.most  # each age is a strand of its own
                    for other, least, most in move.rests:
                        since = least if age < least else age if age < most else most
                        if since >= reached.get(other, -1):
                            reached[other] = since
            todo = waiting
        if last:
            self._keep_between(strand.threads, bits, reached)
        if crowd > 1:
            self._merge_turns(reached)
        self._spend(_EDGE_COST)
        return self._strand(strand.rule, reached, fires=fires) if reached or fires else None

    def accepts_at_end(self, strand: Strand, prev: int, end: int) -> list[int]:
        """Rules that accept because the text ends here."""
        pending = [position for position, _ in strand.threads if self.program.at(position).op == ASSERT]
        return self.program.resolve(pending, prev, end)[1]

    def _strand(self, rule: int, reached: dict[int, int], *, fires: bool) -> Strand:
        threads = tuple(sorted(reached.items()))
        key = (rule, threads, fires)
        known = self._known.get(key)
        if known is None:
            self._spend(_STRAND_COST + _THREAD_COST * len(threads))
            known = self._known.setdefault(key, Strand(self, rule, threads, fires=fires))
        return known

    def _move(self, position: int) -> Move:
        known = self._moves[position] = Move(self, position)
        self._spend(_MOVE_COST)
        return known

    def _resolve(self, position: int, view: int) -> tuple[list[int], list[int]]:
        """A waiting assertion, now that the character behind it is known."""
        known = self._resolved.get((position, view))
        if known is None:
            known = self._resolved[position, view] = self.program.resolve((position,), *self._views[view][1:])
            self._spend(_MOVE_COST)
        return known

    def rest(self, position: int) -> Rest:
        """Where a thread that gets to ``position`` rests, and the least and the most its age is taken for there."""
        if self.program.is_sure(position):
            return position, 0, 0
        instr = self.program.at(position)
        if instr.base in self.outline.leading and position - instr.base >= instr.low:
            # every character of the run started a thread of its own, so one position stands for all turns
            return instr.base + instr.low, 0, instr.high - 1
        if instr.base in self.outline.gathered and position - instr.base >= max(instr.low, 1):
            oldest = self.program.depths(instr.base + instr.high - 1)[1]
            return instr.base + max(instr.low, 1), oldest, oldest
        return position, 0, _NO_LIMIT

    def way_on(self, instr: Instr) -> tuple[Rests, bool]:
        """Where threads rest that leave a repeat, and whether they accept by that."""
        known = self._ways_on.get(instr.base)
        if known is None:
            there, accepts = self.program.arrive(instr.targets[0])
            known = self._ways_on[instr.base] = tuple(map(self.rest, there)), bool(accepts)
        return known

    def is_long(self, position: int) -> bool:
        """Is this a turn of a repeat whose turns are kept as an interval?"""
        return is_long(self.program.at(position))

    def is_many(self, position: int) -> bool:
        """Does this position stand for several turns of an opening repeat (``_merge_turns``)?"""
        instr = self.program.at(position)
        return instr.base in self.outline.openings and position == instr.base + instr.high

    def _keep_between(self, threads: Threads, bits: int, reached: dict[int, int]) -> None:
        """Where the oldest of two merged turns has just ended, the next older one (not kept) is the oldest now."""
        program = self.program
        for (low, _), (high, _) in itertools.pairwise(threads):
            instr = program.at(high)
            if not self.is_long(high) or high - instr.base != instr.high - 1 or low < instr.base or high - low < 2:
                continue
            if bits >> instr.set_ & 1:
                position, _, most = self.rest(high)
                reached[position] = max(reached.get(position, -1), min(program.depths(high)[1], most))

    def _merge_turns(self, reached: dict[int, int]) -> None:
        """Of many turns of one long repeat keep the youngest and the oldest, and take all between for alive.

        Which turns are alive can be any subset, and every subset would be a strand of its own. The interval is what
        matters: no accept is missed, nothing is held beyond the rule's bound, and the youngest still ends exactly.

        Where the rule begins with the repeat (``Outline.openings``) not even that is needed: what is held begins with
        the oldest thread, which the release pointer has reached already and never leaves backwards, so from the second
        thread on one position stands for any number of turns, and has the age of the oldest that there can be.
        """
        turns: dict[int, list[int]] = {}
        for position in reached:
            instr = self.program.at(position)
            if is_long(instr) and not self.program.is_sure(position):  # what is sure holds nothing and never ends
                turns.setdefault(instr.base, []).append(position)
        for base, positions in turns.items():
            if len(positions) > 1 and base in self.outline.openings:
                for position in positions:
                    del reached[position]
                instr = self.program.at(base)
                reached[base + instr.high] = instr.high - 1  # who has taken the last turn rests here no longer
                for position in self.program.arrive(instr.targets[0])[0]:  # a way on comes from any of them
                    if position in reached:
                        reached[position] = max(reached[position], instr.high)
            elif len(positions) > 2:
                youngest, oldest = min(positions), max(positions)
                # within another repeat a thread of fewer turns may have started before one of more
                reached[oldest] = max(reached[position] for position in positions)
                for position in positions:
                    if position not in (youngest, oldest):
                        del reached[position]

    def _first(self, rule: int, view: int) -> First:
        """What starts in one rule with this very character."""
        known = self._firsts.get((rule, view))
        if known is None:
            program = self.program
            bits, prev, after = self._views[view]
            rests: dict[int, int] = {}
            accepts = False
            for conditions, position in self.outline.beginnings.get(rule, ()):
                if bits >> program.at(position).set_ & 1 and all(
                    program.holds(program.at(c), prev, after) for c in conditions
                ):
                    there, accepted = program.arrive(program.consume(position))
                    accepts = accepts or bool(accepted)
                    for other, least, most in map(self.rest, there):
                        rests[other] = max(rests.get(other, -1), least, min(1, most))
            known = self._firsts[rule, view] = rests, accepts, sum(map(self.is_long, rests))
            self._spend(_EDGE_COST + _THREAD_COST * len(rests))
        return known
