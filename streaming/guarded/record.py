"""All that is known of a stream between two calls of its client.

Exists because any process may get the next call. Protects two rules: what is stored is one value, so that gate,
digest of the request and answer can only be there together; and it is encrypted wherever it lies, because it holds
text that nobody may see.

    RecordBroken     the bytes are not a record of this session, or their key or form has changed
"""

from __future__ import annotations

import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TypedDict

from guardrails.findings import Action, Finding, FindingDict, Mode, Outcome
from streaming.core.snapshot import GateState
from streaming.sealed import SealBroken, seal, unseal

FORM = 1


class RecordBroken(ValueError):
    """A stored record that cannot be read any more. Permanent."""

    permanent = True


class Totals(TypedDict):
    """What one guardrail did in this stream; times are milliseconds."""

    checks: int
    hits: int
    errors: int
    ms: float
    last_ms: float


class ShadowState(TypedDict):
    """The version that runs beside: what its gate knows and has found so far. ``ms``: what it has cost."""

    version: int
    digest: str
    gate: GateState | None
    findings: list[FindingDict]
    error: str
    ms: float


Answer = dict[str, object]


@dataclass(slots=True)
class Record:
    """One stream. Offsets and counts are code points.

    ``rev`` counts commits, ``seq`` the client's deltas. ``raw`` is kept only where a worker shall judge the whole text
    afterwards. ``ended`` is the outcome, empty while the stream is open; ``gate`` is dropped when it is over.
    ``covered``: the client's own rules are those of the policy.
    """

    session_id: str
    client: str
    policy: str
    version: int
    policy_digest: str
    kind: str
    conversation_id: str
    message_id: str
    started_at: str
    start_digest: str
    covered: bool = False
    start_answer: Answer = field(default_factory=dict)
    rev: int = 0
    seq: int = 0
    digest: str = ""
    answer: Answer = field(default_factory=dict)
    gate: GateState | None = None
    visible: str = ""
    raw: str = ""
    redactions: list[tuple[int, str]] = field(default_factory=list)
    findings: list[FindingDict] = field(default_factory=list)
    guardrails: dict[str, Totals] = field(default_factory=dict)
    calls: int = 0
    chunks: int = 0
    checks: int = 0
    held: int = 0
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    ended: str = ""
    deferred: list[str] = field(default_factory=list)
    shadow: ShadowState | None = None

    @property
    def expected_seq(self) -> int:
        """Of the next delta."""
        return self.seq + 1

    def hits(self) -> list[Finding]:
        """All findings so far."""
        return [finding_of(data) for data in self.findings]

    def outcome(self) -> Outcome:
        """How the stream is called if it ends here."""
        said = {(data["mode"], data["action"]) for data in self.findings}
        actions = {Action(action) for mode, action in said if mode == Mode.BLOCK.value}
        if Action.BLOCK in actions:
            return Outcome.BLOCKED
        if actions & {Action.REDACT, Action.MASK}:
            return Outcome.REDACTED
        return Outcome.WARNED if Action.WARN in actions else Outcome.ALLOWED

    def seal(self) -> bytes:
        """The record as it is stored."""
        plain = json.dumps({"form": FORM, **asdict(self)}, ensure_ascii=False, separators=(",", ":"))
        packed = b85encode(zlib.compress(plain.encode(), level=1)).decode("ascii")
        return seal(packed, context=_context(self.session_id))


def unsealed(data: bytes, session_id: str) -> Record:
    """The record again. Raises ``RecordBroken``."""
    try:
        packed = b85decode(unseal(bytes(data), context=_context(session_id)))
        found = json.loads(zlib.decompress(packed))
        if found.pop("form") != FORM:
            raise RecordBroken("the stored state has another form")
        record = Record(**found)
    except (SealBroken, ValueError, TypeError, KeyError, zlib.error) as error:
        raise RecordBroken("the stored state cannot be read") from error
    record.redactions = [(int(at), str(label)) for at, label in record.redactions]
    return record


def finding_of(data: FindingDict) -> Finding:
    """A finding out of its JSON form."""
    return Finding(**{**data, "mode": Mode(data["mode"]), "action": Action(data["action"])})  # type: ignore[arg-type]


def action_of(findings: Sequence[FindingDict]) -> str:
    """The strongest thing that these findings ask for: allow, warn, redact or block."""
    said = {data["action"] for data in findings if data["mode"] == Mode.BLOCK.value}
    if "block" in said:
        return "block"
    return "redact" if said & {"redact", "mask"} else "warn" if "warn" in said else "allow"


def _context(session_id: str) -> str:
    return f"guarded/{session_id}"
