"""Heads that are put aside: how old the newest one is, and which keys of old ones are believed.

Exists because a head that is not kept is missed only when it is needed. Protects two rules: that none was kept for a
while is seen by whoever looks at ``/ready`` or the metrics, and the past stays readable with public keys alone.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.conf import settings

from guardrails.keyring import KeyringRefused, kid_of, read_set
from guardrails.signing import KeyRefused, PublicKey, Purpose, SigningKey

LATE = 2.0
"""A head is late when it is older than so many times the period of the task."""


def heads_file() -> Path | None:
    """Where heads are put aside; None: nowhere."""
    name = str(settings.SLUICEGATE_AUDIT_HEADS_FILE)
    return Path(name) if name else None


def age_s(now: float) -> float | None:
    """Seconds since a head was added to the file, at the time ``now`` (Unix); None when there is no file to be seen."""
    file = heads_file()
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return max(0.0, now - found.st_mtime) if found.st_size else None


def late_s() -> float:
    """Seconds after which the newest head is too old."""
    return LATE * float(settings.SLUICEGATE_AUDIT_HEADS_EVERY_S)


def audit_keys(data: bytes) -> tuple[PublicKey, ...]:
    """The audit keys in a file: PEM, public or private, or a JWK set with audit keys in it. Raises ``KeyRefused``.

    Nobody vouches for them but whoever names the file.
    """
    text = data.strip()
    if text.startswith(b"{"):
        return _of_a_set(text)
    if b"PRIVATE KEY" in text:
        return (SigningKey.from_pem(data, Purpose.AUDIT).public,)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise KeyRefused("neither a key in PEM form nor a JWK set") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyRefused("not an Ed25519 key")
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    x = urlsafe_b64encode(raw).rstrip(b"=").decode()
    return (PublicKey(kid_of(x, Purpose.AUDIT), Purpose.AUDIT, x),)


def _of_a_set(data: bytes) -> tuple[PublicKey, ...]:
    try:
        members = read_set(json.loads(data)).members
    except (ValueError, KeyringRefused, RecursionError) as error:
        raise KeyRefused(f"not a JWK set: {error}") from None
    found = tuple(member.public for member in members if member.public.purpose is Purpose.AUDIT)
    if not found:
        raise KeyRefused("there is no audit key in this JWK set")
    for key in found:
        if key.kid != kid_of(key.x, Purpose.AUDIT):
            raise KeyRefused(f"the name of {key.kid} does not fit the key")
    return found
