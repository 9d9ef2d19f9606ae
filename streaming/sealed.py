"""Text that lies somewhere for a while, encrypted: on its way to a worker, or in the session log.

Exists because a deferred judge needs the whole unredacted answer after the stream has ended, and a database row is
the only thing that survives a dead worker; and because the log keeps for an hour what the database has encrypted.
Protects the rule that no text is anywhere in clear, hidden or shown: what is stored are AES-256-GCM bytes under a key
derived from ``SECRET_KEY``, bound to what they belong to. A check's text is wiped with its result
(docs/adr/0101-deferred-text.md).

    SealBroken     the bytes are not what was sealed here, or the key has changed
"""

from __future__ import annotations

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

NONCE_BYTES = 12


class SealBroken(ValueError):
    """The sealed text cannot be opened."""


def seal(text: str, *, context: str) -> bytes:
    """``text`` encrypted; only ``unseal`` with the same context opens it."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(settings.SECRET_KEY).encrypt(nonce, text.encode(), context.encode())


def unseal(data: bytes, *, context: str) -> str:
    """The sealed text. Raises ``SealBroken``."""
    try:
        return _cipher(settings.SECRET_KEY).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context.encode()).decode()
    except (InvalidTag, ValueError) as error:
        raise SealBroken("the stored text cannot be opened with this installation's key") from error


def key_name() -> bytes:
    """Four bytes that name this installation's key and say nothing about it: whoever cannot open something knows by
    them whether it was sealed with another key, or is damaged."""
    return _name(settings.SECRET_KEY)


@lru_cache(maxsize=4)
def _name(secret_key: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=4, salt=None, info=b"sluicegate key name 1").derive(secret_key.encode())


@lru_cache(maxsize=4)
def _cipher(secret_key: str) -> AESGCM:
    """Kept: deriving it takes longer than to encrypt an event."""
    derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sluicegate deferred text 1")
    return AESGCM(derive.derive(secret_key.encode()))
