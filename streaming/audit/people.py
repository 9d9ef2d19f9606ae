"""What people do with the record: judge a finding, look at a text. Both are entries of the log, with a name.

Exists because a record that anybody can look at unseen protects nobody. Protects two rules: a text is shown only when
the log already says who looks at it and why; and of two reviewers who judge one finding at the same time neither
overwrites the other, because whoever comes second is told of the first. Who may do it is asked by the caller.

    ReviewedMeanwhile   somebody else has judged the finding since it was looked at
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from streaming.audit.chain import commitment
from streaming.audit.rows import stamp
from streaming.audit.services import append
from streaming.models import AuditEntry, AuditSession, Finding, Review

NOTE_CHARS = 2_000
REASON_CHARS = 300


class ReviewedMeanwhile(ValueError):
    """The finding has a newer review than the reviewer saw; ``newest`` is that one. Nothing was stored."""

    def __init__(self, newest: Review) -> None:
        self.newest = newest
        super().__init__(
            f"{newest.by} has judged this finding in the meantime ({newest.get_label_display().lower()}). "
            "Look at it, and send yours again if you still disagree."
        )


@dataclass(frozen=True, slots=True)
class Revealed:
    """The texts of a session as the reader saw them, by what they are (``prompt``, ``answer``)."""

    session_id: str
    texts: Mapping[str, str]


def record_review(*, finding: Finding, label: Review.Label, note: str, by: AbstractBaseUser, seen: int) -> Review:
    """Judge a finding. ``seen`` is the version of the review that the reviewer had before them, 0 for none.

    Raises ``ReviewedMeanwhile``; ``ValueError`` for a note that is too long.
    """
    note = note.strip()
    if len(note) > NOTE_CHARS:
        raise ValueError(f"A note has at most {NOTE_CHARS:,} characters.")
    with transaction.atomic():
        locked = Finding.objects.select_for_update().get(pk=finding.pk)
        newest = locked.reviews.order_by("-version").first()
        if newest is not None and newest.version != seen:
            raise ReviewedMeanwhile(newest)
        review = Review.objects.create(
            finding=locked,
            version=newest.version + 1 if newest else 1,
            label=label,
            note=note,
            by=by.get_username(),
            at=timezone.now(),
        )
        append(kind=AuditEntry.Kind.REVIEW, session_id=str(locked.session_id), body=review_body(review, locked.n))
    return review


def review_body(review: Review, n: int) -> dict[str, object]:
    """What the log says of a review of finding ``n``. Of the note only a commitment: the note may quote a text."""
    return {
        "finding": n,
        "version": review.version,
        "label": review.label,
        "by": review.by,
        "at": stamp(review.at),
        "note": commitment(review.salt, review.note),
    }


def reveal_text(*, session_id: str, by: AbstractBaseUser, reason: str) -> Revealed:
    """The texts of a session, once the log says who looks at them and why.

    Raises ``AuditSession.DoesNotExist``, and ``ValueError`` without a reason or with one that is too long.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise ValueError("Say why you look at the text; your reason is recorded with your name.")
    if len(reason) > REASON_CHARS:
        raise ValueError(f"A reason has at most {REASON_CHARS} characters.")
    with transaction.atomic():
        session = AuditSession.objects.select_related("prompt", "answer").get(pk=session_id)
        texts = {
            name: message.content
            for name, message in (("prompt", session.prompt), ("answer", session.answer))
            if message is not None and message.content
        }
        body = {"by": by.get_username(), "reason": reason, "texts": sorted(texts)}
        append(kind=AuditEntry.Kind.REVEAL, session_id=session_id, body=body)
    return Revealed(session_id, texts)
