"""API keys: made, changed, revoked.

Protects the rules that the key itself is never kept, that a key opens only what somebody named, and that a revoked one
stays revoked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import timedelta
from typing import TypedDict

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from guardrails import tokens
from guardrails.models import CALLS_PER_MINUTE, UPDATES_PER_SECOND, ApiKey, Policy, Scope
from guardrails.origins import origin
from guardrails.stating import Refused, user_id

NAME_CHARS = 100
"""What the column takes."""
KEY_USE_NOTED_EVERY = timedelta(minutes=1)
"""A busy key costs one UPDATE in this time, not one per call."""


def create_api_key(
    *,
    name: str,
    scopes: Sequence[str],
    policy: str = "",
    origins: Sequence[str] = (),
    calls_per_minute: int = CALLS_PER_MINUTE,
    updates_per_second: int = UPDATES_PER_SECOND,
    answers_at_once: int | None = None,
    by: AbstractBaseUser | None = None,
) -> tuple[ApiKey, str]:
    """Make an API key; the second value is the key itself, which nothing can show again. Raises ``Refused``."""
    name = usable_name(name)
    allowed = _allowed(name, scopes, policy, origins, calls_per_minute, updates_per_second, answers_at_once)
    plaintext = tokens.new_key()
    key, made = ApiKey.objects.get_or_create(
        name=allowed["name"],
        defaults={
            **allowed,
            "prefix": tokens.key_prefix(plaintext),
            "key_hash": tokens.key_hash(plaintext),
            "created_by_id": user_id(by),
        },
    )
    if not made:
        raise Refused(f"there is a key named “{name}” already")
    return key, plaintext


@transaction.atomic
def change_api_key(
    *,
    key: ApiKey,
    name: str,
    scopes: Sequence[str],
    policy: str,
    origins: Sequence[str],
    calls_per_minute: int,
    updates_per_second: int,
    answers_at_once: int | None = None,
) -> ApiKey:
    """Change what a key may do; the key itself stays what it is. Raises ``Refused``.

    ``answers_at_once`` None: as many as the installation says.
    """
    kept = ApiKey.objects.filter(pk=key.pk, name=name).exists()  # also one that would not be taken anew
    name = name if kept else usable_name(name)
    allowed = _allowed(name, scopes, policy, origins, calls_per_minute, updates_per_second, answers_at_once)
    if ApiKey.objects.filter(name=allowed["name"]).exclude(pk=key.pk).exists():
        raise Refused(f"there is a key named “{name}” already")
    ApiKey.objects.filter(pk=key.pk).update(**allowed)
    key.refresh_from_db()
    return key


def revoke_api_key(*, key: ApiKey) -> ApiKey:
    """Close a key for good; the first time stays recorded."""
    ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(revoked_at=timezone.now())
    key.refresh_from_db()
    return key


def key_use_is_noted(*, key: ApiKey) -> bool:
    """Whether its last use, as it was read, is recent enough."""
    return key.last_used_at is not None and key.last_used_at >= timezone.now() - KEY_USE_NOTED_EVERY


def note_key_used(*, key: ApiKey) -> None:
    """Record that a key was used."""
    now = timezone.now()
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=now - KEY_USE_NOTED_EVERY)
    if not key_use_is_noted(key=key):
        ApiKey.objects.filter(stale, pk=key.pk).update(last_used_at=now)


_NO_TEXT_IN_ONE_LINE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is not seen: controls, marks of direction, surrogates, ends of lines."""
_JOINERS = "\u200c\u200d"
"""Parts of words in Persian and others, and of emoji."""
_JOINS_NOTHING = re.compile(f"(?:^|[\x00-\x7f])[{_JOINERS}]+(?:[\x00-\x7f]|$)")


def usable_name(name: str) -> str:
    """A key's name as it is stored. Raises ``Refused``."""
    name = name.strip()
    if not name.strip(_JOINERS):
        raise Refused("a key needs a name")
    if _JOINS_NOTHING.search(name) or any(
        unicodedata.category(one) in _NO_TEXT_IN_ONE_LINE and one not in _JOINERS for one in name
    ):
        raise Refused("a key's name is text in one line")
    if len(name) > NAME_CHARS:
        raise Refused(f"a key's name has at most {NAME_CHARS} characters")
    return name


class _Allowed(TypedDict):
    """What a key may do, as its columns hold it."""

    name: str
    scopes: list[str]
    policy: str
    origins: list[str]
    calls_per_minute: int
    updates_per_second: int
    answers_at_once: int | None


def _allowed(
    name: str,
    scopes: Sequence[str],
    policy: str,
    origins: Sequence[str],
    calls_per_minute: int,
    updates_per_second: int,
    answers_at_once: int | None,
) -> _Allowed:
    if unknown := sorted(set(scopes) - set(Scope.values)):
        raise Refused(f"unknown scopes: {', '.join(unknown)}; known: {', '.join(Scope.values)}")
    if not scopes:
        raise Refused("a key without a scope opens nothing")
    if policy and not Policy.objects.filter(name=policy).exists():
        raise Refused(f"there is no policy “{policy}”")
    if min(calls_per_minute, updates_per_second, 1 if answers_at_once is None else answers_at_once) < 1:
        raise Refused("a key's limits are 1 or more; to close a key, revoke it")
    try:
        as_sent = [origin(written) for written in origins]
    except ValueError as error:
        raise Refused(str(error)) from None
    return {
        "name": name,
        "scopes": [scope for scope in Scope.values if scope in scopes],
        "policy": policy,
        "origins": list(dict.fromkeys(as_sent)),
        "calls_per_minute": calls_per_minute,
        "updates_per_second": updates_per_second,
        "answers_at_once": answers_at_once,
    }
