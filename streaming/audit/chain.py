"""The audit log's arithmetic: what an entry commits to, and what is wrong with a chain.

Exists apart from the database so that an auditor can check an export with nothing but this page: an entry's hash is
SHA-256 over the canonical JSON (RFC 8785) of all its fields and the hash of the entry before it. Protects the rule that
nothing in the log can be altered, left out, moved or cut off without the next check pointing at it. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring

from guardrails.signing import canonical_bytes

GENESIS = "0" * 64
"""What the first entry names as the hash before it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. ``at`` is UTC in ISO 8601 with microseconds; ``body`` is JSON-ready."""

    seq: int
    kind: str
    session: str
    at: str
    body: Mapping[str, object]
    before: str
    hash: str

    def as_dict(self) -> dict[str, object]:
        """The entry as a line of an export."""
        return {**_signed_part(self), "hash": self.hash}

    def line(self) -> str:
        """The line itself, without its end."""
        return json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was written. ``seq`` is the entry that shows it."""

    seq: int
    code: str
    message: str


def _signed_part(entry: Entry) -> dict[str, object]:
    return {
        "seq": entry.seq,
        "kind": entry.kind,
        "session": entry.session,
        "at": entry.at,
        "body": entry.body,
        "before": entry.before,
    }


def next_entry(
    *,
    last_seq: int,
    last_hash: str,
    kind: str,
    session: str,
    at: str,
    body: Mapping[str, object],
    written: str | None = None,
) -> Entry:
    """The entry that follows. Raises ``ValueError`` for a body that canonical JSON cannot carry.

    ``written``: the body as ``canonical`` wrote it before, so that those who wait for this entry need not wait for
    that. What stands around it is put there by hand, in the order and form of RFC 8785.
    """
    seq = last_seq + 1
    inner = canonical(body) if written is None else written
    text = (
        f'{{"at":{encode_basestring(at)},"before":{encode_basestring(last_hash)},"body":{inner},"kind":{encode_basestring(kind)},'
        f'"seq":{seq},"session":{encode_basestring(session)}}}'
    )
    return Entry(seq, kind, session, at, body, last_hash, hashlib.sha256(text.encode()).hexdigest())


def _fits(entry: Entry) -> bool:
    try:
        return entry.hash == _hash(entry)
    except (ValueError, RecursionError):
        return False  # whatever stands there, nobody could have hashed it


def canonical(body: Mapping[str, object]) -> str:
    """A body as it is hashed and stored. Raises ``ValueError`` for one that canonical JSON cannot carry."""
    return canonical_bytes(body).decode()


def _hash(entry: Entry) -> str:
    return hashlib.sha256(canonical_bytes(_signed_part(entry))).hexdigest()


def faults(entries: Iterable[Entry], *, heads: Iterable[tuple[int, str]] = ()) -> Iterator[Fault]:
    """What is wrong with a whole chain, in order; ``heads`` are numbers and hashes that somebody else has kept:
    two of one number that differ are a fault, whichever of them the chain has.

    After a fault the walk goes on from what stands there, so that one change is one fault and not a thousand.
    """
    walk = Walk(heads)
    for entry in entries:
        yield from walk.take(entry)
    yield from walk.end()


class Walk:
    """The same, an entry at a time, for those who do something of their own with each. ``last``: where the walk is."""

    def __init__(self, heads: Iterable[tuple[int, str]] = ()) -> None:
        self.last: tuple[int, str] = (0, GENESIS)
        self._kept: defaultdict[int, set[str]] = defaultdict(set)
        for number, told in heads:
            self._kept[number].add(told)

    def take(self, entry: Entry) -> Iterator[Fault]:
        """What is wrong with the next entry."""
        seq, before = self.last
        if entry.seq != seq + 1:
            what = f"entries {seq + 1} to {entry.seq - 1} are missing" if entry.seq > seq + 1 else "it is out of order"
            yield Fault(entry.seq, "gap", f"Entry {entry.seq}: {what}.")
        elif entry.before != before:
            yield Fault(entry.seq, "broken", f"Entry {entry.seq} does not follow the entry before it.")
        if not _fits(entry):
            yield Fault(entry.seq, "altered", f"Entry {entry.seq} was altered after it was written.")
        self.last = (entry.seq, entry.hash)
        if self._kept.pop(entry.seq, {entry.hash}) != {entry.hash}:
            yield Fault(entry.seq, "rewritten", f"Entry {entry.seq} is not the one that an exported head names.")

    def end(self) -> Iterator[Fault]:
        """What is missing behind the last entry."""
        seq = self.last[0]
        if missing := [number for number in self._kept if number > seq]:
            words = f"The log ends at entry {seq}, and an exported head names entry {max(missing)}."
            yield Fault(seq, "cut_off", words)


def digest(value: Mapping[str, object]) -> str:
    """What a ``sealed`` entry keeps of a row."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def commitment(salt: str, text: str) -> str:
    """What a ``sealed`` entry keeps of a text: nothing that can be guessed at once the salt has been purged."""
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()
