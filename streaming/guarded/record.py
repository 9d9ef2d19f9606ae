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
from datetime import UTC, datetime
from typing import TypedDict

from guardrails.findings import Action, Finding, FindingDict, Mode, Outcome
from streaming.core.snapshot import GateState
from streaming.pace import Points, Timeline
from streaming.sealed import SealBroken, seal, unseal
from streaming.totals import AllTotals

FORM = 1


class RecordBroken(ValueError):
    """A stored record that cannot be read any more. Permanent."""

    permanent = True


class ShadowState(TypedDict):
    """The version that runs beside: what its gate knows and has found so far. ``ms``: what it has cost."""

    version: int
    digest: str
    gate: GateState | None
    findings: list[FindingDict]
    error: str
    ms: float


Answer = dict[str, object]


class Block(TypedDict):
    """Where a stream was stopped, as its readers are told. ``after``: so many findings stand before it."""

    after: int
    guardrail: str
    reason: str
    withheld: int


class Earlier(TypedDict):
    """What an earlier call was and what it was answered; ``size`` is that of the answer in bytes."""

    digest: str
    answer: Answer
    size: int


POINTS = 100
"""Of a stream's timeline, each way: it travels with every call."""
KEPT_ANSWERS, KEPT_BYTES = 4, 65_536
"""So many answers, and so much of them, are kept for copies of calls that come late; the last one always."""


@dataclass(slots=True)
class Record:
    """One stream. Offsets and counts are code points.

    ``rev`` counts commits, ``seq`` the client's deltas. ``raw`` is kept only where a worker shall judge the whole text
    afterwards. ``ended`` is the outcome, empty while the stream is open; ``over`` when
    all that follows from the end is done, and only answers are left here; ``gate`` is dropped then. ``covered``: the
    client's own rules are those of the policy. ``earlier``: calls before the last one, oldest first.
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
    earlier: list[Earlier] = field(default_factory=list)
    gate: GateState | None = None
    visible: str = ""
    raw: str = ""
    redactions: list[tuple[int, str]] = field(default_factory=list)
    findings: list[FindingDict] = field(default_factory=list)
    guardrails: AllTotals = field(default_factory=dict)
    calls: int = 0
    chunks: int = 0
    checks: int = 0
    held: int = 0
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    block: Block | None = None
    ended: str = ""
    over: bool = False
    deferred: list[str] = field(default_factory=list)
    demoted: dict[str, str] = field(default_factory=dict)
    """Guardrails that run later than they declare, with where, as it was when the stream began."""
    aside: list[str] = field(default_factory=list)
    """Those of them that are asked about sentences all the same, after the end (``streaming.aside``)."""
    shadow: ShadowState | None = None
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    """[ms since the start, characters] of what came, and of what was held no longer: shown, or hidden for good."""
    releases: list[tuple[int, int]] = field(default_factory=list)
    settled: int = 0

    def came(self, chars: int) -> None:
        """So many characters have come now."""
        self.arrivals = self._with(self.arrivals, chars)

    def settle(self, settled: int) -> None:
        """So many in all are held no longer."""
        self.releases = self._with(self.releases, settled - self.settled)
        self.settled = max(self.settled, settled)

    def _with(self, points: Points, chars: int) -> list[tuple[int, int]]:
        timeline = Timeline(points, POINTS)
        if chars > 0:
            since = datetime.now(UTC) - datetime.fromisoformat(self.started_at)
            last = points[-1][0] if points else 0  # calls may be served by machines whose clocks differ
            timeline.add(max(last, round(since.total_seconds() * 1000)), chars)
        return timeline.points

    @property
    def expected_seq(self) -> int:
        """Of the next delta."""
        return self.seq + 1

    @property
    def events(self) -> int:
        """So many events have followed from the stream as it is here; while it is open that is the log's last seq."""
        return 2 + len(self.findings) + (self.block is not None)

    def answered(self, digest: str) -> Answer | None:
        """The answer of this very call, when it is one of the last."""
        if digest == self.digest:
            return self.answer
        return next((one["answer"] for one in self.earlier if one["digest"] == digest), None)

    def keep(self, digest: str, answer: Answer) -> None:
        """The answer of the call that is being committed; the oldest one gives way to it."""
        if self.digest:
            size = len(json.dumps(self.answer))
            self.earlier.append(Earlier(digest=self.digest, answer=self.answer, size=size))
        left = KEPT_BYTES - len(json.dumps(answer))
        first = len(self.earlier)
        while first > max(0, len(self.earlier) - KEPT_ANSWERS + 1) and self.earlier[first - 1]["size"] <= left:
            first -= 1
            left -= self.earlier[first]["size"]
        self.earlier = self.earlier[first:]
        self.digest, self.answer = digest, answer

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
    record.arrivals = [(int(ms), int(chars)) for ms, chars in record.arrivals]
    record.releases = [(int(ms), int(chars)) for ms, chars in record.releases]
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
