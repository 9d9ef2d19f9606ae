"""Client bundles: put together by the server, taken apart and refused by whoever receives them.

The verifier is what a client does, in Python: for the command line, for programs, and as the measure for other
implementations. Protects the rule that a client believes nothing but its pinned root, and that it always says why it
refuses: ``reason`` is one of ``REASONS``.

    BundleRefused     ``reason`` is for code, the text for a human
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from guardrails.keyring import Keyring, KeyringRefused, believed, read_set, root_key
from guardrails.signing import (
    SIGNED_BY,
    Purpose,
    SignatureRefused,
    SigningKey,
    Type,
    canonical_bytes,
    digest_of,
    key_id,
    sign,
    verify,
)
from guardrails.statements import Statement, StatementRefused, check_times
from guardrails.statements import read as read_statement

Reason = Literal[
    "malformed", "header", "algorithm", "type", "unknown_key", "unvouched_key", "revoked_key", "signature",
    "expired", "not_yet", "lifetime", "issuer", "policy", "digest", "replayed",
]  # fmt: skip
REASONS: tuple[Reason, ...] = Reason.__args__  # type: ignore[attr-defined]


class BundleRefused(ValueError):
    """A bundle that is not believed."""

    permanent = True

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Verified:
    """What a bundle says. ``client_rules`` is the payload that ``guardrails.client`` describes."""

    statement: Statement
    client_rules: Mapping[str, object]
    keys_serial: int
    """The serial of the key set that it was verified with: with ``statement.serial`` what a client keeps."""

    @property
    def place(self) -> tuple[str, str, str]:
        """Where serials are compared: issuer, policy, cohort."""
        return self.statement.issuer, self.statement.policy, self.statement.cohort


class _Parts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    activation: str
    client_rules: str


def make_bundle(*, activation: str, client_rules: str, key: SigningKey) -> str:
    """A compact JWS by the activation key over the two, which are compact JWS themselves."""
    return sign(canonical_bytes({"activation": activation, "client_rules": client_rules}), key, Type.BUNDLE)


def verify_bundle(
    compact: str,
    key_set: object,
    *,
    root: str,
    now: float,
    issuer: str,
    policy: str,
    seen: Mapping[tuple[str, str, str], int] | None = None,
    keys_seen: int = 0,
) -> Verified:
    """What a bundle says, if all of it is believed. Raises ``BundleRefused``.

    ``key_set`` is the parsed JWK set; ``root`` the pinned public key (base64url); ``now`` seconds since 1970; ``seen``
    the highest serial that the client knows of each (issuer, policy, cohort), ``keys_seen`` that of the key set.
    """
    try:
        ring = believed(read_set(key_set), root_key(root))
    except KeyringRefused as error:
        raise BundleRefused("malformed" if error.reason == "form" else error.reason, str(error)) from error
    if ring.serial < keys_seen:
        raise BundleRefused(
            "replayed", f"the serial of its keys, {ring.serial}, is lower than {keys_seen}, seen before"
        )
    parts = _parts(_signed(compact, ring, Type.BUNDLE))
    _signed(parts.activation, ring, Purpose.ACTIVATION)
    try:
        statement = read_statement(parts.activation, ring.of(Purpose.ACTIVATION))
        check_times(statement, now=now)
    except StatementRefused as error:
        reason: Reason = error.reason if error.reason in ("expired", "lifetime", "not_yet") else "malformed"
        raise BundleRefused(reason, str(error)) from error
    rules = _signed(parts.client_rules, ring, Type.CLIENT_RULES)
    if statement.issuer != issuer:
        raise BundleRefused("issuer", f"it is of the issuer “{statement.issuer}”")
    if statement.policy != policy:
        raise BundleRefused("policy", f"it is of the policy “{statement.policy}”")
    if statement.client_digest != digest_of(rules):
        raise BundleRefused("digest", "the rules are not those that were activated")
    found = Verified(statement, _rules(rules, statement), ring.serial)
    if statement.serial < (known := (seen or {}).get(found.place, 0)):
        raise BundleRefused("replayed", f"serial {statement.serial} is lower than {known}, which was seen before")
    return found


def _signed(compact: str, ring: Keyring, kind: Purpose | Type) -> bytes:
    purpose = SIGNED_BY[kind] if isinstance(kind, Type) else kind
    try:
        return verify(compact, ring.of(purpose), kind)
    except SignatureRefused as error:
        if error.reason == "unknown_key" and (why := ring.refused.get(key_id(compact, kind))):
            raise BundleRefused("unvouched_key", f"it is signed by a key that is not believed: {why}") from error
        raise BundleRefused("malformed" if error.reason == "form" else error.reason, str(error)) from error


def _parts(payload: bytes) -> _Parts:
    try:
        return _Parts.model_validate(json.loads(payload))
    except (ValidationError, ValueError, RecursionError) as error:
        raise BundleRefused("malformed", "a bundle holds an activation and client rules, nothing else") from error


def _rules(payload: bytes, statement: Statement) -> Mapping[str, object]:
    try:
        found = json.loads(payload)
        said = (found["policy"], found["version"], found["digest"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleRefused("malformed", "the client rules are not of the form that they must have") from error
    if said != (statement.policy, statement.version, statement.digest):
        raise BundleRefused("digest", "the rules are of another version than the one that was activated")
    rules: Mapping[str, object] = found
    return rules
