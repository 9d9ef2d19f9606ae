"""The form of an API key: ``sg_`` + 8 characters that name it + ``_`` + 43 that are secret.

Protects the rule that the key itself is stored nowhere. One round of SHA-256 is enough for a hash of 256 random bits;
a slow hash protects passwords that people think up, and would cost every call its milliseconds.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_FORM = re.compile(r"(sg_[A-Za-z0-9]{8})_[A-Za-z0-9]{43}")


def new_key() -> str:
    """A new key, 55 characters."""
    return f"sg_{_random(8)}_{_random(43)}"


def key_prefix(plaintext: str) -> str:
    """What names the key; empty if this is not the form of a key."""
    form = _FORM.fullmatch(plaintext)
    return form[1] if form else ""


def key_hash(plaintext: str) -> str:
    """What is stored of the key."""
    return hashlib.sha256(plaintext.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
