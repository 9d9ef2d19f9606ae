"""The verbs: draft, publish, sign, activate, roll back; and, from beside here, roll out, shadow, API keys. One
transaction each; admin, commands and API call them.

Protects the order of a version's life: what is published compiles and passes its own examples, what is signed is what
was published, what is activated verifies. Who may do it is asked by the caller; who did it is recorded here.

    Refused     the step is not possible now; its text says why
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import structlog
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from guardrails.api_keys import change_api_key, create_api_key, key_use_is_noted, note_key_used, revoke_api_key
from guardrails.client.subset import client_subset
from guardrails.command_steps import note_command_step
from guardrails.keys import signing_key, trusted_keys
from guardrails.loading import load
from guardrails.models import EVERYONE, Activation, Policy, PolicyVersion, Publication, Rollout
from guardrails.policy import PolicyError, compile_policy, normalise
from guardrails.publication import examine_document
from guardrails.rollouts import COHORT, begin_rollout, change_rollout, close_rollout, end_rollout
from guardrails.shadows import change_shadow, clear_shadow, set_shadow
from guardrails.signing import (
    KeyRefused,
    Purpose,
    SignatureRefused,
    Type,
    canonical_bytes,
    digest_of,
    verify,
)
from guardrails.signing import sign as sign_bytes
from guardrails.stating import Refused, renew_statement, renew_statements, stated, user_id

__all__ = [
    "COHORT",
    "Refused",
    "activate",
    "begin_rollout",
    "change_api_key",
    "change_rollout",
    "clear_shadow",
    "create_api_key",
    "end_rollout",
    "install",
    "key_use_is_noted",
    "note_command_step",
    "note_key_used",
    "publish",
    "renew_statement",
    "renew_statements",
    "revoke_api_key",
    "rollback",
    "save_draft",
    "set_shadow",
    "sign",
]

logger = structlog.get_logger(__name__)


def save_draft(*, document: Mapping[str, object], by: AbstractBaseUser | None = None) -> Policy:
    """Store a policy document as the draft of the policy that it names; makes the policy if there is none.

    Raises ``PolicyError`` with the path of what is refused.
    """
    draft = normalise(document)
    name = str(draft["policy"])
    with transaction.atomic():
        before = Policy.objects.select_for_update().filter(name=name).first()
        authors = set() if by is None else {by.pk}
        if before is not None and before.draft is not None:
            authors |= {*before.draft_authors, before.draft_by_id} - {None}
        edit = {
            "draft": draft,
            "draft_at": timezone.now(),
            "draft_by_id": user_id(by),
            "draft_authors": sorted(authors),
        }
        policy, _ = Policy.objects.update_or_create(
            name=name,
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
            published_by_id=user_id(by),
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
            authors=locked.draft_authors,
        )
        locked.draft, locked.draft_authors = None, []
        locked.save(update_fields=["draft", "draft_authors"])
    policy.refresh_from_db()
    logger.info("version_published", policy=policy.name, version=version.number, digest=version.digest)
    return version


def sign(*, version: PolicyVersion, by: AbstractBaseUser | None = None) -> PolicyVersion:
    """Sign a published version with the version key, and its client rules with it.

    Where four eyes are required, whoever wrote a part of it or published it cannot. Raises ``Refused``, ``KeyRefused``.
    """
    if settings.SLUICEGATE_FOUR_EYES:
        _check_four_eyes(version, by)
    return _sign(version, by)


def _check_four_eyes(version: PolicyVersion, by: AbstractBaseUser | None) -> None:
    if by is None:
        raise Refused(f"four eyes are required: say who signs {version}")
    if not (own := _authors(version)):
        raise Refused(f"four eyes are required, and nobody is on record as the author of {version}")
    if by.pk in own:
        raise Refused(f"four eyes are required: {by} wrote or published {version}, so somebody else has to sign it")
    # What nobody signed so far may live on in it: a draft begins with the newest version, signed or not.
    older = version.policy.versions.filter(number__lt=version.number)
    signed = older.exclude(signature="").aggregate(newest=Max("number"))["newest"] or 0
    for unsigned in older.filter(number__gt=signed):
        if by.pk in _authors(unsigned):
            raise Refused(
                f"four eyes are required: {by} wrote or published {unsigned}, which was never signed and may live on "
                f"in {version}, so somebody else has to sign it"
            )


def _authors(version: PolicyVersion) -> set[int]:
    """Who is on record as having written a part of a version, or published it."""
    publication = Publication.objects.filter(pk=version.pk).first()
    written = [] if publication is None else [*publication.authors, publication.written_by_id]
    return {one for one in (version.published_by_id, *written) if one is not None}


def _sign(version: PolicyVersion, by: AbstractBaseUser | None) -> PolicyVersion:
    record = version.canonical.encode()
    publication = Publication.objects.filter(pk=version.pk).first()
    said = json.loads(record)
    is_own = (said["policy"], said["version"]) == (version.policy.name, version.number)
    if digest_of(record) != version.digest or not is_own:
        raise Refused(f"{version} was altered after it was published")
    if publication is not None and not _gives(version, publication):
        raise Refused(
            f"the client rules of {version} were altered after it was published, or another release made them: "
            "publish it again"
        )
    key = signing_key(Purpose.VERSION)
    signature = sign_bytes(record, key)
    try:
        verify(signature, trusted_keys(Purpose.VERSION), Purpose.VERSION)
    except SignatureRefused as error:  # a version is signed once: by a key that nobody believes it would be lost
        raise KeyRefused(f"{version} is left unsigned, nobody would believe it: {error}") from error
    with transaction.atomic():
        if not PolicyVersion.objects.all().add_signature(pk=version.pk, signature=signature, user_id=user_id(by)):
            raise Refused(f"{version} is signed already")
        if publication is not None:
            rules = publication.client_rules.encode()
            Publication.objects.all().add_signature(pk=version.pk, signature=sign_bytes(rules, key, Type.CLIENT_RULES))
    version.refresh_from_db()
    logger.info("version_signed", policy=version.policy.name, version=version.number, digest=version.digest)
    return version


def _can_be_signed(version: PolicyVersion) -> bool:
    """Whether a version is signed, or is still what this release would publish."""
    publication = Publication.objects.filter(pk=version.pk).first()
    return bool(version.signature) or publication is None or _gives(version, publication)


def _gives(version: PolicyVersion, publication: Publication) -> bool:
    """Whether a version's own document gives these client rules. Nobody reads those before signing: what the signer
    read is the document, and a row that somebody wrote beside it must not get the signature."""
    try:
        policy = compile_policy(version.document, version=version.number, digest=version.digest)
    except PolicyError as error:
        raise Refused(f"{version} does not build any more: {error}") from error
    made = canonical_bytes(client_subset(policy, version=version.number, digest=version.digest).payload)
    return made == publication.client_rules.encode() and digest_of(made) == publication.client_digest


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
    activation = stated(policy, version, by, note, cohort=EVERYONE, least=serial)
    policy.active_version = version
    policy.activation = activation
    policy.description = str(version.document["description"])
    policy.save(update_fields=["active_version", "activation", "description"])
    if policy.rollout is not None:
        same = policy.rollout.activation.version_id == version.pk
        how = Rollout.Outcome.PROMOTED if same else Rollout.Outcome.ENDED
        close_rollout(policy, by, how, why=f"Version {version.number} was activated for everyone.")
    if policy.shadow_version_id == version.pk:
        change_shadow(policy, None, by, note="It was activated.")
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


def install(*, document: Mapping[str, object], by: AbstractBaseUser | None = None) -> tuple[PolicyVersion, bool]:
    """Publish, sign and activate a document that comes with the release or is put there by whoever has the machine,
    unless it is what the policy's newest version holds already. Four eyes are not asked for.

    Returns the version and whether it is new. Goes on where an earlier call was cut off; undoes no roll-back. Raises
    ``PolicyError``, ``Refused``, ``KeyRefused``, ``PolicyUnavailable``.
    """
    wanted = normalise(document)
    newest = PolicyVersion.objects.filter(policy__name=wanted["policy"]).order_by("-number").first()
    is_new = newest is None or newest.document != wanted or not _can_be_signed(newest)
    version = publish(policy=save_draft(document=wanted, by=by), by=by) if newest is None or is_new else newest
    if not version.signature:
        _sign(version, by)
    if not version.activations.exists():
        activate(version=version, by=by)
    return version, is_new
