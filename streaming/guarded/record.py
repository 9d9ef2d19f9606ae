"""All that is known of a stream between two calls of its client.

Exists because any process may get the next call. Protects two rules: what is stored is one value, so that gate,
digest of the request and answer can only be there together; and it is encrypted wherever it lies, because it holds
text that nobody may see.

    RecordBroken     the bytes are not a record of this session
    ForeignRecord    they were written in another form or sealed with another key: whoever wrote them can read them
"""

from __future__ import annotations

import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import NotRequired, TypedDict, cast

from guardrails.findings import Action, Finding, FindingDict, Mode, Outcome
from streaming.core.snapshot import GateState
from streaming.pace import Points, Timeline
from streaming.sealed import SealBroken, key_name, seal, unseal
from streaming.totals import AllTotals

FORM = 3
"""Of what is stored. A field that is added, goes or means something else makes another one."""
_MARK = b"sg-stream"


class RecordBroken(ValueError):
    """A stored record that cannot be read any more. Permanent."""

    permanent = True


class ForeignRecord(RecordBroken):
    """A stored record that is not for this process: while versions or keys change there are others that can read it."""


class ShadowState(TypedDict):
    """The version that runs beside: what its gate knows and has found so far. ``ms``: what it has cost. ``paid``: its
    guardrails that go over the network are asked; where nothing is said, they are.
    """

    version: int
    digest: str
    gate: GateState | None
    findings: list[FindingDict]
    error: str
    ms: float
    paid: NotRequired[bool]


Answer = dict[str, object]


class Block(TypedDict):
    """Where a stream was stopped, as its readers are told. ``after``: so many findings stand before it."""

    after: int
    guardrail: str
    reason: str
    withheld: int


class Earlier(TypedDict):
    """An update, as far as its answer cannot be told from the record: of the visible text and of the findings it is
    the part from … to. ``digest`` begins that of the call.
    """

    digest: str
    seq: int
    shown: tuple[int, int]
    found: tuple[int, int]
    held: int
    action: str


POINTS = 100
"""Of a stream's timeline, each way: it travels with every call."""
KEPT_CALLS = 200
"""So many updates are known by their digests, for copies that come late; so does the state, with every call."""
DIGEST_CHARS = 16
"""Of a digest that are kept; 64 bits are enough to tell the bodies of one seq apart."""


@dataclass(slots=True)
class Record:
    """One stream. Offsets and counts are code points.

    ``rev`` counts commits, ``seq`` the client's deltas. ``raw`` is kept only where a worker shall judge the text
    afterwards, for the session or its shadow. ``ended`` is the outcome, empty while the stream is open; ``over`` when
    all that follows from the end is done, and only answers are left here; ``gate`` is dropped then. ``covered``: the
    client's own rules are those of the policy. ``earlier``: the last updates, oldest first.
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
    naive: int | None = None
    """Chunks that the client had received for all deltas so far; None from the first delta on that does not say it."""
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    """[ms since the start, characters] of what came, and of what was held no longer: shown, or hidden for good."""
    releases: list[tuple[int, int]] = field(default_factory=list)
    settled: int = 0
    behind: bool = False
    """The client may have been answered more calls than are known here: this came from the database in the place of a
    newer state that the store has lost. The next call that says its ``seq`` settles it."""

    def took(self, chunks: int | None) -> None:
        """A delta is applied, for which the client had received so many chunks."""
        self.chunks += 1
        known = self.naive if self.chunks > 1 else 0
        self.naive = None if known is None or chunks is None else known + chunks

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
        one = next((one for one in self.earlier if digest.startswith(one["digest"])), None)
        if one is None:
            return None
        return {
            "session_id": self.session_id,
            "state": "ACTIVE",
            "seq": one["seq"],
            "released": self.visible[slice(*one["shown"])],
            "released_chars": one["shown"][1],
            "held_chars": one["held"],
            "action": one["action"],
            "findings": self.findings[slice(*one["found"])],
            "hints": self.start_answer["hints"],
        }

    def applied(self, seq: int) -> bool | None:
        """Whether it is known with what body this delta came; None where it has not come yet."""
        if seq > self.seq:
            return None
        return seq == self.seq or any(one["seq"] == seq for one in self.earlier)

    def began_with(self, seq: int) -> bool:
        """Whether this delta came with the start."""
        return seq == self.start_answer.get("seq") == 1

    def keep(self, digest: str, answer: Answer) -> None:
        """The answer of the call that is being committed, and that the record has been brought to."""
        self.digest, self.answer = digest, answer
        if "held_chars" not in answer:  # a finish: nothing comes behind it
            return
        shown, found = len(self.visible), len(self.findings)
        released, findings = cast("str", answer["released"]), cast("list[FindingDict]", answer["findings"])
        this = Earlier(
            digest=digest[:DIGEST_CHARS],
            seq=self.seq,
            shown=(shown - len(released), shown),
            found=(found - len(findings), found),
            held=self.held,
            action=str(answer["action"]),
        )
        self.earlier = [*self.earlier[1 - KEPT_CALLS :], this]

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
        # ``asdict`` would copy all that is in them, with every call.
        plain = json.dumps(
            {one.name: getattr(self, one.name) for one in fields(self)}, ensure_ascii=False, separators=(",", ":")
        )
        packed = b85encode(zlib.compress(plain.encode(), level=1)).decode("ascii")
        return _head() + seal(packed, context=_context(self.session_id))


def unsealed(data: bytes, session_id: str) -> Record:
    """The record again. Raises ``RecordBroken``, and ``ForeignRecord`` where another process could read it."""
    data, head = bytes(data), _head()
    if not data.startswith(head):
        if data.startswith(_MARK):
            raise ForeignRecord("the stored state has another form or key")
        if _is_of_the_first_form(data, session_id):
            raise ForeignRecord("the stored state has the first form")
        raise RecordBroken("the stored state is none")
    try:
        packed = b85decode(unseal(data[len(head) :], context=_context(session_id)))
        record = Record(**json.loads(zlib.decompress(packed)))
    except (SealBroken, ValueError, TypeError, KeyError, zlib.error) as error:
        raise RecordBroken("the stored state cannot be read") from error
    record.redactions = [(int(at), str(label)) for at, label in record.redactions]
    record.arrivals = [(int(ms), int(chars)) for ms, chars in record.arrivals]
    record.releases = [(int(ms), int(chars)) for ms, chars in record.releases]
    return record


def _is_of_the_first_form(data: bytes, session_id: str) -> bool:
    """It was sealed as a whole, with nothing in clear before it: that it opens is all that tells it from damage."""
    try:
        unseal(data, context=_context(session_id))
    except SealBroken:
        return False
    return True


def finding_of(data: FindingDict) -> Finding:
    """A finding out of its JSON form."""
    return Finding(**{**data, "mode": Mode(data["mode"]), "action": Action(data["action"])})  # type: ignore[arg-type]


def rows_of(record: Record) -> int:
    """Rows of the audit record: the session's, its two entries of the log, and one for each finding."""
    return 3 + len(record.findings)


def action_of(findings: Sequence[FindingDict]) -> str:
    """The strongest thing that these findings ask for: allow, warn, redact or block."""
    said = {data["action"] for data in findings if data["mode"] == Mode.BLOCK.value}
    if "block" in said:
        return "block"
    return "redact" if said & {"redact", "mask"} else "warn" if "warn" in said else "allow"


def _head() -> bytes:
    """In clear before what is sealed: form and key."""
    return _MARK + bytes([FORM]) + key_name()


def _context(session_id: str) -> str:
    return f"guarded/{session_id}"
