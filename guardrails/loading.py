"""From a stored version to a policy that runs: verified, compiled once, kept.

Exists because verification belongs at load, in one place. Protects the rule that an unsigned, altered or wrongly signed
version never runs: the signature is checked over the row's own bytes, and the row must say the same name, number and
digest as the signed bytes. What is kept is found by those bytes, so a row that is altered later is verified anew.

    PolicyUnavailable     ``reason``: unknown, inactive, unsigned, altered, untrusted, broken
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Literal

from guardrails.keys import trusted_keys
from guardrails.models import PolicyVersion
from guardrails.policy import Policy, PolicyError, compile_policy
from guardrails.signing import KeyRefused, Purpose, SignatureRefused, digest_of, verify

Reason = Literal["unknown", "inactive", "unsigned", "altered", "untrusted", "broken"]
KEPT = 64
"""Compiled versions kept in a process; the least recently used one goes first."""


class PolicyUnavailable(Exception):
    """A policy that cannot run. Its text is for a human; ``reason`` is for code."""

    permanent = True

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


_Entry = tuple[str, str, str, int, Policy]
_kept: OrderedDict[str, _Entry] = OrderedDict()
_lock = Lock()


def load(version: PolicyVersion) -> Policy:
    """The compiled policy of a version that was verified. Raises ``PolicyUnavailable``."""
    row = (version.canonical, version.signature, version.policy.name, version.number)
    with _lock:  # compiling twice at once would only cost both of them twice the time
        entry = _kept.get(version.digest)
        if entry is None or entry[:4] != row:
            document = verified_document(version)
            try:
                policy = compile_policy(document, version=version.number, digest=version.digest)
            except PolicyError as error:
                raise PolicyUnavailable("broken", f"{version} does not build any more: {error}") from error
            entry = _kept[version.digest] = (*row, policy)
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(version.digest)
        return entry[4]


def kept(digest: str) -> Policy | None:
    """The policy of a digest, if this process has verified and compiled it before."""
    with _lock:
        entry = _kept.get(digest)
        return None if entry is None else entry[4]


def forget() -> None:
    """Drop everything kept (tests)."""
    with _lock:
        _kept.clear()


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
