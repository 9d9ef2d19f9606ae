"""Activation statements: the signed word for which version of a policy is at work, for a day at most.

Exists because a version's signature never expires: who can write to the database could otherwise put any version that
was ever signed to work again. Protects the rules that only the activation key says what is active, that what it said
lapses unless it is said again, and that a lower serial than one that was seen is refused.

    StatementRefused     ``reason``: missing, untrusted, altered, expired, lifetime, not_yet, replayed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrails.signing import (
    PublicKey,
    Purpose,
    SignatureRefused,
    SigningKey,
    canonical_bytes,
    sign,
    verify,
)

LIFETIME_S = 86_400
"""Seconds that a statement is believed for, at most; clients refuse longer ones."""
SKEW_S = 300
"""Seconds by which the clocks of signer and reader may differ."""
RENEWED_AFTER_S = 6 * 3_600
"""Age in seconds from which a statement is renewed: a reader always has at least 17 hours left."""

Reason = Literal["missing", "untrusted", "altered", "expired", "lifetime", "not_yet", "replayed"]


class StatementRefused(ValueError):
    """A statement that is not believed. Its text is for a human; ``reason`` is for code."""

    permanent = True

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about. ``client_digest`` is empty for a version that has no client rules."""

    issuer: str
    policy: str
    cohort: str
    serial: int
    version: int
    digest: str
    client_digest: str


class Statement(BaseModel):
    """The signed payload. ``iat`` and ``exp`` are seconds since 1970."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    issuer: str
    policy: str
    cohort: str
    serial: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=1)]
    digest: str
    client_digest: str
    iat: int
    exp: int

    @property
    def subject(self) -> Subject:
        """All but the times."""
        return Subject(
            self.issuer, self.policy, self.cohort, self.serial, self.version, self.digest, self.client_digest
        )


def issue(subject: Subject, *, now: float, key: SigningKey) -> str:
    """A statement that holds from ``now`` (seconds since 1970) for a day, signed: a compact JWS."""
    at = int(now)
    payload = {
        "issuer": subject.issuer,
        "policy": subject.policy,
        "cohort": subject.cohort,
        "serial": subject.serial,
        "version": subject.version,
        "digest": subject.digest,
        "client_digest": subject.client_digest,
        "iat": at,
        "exp": at + LIFETIME_S,
    }
    return sign(canonical_bytes(payload), key)


def read(compact: str, keys: Mapping[str, PublicKey]) -> Statement:
    """What a statement says, once its signature is verified; its times are not looked at. Raises
    ``StatementRefused``."""
    if not compact:
        raise StatementRefused("missing", "it has no activation statement")
    try:
        payload = verify(compact, keys, Purpose.ACTIVATION)
    except SignatureRefused as error:
        raise StatementRefused("untrusted", f"its activation statement is not trusted: {error}") from error
    try:
        return Statement.model_validate(json.loads(payload))
    except (ValidationError, ValueError, RecursionError) as error:
        raise StatementRefused("altered", "its activation statement is not of the form that it must have") from error


def check_times(statement: Statement, *, now: float) -> None:
    """Raises ``StatementRefused`` unless the statement holds at ``now``, five minutes more or less."""
    if not 0 < statement.exp - statement.iat <= LIFETIME_S:
        raise StatementRefused("lifetime", "its activation statement does not say a lifetime of a day or less")
    if statement.iat > now + SKEW_S:
        raise StatementRefused("not_yet", "its activation statement is of a time to come")
    if now > statement.exp + SKEW_S:
        late = (now - statement.exp) / 3_600
        raise StatementRefused("expired", f"its activation statement expired {late:,.1f} hours ago and was not renewed")


def check_subject(statement: Statement, expected: Subject) -> None:
    """Raises ``StatementRefused`` if the statement is about anything but what is expected."""
    if statement.subject != expected:
        wrong = [name for name in Subject.__slots__ if getattr(statement, name) != getattr(expected, name)]
        raise StatementRefused("altered", f"its activation statement says another {', '.join(wrong)}")
