"""Which public keys are believed: a JWK set in which every key but the root is vouched for by one that is believed.

Exists so that keys can change without anybody's pin changing: clients and servers know one public key, the root of the
version keys; what it, or a version key that it vouched for, signs into the set is believed as well. Protects the rules
that nothing enters the set by being listed, and that a revoked key is believed for nothing, whoever vouched for it.

    KeyringRefused     not a JWK set of this form
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrails.signing import (
    PublicKey,
    Purpose,
    SignatureRefused,
    SigningKey,
    Type,
    canonical_bytes,
    sign,
    verify,
)


class KeyringRefused(ValueError):
    """A set of keys that cannot be read."""

    permanent = True


class Jwk(BaseModel):
    """One key of the set. Members that we do not know are no reason to refuse it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
    kid: Annotated[str, Field(max_length=100)]
    use: Literal["sig"] = "sig"
    alg: Literal["Ed25519"] = "Ed25519"
    sluicegate_purpose: Literal["version", "activation", "audit"]
    sluicegate_signature: str | None = None
    sluicegate_revocation: str | None = None

    def vouched_bytes(self) -> bytes:
        """What a voucher is signed over."""
        return canonical_bytes(self.model_dump(include={"kty", "crv", "x", "kid", "use", "alg", "sluicegate_purpose"}))

    def as_dict(self) -> dict[str, str]:
        """As a member of the set."""
        return self.model_dump(exclude_none=True)

    @property
    def public(self) -> PublicKey:
        """The key; ``revoked`` is set if it is listed as such."""
        return PublicKey(self.kid, Purpose[self.sluicegate_purpose.upper()], self.x, _revoked(self))


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by kid: those believed (a revoked one among them says so itself), and why others are not."""

    keys: Mapping[str, PublicKey]
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, purpose: Purpose) -> dict[str, PublicKey]:
        """The believed keys of one purpose, revoked ones marked as such."""
        return {kid: key for kid, key in self.keys.items() if key.purpose is purpose}


def kid_of(x: str, purpose: Purpose) -> str:
    """The name that a key must have: its purpose and its RFC 7638 thumbprint."""
    thumb = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
    return f"{purpose.name.lower()}-{urlsafe_b64encode(thumb).rstrip(b'=').decode()}"


def root_key(x: str) -> PublicKey:
    """The root of the version keys from what a client pins: its public key, base64url."""
    return PublicKey(kid_of(x, Purpose.VERSION), Purpose.VERSION, x)


def entry(key: PublicKey, voucher: SigningKey | None = None) -> Jwk:
    """A key as a member of the set, vouched for by a version key; the root needs no voucher."""
    jwk = Jwk.model_validate({**key.as_jwk(), "sluicegate_purpose": key.purpose.name.lower()})
    if voucher is None:
        return jwk
    return jwk.model_copy(update={"sluicegate_signature": sign(jwk.vouched_bytes(), voucher, Type.KEY)})


def revoked(jwk: Jwk, *, root: SigningKey, at: str, reason: str) -> Jwk:
    """A member that is believed no more from now on. ``at``: ISO 8601."""
    said = {"kid": jwk.kid, "x": jwk.x, "revoked_at": at, "reason": reason}
    return jwk.model_copy(update={"sluicegate_revocation": sign(canonical_bytes(said), root, Type.REVOCATION)})


def read_set(value: object) -> list[Jwk]:
    """The members of a JWK set. Raises ``KeyringRefused``."""
    if not isinstance(value, Mapping) or not isinstance(value.get("keys"), list):
        raise KeyringRefused("a JWK set is an object with a list “keys”")
    try:
        members = [Jwk.model_validate(member) for member in value["keys"]]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise KeyringRefused(f"a key is not of the form that it must have: {first['loc']}: {first['msg']}") from None
    if len({member.kid for member in members}) != len(members):
        raise KeyringRefused("two keys have one name")
    return members


def believed(members: Iterable[Jwk], root: PublicKey) -> Keyring:
    """Which members are believed by whoever knows the root."""
    keys: dict[str, PublicKey] = {root.kid: root}
    refused: dict[str, str] = {}
    waiting = []
    for member in members:
        key = member.public
        if key.kid != kid_of(key.x, key.purpose):
            refused[key.kid] = "its name does not fit the key"
        elif key.kid == root.kid:
            keys[root.kid] = replace(root, revoked=key.revoked)
        elif not member.sluicegate_signature:
            refused[key.kid] = "nobody vouched for it"
        else:
            waiting.append((member, key))
    progress = True
    while waiting and progress:
        progress = False
        for member, key in tuple(waiting):
            if why := _not_vouched(member, keys):
                refused[key.kid] = why
                continue
            refused.pop(key.kid, None)
            keys[key.kid] = key
            waiting.remove((member, key))
            progress = True
    return Keyring(keys, refused)


def _not_vouched(member: Jwk, keys: Mapping[str, PublicKey]) -> str:
    versions = {kid: key for kid, key in keys.items() if key.purpose is Purpose.VERSION}
    try:
        said = verify(member.sluicegate_signature or "", versions, Type.KEY)
    except SignatureRefused as error:
        return f"its voucher is not believed: {error}"
    return "" if said == member.vouched_bytes() else "its voucher is for another key"


def _revoked(member: Jwk) -> str:
    """When and why, in words; a revocation that cannot be read is one all the same."""
    if member.sluicegate_revocation is None:
        return ""
    try:
        payload = member.sluicegate_revocation.split(".")[1]
        said = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return f"{said['revoked_at']}: {said['reason']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return "its revocation cannot be read"
