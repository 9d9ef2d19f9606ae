"""Which conversations run a version that is being rolled out.

Exists so that a new version can meet a few before it meets all. Protects the rule that a conversation is either in a
cohort or not, in every process and after every restart, and that a growing share keeps those that are in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose session begins. ``conversation`` empty: one of a single session; ``user_id`` None: nobody signed in."""

    conversation: str = ""
    user_id: int | None = None


def place(name: str, conversation: str) -> float:
    """Where a conversation stands between 0 and 100 under this name; the same everywhere and for ever.

    The name is hashed along, so that two shares of 10 % do not pick the same tenth.
    """
    digest = hashlib.sha256(f"{name}\x00{conversation}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 * 100


def belongs(
    subject: Subject,
    *,
    name: str,
    percent: float,
    groups: Collection[str],
    groups_of: Callable[[int], Collection[str]],
) -> bool:
    """Whether a session is in the cohort ``name``: by one of its user's groups, or by its conversation's place.

    ``groups_of`` is asked only where groups matter. A session without a conversation throws dice of its own.
    """
    if groups and subject.user_id is not None and not set(groups).isdisjoint(groups_of(subject.user_id)):
        return True
    return bool(percent) and place(name, subject.conversation or uuid4().hex) < percent


@dataclass(frozen=True, slots=True)
class Counts:
    """Sessions that ended under a version, how many of them failed, and in how many a MONITOR guardrail would have
    acted."""

    sessions: int
    errors: int
    would_have: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares between 0 and 1 that must not be exceeded, None for none, once ``sample`` sessions have ended."""

    errors: float | None
    would_have: float | None
    sample: int


def exceeded(counts: Counts, limits: Limits) -> str:
    """Which limit the counts exceed, in words; empty if none, or if there are too few sessions to say."""
    if counts.sessions < max(1, limits.sample):
        return ""
    for words, number, limit in (
        ("failed", counts.errors, limits.errors),
        ("would have been acted on", counts.would_have, limits.would_have),
    ):
        share = number / counts.sessions
        if limit is not None and share > limit:
            return f"{number:,} of {counts.sessions:,} sessions {words} ({share:.1%}; the limit is {limit:.1%})"
    return ""
