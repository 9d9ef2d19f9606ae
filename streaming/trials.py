"""Which IMMEDIATE guardrail is slow, when the gate is.

Exists because the rules of all IMMEDIATE guardrails run together: the gate's time on a chunk is no single guardrail's,
but an upper bound for each. Protects the rule that measuring costs a stream nothing: only where an answer's gate broke
the class of one of its guardrails is that guardrail run alone, afterwards, over the answer's text in as many pieces as
it came in, in a thread, one answer at a time and for ``TRIAL_S`` seconds at most. What is measured there counts as the
guardrail's own (``verdicts``), and what follows from it is said elsewhere (``demotion``, readiness, metrics).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from guardrails.findings import AppliesTo
from guardrails.performance import CLASS_LIMITS_MS, Checkpoint
from guardrails.policy import Guardrail, Policy
from streaming.core.gate import Gate
from streaming.verdicts import book

logger = structlog.get_logger(__name__)
Clock = Callable[[], float]

TRIAL_S = 2.0

_under_way = False


def suspects(policy: Policy, feeds_ms: Sequence[float]) -> tuple[Guardrail, ...]:
    """IMMEDIATE guardrails that may have broken their class, by what the gate took for each piece of an answer."""
    if not feeds_ms:
        return ()
    p95 = sorted(feeds_ms)[int(len(feeds_ms) * 0.95)]
    return tuple(
        guardrail
        for guardrail in policy.running(AppliesTo.RESPONSE)
        if guardrail.checkpoint is Checkpoint.IMMEDIATE
        and p95 >= CLASS_LIMITS_MS[guardrail.impl.performance.performance_class][1]
    )


async def after_answer(
    policy: Policy, text: str, feeds_ms: Sequence[float], clock: Clock = time.monotonic
) -> tuple[Guardrail, ...]:
    """Measure the suspects of an answer, if there are any. Returns those that were measured; never raises."""
    global _under_way
    found = suspects(policy, feeds_ms)
    if not found or not text or _under_way:
        return ()
    _under_way = True
    try:
        await asyncio.to_thread(_measure, policy, found, text, len(feeds_ms), clock)
    except Exception:
        logger.exception("trial_failed", policy=policy.name)
        return ()
    finally:
        _under_way = False
    return found


def _measure(policy: Policy, found: Sequence[Guardrail], text: str, pieces: int, clock: Clock) -> None:
    size = -(-len(text) // pieces)
    for guardrail in found:
        gate, kept = Gate(policy.alone(guardrail), AppliesTo.RESPONSE), book(guardrail.impl)
        ends = clock() + TRIAL_S / len(found)
        for at in range(0, len(text), size):
            if (started := clock()) >= ends or gate.blocked:
                break
            gate.feed(text[at : at + size])
            kept.measured((clock() - started) * 1000, clock)
