"""Sentence checks of calls that nobody may keep waiting: made afterwards, by a worker, over the same sentences.

Exists because ``/v1/check`` and the calls of a stream that its client owns answer only once, and a check in MONITOR is
nothing to wait for. Protects two rules: what decides is asked in the call and nothing else is; and what is found later
is what would have been found in the call, sentence by sentence, because the same gate cuts the text. The outbox row of
the check is stored with the end of the text (``streaming.deferred``), so a crash loses none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from guardrails.findings import HIDING, AppliesTo, Finding, Mode, Verdict
from guardrails.kinds.base import CheckRequest, Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from streaming.checks import Checked, run_check, settled, status_after
from streaming.core.events import GuardrailStatus
from streaming.core.gate import Gate
from streaming.slices import fed

AT_ONCE = 8
"""Sentences of one text that are asked about at the same time; of what computes, one after the other."""
SHARE_OF_LEASE = 0.75
"""So much of a worker's lease a text may take; sentences that are left then count as failed, visibly."""

HIDES = frozenset(action.value for action in HIDING)
"""Actions of a finding that readers did not see the text of, as they are stored."""


def set_aside(policy: Policy, applies_to: AppliesTo) -> tuple[Policy, tuple[str, ...]]:
    """The version as a call runs it, and the guardrails whose sentence checks are made afterwards."""
    names = tuple(g.name for g in policy.batched(applies_to) if g.mode is Mode.MONITOR)
    return policy.demoted(dict.fromkeys(names, Checkpoint.DEFERRED)), names


@dataclass(frozen=True, slots=True)
class Judged:
    """What all sentences of a text came to: one verdict for the check, and every finding at its place.

    ``statuses``: one for every sentence that was asked about, as a call would have counted them. ``exposed``: the
    findings say how much of them was shown; else that is yet to be counted.
    """

    checked: Checked
    findings: tuple[Finding, ...] = ()
    statuses: tuple[GuardrailStatus, ...] = ()
    exposed: bool = False


async def judge_sentences(
    policy: Policy,
    guardrail: Guardrail,
    text: str,
    applies_to: AppliesTo,
    *,
    turns: tuple[Turn, ...] = (),
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Judged:
    """Ask one guardrail about every sentence of a finished text; never raises but for cancellation.

    A sentence that fails leaves the others as they are; the verdict's error says how many failed. ``limit_s``: seconds
    for all of them together.
    """
    channel = "prompt" if applies_to is AppliesTo.PROMPT else "text"
    gate = Gate(policy.alone(guardrail), applies_to, channel, monitor=True)
    effects = [*await fed(gate, text), *gate.finish()]
    asked = (await settled(gate, effects, conversation=turns, clock=clock, later=True)).later
    results = await ask_each(guardrail, [question.request for question in asked], limit_s=limit_s, clock=clock)
    found = [finding for question, each in zip(asked, results, strict=True) for finding in question.findings(each)]
    statuses = tuple(status_after(guardrail, each) for each in results)
    return Judged(worst_of(results), tuple(sorted(found, key=lambda finding: finding.start)), statuses)


async def ask_each(
    guardrail: Guardrail,
    requests: Sequence[CheckRequest],
    *,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
    tries: int = 1,
) -> list[Checked]:
    """What one guardrail says of each; what is left after ``limit_s`` seconds is not asked, and says so."""
    turn = asyncio.Semaphore(1 if guardrail.apart is not None or guardrail.impl.computes else AT_ONCE)
    began = clock()

    async def one(request: CheckRequest) -> Checked:
        async with turn:
            if clock() - began >= limit_s:
                late = Verdict(hit=False, error=f"not asked: the text took longer than {limit_s:g} s")
                return Checked(late, 0.0, timed_out=True, permanent=True)
            return await run_check(guardrail, request, clock, tries=tries)

    return await asyncio.gather(*map(one, requests))


def worst_of(results: list[Checked]) -> Checked:
    """The worst of them speaks for all: a hit with the highest score; beside it, the first failure's words."""
    failed = [each for each in results if each.verdict.error is not None]
    hits = [each.verdict for each in results if each.verdict.error is None and each.verdict.hit]
    worst = max(hits, key=lambda verdict: verdict.score, default=Verdict(hit=False))
    took = sum(each.took_ms for each in results)
    if not failed:
        return Checked(worst, took)
    first = failed[0]
    of_all = f" ({len(failed)} of {len(results)} sentences)" if len(results) > 1 else ""
    return Checked(
        Verdict(hit=False, error=f"{first.verdict.error}{of_all}"),
        took,
        timed_out=all(each.timed_out for each in failed),
        permanent=all(each.permanent for each in failed),
        circuit_open=all(each.circuit_open for each in failed),
        answered=all(each.answered for each in failed),
    )


def shown_of(finding: Finding, hidden: Iterable[tuple[int, int]], released: int) -> int:
    """How many characters of a finding's span were shown, when ``released`` characters of the text were.

    ``hidden``: spans that readers saw placeholders in the place of; what was shown lies in order between them.
    """
    at, left, shown = 0, released, 0
    for start, end in [*sorted(hidden), (finding.end, finding.end)]:
        piece = min(max(0, start - at), left)
        shown += max(0, min(finding.end, at + piece) - max(finding.start, at))
        left -= piece
        at = max(at, end)
    return shown
