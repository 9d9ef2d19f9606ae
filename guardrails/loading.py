"""From a stored version to a policy that runs: verified, compiled once, kept.

Exists because verification belongs at load, in one place. Protects the rule that an unsigned, altered or wrongly signed
version never runs: the signature is checked over the row's own bytes, and the row must say the same name, number and
digest as the signed bytes. What is kept is found by those bytes, so a row that is altered later is verified anew.
Which version is at work is believed only of a statement that the activation key signed, that has not lapsed, and whose
serial is not lower than one that this process, or another of this machine, has seen.

    PolicyUnavailable     ``reason``: unknown, inactive, unsigned, altered, untrusted, broken, missing (no statement),
                          expired, lifetime, not_yet, replayed
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Literal

from django.conf import settings

from guardrails import seen
from guardrails.keys import Generation, generation, trusted_keys
from guardrails.models import EVERYONE, Activation, PolicyVersion, Publication
from guardrails.policy import Policy, PolicyError, compile_policy
from guardrails.signing import KeyRefused, Purpose, SignatureRefused, Type, digest_of, verify
from guardrails.statements import Reason as StatementReason
from guardrails.statements import Statement, StatementRefused, Subject, check_subject, check_times
from guardrails.statements import read as read_statement

Reason = StatementReason | Literal["unknown", "inactive", "unsigned", "broken"]
KEPT = 64
"""Compiled versions kept in a process; the least recently used one goes first."""


class PolicyUnavailable(Exception):
    """A policy that cannot run. Its text is for a human; ``reason`` is for code."""

    permanent = True

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


_Entry = tuple[str, str, str, int, Generation, Policy]
_kept: OrderedDict[str, _Entry] = OrderedDict()
_lock = Lock()
_statements: dict[tuple[str, Generation], Statement] = {}
_serials: dict[seen.Place, int] = {}
wall_clock = time.time
"""Seconds since 1970; a name of its own so that tests can say what time it is."""


def load(version: PolicyVersion) -> Policy:
    """The compiled policy of a version that was verified. Raises ``PolicyUnavailable``."""
    row = (version.canonical, version.signature, version.policy.name, version.number, generation())
    with _lock:  # compiling twice at once would only cost both of them twice the time
        entry = _kept.get(version.digest)
        if entry is None or entry[:5] != row:
            document = verified_document(version)
            same = entry is not None and entry[0] == row[0]  # only the keys have changed, and it is believed again
            policy = entry[5] if entry is not None and same else _compiled(version, document)
            entry = _kept[version.digest] = (*row, policy)
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(version.digest)
        return entry[5]


def _compiled(version: PolicyVersion, document: Mapping[str, object]) -> Policy:
    try:
        return compile_policy(document, version=version.number, digest=version.digest)
    except PolicyError as error:
        raise PolicyUnavailable("broken", f"{version} does not build any more: {error}") from error


def kept(digest: str) -> Policy | None:
    """The policy of a digest, if this process has verified and compiled it before."""
    with _lock:
        entry = _kept.get(digest)
        return None if entry is None else entry[5]


def forget() -> None:
    """Drop everything kept (tests)."""
    with _lock:
        _kept.clear()
    forget_activations()


def forget_activations() -> None:
    """Drop what this process knows of activations alone (tests); what the machine has seen stays in its file."""
    with _lock:
        _statements.clear()
        _serials.clear()


def subject_of(activation: Activation, *, client_digest: str = "") -> Subject:
    """What the statement of an activation has to be about, by the rows."""
    version = activation.version
    return Subject(
        issuer=settings.SLUICEGATE_ISSUER,
        policy=version.policy.name,
        cohort=activation.cohort,
        serial=activation.serial,
        version=version.number,
        digest=version.digest,
        client_digest=client_digest,
    )


def check_activation(activation: Activation | None, version: PolicyVersion, *, cohort: str = EVERYONE) -> None:
    """Raises ``PolicyUnavailable`` unless a valid statement says that this activation put this version to work for this
    cohort."""
    if activation is None:
        raise PolicyUnavailable("missing", f"nothing signed says that {version} is active; activate it anew")
    if activation.version_id != version.pk:
        raise PolicyUnavailable("altered", f"{version} is not the version that was activated last")
    if activation.cohort != cohort:  # what a few were to try was never said to be for all
        raise PolicyUnavailable("altered", f"{version} was put to work for another cohort ({activation.cohort})")
    place = (settings.SLUICEGATE_ISSUER, version.policy.name, cohort)
    try:
        statement = verified_statement(activation)
        check_times(statement, now=wall_clock())
        with _lock:
            known = max(_serials.get(place, 0), seen.highest(place))
            if statement.serial < known:
                raise StatementRefused("replayed", f"serial {statement.serial} after serial {known} had been seen")
            _serials[place] = statement.serial
        seen.note(place, statement.serial)
    except StatementRefused as error:
        raise PolicyUnavailable(error.reason, f"{version} is not believed to be active: {error}") from error


def verified_statement(activation: Activation) -> Statement:
    """The statement of an activation, signed and about it, whether or not it holds now. Raises ``StatementRefused``."""
    known = (activation.statement, generation())
    statement = _statements.get(known)
    if statement is None:
        try:
            statement = read_statement(activation.statement, trusted_keys(Purpose.ACTIVATION))
        except KeyRefused as error:
            raise StatementRefused("untrusted", str(error)) from error
        if len(_statements) >= KEPT:
            _statements.clear()
        _statements[known] = statement
    check_subject(statement, subject_of(activation, client_digest=statement.client_digest))
    return statement


def verified_document(version: PolicyVersion) -> Mapping[str, object]:
    """The document of a version whose signature, digest, name and number fit each other.

    Raises ``PolicyUnavailable``.
    """
    if not version.signature:
        raise PolicyUnavailable("unsigned", f"{version} is not signed")
    payload = version.canonical.encode()
    try:
        signed = verify(version.signature, trusted_keys(Purpose.VERSION), Purpose.VERSION)
    except (SignatureRefused, KeyRefused) as error:
        raise PolicyUnavailable("untrusted", f"{version} is not trusted: {error}") from error
    if signed != payload or version.digest != digest_of(payload):
        raise PolicyUnavailable("altered", f"{version} was altered after it was signed")
    record = json.loads(payload)
    if (record["policy"], record["version"]) != (version.policy.name, version.number):
        raise PolicyUnavailable("altered", f"{version} holds the signed version of another policy or number")
    document: Mapping[str, object] = record["document"]
    return document


def verified_client_digest(version: PolicyVersion) -> str:
    """The digest of a version's client rules, their signature verified; empty if it has none.

    Raises ``PolicyUnavailable``.
    """
    publication = Publication.objects.filter(pk=version.pk).first()
    if publication is None or not publication.client_signature:
        return ""
    rules = publication.client_rules.encode()
    try:
        signed = verify(publication.client_signature, trusted_keys(Purpose.VERSION), Type.CLIENT_RULES)
    except (SignatureRefused, KeyRefused) as error:
        raise PolicyUnavailable("untrusted", f"the client rules of {version} are not trusted: {error}") from error
    if signed != rules or publication.client_digest != digest_of(rules) or not is_about(rules, version):
        raise PolicyUnavailable("altered", f"the client rules of {version} were altered after they were signed")
    return publication.client_digest


def is_about(client_rules: bytes, version: PolicyVersion) -> bool:
    """Whether client rules say that they are of this version."""
    said = json.loads(client_rules)
    return (said["policy"], said["version"], said["digest"]) == (
        version.policy.name,
        version.number,
        version.digest,
    )
