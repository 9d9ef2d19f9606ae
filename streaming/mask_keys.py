"""The secrets that placeholders are made with, from the settings.

Exists because ``guardrails.masking`` is pure and must be given its keys. Protects the rule that placeholders tell a
vendor nothing: whoever knows a key can try values until one has the placeholder that was seen, so the key is a secret
of the installation like any other, and a new one can take over at any time: no placeholder outlives its request.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

SHORTEST = 16
"""Characters of a secret."""


def mask_keys() -> tuple[bytes, ...]:
    """``SLUICEGATE_MASK_KEYS``, the newest first; one that follows from ``SECRET_KEY`` where none is set.

    Raises ``ImproperlyConfigured`` for a secret that is too short, without quoting it.
    """
    return _keys(tuple(settings.SLUICEGATE_MASK_KEYS), settings.SECRET_KEY)


@lru_cache(maxsize=8)
def _keys(named: tuple[str, ...], secret_key: str) -> tuple[bytes, ...]:
    if any(len(one) < SHORTEST for one in named):
        raise ImproperlyConfigured(f"SLUICEGATE_MASK_KEYS: every secret needs {SHORTEST} characters or more.")
    if named:
        return tuple(one.encode() for one in named)
    return (HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sluicegate mask 1").derive(secret_key.encode()),)
