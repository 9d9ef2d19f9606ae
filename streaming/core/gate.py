"""The gate: releases at once what can no longer become a violation, holds only what still might.

Sans-IO: text deltas and verdicts go in, effects (``effects.py``) come out. No clock, no task, no database. The promise
(same verdict and same visible text for every way of cutting, no character of a hidden span ever released, least hold,
bounded) is stated in the design and proven in ``tests/streaming/test_gate_*``.

How it works. Every lane (``lanes.py``) says up to where it has settled; the release pointer moves to the smallest of
these horizons, and on its way applies, in text order, what was found: a redacted region is shown as one placeholder,
a block stops the answer. ``feed`` has a fast path for the usual case, in which a chunk leads to nothing.

``gate_text`` is the same gate fed once: the whole-text check is not a second implementation.
"""

from __future__ import annotations

from bisect import insort

from guardrails.findings import HIDING, Action, AppliesTo, Finding, Mode, Verdict, would_have
from guardrails.patterns.folding import (
    MAX_RUN,
    Folded,
    fold_end,
    fold_plain,
    fold_text,
    joined,
    raw_text,
    skewed,
    trailing_ignorables,
    without_head,
)
from guardrails.policy import Policy
from streaming.core import snapshot
from streaming.core.effects import (
    BLOCKED,
    CHECK,
    FOUND,
    REDACTED,
    RELEASE,
    Counters,
    Effect,
    Hold,
    SentenceCheck,
    TextResult,
)
from streaming.core.lanes import LaneRun, Span
from streaming.core.questions import Pending, Questions
from streaming.core.snapshot import GateState

__all__ = ["BLOCKED", "CHECK", "FOUND", "REDACTED", "RELEASE", "Counters", "Effect", "Gate", "Hold", "SentenceCheck",
           "TextResult", "gate_text"]  # fmt: skip

_SLICE = 16_384  # characters looked at in one go: a 10 MB chunk does not make a 10 MB state
_NEVER = 1 << 62
_NOTHING: list[Effect] = []


def _key(span: Span) -> tuple[int, bool, int]:
    """Text order; at one position a block comes first (what starts there is not before it), then policy order."""
    return span.start, span.action is not Action.BLOCK, span.order


class Gate:
    """The release state machine of one channel of one response.

    ``policy`` is compiled and shared; ``applies_to`` chooses which of its guardrails look; ``monitor=True`` runs all of
    them without deciding anything. Offsets everywhere are code points of the original text.
    """

    # More than instances can share the names of: without slots every gate would have a dictionary to itself.
    __slots__ = (
        "_always", "_busy", "_detained", "_edge", "_ended", "_exposed", "_folded", "_growing", "_hidden", "_hidden_to",
        "_lanes", "_lead", "_limits", "_n", "_one", "_pending", "_placeholders", "_plan", "_questions", "_r",
        "_settled_end", "_skewed", "_stopped_by", "_tail", "_visible", "_watched", "_watermark", "applies_to", "block",
        "blocked", "channel", "monitor", "policy",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        applies_to: AppliesTo = AppliesTo.RESPONSE,
        channel: str = "text",
        *,
        monitor: bool = False,
    ) -> None:
        self.policy = policy
        self.applies_to = AppliesTo(applies_to)
        self.channel = channel
        self.monitor = monitor
        self.blocked = False
        self.block: Finding | None = None
        self._stopped_by: Span | None = None
        plan = policy.plan(self.applies_to, monitor=monitor)
        self._plan = plan
        self._lanes = [LaneRun(lane, index) for index, lane in enumerate(plan.lanes)]
        self._one = self._lanes[0] if len(self._lanes) == 1 and plan.lanes[0].decides else None
        self._tail = ""  # retained text: from the oldest thing anybody may still look at
        self._n = 0  # characters read
        self._r = 0  # release pointer
        # what stands directly before the retained text: a raw character, or (raw, folded, ignorables) when they differ
        self._edge: str | tuple[str, str, int] = ""
        self._lead = ""
        self._folded: Folded | None = None
        self._skewed = False
        self._pending: list[Span] = []  # deciding, in front of the release pointer
        self._growing: list[Span] = []  # deciding, applied, end not known yet
        self._watched: list[Span] = []  # not deciding, not reported yet
        self._hidden: list[tuple[int, int]] = []  # hidden regions that watched spans may overlap
        self._hidden_to = 0
        self._visible = 0  # characters shown, placeholders included
        self._placeholders = 0  # characters of these
        self._exposed = 0
        self._ended = False
        self._settled_end = False
        self._limits = sorted(plan.limits, key=lambda limit: limit[1].max_chars)
        self._watermark = self._limits[0][1].max_chars if self._limits else _NEVER
        self._questions = Questions(policy, plan, monitor=monitor)
        self._always = bool(plan.batched or plan.whole)  # the fast path is for pattern rules alone
        self._detained = self._busy = self._always or not self._lanes

    # -- text in ------------------------------------------------------------------------------------------------

    def feed(self, text: str) -> list[Effect]:
        """More text of the channel. Returns what follows from it; the list is the caller's."""
        one = self._one
        if one is None or self._busy or len(text) > _SLICE:
            return self._feed(text)
        state = one.state
        for char in text:
            state = state[char]
        one.state = state
        n = self._n = self._n + len(text)
        tail = self._tail + text
        if state.live or n > self._watermark:
            self._tail = tail
            return self._settle() if state.seen or n > self._watermark else self._slide(text)
        cut = len(tail) - state.age  # never below 0: the tail begins at the release pointer
        if cut <= 0:
            self._tail = tail
            return []
        self._edge = tail[cut - 1]
        self._visible += cut
        self._r = n - state.age
        if self._plan.lead_width:
            self._lead = (self._lead + tail[:cut])[-self._plan.lead_width :]
        self._tail = tail[cut:]
        return [(RELEASE, tail[:cut])]

    def _feed(self, text: str) -> list[Effect]:
        if self._ended:
            raise ValueError("the text of this gate has ended")
        if len(text) > _SLICE:
            out: list[Effect] = []
            for at in range(0, len(text), _SLICE):
                out.extend(self.feed(text[at : at + _SLICE]))
            return out
        if not text or (not self._lanes and self.blocked):
            self._n += len(text)
            return []
        live = found = False
        age = keep = 0
        for lane in self._lanes:
            state = lane.state
            for char in text:
                state = state[char]
            lane.state = state
            if state.live:
                live = True
                found = found or bool(state.seen)
            if state.age > keep:
                keep = state.age
            if lane.decides and state.age > age:
                age = state.age
        self._n += len(text)
        self._tail += text
        if not (live or self._busy or self._n > self._watermark):
            return self._flow(age, keep)
        if not (found or self._detained or self._n > self._watermark):
            return self._slide(text)
        if self._folded is not None:
            self._folded = joined(self._folded, text)
        out = []
        if not self.blocked:
            out = self._questions.feed(text)
        return self._settle(out)

    def _flow(self, age: int, keep: int) -> list[Effect]:
        """Nothing was found and nothing is pending: let the text flow up to the oldest thread that decides."""
        tail = self._tail
        base = self._n - len(tail)
        to = max(self._r, self._n - age)
        text = tail[self._r - base : to - base]
        self._visible += len(text)
        self._r = to
        if (cut := min(to, self._n - keep) - base) > 0:
            self._edge = tail[cut - 1]
            if self._plan.lead_width:
                self._lead = (self._lead + tail[:cut])[-self._plan.lead_width :]
            self._tail = tail[cut:]
        return [(RELEASE, text)] if text else []

    def _slide(self, more: str) -> list[Effect]:
        """As ``_flow``, where offsets of folded and original text have parted. ``more``: what was fed just now."""
        n, tail = self._n, self._tail
        if not any([lane.state.age for lane in self._lanes]):
            return self._let_go()
        if self._folded is None:
            self._skewed = True
            self._folded = self._fold()
        else:
            self._folded = joined(self._folded, more)
        to = keep = n
        for lane in self._lanes:
            lane.state = lane.lane.scanner.unmark(lane.state)
            reached = lane.settle(self._folded if lane.lane.folds else None, n, ended=False)
            keep = min(keep, reached)
            if lane.decides:
                to = min(to, reached)
        base = n - len(tail)
        to = max(self._r, to)
        text = tail[self._r - base : to - base]
        self._visible += len(text)
        self._r = to
        if (cut := min(to, keep) - base) > 0:
            self._drop(cut)
        self._busy = self._skewed
        return [(RELEASE, text)] if text else []

    def _let_go(self) -> list[Effect]:
        """As ``_slide``, where no thread lives: all of the text goes, and nothing of it need be folded."""
        n, tail = self._n, self._tail
        for lane in self._lanes:
            lane.state = lane.lane.scanner.unmark(lane.state)
            lane.horizon = n
        text = tail[self._r - n + len(tail) :]
        self._visible += len(text)
        self._r = n
        if self._plan.lead_width:
            self._lead = (self._lead + tail)[-self._plan.lead_width :]
        _, before, run = self._edges(self._edge)
        last, run = fold_end(tail, before, run)
        self._tail = ""
        self._edge = (tail[-1], last, run)
        self._skewed = self._busy = run > 0
        self._folded = Folded("", None, n, 0, run) if run else None
        return [(RELEASE, text)] if text else []

    def finish(self) -> list[Effect]:
        """The text has ended. Returns the rest; verdicts may still be awaited (``waiting``)."""
        if self._ended:
            return []
        self._ended = True
        for lane in self._lanes:
            lane.note_end(self._n)
        return self._settle([] if self.blocked else self._questions.finish(self._tail, self._n))

    # -- verdicts in --------------------------------------------------------------------------------------------

    def verdict(self, check_id: int, guardrail: str, verdict: Verdict) -> list[Effect]:
        """The answer to a ``CHECK``; one that a block has made moot changes nothing.

        Raises ``KeyError`` for answers nobody waits for.
        """
        check = self._questions.answered(check_id, guardrail, moot=self.blocked)
        if check is None:
            return []
        judge = self.policy.guardrail(guardrail)
        span = self._questions.means(judge, check, verdict)
        if span is not None and not (self.blocked and span.start >= self._r):
            decides = self._questions.decides(judge)
            if (decides or verdict.error is not None) and span.action in HIDING and not self.monitor:
                insort(self._pending, span, key=_key)
            else:
                self._watched.append(span)
        return self._settle()

    # -- deciding -----------------------------------------------------------------------------------------------

    def _settle(self, out: list[Effect] | None = None) -> list[Effect]:
        """Everything that is not the fast path: find what is final, move the pointer, report, forget."""
        out = [] if out is None else out
        n = self._n
        skew = self._skewed
        for lane in self._lanes:
            state = lane.state
            if state.live:
                skew = skew or state.skew
                lane.note(n)
        if skew and not self._skewed:
            self._skewed = True
            self._folded = self._fold()
        horizon = n
        for lane in self._lanes:
            reached = self._settle_lane(lane)
            if lane.decides:
                horizon = min(horizon, reached)
        if n > self._watermark:
            self._over_limit()
        if not self.blocked:
            for span in (*self._pending, *self._growing):
                if span.grows:
                    horizon = min(horizon, span.end)
            self._advance(min(horizon, self._questions.unjudged_from(ended=self._ended)), out)
        elif self._growing:
            self._announce_grown(out)
        self._report(out)
        self._forget()
        return out

    def _fold(self) -> Folded:
        run = 0 if isinstance(self._edge, str) else self._edge[2]
        return fold_text(self._tail, base=self._n - len(self._tail), run=run)

    @staticmethod
    def _edges(edge: str | tuple[str, str, int]) -> tuple[str, str, int]:
        """The raw and the folded character before the retained text, and how many ignorables stand in between."""
        return (edge, fold_plain(edge), 0) if isinstance(edge, str) else edge

    def _settle_lane(self, lane: LaneRun) -> int:
        """One lane's horizon and its newly final matches, filed as pending or watched."""
        horizon = lane.settle(self._folded if lane.lane.folds else None, self._n, ended=self._ended)
        if lane.dirty:
            raw_before, folded_before, _ = self._edges(self._edge)
            if lane.lane.folds:
                folded, before = self._folded or self._fold(), folded_before
            else:
                folded, before = raw_text(self._tail, base=self._n - len(self._tail)), raw_before
            lead = lane.lead_of(self._lead) if lane.lane.lead_width else ""
            for span in lane.matches(folded, before, lead, ended=self._ended):
                if lane.decides and span.action in HIDING:
                    insort(self._pending, span, key=_key)
                elif not (self.blocked and span.start >= self._r):
                    self._watched.append(span)
        return horizon

    def _over_limit(self) -> None:
        """The text has become longer than a length limit allows; the hit starts at the first character beyond."""
        while self._limits and self._n > self._limits[0][1].max_chars:
            guardrail, limit, order = self._limits.pop(0)
            at = limit.max_chars
            span = Span(guardrail, limit.rule, at, at + 1, order=order, category=limit.category, placeholder="[…]")
            if not self._questions.decides(guardrail):
                self._watched.append(span)
            else:
                insort(self._pending, span, key=_key)
        self._watermark = self._limits[0][1].max_chars if self._limits else _NEVER

    def _advance(self, to: int, out: list[Effect]) -> None:
        """Move the release pointer, applying in text order what was found before ``to``."""
        for span in self._growing:
            self._hide(span, span.end)
        self._announce_grown(out)
        while self._pending and self._pending[0].start < to:
            span = self._pending.pop(0)
            self._show(span.start, out)
            if span.action is Action.BLOCK:
                self._stop(span, out)
                return
            if span.start >= self._hidden_to:
                out.append((REDACTED, span.placeholder, self._visible, span.guardrail.name, span.rule, span.category))
                self._visible += len(span.placeholder)
                self._placeholders += len(span.placeholder)
            # what is over a length limit stays away, all of it
            self._hide(span, _NEVER if span.guardrail.kind == "length" else span.end)
            if span.grows:
                self._growing.append(span)
            else:
                self._announce(span, out)
        self._show(to, out)

    def _show(self, to: int, out: list[Effect]) -> None:
        """Release everything before ``to`` that is not hidden."""
        start = max(self._r, self._hidden_to)
        if to > start:
            base = self._n - len(self._tail)
            text = self._tail[start - base : to - base]
            self._visible += len(text)
            if out and out[-1][0] == RELEASE:
                out[-1] = (RELEASE, out[-1][1] + text)
            else:
                out.append((RELEASE, text))
        self._r = max(self._r, to)

    def _hide(self, span: Span, end: int) -> None:
        if self._hidden and span.start < self._hidden[-1][1]:
            first, last = self._hidden[-1]
            self._hidden[-1] = (first, max(last, end))
        else:
            self._hidden.append((span.start, end))
        self._hidden_to = max(self._hidden_to, end)

    def _stop(self, span: Span, out: list[Effect]) -> None:
        self._stopped_by = span
        self.block = self._finding(span)
        if span.grows:  # the record names the whole match, and what it is growing by is still coming
            self._growing.append(span)
        else:
            self._announce(span, out)
        out.append((BLOCKED, self.block, self._n - self._r))
        self._close(span.start)

    def _close(self, at: int) -> None:
        """Nothing behind ``at`` will be shown: forget what decides, keep watching what began before."""
        self.blocked = True
        self._pending.clear()
        self._watched = [watched for watched in self._watched if watched.start < at]
        self._questions.close(at)
        self._lanes = [lane for lane in self._lanes if not lane.lane.decides or lane.close()]
        self._one = None
        self._watermark = _NEVER

    def stop(self) -> list[Effect]:
        """Another channel of the same answer was blocked: this one shows nothing more, held text included."""
        if self.blocked:
            return []
        out: list[Effect] = []
        self._close(self._r)
        self._report(out)
        self._forget()
        return out

    # -- reporting ----------------------------------------------------------------------------------------------

    def _announce_grown(self, out: list[Effect]) -> None:
        for span in self._growing:
            if not span.grows:
                self._announce(span, out)
        self._growing = [span for span in self._growing if span.grows]

    def _announce(self, span: Span, out: list[Effect]) -> None:
        out.append((FOUND, self._finding(span)))

    def _finding(self, span: Span, exposed: int = 0) -> Finding:
        mode = Mode.MONITOR if self.monitor else span.guardrail.mode
        return Finding(
            guardrail=span.guardrail.name,
            kind=span.guardrail.kind,
            rule=span.rule,
            category=span.category,
            start=span.start,
            end=span.end,
            mode=mode,
            action=span.action,
            channel=self.channel,
            score=span.score,
            exposed=exposed,
            would_have=would_have(mode, span.action),
        )

    def _report(self, out: list[Effect]) -> None:
        """Report watched spans whose share in the visible text is known now."""
        if not self._watched:
            return
        complete = self._ended and not self.waiting
        left: list[Span] = []
        for span in self._watched:
            if span.grows or not (self.blocked or complete or self._r >= span.end):
                left.append(span)
                continue
            shown_to = min(span.end, self._r)
            exposed = max(0, shown_to - span.start)
            for first, last in self._hidden:
                exposed -= max(0, min(last, shown_to) - max(first, span.start))
            self._exposed += exposed
            out.append((FOUND, self._finding(span, exposed)))
        self._watched = left

    def _forget(self) -> None:
        """Drop retained text that nobody looks at any more, and see whether the fast path may be taken again."""
        base = self._n - len(self._tail)
        keep = self._r if not self.blocked else self._n
        for lane in self._lanes:
            keep = min(keep, lane.horizon)
            for run in lane.runs.values():
                if run.next < run.until and run.swallowing is None:
                    keep = min(keep, max(run.next, base))
                elif run.swallowing is not None:
                    keep = min(keep, run.reach)
        if keep > base:
            self._drop(keep - base)
        if self._hidden:
            oldest = min((span.start for span in self._watched), default=keep)
            self._hidden = [pair for pair in self._hidden if pair[1] > min(oldest, keep)]
        if self.blocked and self._lanes and self._watchers_done():
            self._lanes.clear()
            self._tail, self._folded = "", None
        self._look_around()

    def _watchers_done(self) -> bool:
        """After a block: is every finding that began before it known?"""
        if self._growing or any(span.grows for span in self._watched):
            return False
        return all(
            lane.horizon >= self._r and all(run.next >= self._r for run in lane.runs.values() if run.dirty)
            for lane in self._lanes
        )

    def _look_around(self) -> None:
        """Which path the next chunk may take: the fast one, that for parted offsets (``_slide``), or the whole way."""
        self._detained = bool(
            self._always
            or self.blocked
            or self._ended
            or self._pending
            or self._growing
            or self._watched
            or self._hidden_to > self._r
            or not self._lanes
            or any(lane.dirty for lane in self._lanes)
        )
        self._busy = self._detained or self._skewed

    def _drop(self, count: int) -> None:
        dropped = self._tail[:count]
        self._tail = self._tail[count:]
        if self._plan.lead_width:
            self._lead = (self._lead + dropped)[-self._plan.lead_width :]
        if not self._skewed or self._folded is None:
            self._edge = dropped[-1]
            return
        run = 0 if isinstance(self._edge, str) else self._edge[2]
        folded, base = self._folded, self._n - len(self._tail)
        at = folded.index(base)
        last = folded.text[at - 1] if at else self._edges(self._edge)[1]
        ignorables = trailing_ignorables(dropped)
        run = min(run + ignorables, MAX_RUN + 1) if ignorables == count else ignorables
        self._edge = (dropped[-1], last, min(run, MAX_RUN + 1))
        self._skewed = run > 0 or skewed(self._tail)
        self._folded = without_head(folded, base) if self._skewed else None

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> GateState:
        """The state as JSON-able data of O(bound) bytes; ``Gate.restore`` goes on from it in any process."""
        return snapshot.dump(self)

    @classmethod
    def restore(cls, policy: Policy, state: GateState) -> Gate:
        """A gate that goes on where ``state`` was taken. Raises ``StateError`` if it is not of this policy version."""
        snapshot.check_belongs(policy, state)
        gate = cls(policy, AppliesTo(state["applies_to"]), state["channel"], monitor=state["monitor"])
        snapshot.load(gate, state)
        return gate

    def _reload(self, checks: list[tuple[SentenceCheck, set[str], set[str]]]) -> None:
        """Last step of restoring: what follows from the stored state."""
        self._questions.pending = [Pending(check, open_, deciding) for check, open_, deciding in checks]
        self._watermark = self._limits[0][1].max_chars if self._limits and not self.blocked else _NEVER
        ignorables = self._edges(self._edge)[2]
        self._skewed = skewed(self._tail) or ignorables > 0
        self._folded = self._fold() if self._skewed else None
        self._look_around()

    # -- asking the gate ----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Does a deciding guardrail still have to answer?"""
        return any(pending.deciding for pending in self._questions.pending)

    @property
    def awaited(self) -> frozenset[int]:
        """Ids of every ``CHECK`` whose answer would still change something: a block before its text makes one moot."""
        return frozenset(pending.check.id for pending in self._questions.pending)

    @property
    def unanswered(self) -> int:
        """How many texts wait for verdicts that decide (callers stop reading at 10)."""
        pending = self._questions.pending
        return len([one for one in pending if one.deciding]) if pending else 0

    @property
    def held(self) -> int:
        """Characters held now: read, not hidden, not released."""
        if self.blocked:
            return 0
        return max(0, self._n - max(self._r, min(self._hidden_to, self._n)))

    @property
    def held_text(self) -> str:
        """What is held now."""
        return self._tail[-held:] if (held := self.held) else ""

    @property
    def settled(self) -> int:
        """Characters read and held no longer: shown, or hidden for good."""
        return self._n - self.held

    @property
    def hold(self) -> Hold | None:
        """What is held now and why, or None."""
        held = self.held
        if not held:
            return None
        unjudged = self._questions.unjudged_from(ended=self._ended)
        if unjudged <= self._r and (why := self._questions.why(unjudged)) is not None:
            return Hold(held, *why)
        best: LaneRun | None = None
        for lane in self._lanes:
            if lane.lane.decides and (best is None or lane.state.age > best.state.age):
                best = lane
        if best is None or best.state.rule < 0:
            return Hold(held, "", "")
        entry = best.lane.entries[best.state.rule]
        return Hold(held, entry.guardrail.name, entry.compiled.rule.id)

    @property
    def counters(self) -> Counters:
        """Characters read, shown (placeholders not counted), kept back, and exposed."""
        released = self._visible - self._placeholders
        return Counters(self._n, released, self._n - released - self.held, self._exposed)


def gate_text(
    policy: Policy,
    text: str,
    *,
    applies_to: AppliesTo = AppliesTo.PROMPT,
    monitor: bool = False,
    channel: str = "text",
) -> TextResult:
    """Check a whole text with the same gate. ``checks`` lists what BATCHED guardrails would have to be asked."""
    gate = Gate(policy, applies_to, channel, monitor=monitor)
    effects = [*gate.feed(text), *gate.finish()]
    findings = sorted((e[1] for e in effects if e[0] == FOUND), key=lambda f: (f.start, f.end))
    visible = "".join(e[1] for e in effects if e[0] == RELEASE or e[0] == REDACTED)
    return TextResult(
        action=strongest(findings),
        visible=visible,
        findings=findings,
        checks=[e[1] for e in effects if e[0] == CHECK],
    )


def strongest(findings: list[Finding]) -> str:
    """The action of a text: the strongest that any deciding or warning finding asks for."""
    actions = {finding.action for finding in findings if finding.mode is Mode.BLOCK}
    if Action.BLOCK in actions:
        return "block"
    if actions & {Action.REDACT, Action.MASK}:
        return "redact"
    return "warn" if Action.WARN in actions else "allow"
