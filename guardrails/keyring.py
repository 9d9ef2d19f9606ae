"""Which public keys are believed: a JWK set in which every key but the root is vouched for by one that is believed.

Exists so that keys can change without anybody's pin changing: clients and servers know one public key, the root of the
version keys; what it, or a version key that it vouched for, signs into the set is believed as well. What is revoked
stands in a statement of the root's, with a serial: without it no key is believed, and whoever saw a higher serial
refuses a lower one, so that whoever serves the set cannot leave a revocation out. Protects the rules that nothing
enters the set by being listed, and that a revoked key is believed for nothing, whoever vouched for it.

    KeyringRefused     not a JWK set of this form, or not one that the root stated; ``reason`` is for code
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrails.signing import (
    PublicKey,
    Purpose,
    SignatureReason,
    SignatureRefused,
    SigningKey,
    Type,
    canonical_bytes,
    sign,
    verify,
)


class KeyringRefused(ValueError):
    """A set of keys that cannot be read or is not believed. Its text is for a human; ``reason`` is for code."""

    permanent = True

    def __init__(self, message: str, reason: SignatureReason = "form") -> None:
        super().__init__(message)
        self.reason: SignatureReason = reason


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

    def vouched_bytes(self) -> bytes:
        """What a voucher is signed over."""
        return canonical_bytes(self.model_dump(include={"kty", "crv", "x", "kid", "use", "alg", "sluicegate_purpose"}))

    def as_dict(self) -> dict[str, str]:
        """As a member of the set."""
        return self.model_dump(exclude_none=True)

    @property
    def public(self) -> PublicKey:
        """The key, revoked or not."""
        return PublicKey(self.kid, Purpose[self.sluicegate_purpose.upper()], self.x)


class Revocation(BaseModel):
    """One key that is believed for nothing any more. ``revoked_at``: ISO 8601."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kid: Annotated[str, Field(pattern=r"^(version|activation|audit)-[A-Za-z0-9_-]{43}$")]
    revoked_at: Annotated[str, Field(max_length=40)]
    reason: Annotated[str, Field(max_length=500)]

    def words(self) -> str:
        """When and why."""
        return f"{self.revoked_at}: {self.reason}"


class Stated(BaseModel):
    """What the root says about the whole set: its serial, and every key that is revoked."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    serial: Annotated[int, Field(ge=1, strict=True)]
    revoked: tuple[Revocation, ...]


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys as they are listed, and the root's statement about them: a compact JWS, empty if there is none."""

    members: tuple[Jwk, ...]
    statement: str = ""

    def as_dict(self) -> dict[str, object]:
        """As a JWK set."""
        return {"keys": [member.as_dict() for member in self.members], "sluicegate_statement": self.statement}


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by kid: those believed (a revoked one among them says so itself), and why others are not. ``serial`` is the
    set's."""

    keys: Mapping[str, PublicKey]
    serial: int
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


def state(said: Stated, root: SigningKey) -> str:
    """The root's statement about a set, signed: a compact JWS."""
    return sign(canonical_bytes(said.model_dump(mode="json")), root, Type.KEY_SET)


def stated(key_set: KeySet, root: PublicKey) -> Stated:
    """What the root says about a set. Raises ``KeyringRefused``."""
    if not key_set.statement:
        raise KeyringRefused("the root has stated nothing about this set of keys")
    try:
        return Stated.model_validate_json(verify(key_set.statement, {root.kid: root}, Type.KEY_SET))
    except SignatureRefused as error:
        raise KeyringRefused(f"the statement about these keys is not the root's: {error}", error.reason) from error
    except ValidationError as error:
        raise KeyringRefused("the statement about these keys is not of the form that it must have") from error


def read_set(value: object) -> KeySet:
    """A JWK set, taken apart; nothing of it is believed yet. Raises ``KeyringRefused``."""
    if not isinstance(value, Mapping) or not isinstance(value.get("keys"), list):
        raise KeyringRefused("a JWK set is an object with a list “keys”")
    try:
        members = tuple(Jwk.model_validate(member) for member in value["keys"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise KeyringRefused(f"a key is not of the form that it must have: {first['loc']}: {first['msg']}") from None
    if len({member.kid for member in members}) != len(members):
        raise KeyringRefused("two keys have one name")
    statement = value.get("sluicegate_statement", "")
    if not isinstance(statement, str):
        raise KeyringRefused("the statement about a set of keys is a compact JWS")
    return KeySet(members, statement)


def believed(key_set: KeySet, root: PublicKey) -> Keyring:
    """Which members are believed by whoever knows the root. Raises ``KeyringRefused`` where it has stated nothing."""
    said = stated(key_set, root)
    revoked = {one.kid: one.words() for one in said.revoked}
    keys: dict[str, PublicKey] = {root.kid: replace(root, revoked=revoked.get(root.kid, ""))}
    for kid, words in revoked.items():  # one that was left out of the list is revoked all the same
        keys.setdefault(kid, PublicKey(kid, Purpose[kid.partition("-")[0].upper()], "", words))
    refused: dict[str, str] = {}
    waiting = []
    for member in key_set.members:
        key = replace(member.public, revoked=revoked.get(member.kid, ""))
        if key.kid != kid_of(key.x, key.purpose):
            refused[key.kid] = "its name does not fit the key"
        elif key.kid == root.kid:
            continue
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
    return Keyring(keys, said.serial, refused)


def _not_vouched(member: Jwk, keys: Mapping[str, PublicKey]) -> str:
    versions = {kid: key for kid, key in keys.items() if key.purpose is Purpose.VERSION}
    try:
        said = verify(member.sluicegate_signature or "", versions, Type.KEY)
    except SignatureRefused as error:
        return f"its voucher is not believed: {error}"
    return "" if said == member.vouched_bytes() else "its voucher is for another key"
