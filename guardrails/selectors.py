"""What others ask about policies and keys.

Protects the rule that the last good version stays: when the active version of a policy cannot be loaded, the one that
this process ran last goes on, loudly; where there is none, the policy is unavailable and nothing runs in its place.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, replace

import structlog
from django.contrib.auth.models import Group

from guardrails import models
from guardrails.bundle import make_bundle
from guardrails.cohorts import Subject, belongs
from guardrails.keys import signing_key
from guardrails.loading import (
    PolicyUnavailable,
    check_activation,
    kept,
    load,
    verified_client_digest,
    verified_statement,
)
from guardrails.models import ApiKey, PolicyVersion
from guardrails.policy import Policy
from guardrails.services import COHORT, note_key_used
from guardrails.signing import Purpose
from guardrails.tokens import key_hash, key_prefix
from guardrails.unchanged import Unchanged

__all__ = [
    "ClientBundle",
    "PolicyInfo",
    "PolicyUnavailable",
    "Running",
    "ShadowPolicy",
    "active_policy",
    "api_key_for",
    "api_key_read",
    "client_bundle",
    "forget",
    "origin_is_known",
    "policy_by_digest",
    "policy_choices",
    "running_policy",
    "version_state",
]

logger = structlog.get_logger(__name__)
NOBODY = Subject()
"""A session of which nothing is known."""
_last_good: dict[str, Policy] = {}
_sick: dict[int, tuple[tuple[str, str], float, str]] = {}
SICK_S = 30.0
"""For so long a shadow that did not load is not tried again: a failing compilation must not cost every session."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy with an active version. ``signed``: its signature is good; ``error`` says why it is not healthy.

    ``running``: the number of the last good version, which new sessions of this process run while it is not healthy; 0:
    there is none, and they are refused.
    ``shadow``: the number of the version that runs beside it, 0 if none does; ``shadow_error`` says why it cannot.
    """

    name: str
    description: str
    version: int
    digest: str
    signed: bool
    healthy: bool
    error: str = ""
    shadow: int = 0
    shadow_error: str = ""
    running: int = 0


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """The version that is to run beside the active one. ``policy`` None: it does not load; ``reason`` says why.

    ``paid``: its guardrails that go over the network are asked, too.
    """

    version: int
    digest: str
    policy: Policy | None
    reason: str = ""
    paid: bool = True


@dataclass(frozen=True, slots=True)
class Running:
    """What a session that begins now runs under."""

    policy: Policy
    shadow: ShadowPolicy | None = None
    cohort: str = ""


@dataclass(frozen=True, slots=True)
class ClientBundle:
    """The signed rules for clients of a policy's active version. ``expires_at``: seconds since 1970."""

    policy: str
    version: int
    digest: str
    expires_at: int
    bundle: str


class NoClientRules(Exception):
    """A version from before there were client rules."""

    permanent = True


def client_bundle(name: str) -> ClientBundle:
    """The bundle of the active version, everything in it verified now; there is no last good one: clients keep theirs.

    Raises ``PolicyUnavailable``, ``NoClientRules``, ``KeyRefused``.
    """
    row = _policy_row(name)
    version = _active(name, row)
    assert row is not None
    check_activation(row.activation, version)
    assert row.activation is not None
    statement = verified_statement(row.activation)
    if not statement.client_digest:
        raise NoClientRules(f"{version} was published without rules for clients; publish and activate it anew")
    if verified_client_digest(version) != statement.client_digest:
        raise PolicyUnavailable("altered", f"the client rules of {version} are not those that were activated")
    signature = models.Publication.objects.values_list("client_signature", flat=True).get(pk=version.pk)
    made = make_bundle(activation=row.activation.statement, client_rules=signature, key=signing_key(Purpose.ACTIVATION))
    return ClientBundle(name, version.number, version.digest, statement.exp, made)


def active_policy(name: str) -> Policy:
    """The verified, compiled active version of a policy. One query when it is kept. Raises ``PolicyUnavailable``."""
    return _good_or_last(name, _policy_row(name))


def running_policy(name: str, subject: Subject = NOBODY) -> Running:
    """What a session of this subject runs: the version that is being rolled out if it is in that cohort, else the
    active one; and the shadow if there is one. One query, and one more where groups matter. Raises
    ``PolicyUnavailable``.

    A version that is being rolled out and does not load is told loudly, and the active one runs.
    A shadow that does not load is no reason to refuse anything; it is told loudly and stands in every session's record.
    """
    row = _policy_row(name)
    policy = None if row is None or row.rollout is None else _rolled_out(row, row.rollout, subject)
    cohort = row.rollout.activation.cohort if row is not None and row.rollout is not None and policy else ""
    policy = policy or _good_or_last(name, row)
    version = row.shadow_version if row is not None else None
    if version is not None and version.digest == policy.digest:
        version = None  # it would be compared with itself
    shadow = None if version is None or row is None else replace(_shadow(version), paid=row.shadow_asks_paid)
    return Running(policy, shadow, cohort)


def _rolled_out(row: models.Policy, rollout: models.Rollout, subject: Subject) -> Policy | None:
    """The version of a rollout, if the subject is in its cohort and the version can run."""
    name = f"{rollout.policy_id}/{rollout.pk}"
    if not belongs(subject, name=name, percent=rollout.percent, groups=rollout.groups, groups_of=_groups_of):
        return None
    version = rollout.activation.version
    try:
        _check_own(row, version)
        policy = load(version)
        check_activation(rollout.activation, version, cohort=COHORT)
    except PolicyUnavailable as error:
        logger.error("rollout_unhealthy", policy=row.name, version=version.number, reason=error.reason)
        return None
    return policy


def _groups_of(user_id: int) -> set[str]:
    return set(Group.objects.filter(user=user_id, user__is_active=True).values_list("name", flat=True))


def _shadow(version: PolicyVersion) -> ShadowPolicy:
    row = (version.digest, version.signature)
    known = _sick.get(version.pk)
    if known is not None and known[0] == row and time.monotonic() < known[1]:
        return ShadowPolicy(version.number, version.digest, None, known[2])
    try:
        found = ShadowPolicy(version.number, version.digest, load(version))
    except PolicyUnavailable as error:
        why = str(error)
        logger.error("shadow_unhealthy", policy=version.policy.name, version=version.number, reason=error.reason)
    except Exception as error:  # whatever it is, no session may end by it
        why = f"{version} does not load ({type(error).__name__})"
        logger.exception("shadow_unhealthy", policy=version.policy.name, version=version.number)
    else:
        _sick.pop(version.pk, None)
        return found
    _sick[version.pk] = (row, time.monotonic() + SICK_S, why)
    return ShadowPolicy(version.number, version.digest, None, why)


def _good_or_last(name: str, row: models.Policy | None, *, again: bool = True) -> Policy:
    try:
        version = _active(name, row)
        policy = load(version)
        check_activation(row.activation if row is not None else None, version)
    except PolicyUnavailable as error:
        if error.reason == "replayed" and again:  # another thread saw an activation that is newer than our row
            return _good_or_last(name, _policy_row(name), again=False)
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
    _sick.clear()
    _policies.forget()
    _keys.forget()


def policy_by_digest(digest: str) -> Policy:
    """The policy that a session began with. Raises ``PolicyUnavailable``."""
    if policy := kept(digest):
        return policy
    version = PolicyVersion.objects.select_related("policy").filter(digest=digest).first()
    if version is None:
        raise PolicyUnavailable("unknown", f"there is no policy version {digest}")
    return load(version)


def shadow_pays(digest: str) -> bool:
    """Whether that version still runs as a shadow whose guardrails that go over the network are asked."""
    return models.Policy.objects.filter(shadow_version__digest=digest, shadow_asks_paid=True).exists()


def policy_choices() -> list[PolicyInfo]:
    """Policies with an active version, by name, each with its state as of now."""
    rows = models.Policy.objects.filter(active_version__isnull=False).select_related(*_WITH)
    wired = map(_wired, rows)
    return [_info(row, row.active_version, row.shadow_version) for row in wired if row.active_version is not None]


def version_state(version: PolicyVersion) -> tuple[bool, str]:
    """Whether a version would run, and in words why not."""
    try:
        load(version)
    except PolicyUnavailable as error:
        return False, str(error)
    return True, ""


def api_key_for(plaintext: str) -> ApiKey | None:
    """The key if it is known and not revoked; its time of last use is kept to the minute."""
    key = api_key_read(plaintext)
    if key is not None:
        note_key_used(key=key)
    return key


def api_key_read(plaintext: str) -> ApiKey | None:
    """The same where nothing may be stored; that it was used is the caller's to note."""
    prefix = key_prefix(plaintext)
    key = next(iter(_keys.rows(prefix)), None) if prefix else None
    if key is None or not hmac.compare_digest(key.key_hash, key_hash(plaintext)):
        return None
    return key


def origin_is_known(origin: str) -> bool:
    """Whether any key that stands names this browser origin."""
    named = ApiKey.objects.filter(revoked_at__isnull=True).exclude(origins=[]).values_list("origins", flat=True)
    return bool(origin) and any(origin in origins for origins in named)


def _policy_row(name: str) -> models.Policy | None:
    return next(map(_wired, _policies.rows(name)), None)


_WITH = ("active_version", "activation", "shadow_version", "rollout__activation__version")
"""What one query brings along; policies of versions and versions of activations are mostly what is there already."""
# An order for the one row that there can be costs as much as the rest.
_policies = Unchanged(lambda name: models.Policy.objects.filter(name=name).select_related(*_WITH).order_by())
_keys = Unchanged(lambda prefix: ApiKey.objects.filter(prefix=prefix, revoked_at__isnull=True).order_by())


def _wired(row: models.Policy) -> models.Policy:
    """Without the queries, or joins over large columns, for rows that are at hand. What does not fit stays unwired, and
    is then found out by whoever looks."""
    rolled_out = None if row.rollout is None else row.rollout.activation.version
    for version in (row.active_version, row.shadow_version, rolled_out):
        if version is not None and version.policy_id == row.pk:
            version.policy = row
    if row.activation is not None and row.activation.version_id == row.active_version_id:
        row.activation.version = row.active_version  # type: ignore[assignment]  # the ids say that it is one
    return row


def _active(name: str, policy: models.Policy | None) -> PolicyVersion:
    if policy is None:
        raise PolicyUnavailable("unknown", f"there is no policy “{name}”")
    if policy.active_version is None:
        raise PolicyUnavailable("inactive", f"the policy “{name}” has no active version")
    _check_own(policy, policy.active_version)
    return policy.active_version


def _check_own(policy: models.Policy, version: PolicyVersion) -> None:
    """Raises ``PolicyUnavailable`` for a version of another policy, however well it is signed and stated."""
    if version.policy_id != policy.pk:
        raise PolicyUnavailable("altered", f"{version} is no version of the policy “{policy.name}”")


def _info(row: models.Policy, version: PolicyVersion, shadow: PolicyVersion | None) -> PolicyInfo:
    signed, error = True, ""
    try:
        _check_own(row, version)
        load(version)
        check_activation(row.activation, version)
    except PolicyUnavailable as trouble:
        signed, error = trouble.reason == "broken", str(trouble)
    name, description = row.name, row.description
    number, shadow_error = 0, ""
    if shadow is not None:
        tried = _shadow(shadow)
        number, shadow_error = tried.version, tried.reason
    good = _last_good.get(name) if error else None
    running = 0 if good is None else good.version
    return PolicyInfo(
        name, description, version.number, version.digest, signed, not error, error, number, shadow_error, running
    )
