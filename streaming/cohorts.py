"""Versions that are being rolled out, watched: what leaves its limits is rolled back without anybody being asked.

Exists because a canary that nobody looks at is no canary. Protects the rule that a version is judged by the sessions
that ran it while it was being rolled out and that are over, and only once there are enough of them.
"""

from __future__ import annotations

from django.db.models import Count, Q

from guardrails import services
from guardrails.cohorts import Counts, Limits, exceeded
from guardrails.findings import Outcome
from guardrails.models import Policy, Rollout
from streaming.models import AuditSession

ERROR = "error"
"""The category of what is found when a guardrail itself failed."""


def counts(rollout: Rollout) -> Counts:
    """Sessions that began and answered under the version since its rollout began.

    Failed: ended in an error, or a guardrail failed in it.
    """
    sessions = AuditSession.objects.filter(
        policy_digest=rollout.activation.version.digest,
        started_at__gte=rollout.started_at,
        answered_at__isnull=False,
    )
    failed = Q(outcome=Outcome.ERROR.value) | Q(findings__category=ERROR)
    found = sessions.aggregate(
        sessions=Count("pk", distinct=True),
        errors=Count("pk", filter=failed, distinct=True),
        would_have=Count("pk", filter=~Q(would_have=""), distinct=True),
    )
    return Counts(found["sessions"], found["errors"], found["would_have"])


def watch() -> list[str]:
    """Roll back what left its limits; the names of the policies. Runs every half a minute."""
    rolled_back = []
    running = Policy.objects.filter(rollout__isnull=False).select_related("rollout__activation__version__policy")
    for policy in running:
        rollout = policy.rollout
        assert rollout is not None
        limits = Limits(rollout.max_errors, rollout.max_would_have, rollout.sample)
        if limits.errors is None and limits.would_have is None:
            continue
        why = exceeded(counts(rollout), limits)
        if why and services.end_rollout(policy=policy, why=why, only=rollout.pk, left_limits=True):
            rolled_back.append(policy.name)
    return rolled_back
