"""Policies, their immutable versions, what was put to work when, and API keys.

Protects the rules that a version never changes once it is published (only its signature is added, once), that what was
activated stays on record, and that an API key is kept only as a hash. Rows change through ``services`` alone; the
database itself refuses to alter a version (migration 0002).
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, NoReturn, cast

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.utils import timezone

USER = settings.AUTH_USER_MODEL
CALLS_PER_MINUTE = 60
UPDATES_PER_SECOND = 20
"""What a new key may do, unless somebody says otherwise."""


class ImmutableRecord(Exception):
    """Code tried to change or remove a record that must stay as it is."""


class Policy(models.Model):
    """A named set of guardrails. ``draft`` is what is being edited, a validated document with its defaults;
    ``draft_authors`` are the ids of all who saved a part of it."""

    name = models.CharField(max_length=64, unique=True)
    description = models.TextField(blank=True)
    draft = models.JSONField(null=True, blank=True)
    draft_at = models.DateTimeField(null=True, blank=True, editable=False)
    draft_by = models.ForeignKey(
        USER, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    draft_authors = models.JSONField(default=list, blank=True, editable=False)
    active_version = models.ForeignKey(
        "PolicyVersion", null=True, blank=True, editable=False, on_delete=models.PROTECT, related_name="+"
    )
    activation = models.ForeignKey(
        "Activation", null=True, blank=True, editable=False, on_delete=models.PROTECT, related_name="+",
        help_text="What put the active version to work; its statement is verified whenever a session begins.",
    )  # fmt: skip
    shadow_version = models.ForeignKey(
        "PolicyVersion", null=True, blank=True, editable=False, on_delete=models.PROTECT, related_name="+",
        help_text="Runs in MONITOR beside the active version.",
    )  # fmt: skip
    shadow_asks_paid = models.BooleanField(
        db_default=True, default=True, editable=False,
        help_text="The shadow's guardrails that go over the network are asked, too.",
    )  # fmt: skip

    rollout = models.ForeignKey(
        "Rollout", null=True, blank=True, editable=False, on_delete=models.PROTECT, related_name="+",
        help_text="What runs for a part of the conversations.",
    )  # fmt: skip

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "policies"
        permissions = [("publish_policy", "Can publish a policy's draft as a version")]

    def __str__(self) -> str:
        return self.name


class _RecordQuerySet(models.QuerySet["PolicyVersion"]):
    """Rows that are added and read."""

    def update(self, **kwargs: object) -> NoReturn:
        raise ImmutableRecord("A published version cannot be changed; publish a new one.")

    def delete(self) -> NoReturn:
        raise ImmutableRecord("A published version cannot be removed.")

    def add_signature(self, *, pk: int, signature: str, user_id: int | None) -> bool:
        """The one change that a version sees: False if it is signed already, so that of two signers one wins."""
        unsigned = self.filter(pk=pk, signature="")
        changed = super(_RecordQuerySet, unsigned).update(
            signature=signature, signed_at=timezone.now(), signed_by_id=user_id
        )
        return changed == 1


class PolicyVersion(models.Model):
    """An immutable, numbered snapshot.

    ``canonical`` holds the signed bytes themselves as text (RFC 8785 JSON of ``{policy, version, document}``), not a
    JSON column: a database may write a JSON value down in other words, and then no digest would fit it any more.
    """

    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    canonical = models.TextField()
    digest = models.CharField(max_length=80, unique=True, help_text="sha256:… over the canonical bytes.")
    signature = models.TextField(blank=True, help_text="Compact JWS over the canonical bytes.")
    published_at = models.DateTimeField(default=timezone.now)
    published_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    signed_at = models.DateTimeField(null=True, blank=True)
    signed_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    notes = models.TextField(blank=True)

    objects: ClassVar[models.Manager[PolicyVersion]] = _RecordQuerySet.as_manager()

    class Meta:
        ordering = ["policy", "-number"]
        default_permissions = ["view"]
        permissions = [
            ("sign_policyversion", "Can sign a version"),
            ("activate_policyversion", "Can put a signed version to work, and roll back to an older one"),
            ("shadow_policyversion", "Can run a signed version as shadow beside the active one, and end that"),
        ]
        constraints = [models.UniqueConstraint(fields=["policy", "number"], name="version_number_once_per_policy")]

    def __str__(self) -> str:
        return f"{self.policy.name} v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Only ever an INSERT."""
        if not self._state.adding:
            raise ImmutableRecord("A published version cannot be changed; publish a new one.")
        kwargs["force_insert"] = True
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Never."""
        raise ImmutableRecord("A published version cannot be removed.")

    @property
    def document(self) -> dict[str, object]:
        """The policy document, as it can be written into a policy file. Not verified: ``loading`` does that."""
        return cast("dict[str, object]", json.loads(self.canonical)["document"])


class _PublicationQuerySet(models.QuerySet["Publication"]):
    """Rows that are added and read."""

    def update(self, **kwargs: object) -> NoReturn:
        raise ImmutableRecord("What publication made cannot be changed; publish a new version.")

    def delete(self) -> NoReturn:
        raise ImmutableRecord("What publication made cannot be removed.")

    def add_signature(self, *, pk: int, signature: str) -> bool:
        """The one change that it sees, together with the version's."""
        return (
            super(_PublicationQuerySet, self.filter(pk=pk, client_signature="")).update(client_signature=signature) == 1
        )


class Publication(models.Model):
    """What publication made of a version beside its document: the rules for clients, and the report on all that was
    tried.

    ``client_rules`` holds the signed bytes as text, like ``PolicyVersion.canonical``. A version from before there were
    client rules has none.
    """

    version = models.OneToOneField(
        PolicyVersion, primary_key=True, on_delete=models.PROTECT, related_name="publication"
    )
    client_rules = models.TextField()
    client_digest = models.CharField(max_length=80, help_text="sha256:… over the bytes of the client rules.")
    client_signature = models.TextField(blank=True, help_text="Compact JWS over the client rules.")
    report = models.JSONField(help_text="Compilation, bounds, examples, parity vectors, budget.")
    written_by = models.ForeignKey(
        USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+", help_text="Who saved the draft last."
    )
    authors = models.JSONField(default=list, help_text="Ids of all who saved a part of the draft.")

    objects: ClassVar[models.Manager[Publication]] = _PublicationQuerySet.as_manager()

    class Meta:
        default_permissions = ["view"]

    def __str__(self) -> str:
        return f"publication of {self.version}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Only ever an INSERT."""
        if not self._state.adding:
            raise ImmutableRecord("What publication made cannot be changed; publish a new version.")
        kwargs["force_insert"] = True
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Never."""
        raise ImmutableRecord("What publication made cannot be removed.")


EVERYONE = ""
"""The cohort of a policy that nobody is left out of."""


class Activation(models.Model):
    """What was put to work when, by whom and why. ``serial`` counts per policy, a roll-back included.

    ``statement`` is the signed word for it (``guardrails.statements``), renewed while it is the one at work.
    """

    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="activations")
    version = models.ForeignKey(PolicyVersion, on_delete=models.PROTECT, related_name="activations")
    serial = models.PositiveIntegerField()
    activated_at = models.DateTimeField(default=timezone.now)
    activated_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    note = models.CharField(max_length=200, blank=True, help_text="Why.")
    cohort = models.CharField(max_length=64, blank=True, default=EVERYONE, help_text="Empty: everyone.")
    statement = models.TextField(blank=True, help_text="Compact JWS by the activation key, valid for a day at most.")
    renewed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["policy", "-serial"]
        default_permissions = ["view"]
        constraints = [models.UniqueConstraint(fields=["policy", "serial"], name="activation_serial_once_per_policy")]

    def __str__(self) -> str:
        return f"{self.version} ({self.serial})"


class Rollout(models.Model):
    """A version that ran for a part of the conversations: from when to when, for whom, and how it ended.

    ``activation`` carries the statement for its cohort. Limits are shares between 0 and 1.
    """

    class Outcome(models.TextChoices):
        RUNNING = "running"
        PROMOTED = "promoted"
        ENDED = "ended"
        ROLLED_BACK = "rolled_back"

    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="rollouts")
    activation = models.OneToOneField(Activation, on_delete=models.PROTECT, related_name="rollout")
    percent = models.FloatField(default=0, help_text="Share of the conversations.")
    groups = models.JSONField(default=list, blank=True, help_text="Names of groups whose members all run it.")
    max_errors = models.FloatField(null=True, blank=True, help_text="Rolled back if a larger share of sessions fails.")
    max_would_have = models.FloatField(
        null=True, blank=True, help_text="Rolled back if MONITOR guardrails would act in a larger share."
    )
    sample = models.PositiveIntegerField(default=50, help_text="Sessions that must have ended before limits count.")
    started_at = models.DateTimeField(default=timezone.now)
    started_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    outcome = models.CharField(max_length=16, choices=Outcome.choices, default=Outcome.RUNNING)
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    ended_why = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-started_at", "-id"]
        default_permissions = ["view"]

    def __str__(self) -> str:
        return f"{self.activation.version} for {self.activation.cohort} ({self.outcome})"


class ShadowChange(models.Model):
    """What ran as shadow since when, how, and who said so. ``version`` empty: from then on, none."""

    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="shadow_changes")
    version = models.ForeignKey(PolicyVersion, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    changed_at = models.DateTimeField(default=timezone.now)
    changed_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    asks_paid = models.BooleanField(
        db_default=True, default=True, help_text="The shadow's guardrails that go over the network are asked, too."
    )
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-changed_at", "-id"]
        default_permissions = ["view"]
        indexes = [models.Index(fields=["policy", "-changed_at"])]

    def __str__(self) -> str:
        return f"{self.policy.name}: {f'v{self.version.number}' if self.version else 'none'}"


class CommandStep(models.Model):
    """A step that was taken on the command line, with the row that it was taken with; for the admin's history, where
    Django keeps only what a user did on its pages. ``by`` empty: nobody was named."""

    content_type = models.ForeignKey(ContentType, on_delete=models.PROTECT, related_name="+")
    object_id = models.PositiveBigIntegerField()
    done = models.CharField(max_length=300)
    at = models.DateTimeField(default=timezone.now)
    by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["at", "id"]
        default_permissions = []
        indexes = [models.Index(fields=["content_type", "object_id", "at"])]

    def __str__(self) -> str:
        return self.done


class Scope(models.TextChoices):
    """What a key opens."""

    CHECK = "check"
    STREAM = "stream"
    RULES = "rules"
    GATEWAY = "gateway"
    AUDIT = "audit"


class ApiKey(models.Model):
    """An API client's key. The key itself is shown once, when it is made; ``prefix`` names it afterwards."""

    name = models.CharField(max_length=100, unique=True)
    prefix = models.CharField(max_length=16, unique=True)
    key_hash = models.CharField(max_length=64, help_text="SHA-256 of the whole key, in hexadecimal.")
    scopes = models.JSONField(default=list)
    policy = models.CharField(max_length=64, blank=True, help_text="Runs when a call names none; empty: basic.")
    origins = models.JSONField(default=list, blank=True, help_text="Browser origins that may use it.")
    calls_per_minute = models.PositiveIntegerField(
        default=CALLS_PER_MINUTE, help_text="Calls that start something or check."
    )
    updates_per_second = models.PositiveIntegerField(default=UPDATES_PER_SECOND)
    answers_at_once = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Answers that it may have under way in the gateway; empty: as SLUICEGATE_GATEWAY_AT_ONCE says.",
    )
    created_at = models.DateTimeField(default=timezone.now)
    created_by = models.ForeignKey(USER, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
