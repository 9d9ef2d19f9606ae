"""Ready-made groups: who drafts, who signs, who puts to work, who reviews, who looks on.

Exists so that separate duties are there from the start, for guardrails and audit alike. Protects the rule that a group
is made once: what an administrator takes out of one afterwards, or puts into it, stays. One that was deleted is made
again by the next ``migrate``.
"""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import Group, Permission
from django.db.models import Q

_LOOK = (
    "guardrails.view_policy", "guardrails.view_policyversion", "guardrails.view_activation",
    "guardrails.view_publication", "guardrails.view_shadowchange", "guardrails.view_rollout",
)  # fmt: skip
_RECORD = ("streaming.view_auditsession", "streaming.view_finding", "streaming.view_review")
ROLES: dict[str, tuple[str, ...]] = {
    "Author": (*_LOOK, "guardrails.add_policy", "guardrails.change_policy", "guardrails.publish_policy"),
    "Signer": (*_LOOK, "guardrails.sign_policyversion"),
    "Operator": (
        *_LOOK, "guardrails.activate_policyversion", "guardrails.shadow_policyversion",
        "streaming.view_demotion", "streaming.lift_demotion", "streaming.view_deferredcheck",
        "streaming.retry_deferredcheck", "streaming.view_configuredprovider",
        "streaming.view_upstream", "streaming.add_upstream", "streaming.change_upstream", "streaming.delete_upstream",
    ),
    "Reviewer": (*_LOOK, *_RECORD, "streaming.add_review", "streaming.reveal_text"),
    "Auditor": (
        *_LOOK, *_RECORD, "streaming.view_auditentry", "streaming.view_demotion", "streaming.view_deferredcheck",
        "streaming.view_configuredprovider",
    ),
}  # fmt: skip
"""Permissions by group. No two of drafting, signing and activating are in one."""


def make_groups(app_config: AppConfig, using: str = "default", **_: object) -> None:
    """After ``migrate``: make the groups that are not there."""
    missing = [name for name in ROLES if not Group.objects.using(using).filter(name=name).exists()]
    if not missing:
        return
    create_permissions(app_config, verbosity=0, using=using)  # ours come by the same signal, perhaps after this
    for name in missing:
        wanted = Q()
        for permission in ROLES[name]:
            app, codename = permission.split(".")
            wanted |= Q(content_type__app_label=app, codename=codename)
        group, made = Group.objects.using(using).get_or_create(name=name)
        if made:
            group.permissions.set(Permission.objects.using(using).filter(wanted))
