"""Raw text on its way to a worker, encrypted.

Exists because a deferred judge needs the whole unredacted answer after the stream has ended, and a database row is
the only thing that survives a dead worker. Protects the rule that hidden text is nowhere in clear: the row holds
AES-256-GCM bytes under a key derived from ``SECRET_KEY``, bound to its session and guardrail, and is wiped with the
check's result (docs/adr/0101-deferred-text.md).

    SealBroken     the bytes are not what was sealed here, or the key has changed
"""

from __future__ import annotations

import os

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
    return nonce + _cipher().encrypt(nonce, text.encode(), context.encode())


def unseal(data: bytes, *, context: str) -> str:
    """The sealed text. Raises ``SealBroken``."""
    try:
        return _cipher().decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context.encode()).decode()
    except (InvalidTag, ValueError) as error:
        raise SealBroken("the stored text cannot be opened with this installation's key") from error


def _cipher() -> AESGCM:
    derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sluicegate deferred text 1")
    return AESGCM(derive.derive(settings.SECRET_KEY.encode()))
