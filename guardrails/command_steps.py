"""What was done on the command line, kept for the history of what it was done with.

Exists because Django's own history knows only of users, and the command line has none unless it names one. Protects the
rule that every step is in the history, wherever it was taken: the admin shows both as one.
"""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model, QuerySet

from guardrails.models import CommandStep
from guardrails.stating import user_id


def note_command_step(*, row: Model, done: str, by: AbstractBaseUser | None = None) -> CommandStep:
    """Keep in a row's history what was done with it now; ``by``: on whose behalf."""
    kind = ContentType.objects.get_for_model(row)
    return CommandStep.objects.create(content_type=kind, object_id=row.pk, done=done[:300], by_id=user_id(by))


def command_steps(*, model: type[Model], pk: str | int) -> QuerySet[CommandStep]:
    """The steps that were taken with a row on the command line, the oldest first."""
    kind = ContentType.objects.get_for_model(model)
    return CommandStep.objects.filter(content_type=kind, object_id=pk).select_related("by")
