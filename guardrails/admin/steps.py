"""What was done with a version, by whom and when: the steps as the records tell them.

Exists because the admin's own history knows only of what was done on its pages; a version that was signed or rolled
back to on the command line has its steps on record as well. Protects the rule that every step that counts says who took
it and when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth import get_user_model

from guardrails.models import Activation, PolicyVersion, Publication, Rollout, ShadowChange


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``at`` is None for the draft, whose time publication does not keep; ``by`` is a user name, empty for
    nobody on record."""

    what: str
    at: datetime | None
    by: str
    note: str = ""


def steps_of(version: PolicyVersion) -> list[Step]:
    """Every step of a version, the oldest first."""
    own = [*_made(version), *_at_work(version)]
    return sorted(own, key=lambda step: step.at or version.published_at)


def _made(version: PolicyVersion) -> Iterator[Step]:
    publication = Publication.objects.filter(pk=version.pk).first()
    if publication is not None:
        authors = {*publication.authors, publication.written_by_id} - {None}
        for author in get_user_model().objects.filter(pk__in=authors).order_by("pk"):
            yield Step("Draft saved", None, author.get_username())
    yield Step("Published", version.published_at, _name(version.published_by))
    if version.signature:
        yield Step("Signed", version.signed_at, _name(version.signed_by))


def _at_work(version: PolicyVersion) -> Iterator[Step]:
    for activation in Activation.objects.filter(version=version).select_related("activated_by"):
        whom = f"for {activation.cohort}" if activation.cohort else "for everyone"
        what = f"Activated {whom} with serial {activation.serial}"
        yield Step(what, activation.activated_at, _name(activation.activated_by), activation.note)
    ended = Rollout.objects.filter(activation__version=version, ended_at__isnull=False).select_related("ended_by")
    for rollout in ended:
        what = f"Rollout {rollout.get_outcome_display().lower()}"
        yield Step(what, rollout.ended_at, _name(rollout.ended_by), rollout.ended_why)
    for change in ShadowChange.objects.filter(version=version).select_related("changed_by"):
        yield Step("Run as shadow", change.changed_at, _name(change.changed_by), change.note)


def _name(user: object) -> str:
    return "" if user is None else str(user)
