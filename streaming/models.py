"""What is kept of a conversation and of each guarded stream.

Exists because before the first and after the last event the database alone says what a session was: a prompt and a
placeholder are stored before streaming, the visible text after. Protects the rules that one session has one audit
record, that a finding is stored once, and that a deferred check ends once: the constraints below are what the
conditional updates in ``sessions`` and ``deferred`` lean on.

State moves only in ``sessions.py`` and ``deferred.py``; nothing else writes ``state``.
"""

from __future__ import annotations

import secrets
import uuid

from django.conf import settings
from django.db import models
from django.utils import timezone

from guardrails.models import Policy
from streaming.flags import RolloutFlag as RolloutFlag
from streaming.shadow.outbox import ShadowCheck as ShadowCheck
from streaming.shadow.record import COMPARISON_WORDS
from streaming.texts import SealedJSONField, SealedTextField
from streaming.upstreams import Upstream as Upstream


def new_salt() -> str:
    """128 random bits, hexadecimal."""
    return secrets.token_hex(16)


class Conversation(models.Model):
    """Messages that belong together. Its owner is a user, or a browser session, or (both empty) an API client."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    session_key = models.CharField(max_length=64, blank=True, db_index=True)
    client = models.CharField(max_length=64, blank=True, help_text="Prefix of the API key that began it.")
    external_id = models.CharField(max_length=200, blank=True, help_text="The client's own conversation id.")
    policy = models.CharField(max_length=100, blank=True)
    created = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-created"]
        indexes = [models.Index(fields=["client", "external_id"])]
        constraints = [
            models.UniqueConstraint(
                fields=["client", "external_id"],
                condition=~models.Q(external_id=""),
                name="conversation_once_per_name",
            )
        ]

    def __str__(self) -> str:
        return str(self.id)


class Message(models.Model):
    """One message; ``content`` is the visible text only, never what was hidden."""

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    class Status(models.TextChoices):
        PENDING = "pending"
        STREAMING = "streaming"
        COMPLETE = "complete"
        BLOCKED = "blocked"
        INTERRUPTED = "interrupted"
        ERROR = "error"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    role = models.CharField(max_length=16, choices=Role.choices)
    content = SealedTextField(blank=True)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.PENDING)
    provider = models.CharField(max_length=64, blank=True)
    model = models.CharField(max_length=200, blank=True)
    in_reply_to = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="replies")
    created = models.DateTimeField(default=timezone.now)
    metadata = SealedJSONField(default=dict, blank=True)
    salt = models.CharField(
        max_length=32, default=new_salt, editable=False, help_text="Of the text's commitment in the audit log."
    )

    class Meta:
        ordering = ["created"]
        indexes = [models.Index(fields=["conversation", "created"])]

    def __str__(self) -> str:
        return f"{self.role} {self.id}"


class AuditSession(models.Model):
    """One guarded stream (or one-shot check) with what happened in it. Characters are code points.

    The ``shadow`` columns tell of the version that ran beside the active one (``streaming.shadow.record``); everything
    else, the findings included, is the active version's.
    """

    class State(models.TextChoices):
        ACTIVE = "ACTIVE"
        MONITORING = "MONITORING"
        COMPLETE = "COMPLETE"

    class Origin(models.TextChoices):
        CHAT = "chat"
        CHECK = "check"
        STREAM = "stream"
        GATEWAY = "gateway"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    origin = models.CharField(max_length=16, choices=Origin.choices, default=Origin.CHAT)
    conversation = models.ForeignKey(
        Conversation, null=True, blank=True, on_delete=models.SET_NULL, related_name="sessions"
    )
    prompt = models.ForeignKey(Message, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    answer = models.ForeignKey(
        Message, null=True, blank=True, on_delete=models.SET_NULL, related_name="sessions_answered"
    )
    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)
    outcome = models.CharField(max_length=16, blank=True)
    would_have = models.CharField(max_length=16, blank=True, help_text="What MONITOR hits would have done.")
    monitor = models.BooleanField(default=False, help_text="The whole policy ran in MONITOR.")
    policy_name = models.CharField(max_length=100, blank=True)
    policy_version = models.PositiveIntegerField(default=0)
    policy_digest = models.CharField(max_length=80, blank=True)
    provider = models.CharField(max_length=64, blank=True)
    model = models.CharField(max_length=200, blank=True)
    streaming = models.BooleanField(default=False, help_text="The answer was asked for as a stream.")
    fallback = models.CharField(
        max_length=200, blank=True, help_text="Why it was not, or why another provider answered; comma-separated."
    )
    client = models.CharField(max_length=64, blank=True, help_text="Prefix of the API key, empty for the page.")
    correlation_id = models.CharField(max_length=200, blank=True, db_index=True)
    started_at = models.DateTimeField(default=timezone.now)
    heartbeat_at = models.DateTimeField(default=timezone.now, help_text="Last sign of life of the pump.")
    answered_at = models.DateTimeField(null=True, blank=True, help_text="When the answer was over.")
    ended_at = models.DateTimeField(null=True, blank=True)
    chars_in = models.PositiveIntegerField(default=0)
    released = models.PositiveIntegerField(default=0)
    withheld = models.PositiveIntegerField(default=0)
    exposed = models.PositiveIntegerField(default=0)
    last_seq = models.PositiveIntegerField(default=0, help_text="Events written, as last stored; may lag.")
    timing = models.JSONField(default=dict, blank=True)
    first_token_ms = models.PositiveIntegerField(null=True, blank=True, help_text="From the start; out of timing.")
    hold_ms = models.PositiveIntegerField(null=True, blank=True, help_text="The longest of the answer; out of timing.")
    tools_ok = models.PositiveIntegerField(db_default=0, default=0, help_text="Tool calls that ended well.")
    tools_failed = models.PositiveIntegerField(db_default=0, default=0, help_text="Those that ended in an error.")
    error_code = models.CharField(max_length=64, blank=True)
    error = models.TextField(blank=True)
    shadow_version = models.PositiveIntegerField(default=0, help_text="Of the version that ran beside; 0: none did.")
    shadow_comparison = models.CharField(max_length=16, blank=True, choices=COMPARISON_WORDS)
    shadow_would_have = models.CharField(max_length=16, blank=True, help_text="What it would have done as the active.")
    shadow = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-started_at"]
        permissions = [("reveal_text", "Can look at the texts of a session, which is recorded")]
        indexes = [
            models.Index(fields=["state", "heartbeat_at"]),
            models.Index(fields=["conversation", "started_at"]),
            models.Index(
                fields=["policy_name", "shadow_version", "started_at"],
                condition=models.Q(shadow_version__gt=0),
                name="session_by_shadow",
            ),
            # All that the admin's figures are counted from: the rows themselves, with their timelines, are not read.
            models.Index(
                fields=[
                    "started_at",
                    "policy_name",
                    "policy_version",
                    "outcome",
                    "would_have",
                    "fallback",
                    "first_token_ms",
                    "hold_ms",
                    "tools_ok",
                    "tools_failed",
                    "id",
                ],
                name="session_figures",
            ),
            # What the audit list is filtered by, each in the list's own order.
            models.Index(fields=["started_at", "id"], name="session_by_time"),
            models.Index(fields=["policy_name", "policy_version", "started_at", "id"], name="session_by_policy"),
            models.Index(fields=["outcome", "started_at", "id"], name="session_by_outcome"),
            models.Index(fields=["provider", "started_at", "id"], name="session_by_provider"),
            models.Index(
                fields=["client", "started_at", "id"], condition=~models.Q(client=""), name="session_by_client"
            ),
            models.Index(fields=["started_at", "id"], condition=~models.Q(would_have=""), name="session_by_would_have"),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.state} {self.outcome}".strip()


class ShadowedPolicy(Policy):
    """A policy as the screen of shadows shows it; the table is the policies' own."""

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = "shadow"


class Finding(models.Model):
    """One hit. ``start`` and ``end`` are code points of the original text of ``channel``; never the text itself."""

    session = models.ForeignKey(AuditSession, on_delete=models.CASCADE, related_name="findings")
    n = models.PositiveIntegerField()
    guardrail = models.CharField(max_length=100)
    kind = models.CharField(max_length=64)
    rule = models.CharField(max_length=200, blank=True)
    category = models.CharField(max_length=100, blank=True)
    channel = models.CharField(max_length=32)
    start = models.PositiveIntegerField()
    end = models.PositiveIntegerField()
    score = models.FloatField(default=1.0)
    mode = models.CharField(max_length=16)
    action = models.CharField(max_length=16)
    would_have = models.CharField(max_length=16, blank=True)
    exposed = models.PositiveIntegerField(default=0)
    created = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["session", "n"]
        constraints = [models.UniqueConstraint(fields=["session", "n"], name="finding_once_per_session")]
        indexes = [
            models.Index(fields=["guardrail", "session"], name="finding_by_guardrail"),
            models.Index(fields=["guardrail", "created"], name="finding_newest_of_guardrail"),
        ]

    def __str__(self) -> str:
        return f"{self.guardrail}/{self.rule} {self.start}-{self.end}"


class Review(models.Model):
    """What somebody said of a finding. Each is a row of its own, numbered by ``version``; the newest one counts.

    ``by`` is a name and no reference: who is gone has still said it. Text and salt of ``note`` are purged with the
    session's texts, since a note may quote them.
    """

    class Label(models.TextChoices):
        TRUE_POSITIVE = "true_positive", "True positive"
        FALSE_POSITIVE = "false_positive", "False positive"
        UNCLEAR = "unclear", "Unsure"

    finding = models.ForeignKey(Finding, on_delete=models.CASCADE, related_name="reviews")
    version = models.PositiveIntegerField()
    label = models.CharField(max_length=16, choices=Label.choices)
    note = SealedTextField(blank=True)
    salt = models.CharField(max_length=32, default=new_salt, editable=False)
    by = models.CharField(max_length=150)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["finding", "version"]
        default_permissions = ("add", "view")
        constraints = [models.UniqueConstraint(fields=["finding", "version"], name="review_once_per_version")]

    def __str__(self) -> str:
        return f"{self.label} {self.by}"


def place_of(applies_to: str, part: int = 0) -> str:
    """The place of a deferred check: ``response``, ``response#1`` for the second choice."""
    return applies_to + (f"#{part}" if part else "")


class DeferredCheck(models.Model):
    """A check that a worker makes after the answer: the outbox row, its lease and its result.

    ``sealed_text`` is the raw text to judge, encrypted, and is wiped as soon as the check has ended
    (docs/adr/0101-deferred-text.md). Nothing that could be compared with a guess outlives it.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        CHECKING = "checking"
        PASSED = "passed"
        HIT = "hit"
        WOULD_BLOCK = "would_block"
        ERROR = "error"
        TIMEOUT = "timeout"
        EXPIRED = "expired"

    OPEN = (State.WAITING, State.CHECKING)

    session = models.ForeignKey(AuditSession, on_delete=models.CASCADE, related_name="deferred_checks")
    guardrail = models.CharField(max_length=100)
    applies_to = models.CharField(max_length=32, default="response")
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    queued_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    result = models.JSONField(null=True, blank=True)
    error = models.TextField(blank=True)
    digest = models.CharField(
        max_length=80, blank=True, default="", help_text="Of rows of earlier versions: sha256 of the judged text."
    )
    shown = models.PositiveIntegerField(
        null=True, blank=True, help_text="Characters of a text beside prompt and answer that were shown."
    )
    sentences = models.BooleanField(default=False, help_text="The text is judged sentence by sentence.")
    part = models.PositiveSmallIntegerField(
        db_default=0, default=0, help_text="Which of several texts of that sort: the choice."
    )
    conversed = models.BooleanField(
        db_default=False, default=False, help_text="What was said before is sealed with the text."
    )
    sealed_text = models.BinaryField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["session", "id"]
        permissions = [("retry_deferredcheck", "Can hand a deferred check to the workers again")]
        constraints = [
            models.UniqueConstraint(fields=["session", "guardrail", "applies_to", "part"], name="check_once_per_place")
        ]
        indexes = [models.Index(fields=["state", "queued_at"])]

    def __str__(self) -> str:
        return f"{self.guardrail} {self.state}"

    @property
    def place(self) -> str:
        """Which of its session's texts it judges; a guardrail judges each place once."""
        return place_of(self.applies_to, self.part)


class GuardedStream(models.Model):
    """The state of a stream that its client owns, as last written through, encrypted.

    When the stream is over its last answer stands in its place for some minutes, then nothing. ``rev`` counts what was
    ever committed, so that a slow process cannot put an older state over a newer one.
    """

    session = models.OneToOneField(AuditSession, primary_key=True, on_delete=models.CASCADE, related_name="guarded")
    rev = models.PositiveIntegerField(default=0)
    seq = models.PositiveIntegerField(default=0)
    sealed_state = models.BinaryField(null=True, editable=False)

    class Meta:
        indexes = [  # the few of all streams that the sweep looks at
            models.Index(fields=["session"], condition=models.Q(sealed_state__isnull=False), name="guarded_kept")
        ]

    def __str__(self) -> str:
        return f"{self.session_id} {self.seq}"


class Demotion(models.Model):
    """A guardrail that runs later than it declares, because it was measured to be slower (``streaming.demotion``).

    It is one of a version: another version starts without. Who lets it run earlier again stands in ``lifted_by``.
    """

    policy_name = models.CharField(max_length=64)
    policy_version = models.PositiveIntegerField()
    policy_digest = models.CharField(max_length=80, db_index=True)
    guardrail = models.CharField(max_length=100)
    declared = models.CharField(max_length=16, help_text="The checkpoint that it declares.")
    checkpoint = models.CharField(max_length=16, help_text="Where sessions that began afterwards run it.")
    p95_ms = models.FloatField()
    measurements = models.PositiveIntegerField()
    at = models.DateTimeField(default=timezone.now)
    lifted_at = models.DateTimeField(null=True, blank=True)
    lifted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        ordering = ["-at", "-id"]
        default_permissions = ("view",)
        permissions = [("lift_demotion", "Can let a demoted guardrail run where it declares to run")]
        constraints = [
            models.UniqueConstraint(
                fields=["policy_digest", "guardrail", "checkpoint"],
                condition=models.Q(lifted_at=None),
                name="demotion_stands_once",
            )
        ]

    def __str__(self) -> str:
        return f"{self.policy_name} v{self.policy_version} {self.guardrail}: {self.checkpoint}"


class ConfiguredProvider(models.Model):
    """A provider as the screen of providers shows it. It has no table: providers stand in the environment."""

    name = models.CharField(max_length=64, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "provider"

    def __str__(self) -> str:
        return self.name


class AuditHead(models.Model):
    """Where the audit log ends: one row, locked by whoever appends."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    seq = models.PositiveBigIntegerField(default=0)
    hash = models.CharField(max_length=64)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.seq} {self.hash}"


class AuditEntry(models.Model):
    """One entry of the append-only audit log (``streaming.audit.chain``). ``at`` is text: it is what was hashed."""

    class Kind(models.TextChoices):
        OPENED = "opened"
        SEALED = "sealed"
        FINDING = "finding"
        REVIEW = "review"
        REVEAL = "reveal"
        PURGE = "purge"
        SHADOW = "shadow"

    seq = models.PositiveBigIntegerField(primary_key=True)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    session = models.CharField(max_length=36, blank=True, db_index=True)
    at = models.CharField(max_length=40)
    body = models.JSONField(default=dict)
    before = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        ordering = ["seq"]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.seq} {self.kind} {self.session}"


class ChainCheck(models.Model):
    """A verification of the whole audit log that somebody asked for on the page, and what came out.

    ``checked`` of about ``total`` steps are done: one for each entry, one more for each that commits to rows. Counts
    alone say nothing of the time: ``heartbeat_at`` tells a slow check from one whose worker died.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        CHECKING = "checking"
        VERIFIED = "verified"
        FAULTY = "faulty"
        ERROR = "error"

    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    place = models.PositiveSmallIntegerField(
        null=True, blank=True, unique=True, default=1, help_text="1 until it has ended: there is one at a time."
    )
    by = models.CharField(max_length=150)
    asked_at = models.DateTimeField(default=timezone.now)
    heartbeat_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)
    total = models.PositiveBigIntegerField(default=0)
    checked = models.PositiveBigIntegerField(default=0)
    last_seq = models.PositiveBigIntegerField(default=0, help_text="The last entry when it began.")
    fault_count = models.PositiveBigIntegerField(default=0)
    faults = models.JSONField(default=list, blank=True, help_text="The first ones, as seq, code and message.")
    error = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-id"]
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.asked_at:%Y-%m-%d %H:%M} {self.state}"
