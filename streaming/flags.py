"""The switch that rolls streaming out: waffle's flag, sticky by conversation, with a stage.

Exists because waffle rolls dice once per browser and remembers them in a cookie: a socket cannot set one, and one
conversation would stream in one tab and not in another. Protects the rule that a conversation is either in the
percentage or not, in every process and after every restart. All else (everyone, testing, users, groups, staff …) is
waffle's own reading of its own fields.

An admin's change is seen by the next request of every process because waffle has no cache here
(``WAFFLE_CACHE_NAME`` in the settings names one that keeps nothing).
"""

from __future__ import annotations

from django.db import models
from django.http import HttpRequest
from waffle.models import AbstractUserFlag

from guardrails.cohorts import place

CONVERSATION = "sluicegate_conversation"
"""Where ``rollout`` leaves the conversation's id, in ``request.META``."""


class Stage(models.TextChoices):
    """Which requests may stream, in the order in which a rollout goes; each stage contains those before it."""

    TOOLS = "tools", "Requests with tools"
    LONG = "long", "… and long tasks"
    ALL = "all", "All requests"


class RolloutFlag(AbstractUserFlag):
    """A flag whose percentage is a share of conversations. ``stage`` narrows it to request types."""

    stage = models.CharField(
        max_length=16,
        choices=Stage.choices,
        default=Stage.ALL,
        help_text="Which requests stream where the flag is on; the others are answered in one piece.",
    )

    class Meta(AbstractUserFlag.Meta):
        """As waffle names its own."""

    def _is_active_for_percent(self, request: HttpRequest, read_only: bool) -> bool | None:
        if not self.percent:
            return None
        conversation = str(request.META.get(CONVERSATION, ""))
        return bool(conversation) and place(self.name, conversation) < float(self.percent)
