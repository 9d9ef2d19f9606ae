"""The verbs: draft, publish, sign, activate, shadow; API keys. One transaction each; admin, commands and API call them.

Protects the order of a version's life: what is published compiles and passes its own examples, what is signed is what
was published, what is activated verifies. Who may do it is asked by the caller; who did it is recorded here.

    Refused     the step is not possible now; its text says why
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypedDict

import structlog
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, Group
from django.db import transaction
from django.db.models import Max, Q
from django.utils import timezone

from guardrails import tokens
from guardrails.keys import signing_key, trusted_keys
from guardrails.loading import is_about, load, subject_of, verified_client_digest, verified_statement, wall_clock
from guardrails.models import (
    CALLS_PER_MINUTE,
    EVERYONE,
    UPDATES_PER_SECOND,
    Activation,
    ApiKey,
    Policy,
    PolicyVersion,
    Publication,
    Rollout,
    Scope,
    ShadowChange,
)
from guardrails.origins import origin
from guardrails.policy import normalise
from guardrails.publication import examine_document
from guardrails.signing import (
    KeyRefused,
    Purpose,
    SignatureRefused,
    SigningKey,
    Type,
    canonical_bytes,
    digest_of,
    verify,
)
from guardrails.signing import sign as sign_bytes
from guardrails.statements import RENEWED_AFTER_S, StatementRefused, Subject, issue
from guardrails.statements import read as read_statement

logger = structlog.get_logger(__name__)
COHORT = "rollout"
"""The cohort of those who run what is being rolled out, in statements; there is one at a time."""
KEY_USE_NOTED_EVERY = timedelta(minutes=1)
"""A busy key costs one UPDATE in this time, not one per call."""


class Refused(ValueError):
    """A step that is not possible as things stand."""

    permanent = True


def save_draft(*, document: Mapping[str, object], by: AbstractBaseUser | None = None) -> Policy:
    """Store a policy document as the draft of the policy that it names; makes the policy if there is none.

    Raises ``PolicyError`` with the path of what is refused.
    """
    draft = normalise(document)
    edit = {"draft": draft, "draft_at": timezone.now(), "draft_by_id": _id(by)}
    policy, _ = Policy.objects.update_or_create(
        name=str(draft["policy"]),
        defaults=edit,
        create_defaults={**edit, "description": str(draft["description"])},
    )
    return policy


def publish(*, policy: Policy, by: AbstractBaseUser | None = None, notes: str = "") -> PolicyVersion:
    """Freeze the policy's draft as its next version. Raises ``Refused``, ``PolicyError``."""
    policy.refresh_from_db()
    draft = policy.draft
    if draft is None:
        raise Refused(f"{policy} has no draft to publish")
    # Compiling takes its time; it is done before the transaction, which on SQLite keeps every other writer waiting.
    examined = examine_document(draft)
    if failures := examined.failures:
        raise Refused(f"{policy} comes out wrong: " + "; ".join(map(str, failures)))
    with transaction.atomic():
        locked = Policy.objects.select_for_update().get(pk=policy.pk)
        if locked.draft != draft:
            raise Refused(f"the draft of {policy} was changed while it was being published")
        newest = locked.versions.aggregate(newest=Max("number"))["newest"] or 0
        record = canonical_bytes({"policy": locked.name, "version": newest + 1, "document": draft})
        version = PolicyVersion.objects.create(
            policy=locked,
            number=newest + 1,
            canonical=record.decode(),
            digest=digest_of(record),
            published_by_id=_id(by),
            notes=notes,
        )
        # What clients get names the very version that it is a part of.
        rules = canonical_bytes({**examined.subset.payload, "version": version.number, "digest": version.digest})
        Publication.objects.create(
            version=version,
            client_rules=rules.decode(),
            client_digest=digest_of(rules),
            report=examined.as_dict(),
            written_by_id=locked.draft_by_id,
        )
        locked.draft = None
        locked.save(update_fields=["draft"])
    policy.refresh_from_db()
    logger.info("version_published", policy=policy.name, version=version.number, digest=version.digest)
    return version


def sign(*, version: PolicyVersion, by: AbstractBaseUser | None = None) -> PolicyVersion:
    """Sign a published version with the version key, and its client rules with it.

    Where four eyes are required, whoever wrote or published it cannot sign it. Raises ``Refused``, ``KeyRefused``.
    """
    if settings.SLUICEGATE_FOUR_EYES:
        _check_four_eyes(version, by)
    return _sign(version, by)


def _check_four_eyes(version: PolicyVersion, by: AbstractBaseUser | None) -> None:
    if by is None:
        raise Refused(f"four eyes are required: say who signs {version}")
    publication = Publication.objects.filter(pk=version.pk).first()
    authors = {version.published_by_id, None if publication is None else publication.written_by_id} - {None}
    if not authors:
        raise Refused(f"four eyes are required, and nobody is on record as the author of {version}")
    if by.pk in authors:
        raise Refused(f"four eyes are required: {by} wrote or published {version}, so somebody else has to sign it")


def _sign(version: PolicyVersion, by: AbstractBaseUser | None) -> PolicyVersion:
    record = version.canonical.encode()
    publication = Publication.objects.filter(pk=version.pk).first()
    if digest_of(record) != version.digest:
        raise Refused(f"{version} was altered after it was published")
    key = signing_key(Purpose.VERSION)
    signature = sign_bytes(record, key)
    try:
        verify(signature, trusted_keys(Purpose.VERSION), Purpose.VERSION)
    except SignatureRefused as error:  # a version is signed once: by a key that nobody believes it would be lost
        raise KeyRefused(f"{version} is left unsigned, nobody would believe it: {error}") from error
    with transaction.atomic():
        if not PolicyVersion.objects.all().add_signature(pk=version.pk, signature=signature, user_id=_id(by)):
            raise Refused(f"{version} is signed already")
        if publication is not None:
            _sign_client_rules(version, publication, key)
    version.refresh_from_db()
    logger.info("version_signed", policy=version.policy.name, version=version.number, digest=version.digest)
    return version


def _sign_client_rules(version: PolicyVersion, publication: Publication, key: SigningKey) -> None:
    rules = publication.client_rules.encode()
    if digest_of(rules) != publication.client_digest or not is_about(rules, version):
        raise Refused(f"the client rules of {version} were altered after it was published")
    Publication.objects.all().add_signature(pk=version.pk, signature=sign_bytes(rules, key, Type.CLIENT_RULES))


@transaction.atomic
def activate(
    *, version: PolicyVersion, by: AbstractBaseUser | None = None, note: str = "", serial: int = 0
) -> Activation:
    """Put a signed version to work; an older one than the active is a roll-back. Raises ``PolicyUnavailable``.

    ``serial``: the least that its serial has to be, for a database that was restored and is behind what clients saw.
    Sessions that run keep the version that they began with. A version that was the policy's shadow is so no more.
    Raises ``KeyRefused`` if nobody believes the activation key.
    """
    policy = Policy.objects.select_for_update().get(pk=version.policy_id)
    load(version)
    activation = _stated(policy, version, by, note, cohort=EVERYONE, least=serial)
    policy.active_version = version
    policy.activation = activation
    policy.description = str(version.document["description"])
    policy.save(update_fields=["active_version", "activation", "description"])
    if policy.rollout is not None:
        same = policy.rollout.activation.version_id == version.pk
        how = Rollout.Outcome.PROMOTED if same else Rollout.Outcome.ENDED
        _end_rollout(policy, by, how, why=f"Version {version.number} was activated for everyone.")
    if policy.shadow_version_id == version.pk:
        _change_shadow(policy, None, by, note="It was activated.")
    logger.info("version_activated", policy=policy.name, version=version.number, serial=activation.serial)
    return activation


def rollback(
    *, policy: Policy, number: int | None = None, by: AbstractBaseUser | None = None, note: str = ""
) -> Activation:
    """Put an older version to work: the one named, else the newest one that was at work before and is older.

    A higher serial with an older version: clients follow it, and no replay can undo it. Raises ``Refused``,
    ``PolicyUnavailable`` (never signed, altered, signed by a revoked key).
    """
    policy = Policy.objects.select_related("active_version").get(pk=policy.pk)
    active = policy.active_version
    if active is None:
        raise Refused(f"{policy} has no active version to roll back from")
    older = policy.versions.filter(number__lt=active.number)
    if number is None:
        version = older.filter(activations__cohort=EVERYONE).order_by("-number").first()
        if version is None:
            raise Refused(f"no version of {policy} older than version {active.number} was ever active")
    else:
        version = older.filter(number=number).first()
        if version is None:
            known = policy.versions.filter(number=number).exists()
            why = f"is not older than the active version {active.number}" if known else "does not exist"
            raise Refused(f"version {number} of {policy} {why}")
    return activate(version=version, by=by, note=note or f"Roll-back from version {active.number}.")


@transaction.atomic
def renew_statement(*, activation: Activation) -> bool:
    """Say again, from now on, what an activation's statement says; False if that is not due.

    What the database says is not taken for it: only a statement that the activation key signed, about this very
    activation, is said again; how long ago it lapsed does not matter. One that another has followed is a replay, and is
    not: else an old row put back would be given a new life. Raises ``StatementRefused``, ``KeyRefused``.
    """
    activation = Activation.objects.select_for_update().get(pk=activation.pk)
    said = verified_statement(activation)
    later = Activation.objects.filter(policy=activation.policy_id, cohort=activation.cohort, serial__gt=said.serial)
    if later.exists():
        raise StatementRefused("replayed", f"serial {said.serial} was followed by a higher one")
    now = wall_clock()
    if said.iat <= now < said.iat + RENEWED_AFTER_S:
        return False
    activation.statement = _issued(said.subject, now=now)
    activation.renewed_at = timezone.now()
    activation.save(update_fields=["statement", "renewed_at"])
    return True


def renew_statements() -> int:
    """Renew what is due of all that is at work; how many were. What cannot be renewed is told loudly and left."""
    renewed = 0
    for activation in Activation.objects.filter(pk__in=_at_work()).select_related("version__policy"):
        try:
            renewed += renew_statement(activation=activation)
        except (StatementRefused, KeyRefused) as error:
            version = activation.version
            logger.error(
                "statement_not_renewed",
                policy=version.policy.name,
                version=version.number,
                serial=activation.serial,
                error=str(error),
            )
    return renewed


def _issued(subject: Subject, *, now: float) -> str:
    """A statement that is believed. One by a key that nobody believes would put out of work what runs."""
    statement = issue(subject, now=now, key=signing_key(Purpose.ACTIVATION))
    try:
        read_statement(statement, trusted_keys(Purpose.ACTIVATION))
    except StatementRefused as error:
        raise KeyRefused(f"nothing is stated, nobody would believe it: {error}") from error
    return statement


def _at_work() -> list[int]:
    rows = Policy.objects.values_list("activation", "rollout__activation")
    return [pk for row in rows for pk in row if pk is not None]


def _stated(
    policy: Policy, version: PolicyVersion, by: AbstractBaseUser | None, note: str, *, cohort: str, least: int = 0
) -> Activation:
    """The next activation of a policy, with its statement."""
    last = policy.activations.aggregate(last=Max("serial"))["last"] or 0
    serial = max(last + 1, least)
    activation = Activation(
        policy=policy, version=version, serial=serial, activated_by_id=_id(by), note=note[:200], cohort=cohort
    )
    subject = subject_of(activation, client_digest=verified_client_digest(version))
    activation.statement = _issued(subject, now=wall_clock())
    activation.save()
    return activation


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
    activation = _stated(policy, version, by, note, cohort=COHORT)
    rollout = Rollout.objects.create(
        policy=policy,
        activation=activation,
        percent=percent,
        groups=sorted(set(groups)),
        max_errors=max_errors,
        max_would_have=max_would_have,
        sample=sample,
        started_by_id=_id(by),
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
    logger.info("rollout_changed", policy=policy.name, before=before, percent=percent, by=_id(by))
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
    return _end_rollout(policy, by, how, why=why)


def _end_rollout(policy: Policy, by: AbstractBaseUser | None, how: Rollout.Outcome, *, why: str) -> Rollout:
    rollout = policy.rollout
    assert rollout is not None
    policy.rollout = None
    policy.save(update_fields=["rollout"])
    rollout.outcome, rollout.ended_at, rollout.ended_by_id, rollout.ended_why = how, timezone.now(), _id(by), why[:200]
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


@transaction.atomic
def set_shadow(*, version: PolicyVersion, by: AbstractBaseUser | None = None, note: str = "") -> ShadowChange | None:
    """Run a signed version in MONITOR beside the active one; None when it does so already.

    It takes the place of the shadow before it. Raises ``Refused``, ``PolicyUnavailable``.
    """
    policy = Policy.objects.select_for_update().get(pk=version.policy_id)
    if policy.active_version_id is None:
        raise Refused(f"{policy} has no active version that {version} could run beside")
    if policy.active_version_id == version.pk:
        raise Refused(f"{version} is the active version; a shadow is another one")
    load(version)
    if policy.shadow_version_id == version.pk:
        return None
    return _change_shadow(policy, version, by, note)


@transaction.atomic
def clear_shadow(*, policy: Policy, by: AbstractBaseUser | None = None, note: str = "") -> ShadowChange | None:
    """End a policy's shadow; None when it has none. Answers that are under way keep theirs to their end."""
    policy = Policy.objects.select_for_update().get(pk=policy.pk)
    return None if policy.shadow_version_id is None else _change_shadow(policy, None, by, note)


def _change_shadow(
    policy: Policy, version: PolicyVersion | None, by: AbstractBaseUser | None, note: str
) -> ShadowChange:
    policy.shadow_version = version
    policy.save(update_fields=["shadow_version"])
    change = ShadowChange.objects.create(policy=policy, version=version, changed_by_id=_id(by), note=note[:200])
    logger.info("shadow_changed", policy=policy.name, version=version.number if version else None)
    return change


def install(*, document: Mapping[str, object], by: AbstractBaseUser | None = None) -> tuple[PolicyVersion, bool]:
    """Publish, sign and activate a document that comes with the release or is put there by whoever has the machine,
    unless it is what the policy's newest version holds already. Four eyes are not asked for.

    Returns the version and whether it is new. Goes on where an earlier call was cut off; undoes no roll-back. Raises
    ``PolicyError``, ``Refused``, ``KeyRefused``, ``PolicyUnavailable``.
    """
    wanted = normalise(document)
    newest = PolicyVersion.objects.filter(policy__name=wanted["policy"]).order_by("-number").first()
    is_new = newest is None or newest.document != wanted
    version = publish(policy=save_draft(document=wanted, by=by), by=by) if newest is None or is_new else newest
    if not version.signature:
        _sign(version, by)
    if not version.activations.exists():
        activate(version=version, by=by)
    return version, is_new


def create_api_key(
    *,
    name: str,
    scopes: Sequence[str],
    policy: str = "",
    origins: Sequence[str] = (),
    calls_per_minute: int = CALLS_PER_MINUTE,
    updates_per_second: int = UPDATES_PER_SECOND,
    by: AbstractBaseUser | None = None,
) -> tuple[ApiKey, str]:
    """Make an API key; the second value is the key itself, which nothing can show again. Raises ``Refused``."""
    allowed = _allowed(name, scopes, policy, origins, calls_per_minute, updates_per_second)
    plaintext = tokens.new_key()
    key, made = ApiKey.objects.get_or_create(
        name=allowed["name"],
        defaults={
            **allowed,
            "prefix": tokens.key_prefix(plaintext),
            "key_hash": tokens.key_hash(plaintext),
            "created_by_id": _id(by),
        },
    )
    if not made:
        raise Refused(f"there is a key named “{name}” already")
    return key, plaintext


@transaction.atomic
def change_api_key(
    *,
    key: ApiKey,
    name: str,
    scopes: Sequence[str],
    policy: str,
    origins: Sequence[str],
    calls_per_minute: int,
    updates_per_second: int,
) -> ApiKey:
    """Change what a key may do; the key itself stays what it is. Raises ``Refused``."""
    allowed = _allowed(name, scopes, policy, origins, calls_per_minute, updates_per_second)
    if ApiKey.objects.filter(name=allowed["name"]).exclude(pk=key.pk).exists():
        raise Refused(f"there is a key named “{name}” already")
    ApiKey.objects.filter(pk=key.pk).update(**allowed)
    key.refresh_from_db()
    return key


def revoke_api_key(*, key: ApiKey) -> ApiKey:
    """Close a key for good; the first time stays recorded."""
    ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(revoked_at=timezone.now())
    key.refresh_from_db()
    return key


def note_key_used(*, key: ApiKey) -> None:
    """Record that a key was used."""
    now = timezone.now()
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=now - KEY_USE_NOTED_EVERY)
    if key.last_used_at is None or key.last_used_at < now - KEY_USE_NOTED_EVERY:
        ApiKey.objects.filter(stale, pk=key.pk).update(last_used_at=now)


class _Allowed(TypedDict):
    """What a key may do, as its columns hold it."""

    name: str
    scopes: list[str]
    policy: str
    origins: list[str]
    calls_per_minute: int
    updates_per_second: int


def _allowed(
    name: str,
    scopes: Sequence[str],
    policy: str,
    origins: Sequence[str],
    calls_per_minute: int,
    updates_per_second: int,
) -> _Allowed:
    if not name.strip():
        raise Refused("a key needs a name")
    if unknown := sorted(set(scopes) - set(Scope.values)):
        raise Refused(f"unknown scopes: {', '.join(unknown)}; known: {', '.join(Scope.values)}")
    if not scopes:
        raise Refused("a key without a scope opens nothing")
    if policy and not Policy.objects.filter(name=policy).exists():
        raise Refused(f"there is no policy “{policy}”")
    if min(calls_per_minute, updates_per_second) < 1:
        raise Refused("a key's limits are 1 or more; to close a key, revoke it")
    try:
        as_sent = [origin(written) for written in origins]
    except ValueError as error:
        raise Refused(str(error)) from None
    return {
        "name": name.strip(),
        "scopes": [scope for scope in Scope.values if scope in scopes],
        "policy": policy,
        "origins": list(dict.fromkeys(as_sent)),
        "calls_per_minute": calls_per_minute,
        "updates_per_second": updates_per_second,
    }


def _id(user: AbstractBaseUser | None) -> int | None:
    return None if user is None else user.pk
