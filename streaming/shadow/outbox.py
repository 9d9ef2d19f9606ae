"""What workers have yet to ask guardrails of a shadow: one row for each, from the end of the answer to the verdict.

Exists beside the session's own deferred checks because nobody waits for these: no session stays open for one, no reader
hears of one, and processes that know nothing of them go on as they are. Protects the rule that the text outlives no
verdict: the row goes with it, whatever came of the check.
"""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class ShadowCheck(models.Model):
    """One guardrail of the shadow, and the texts (encrypted) that it is asked about: ``sealed``."""

    class State(models.TextChoices):
        """Nobody has it, or a worker does."""

        WAITING = "waiting"
        CHECKING = "checking"

    session = models.ForeignKey("streaming.AuditSession", on_delete=models.CASCADE, related_name="shadow_checks")
    policy_digest = models.CharField(max_length=80, help_text="Of the shadow's version.")
    guardrail = models.CharField(max_length=100)
    applies_to = models.CharField(max_length=32)
    part = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    queued_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    stored_at = models.DateTimeField(default=timezone.now, help_text="When the answer ended.")
    sealed = models.BinaryField(editable=False)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["session", "guardrail", "applies_to", "part"], name="shadow_check_once")
        ]
        indexes = [models.Index(fields=["state", "queued_at"]), models.Index(fields=["stored_at"])]

    def __str__(self) -> str:
        return f"{self.guardrail} {self.state}"
