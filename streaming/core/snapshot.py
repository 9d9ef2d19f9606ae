"""A gate's state as JSON, so that any worker can take the next update.

Its size is bounded by the policy's hold bound: the automaton is not stored, restoring replays the retained tail. What
is stored is what the tail cannot tell: pointers, what was found and not yet settled, how far each rule that fired has
been resolved, what stands directly before the tail. This module reads and writes the gate's private state on purpose;
nothing else may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

from guardrails.findings import Action
from guardrails.policy import Policy
from streaming.core.effects import SentenceCheck
from streaming.core.lanes import LaneRun, RuleRun, Span

if TYPE_CHECKING:
    from streaming.core.gate import Gate

FORMAT = 1


class StateError(ValueError):
    """A stored state that does not belong to this policy or this version of the engine. Permanent."""

    permanent = True


class ForeignState(StateError):
    """A stored state that another version of the engine wrote, and can read."""


class SpanState(TypedDict):
    """One unsettled finding."""

    guardrail: str
    rule: str
    start: int
    end: int
    order: int
    category: str
    score: float
    placeholder: str
    action: str
    grows: bool


class RunState(TypedDict):
    """One rule that has fired: next start, last accept, and what it swallows."""

    next: int
    until: int
    reach: int
    swallowing: list[int] | None
    span: int | None


class CheckState(TypedDict):
    """One text that waits for verdicts."""

    id: int
    text: str
    start: int
    end: int
    guardrails: list[str]
    whole: bool
    open: list[str]
    deciding: list[str]


class LaneState(TypedDict):
    """One lane: which of the plan's it is, its horizon, its rules that have fired (by number, as text)."""

    index: int
    closed: bool
    horizon: int
    runs: dict[str, RunState]


class GateState(TypedDict):
    """Everything of a gate that its policy and its tail do not tell. Offsets in code points of the original text."""

    format: int
    digest: str
    policy: str
    applies_to: str
    channel: str
    monitor: bool
    n: int
    tail: str
    r: int
    edge: list[str | int]
    lead: str
    hidden: list[list[int]]
    hidden_to: int
    visible: int
    placeholders: int
    exposed: int
    blocked: bool
    block: SpanState | None
    ended: bool
    limits: int
    spans: list[SpanState]
    pending: list[int]
    growing: list[int]
    watched: list[int]
    lanes: list[LaneState]
    sentence: list[int | str] | None
    checks: list[CheckState]
    next_check: int


def dump(gate: Gate) -> GateState:
    """The gate's state. Its lists and dicts are fresh; the gate goes on unchanged."""
    spans: list[Span] = []
    index: dict[int, int] = {}

    def number(span: Span) -> int:
        if id(span) not in index:
            index[id(span)] = len(spans)
            spans.append(span)
        return index[id(span)]

    def run_state(run: RuleRun) -> RunState:
        swallowing = None if run.swallowing is None else list(run.swallowing.positions)
        span = None if run.span is None else number(run.span)
        return {"next": run.next, "until": run.until, "reach": run.reach, "swallowing": swallowing, "span": span}

    edge = gate._edge
    cutter = gate._questions.sentences
    pending = [number(span) for span in gate._pending]
    growing = [number(span) for span in gate._growing]
    watched = [number(span) for span in gate._watched]
    lanes: list[LaneState] = [
        {
            "index": lane.index,
            "closed": lane.closed,
            "horizon": lane.horizon,
            "runs": {str(rule): run_state(run) for rule, run in lane.runs.items()},
        }
        for lane in gate._lanes
    ]
    return {
        "format": FORMAT,
        "digest": gate.policy.digest,
        "policy": gate.policy.name,
        "applies_to": gate.applies_to.value,
        "channel": gate.channel,
        "monitor": gate.monitor,
        "n": gate._n,
        "tail": gate._tail,
        "r": gate._r,
        "edge": [edge] if isinstance(edge, str) else list(edge),
        "lead": gate._lead,
        "hidden": [list(pair) for pair in gate._hidden],
        "hidden_to": gate._hidden_to,
        "visible": gate._visible,
        "placeholders": gate._placeholders,
        "exposed": gate._exposed,
        "blocked": gate.blocked,
        "block": None if gate._stopped_by is None else _span_state(gate._stopped_by),
        "ended": gate._ended,
        "limits": len(gate._limits),
        "spans": [_span_state(span) for span in spans],
        "pending": pending,
        "growing": growing,
        "watched": watched,
        "lanes": lanes,
        "sentence": None if cutter is None else [cutter.start, cutter.tail],
        "checks": [
            {
                "id": p.check.id,
                "text": p.check.text,
                "start": p.check.start,
                "end": p.check.end,
                "guardrails": list(p.check.guardrails),
                "whole": p.check.whole,
                "open": sorted(p.open),
                "deciding": sorted(p.deciding),
            }
            for p in gate._questions.pending
        ],
        "next_check": gate._questions.next,
    }


def check_belongs(policy: Policy, state: Mapping[str, object]) -> None:
    """Raise ``StateError`` if the state was not written by this engine under this very policy."""
    if state.get("format") != FORMAT:
        raise ForeignState(f"state format {state.get('format')!r} is not {FORMAT}")
    if (state.get("policy"), state.get("digest")) != (policy.name, policy.digest):
        raise StateError("state belongs to another policy version")


def load(gate: Gate, state: GateState) -> None:
    """Bring a fresh gate of the same policy to the stored state."""
    edge = state["edge"]
    gate._edge = str(edge[0]) if len(edge) == 1 else (str(edge[0]), str(edge[1]), int(edge[2]))
    gate._n, gate._r, gate._tail, gate._lead = state["n"], state["r"], state["tail"], state["lead"]
    gate._hidden = [(first, last) for first, last in state["hidden"]]
    gate._hidden_to = state["hidden_to"]
    gate._visible, gate._placeholders, gate._exposed = state["visible"], state["placeholders"], state["exposed"]
    gate.blocked, gate._ended = state["blocked"], state["ended"]
    gate._limits = gate._limits[len(gate._limits) - state["limits"] :]
    gate._questions.next = state["next_check"]
    spans = [_span(gate, span) for span in state["spans"]]
    gate._pending = [spans[i] for i in state["pending"]]
    gate._growing = [spans[i] for i in state["growing"]]
    gate._watched = [spans[i] for i in state["watched"]]
    if state["block"] is not None:
        gate._stopped_by = _span(gate, state["block"])
        gate.block = gate._finding(gate._stopped_by)
    gate._lanes = [_lane(gate, lane, spans) for lane in state["lanes"]]
    if gate.blocked or gate._one is None:
        gate._one = None
    else:
        gate._one = gate._lanes[0]
    if gate._questions.sentences is not None and state["sentence"] is not None:
        start, tail = state["sentence"]
        gate._questions.sentences.start, gate._questions.sentences.tail = int(start), str(tail)
    gate._reload(
        [
            (
                SentenceCheck(c["id"], c["text"], c["start"], c["end"], tuple(c["guardrails"]), c["whole"]),
                set(c["open"]),
                set(c["deciding"]),
            )
            for c in state["checks"]
        ]
    )


def _lane(gate: Gate, stored: LaneState, spans: list[Span]) -> LaneRun:
    lane = LaneRun(gate._plan.lanes[stored["index"]], stored["index"])
    lane.closed = stored["closed"]
    edge = gate._edge
    raw, folded, ignorables = gate._edges(edge)
    before = folded if lane.lane.folds else raw
    scanner = lane.lane.scanner
    state = scanner.resume(before=before, run=ignorables if lane.lane.folds else 0)
    for char in gate._tail:
        state = state[char]
    lane.state = scanner.unmark(state)
    lane.horizon = stored["horizon"]
    for rule, fired in stored["runs"].items():
        run = lane.run_of(int(rule))
        run.next, run.until, run.reach = fired["next"], fired["until"], fired["reach"]
        run.span = None if fired["span"] is None else spans[fired["span"]]
        if fired["swallowing"] is not None:
            matcher = lane.lane.entries[int(rule)].compiled.matcher
            run.swallowing = matcher.reopen(tuple(fired["swallowing"]))
    return lane


def _span_state(span: Span) -> SpanState:
    return {
        "guardrail": span.guardrail.name,
        "rule": span.rule,
        "start": span.start,
        "end": span.end,
        "order": span.order,
        "category": span.category,
        "score": span.score,
        "placeholder": span.placeholder,
        "action": span.action.value,
        "grows": span.grows,
    }


def _span(gate: Gate, state: SpanState) -> Span:
    return Span(
        gate.policy.guardrail(state["guardrail"]),
        state["rule"],
        state["start"],
        state["end"],
        order=state["order"],
        category=state["category"],
        score=state["score"],
        placeholder=state["placeholder"],
        action=Action(state["action"]),
        grows=state["grows"],
    )
