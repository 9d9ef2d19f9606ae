"""What others ask about policies and keys.

Protects the rule that the last good version stays: when the active version of a policy cannot be loaded, the one that
this process ran last goes on, loudly; where there is none, the policy is unavailable and nothing runs in its place.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

import structlog

from guardrails import models
from guardrails.loading import PolicyUnavailable, kept, load
from guardrails.models import ApiKey, PolicyVersion
from guardrails.policy import Policy
from guardrails.services import note_key_used
from guardrails.tokens import key_hash, key_prefix

__all__ = [
    "PolicyInfo",
    "PolicyUnavailable",
    "active_policy",
    "api_key_for",
    "forget",
    "origin_is_known",
    "policy_by_digest",
    "policy_choices",
    "version_state",
]

logger = structlog.get_logger(__name__)
_last_good: dict[str, Policy] = {}


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy with an active version. ``signed``: its signature is good; ``error`` says why it is not healthy."""

    name: str
    description: str
    version: int
    digest: str
    signed: bool
    healthy: bool
    error: str = ""


def active_policy(name: str) -> Policy:
    """The verified, compiled active version of a policy. One query when it is kept. Raises ``PolicyUnavailable``."""
    try:
        version = _active(name)
        policy = load(version)
    except PolicyUnavailable as error:
        good = _last_good.get(name)
        if good is None or error.reason in ("unknown", "inactive"):
            raise
        logger.error("policy_unhealthy", policy=name, reason=error.reason, running_version=good.version)
        return good
    _last_good[name] = policy
    return policy


def forget() -> None:
    """Drop the last good versions (tests: as after a restart)."""
    _last_good.clear()


def policy_by_digest(digest: str) -> Policy:
    """The policy that a session began with. Raises ``PolicyUnavailable``."""
    if policy := kept(digest):
        return policy
    version = PolicyVersion.objects.select_related("policy").filter(digest=digest).first()
    if version is None:
        raise PolicyUnavailable("unknown", f"there is no policy version {digest}")
    return load(version)


def policy_choices() -> list[PolicyInfo]:
    """Policies with an active version, by name, each with its state as of now."""
    versions = [
        policy.active_version
        for policy in models.Policy.objects.filter(active_version__isnull=False).select_related(
            "active_version__policy"
        )
        if policy.active_version is not None
    ]
    return [_info(version) for version in versions]


def version_state(version: PolicyVersion) -> tuple[bool, str]:
    """Whether a version would run, and in words why not."""
    try:
        load(version)
    except PolicyUnavailable as error:
        return False, str(error)
    return True, ""


def api_key_for(plaintext: str) -> ApiKey | None:
    """The key if it is known and not revoked; its time of last use is kept to the minute."""
    prefix = key_prefix(plaintext)
    key = ApiKey.objects.filter(prefix=prefix, revoked_at__isnull=True).first() if prefix else None
    if key is None or not hmac.compare_digest(key.key_hash, key_hash(plaintext)):
        return None
    note_key_used(key=key)
    return key


def origin_is_known(origin: str) -> bool:
    """Whether any key that stands names this browser origin."""
    named = ApiKey.objects.filter(revoked_at__isnull=True).exclude(origins=[]).values_list("origins", flat=True)
    return bool(origin) and any(origin in origins for origins in named)


def _active(name: str) -> PolicyVersion:
    policy = models.Policy.objects.filter(name=name).select_related("active_version__policy").first()
    if policy is None:
        raise PolicyUnavailable("unknown", f"there is no policy “{name}”")
    if policy.active_version is None:
        raise PolicyUnavailable("inactive", f"the policy “{name}” has no active version")
    return policy.active_version


def _info(version: PolicyVersion) -> PolicyInfo:
    signed, error = True, ""
    try:
        load(version)
    except PolicyUnavailable as trouble:
        signed, error = trouble.reason == "broken", str(trouble)
    name, description = version.policy.name, version.policy.description
    return PolicyInfo(name, description, version.number, version.digest, signed, not error, error)
