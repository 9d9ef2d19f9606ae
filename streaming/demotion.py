"""A guardrail that is slower than it declares runs later: in MONITOR, and for sessions that begin afterwards.

Exists because a declared class is a promise that somebody wrote down, and what does not keep it makes others wait.
Protects four rules. Measurement only ever demotes, and only in MONITOR: what decides stays where it is and is reported.
A session runs to its end as it began, so the demotions that it began with travel with it. All processes schedule
alike: each measures for itself, and what one has concluded stands in the database, which the others read every
``READ_EVERY_S`` seconds. And the way back is open: another version of the policy starts without, and whoever may lifts
a demotion; then every process forgets what it had measured before.

One that also looks at texts which only the gate sees (tool results, say) goes to BATCHED at most: nobody checks those
after the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from guardrails.findings import AppliesTo, Mode
from guardrails.performance import CHECKPOINT_OF, Checkpoint, class_of, later
from guardrails.policy import Guardrail, Policy
from streaming.models import Demotion
from streaming.verdicts import book

logger = structlog.get_logger(__name__)
Clock = Callable[[], float]

READ_EVERY_S = 5.0
"""So long may a process schedule without having heard of another one's conclusion."""
AFTERWARDS = frozenset({AppliesTo.PROMPT, AppliesTo.RESPONSE})
"""What workers are given to check when an answer has ended."""
KEPT = 256
"""Versions of which a process knows the demotions."""


@dataclass(slots=True)
class _Known:
    """What a process knows of one version. ``lifted``: rows whose lifting it has heard of."""

    read_at: float
    standing: dict[str, Checkpoint]
    lifted: set[int] = field(default_factory=set)


_versions: dict[str, _Known] = {}


def scheduled(policy: Policy, clock: Clock = time.monotonic) -> Policy:
    """The version as a session that begins now runs it: draws the conclusions that are due. Asks the database.

    A version that was never published has no demotions: nobody else runs it.
    """
    if not policy.digest or not any(_may_move(guardrail) for guardrail in policy.guardrails):
        return policy
    policy = current(policy, clock)
    due = {g.name: to for g in policy.guardrails if (to := _due(g, clock)) is not None}
    return _demote(policy, due, clock) if due else policy


def current(policy: Policy, clock: Clock = time.monotonic) -> Policy:
    """The version with the demotions that stand, as far as this process has heard. Asks the database now and then."""
    if not policy.digest or not any(_may_move(guardrail) for guardrail in policy.guardrails):
        return policy
    known = _versions.get(policy.digest)
    if known is None or clock() - known.read_at >= READ_EVERY_S:
        known = _read(policy, known, clock)
    return policy.demoted(known.standing)


def forget() -> None:
    """As after a restart (tests)."""
    _versions.clear()


def lift(*, demotion: Demotion, by: AbstractBaseUser | None = None) -> bool:
    """Let the guardrail run where it declares to run; False if somebody has lifted it already.

    Demotions of one guardrail follow upon each other (at sentence ends, then afterwards): all of them are lifted.
    """
    standing = Demotion.objects.filter(
        policy_digest=demotion.policy_digest, guardrail=demotion.guardrail, lifted_at=None
    )
    lifted = standing.update(lifted_at=timezone.now(), lifted_by_id=None if by is None else by.pk)
    if lifted:
        _versions.pop(demotion.policy_digest, None)
        logger.info("demotion_lifted", policy=demotion.policy_name, guardrail=demotion.guardrail)
    return bool(lifted)


def _may_move(guardrail: Guardrail) -> bool:
    return guardrail.mode is Mode.MONITOR and guardrail.checkpoint is not Checkpoint.DEFERRED


def _due(guardrail: Guardrail, clock: Clock) -> Checkpoint | None:
    """Where the guardrail belongs by what was measured, if that is later than where it runs."""
    if not _may_move(guardrail):
        return None
    p95 = book(guardrail.impl).measured_p95(clock)
    if p95 is None:
        return None
    to = CHECKPOINT_OF[class_of(p95)]
    if to is Checkpoint.DEFERRED and not guardrail.applies_to <= AFTERWARDS:
        to = Checkpoint.BATCHED
    return to if later(guardrail.checkpoint, to) is not guardrail.checkpoint else None


def _read(policy: Policy, before: _Known | None, clock: Clock) -> _Known:
    known = _Known(clock(), {}, before.lifted if before is not None else set())
    rows = Demotion.objects.filter(policy_digest=policy.digest).values_list(
        "pk", "guardrail", "checkpoint", "lifted_at"
    )
    moved: set[str] = set()
    for pk, name, checkpoint, lifted_at in rows:
        if lifted_at is None:
            known.standing[name] = later(known.standing.get(name, Checkpoint.IMMEDIATE), Checkpoint(checkpoint))
        elif pk not in known.lifted:
            known.lifted.add(pk)
            moved.add(name)
    had = before.standing if before is not None else {}
    moved |= {name for name, where in known.standing.items() if had.get(name) is not where}
    for guardrail in policy.guardrails:
        if guardrail.name in moved:
            book(guardrail.impl).times.clear()  # what was measured before was measured elsewhere, or is forgiven
    while len(_versions) >= KEPT:
        _versions.pop(next(iter(_versions)), None)
    _versions[policy.digest] = known
    return known


def _demote(policy: Policy, due: dict[str, Checkpoint], clock: Clock) -> Policy:
    for name, to in due.items():
        guardrail = policy.guardrail(name)
        measured = book(guardrail.impl)
        p95, count = measured.p95_ms or 0.0, len(measured.times)
        _, new = Demotion.objects.get_or_create(
            policy_digest=policy.digest,
            guardrail=name,
            checkpoint=to.value,
            lifted_at=None,
            defaults={
                "policy_name": policy.name,
                "policy_version": policy.version,
                "declared": guardrail.impl.performance.checkpoint.value,
                "p95_ms": round(p95, 3),
                "measurements": count,
            },
        )
        if new:
            logger.warning("guardrail_demoted", policy=policy.name, guardrail=name, to=to.value, p95_ms=round(p95, 3))
    return policy.demoted(_read(policy, _versions.get(policy.digest), clock).standing)
