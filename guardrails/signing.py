"""Canonical bytes, digests and signatures of versions.

Exists so that everything that signs or verifies does it alike. Protects the rule that only what was signed for this
purpose, by a key of this purpose, over exactly these bytes, is believed: the header carries ``alg``, ``kid`` and
``typ`` and nothing else, so there is no room for ``jku``, ``jwk``, ``x5u`` or ``crit``; the digest is taken over the
bytes as received.

    SignatureRefused     not a signature of this purpose by a known key over these bytes
    KeyRefused           not an Ed25519 private key
"""

from __future__ import annotations

import binascii
import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

ALGORITHM = "Ed25519"
"""The only one (RFC 9864). A header that names another, ``EdDSA`` for some other curve included, is refused."""

_MAX_COMPACT_CHARS = 4_000_000
_EXACT = 2**53
_LEAST = 1e-4
_sorted_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class _Registry(jws.JWSRegistry):
    """The library's own limit of 128 kB would refuse a rule pack; ours is asked before anything is decoded."""

    max_payload_length = _MAX_COMPACT_CHARS


class Purpose(StrEnum):
    """What a key is for; its value is the ``typ`` of the first thing that it signs."""

    VERSION = "sluicegate-version+jws"
    ACTIVATION = "sluicegate-activation+jws"
    AUDIT = "sluicegate-audit-head+jws"


class Type(StrEnum):
    """What else keys sign, so that one thing signed never passes for another."""

    CLIENT_RULES = "sluicegate-client-rules+jws"
    BUNDLE = "sluicegate-bundle+jws"
    KEY = "sluicegate-key+jws"
    KEY_SET = "sluicegate-key-set+jws"


SIGNED_BY = {
    Type.CLIENT_RULES: Purpose.VERSION,
    Type.BUNDLE: Purpose.ACTIVATION,
    Type.KEY: Purpose.VERSION,
    Type.KEY_SET: Purpose.VERSION,
}
"""The purpose of the keys whose word counts for a type."""


SignatureReason = Literal["form", "header", "algorithm", "type", "unknown_key", "revoked_key", "signature"]


class SignatureRefused(ValueError):
    """A signature that is not believed. Its text is for a human; ``reason`` is for code."""

    permanent = True

    def __init__(self, reason: SignatureReason, message: str) -> None:
        super().__init__(message)
        self.reason: SignatureReason = reason


class KeyRefused(ValueError):
    """A key file that cannot be used."""

    permanent = True


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What verifies. ``kid`` names purpose and key: ``version-`` and the key's RFC 7638 thumbprint."""

    kid: str
    purpose: Purpose
    x: str
    """The key's 32 bytes, base64url."""
    revoked: str = ""
    """Since when it is not trusted any more, and why; empty: it is."""

    def as_jwk(self) -> dict[str, str]:
        """The key as a member of a JWKS."""
        return {"kty": "OKP", "crv": "Ed25519", "x": self.x, "kid": self.kid, "use": "sig", "alg": ALGORITHM}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What signs. Its private part never shows in a repr."""

    public: PublicKey
    _private: OKPKey = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, pem: bytes, purpose: Purpose) -> SigningKey:
        """Read an Ed25519 private key (PKCS #8 PEM, not encrypted). Raises ``KeyRefused``."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise KeyRefused("not an unencrypted private key in PEM form") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyRefused("not an Ed25519 key")
        private = OKPKey.import_key(pem)
        kid = f"{purpose.name.lower()}-{private.thumbprint()}"
        return cls(PublicKey(kid, purpose, str(private.as_dict(private=False)["x"])), private)


def new_key_pem() -> bytes:
    """A new Ed25519 private key as PKCS #8 PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def canonical_bytes(value: Mapping[str, object]) -> bytes:
    """RFC 8785 form. Raises ``ValueError`` for what it has no form for (NaN, integers beyond 2^53, lone surrogates)."""
    whole = dict(value)
    if _one_form_only(whole):
        return _sorted_json(whole).encode()
    return rfc8785.dumps(whole)  # type: ignore[arg-type]


def _one_form_only(value: object) -> bool:
    """Whether the standard encoder, keys sorted, writes what RFC 8785 asks for, at a fifth of the time: no number but
    small integers and fractions that are not tiny, and keys that sort alike by code point and by UTF-16."""
    if value is None or type(value) in (str, bool):  # a subclass may be written in a way of its own
        return True
    if isinstance(value, int):
        return type(value) is int and -_EXACT < value < _EXACT
    if type(value) is float:
        return _LEAST <= abs(value) < _EXACT and not value.is_integer()  # 1.0 is 1 there, and 0.00001 no 1e-05
    if isinstance(value, dict):
        keys = all(type(key) is str and key.isascii() for key in value)
        return keys and all(_one_form_only(one) for one in value.values())
    return isinstance(value, list) and all(_one_form_only(one) for one in value)


def digest_of(data: bytes) -> str:
    """``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sign(payload: bytes, key: SigningKey, kind: Type | None = None) -> str:
    """A compact JWS over ``payload``; without a ``kind``, of the type that the key's purpose names."""
    if kind is not None and SIGNED_BY[kind] is not key.public.purpose:
        raise ValueError(f"a key for {key.public.purpose.name} does not sign {kind.value}")
    header = {"alg": ALGORITHM, "kid": key.public.kid, "typ": (kind or key.public.purpose).value}
    return jws.serialize_compact(header, payload, key._private, algorithms=[ALGORITHM])


def verify(compact: str, keys: Mapping[str, PublicKey], kind: Purpose | Type) -> bytes:
    """The payload of a compact JWS of this ``kind`` that a key of its purpose among ``keys`` (by kid) signed. Raises
    ``SignatureRefused``."""
    if len(compact) > _MAX_COMPACT_CHARS:
        raise SignatureRefused("form", "the signature is too long")
    if not _is_canonical(compact):
        raise SignatureRefused("form", "it is not three parts in base64url, each written in its one way")
    purpose = kind if isinstance(kind, Purpose) else SIGNED_BY[kind]
    kid = key_id(compact, kind)
    key = keys.get(kid)
    if key is None or key.purpose is not purpose:
        raise SignatureRefused("unknown_key", f"it is signed by a key that is not trusted here ({kid[:80]})")
    if key.revoked:
        raise SignatureRefused("revoked_key", f"it is signed by a key that was revoked: {key.revoked} ({kid})")
    try:
        public = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": key.x})
        registry = _Registry(algorithms=[ALGORITHM])
        return bytes(jws.deserialize_compact(compact, public, registry=registry).payload)
    except (JoseError, ValueError) as error:
        raise SignatureRefused("signature", "the signature does not fit the signed bytes") from error


def _is_canonical(compact: str) -> bool:
    """The last character of a part may hold bits that nobody reads: they have to be zero, or two texts are one JWS."""
    parts = compact.split(".")
    if len(parts) != 3 or not compact.isascii():
        return False
    try:
        return all(
            urlsafe_b64encode(urlsafe_b64decode(part + "=" * (-len(part) % 4))).decode().rstrip("=") == part
            for part in parts
        )
    except (ValueError, binascii.Error):
        return False


def key_id(compact: str, kind: Purpose | Type) -> str:
    """The ``kid`` of a header that says exactly what it has to and nothing more."""
    encoded = compact.partition(".")[0]
    try:
        header = json.loads(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise SignatureRefused("form", "it has no readable header") from error
    if not isinstance(header, dict) or header.keys() != {"alg", "kid", "typ"}:
        raise SignatureRefused("header", "its header must hold alg, kid and typ and nothing else")
    if header["alg"] != ALGORITHM:
        raise SignatureRefused("algorithm", f"its algorithm must be {ALGORITHM}")
    if header["typ"] != kind.value:
        raise SignatureRefused("type", f"its type must be {kind.value}")
    return str(header["kid"])
