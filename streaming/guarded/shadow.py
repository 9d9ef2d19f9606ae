"""The shadow of a stream that its client owns: a gate in MONITOR whose state goes with the stream's own.

Exists apart from ``streaming.shadow.running`` because nothing here lives from one call to the next. Protects the same
rules: the answer is the active version's alone, and what fails in here ends the shadow, loudly, and nothing else.
IMMEDIATE guardrails run within the calls; a call that waited for others would keep text from its reader, so those are
asked by workers when the text has ended (``streaming.shadow.asked``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from guardrails.findings import Action, AppliesTo, Mode
from guardrails.kinds.base import Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from guardrails.selectors import ShadowPolicy, policy_by_digest
from streaming import conversing
from streaming.core import gate as gates
from streaming.core.gate import Gate
from streaming.database import in_database
from streaming.guarded import rows
from streaming.guarded.record import Record, ShadowState, finding_of
from streaming.sessions import DeferredText
from streaming.shadow.asked import Late
from streaming.shadow.record import ShadowRecord, acted, recorded, stops, with_exposure

logger = structlog.get_logger(__name__)


def begun(which: ShadowPolicy | None) -> ShadowState | None:
    """The state of a shadow that has seen nothing yet."""
    if which is None:
        return None
    return {"version": which.version, "digest": which.digest, "gate": None, "findings": [], "error": which.reason,
            "ms": 0.0, "paid": which.paid}  # fmt: skip


async def fed(record: Record, active: Gate, delta: str) -> None:
    """Let the shadow see a delta that the active version has taken. Never raises."""
    if (state := record.shadow) is None or state["error"]:
        return
    with _alone(record, state):
        whole: Policy = await in_database(policy_by_digest)(state["digest"])
        if not keeps_text(active.policy, active.applies_to) and _asks_later(whole, active.applies_to):
            record.raw += delta
        gate = _gate(record, state, whole.only(Checkpoint.IMMEDIATE))
        if active.block is not None:
            # What came in the same delta behind the match is nobody's: it must not matter how the text was cut.
            delta = delta[: max(0, active.block.end - gate.counters.chars_in)]
        _take(state, gate.feed(delta))
        state["gate"] = gate.state()


async def ended(record: Record) -> ShadowRecord | None:
    """What the shadow came to, for the session's record. Never raises; a repeated call says the same."""
    if (state := record.shadow) is None:
        return None
    policy: Policy | None = None
    late: Late | None = None
    active = record.hits()
    kept = record.kind == AppliesTo.PROMPT.value and stops(active)  # it goes to nobody, whichever version asks
    with _alone(record, state):
        whole: Policy = await in_database(policy_by_digest)(state["digest"])
        if not state["error"] and record.chunks:
            gate = _gate(record, state, whole.only(Checkpoint.IMMEDIATE))
            _take(state, gate.finish())
            state["gate"] = gate.state()
            late = await _left(record, whole, gate.counters.chars_in, paid=state.get("paid", True) and not kept)
        policy = whole
    stopped = [hit.end for hit in active if hit.mode is Mode.BLOCK and hit.action is Action.BLOCK]
    found = [hit for hit in map(finding_of, state["findings"]) if not stopped or hit.start < min(stopped)]
    return recorded(
        version=state["version"],
        digest=state["digest"],
        policy=policy,
        active_acted=acted(policy, active, monitor=False),
        findings=with_exposure(found, active, record.counts[1]) if policy is not None else (),
        error=state["error"],
        unanswered=late.missed if late else 0,
        not_run=late.not_run if late else (),
        late=late.checks if late else (),
        shared=late.shared if late else (),
        ms=state["ms"],
    )


def keeps_text(policy: Policy, kind: AppliesTo) -> bool:
    """Whether the active version has workers judge the whole text."""
    return any(not guardrail.decides for guardrail in policy.deferred(kind))


def _asks_later(policy: Policy, kind: AppliesTo) -> bool:
    return any(g.decides and g.checkpoint is not Checkpoint.IMMEDIATE for g in policy.running(kind))


async def _left(record: Record, policy: Policy, chars: int, *, paid: bool) -> Late:
    """What workers are to be asked about the first ``chars`` of the text, which is all that the shadow has seen."""
    kind, late = AppliesTo(record.kind), Late(policy, paid=paid)
    if not _asks_later(policy, kind) and not policy.deferred(kind):
        return late
    if len(record.raw) < record.counts[0]:  # a process of the version before had some of it, and kept none
        late.not_run += [g.name for g in policy.running(kind) if g.checkpoint is not Checkpoint.IMMEDIATE]
        return late
    active: Policy = await in_database(policy_by_digest)(record.policy_digest)
    wanted = conversing.turns_wanted(kind, policy)
    turns: tuple[Turn, ...] = await in_database(rows.turns)(record, wanted) if wanted else ()
    text, released = record.raw[:chars], record.counts[1]
    whole = [DeferredText(g.name, kind.value, text, turns=turns) for g in policy.deferred(kind) if text]
    asked = [DeferredText(name, record.kind, "", name in record.aside) for name in record.deferred]
    late.wholes(whole, active, asked, released)
    await late.sentences(kind, _channel(kind), text, record.hits(), released, turns)
    return late


def _channel(kind: AppliesTo) -> str:
    return "prompt" if kind is AppliesTo.PROMPT else "text"


def _gate(record: Record, state: ShadowState, policy: Policy) -> Gate:
    if state["gate"] is not None:
        return Gate.restore(policy, state["gate"])
    kind = AppliesTo(record.kind)
    return Gate(policy, kind, _channel(kind), monitor=True)


def _take(state: ShadowState, effects: list[gates.Effect]) -> None:
    state["findings"] += [effect[1].as_dict() for effect in effects if effect[0] == gates.FOUND]


@contextmanager
def _alone(record: Record, state: ShadowState) -> Iterator[None]:
    """Nothing that goes wrong in here gets out; the time is counted."""
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        logger.exception("shadow_failed", session=record.session_id, version=state["version"])
        state["error"] = state["error"] or f"the shadow failed ({type(error).__name__})"
    finally:
        state["ms"] = round(state["ms"] + (time.perf_counter() - started) * 1000, 3)
