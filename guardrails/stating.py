"""The signed word for what is put to work: made with each activation, said again while it holds.

Exists so that whatever puts a version to work, for everyone or for a few, states it in one way. Protects the rules that
serials only rise, that nothing is stated that nobody would believe, and that only what the activation key signed is
said again, never what stands in the database.

    Refused     a step is not possible now; its text says why
"""

from __future__ import annotations

import structlog
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from guardrails import seen
from guardrails.keys import signing_key, trusted_keys
from guardrails.loading import subject_of, verified_client_digest, verified_statement, wall_clock
from guardrails.models import Activation, Policy, PolicyVersion
from guardrails.signing import KeyRefused, Purpose
from guardrails.statements import RENEWED_AFTER_S, StatementRefused, Subject, issue
from guardrails.statements import read as read_statement

logger = structlog.get_logger(__name__)


class Refused(ValueError):
    """A step that is not possible as things stand."""

    permanent = True


def user_id(user: AbstractBaseUser | None) -> int | None:
    """What a row says about who did something; None: nobody is on record."""
    return None if user is None else user.pk


def stated(
    policy: Policy, version: PolicyVersion, by: AbstractBaseUser | None, note: str, *, cohort: str, least: int = 0
) -> Activation:
    """The next activation of a policy, with its statement."""
    last = policy.activations.aggregate(last=Max("serial"))["last"] or 0
    activation = Activation(policy=policy, version=version, activated_by_id=user_id(by), note=note[:200], cohort=cohort)
    # A database that was restored is behind what was seen here, and every lower serial would be refused.
    activation.serial = max(last, seen.highest((settings.SLUICEGATE_ISSUER, policy.name, cohort)), least - 1) + 1
    subject = subject_of(activation, client_digest=verified_client_digest(version))
    activation.statement = _issued(subject, now=wall_clock())
    activation.save()
    return activation


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
    if later.exists() or said.serial < seen.highest((said.issuer, said.policy, said.cohort)):
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
