"""A version for a part of the conversations: begun, changed, ended.

Exists so that a new version can meet a few before it meets all. Protects the rules that there is one rollout of a
policy at a time, beside an active version for everybody else, and that how it ended stays on record.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from django.contrib.auth.models import AbstractBaseUser, Group
from django.db import transaction
from django.utils import timezone

from guardrails.loading import load
from guardrails.models import Policy, PolicyVersion, Rollout
from guardrails.stating import Refused, stated, user_id

logger = structlog.get_logger(__name__)
COHORT = "rollout"
"""The cohort of those who run what is being rolled out, in statements; there is one at a time."""


@transaction.atomic
def begin_rollout(
    *,
    version: PolicyVersion,
    percent: float = 0,
    groups: Sequence[str] = (),
    max_errors: float | None = None,
    max_would_have: float | None = None,
    sample: int = 50,
    by: AbstractBaseUser | None = None,
    note: str = "",
) -> Rollout:
    """Run a signed version for ``percent`` of the conversations and for the members of ``groups``.

    Sessions that run keep theirs. It ends when a version is activated for everyone, by ``end_rollout``, or by itself
    when it leaves a limit. Raises ``Refused``, ``PolicyUnavailable``.
    """
    _check_rollout(percent, groups, max_errors, max_would_have, sample)
    policy = Policy.objects.select_for_update().get(pk=version.policy_id)
    if policy.active_version_id is None:
        raise Refused(f"{policy} has no active version that the others could run")
    if policy.active_version_id == version.pk:
        raise Refused(f"{version} is active for everyone")
    if policy.rollout is not None:
        raise Refused(f"{policy.rollout.activation.version} is being rolled out already; end that first")
    load(version)
    activation = stated(policy, version, by, note, cohort=COHORT)
    rollout = Rollout.objects.create(
        policy=policy,
        activation=activation,
        percent=percent,
        groups=sorted(set(groups)),
        max_errors=max_errors,
        max_would_have=max_would_have,
        sample=sample,
        started_by_id=user_id(by),
    )
    policy.rollout = rollout
    policy.save(update_fields=["rollout"])
    logger.info("rollout_begun", policy=policy.name, version=version.number, percent=percent, groups=rollout.groups)
    return rollout


@transaction.atomic
def change_rollout(*, policy: Policy, percent: float, by: AbstractBaseUser | None = None) -> Rollout:
    """Another share of the conversations; a larger one keeps those that are in. Raises ``Refused``."""
    policy = Policy.objects.select_for_update().get(pk=policy.pk)
    rollout = policy.rollout
    if rollout is None:
        raise Refused(f"no version of {policy} is being rolled out")
    _check_rollout(percent, rollout.groups, rollout.max_errors, rollout.max_would_have, rollout.sample)
    before, rollout.percent = rollout.percent, percent
    rollout.save(update_fields=["percent"])
    logger.info("rollout_changed", policy=policy.name, before=before, percent=percent, by=user_id(by))
    return rollout


@transaction.atomic
def end_rollout(
    *,
    policy: Policy,
    by: AbstractBaseUser | None = None,
    why: str = "",
    only: int | None = None,
    left_limits: bool = False,
) -> Rollout | None:
    """End what is being rolled out: new sessions run the active version. None if there is nothing (any more).

    ``only``: the rollout that is meant, should another one have begun meanwhile. ``left_limits``: it is a roll-back.
    """
    policy = Policy.objects.select_for_update().get(pk=policy.pk)
    if policy.rollout is None or only not in (None, policy.rollout.pk):
        return None
    how = Rollout.Outcome.ROLLED_BACK if left_limits else Rollout.Outcome.ENDED
    return close_rollout(policy, by, how, why=why)


def close_rollout(policy: Policy, by: AbstractBaseUser | None, how: Rollout.Outcome, *, why: str) -> Rollout:
    """End the rollout of a policy whose row is locked."""
    rollout = policy.rollout
    assert rollout is not None
    policy.rollout = None
    policy.save(update_fields=["rollout"])
    rollout.outcome, rollout.ended_at, rollout.ended_by_id, rollout.ended_why = (
        how,
        timezone.now(),
        user_id(by),
        why[:200],
    )
    rollout.save(update_fields=["outcome", "ended_at", "ended_by", "ended_why"])
    tell = logger.error if how is Rollout.Outcome.ROLLED_BACK else logger.info
    tell(f"rollout_{how.value}", policy=policy.name, version=rollout.activation.version.number, why=why)
    return rollout


def _check_rollout(
    percent: float, groups: Sequence[str], max_errors: float | None, max_would_have: float | None, sample: int
) -> None:
    if not 0 <= percent <= 100:
        raise Refused("a share is between 0 and 100 percent")
    if not percent and not groups:
        raise Refused("nobody would run it: give a share of the conversations, or groups")
    if unknown := sorted(set(groups) - set(Group.objects.filter(name__in=groups).values_list("name", flat=True))):
        raise Refused(f"there is no group {', '.join(unknown)}")
    for name, limit in (("errors", max_errors), ("would-have", max_would_have)):
        if limit is not None and not 0 <= limit <= 1:
            raise Refused(f"the limit of {name} is a share between 0 and 1")
    if sample < 1:
        raise Refused("limits need a sample of one session or more")
