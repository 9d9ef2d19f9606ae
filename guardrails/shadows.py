"""A version that runs in MONITOR beside the active one: set, cleared, on record."""

from __future__ import annotations

import structlog
from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction

from guardrails.loading import load
from guardrails.models import Policy, PolicyVersion, ShadowChange
from guardrails.stating import Refused, user_id

logger = structlog.get_logger(__name__)


@transaction.atomic
def set_shadow(
    *, version: PolicyVersion, by: AbstractBaseUser | None = None, note: str = "", asks_paid: bool = True
) -> ShadowChange | None:
    """Run a signed version in MONITOR beside the active one; None when it does so already.

    ``asks_paid``: its guardrails that go over the network are asked, too. It takes the place of the shadow before it.
    Raises ``Refused``, ``PolicyUnavailable``.
    """
    policy = Policy.objects.select_for_update().get(pk=version.policy_id)
    if policy.active_version_id is None:
        raise Refused(f"{policy} has no active version that {version} could run beside")
    if policy.active_version_id == version.pk:
        raise Refused(f"{version} is the active version; a shadow is another one")
    load(version)
    if (policy.shadow_version_id, policy.shadow_asks_paid) == (version.pk, asks_paid):
        return None
    return change_shadow(policy, version, by, note, asks_paid=asks_paid)


@transaction.atomic
def clear_shadow(*, policy: Policy, by: AbstractBaseUser | None = None, note: str = "") -> ShadowChange | None:
    """End a policy's shadow; None when it has none. Answers that are under way keep theirs to their end."""
    policy = Policy.objects.select_for_update().get(pk=policy.pk)
    return None if policy.shadow_version_id is None else change_shadow(policy, None, by, note)


def change_shadow(
    policy: Policy, version: PolicyVersion | None, by: AbstractBaseUser | None, note: str, *, asks_paid: bool = True
) -> ShadowChange:
    """Put a version, or none, in the place of the shadow of a policy whose row is locked."""
    policy.shadow_version, policy.shadow_asks_paid = version, asks_paid
    policy.save(update_fields=["shadow_version", "shadow_asks_paid"])
    change = ShadowChange.objects.create(
        policy=policy, version=version, changed_by_id=user_id(by), note=note[:200], asks_paid=asks_paid
    )
    logger.info("shadow_changed", policy=policy.name, version=version.number if version else None)
    return change
