"""What can happen in a stream: what a provider says, and what a reader is told.

Exists so that pump, workers, sockets, SSE and the terminal share one vocabulary with exact names and fields.
Protects the rule "one word per idea": the ``type`` strings and field names below are the public contract; an event
is never built as a loose dict anywhere else. ``seq``, ``session_id`` and ``ms`` are the envelope, added by the
session's log (see ``streaming.log``) and by ``stamp`` below; a reader puts the session's ``correlation_id`` on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, get_args

from typing_extensions import TypedDict  # pydantic reads it, and before Python 3.12 only this one

from guardrails.findings import Finding

Json = Mapping[str, object]


# --- what a provider says -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New answer text of one choice (``choice`` counts from 0)."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """New reasoning text. ``signature`` is the opaque proof some dialects want sent back."""

    text: str
    choice: int = 0
    signature: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of one tool call: the first piece carries ``id`` and ``name``, ``arguments`` is JSON text in pieces.

    ``ran_by_provider`` marks a tool that the provider runs itself: it is shown and never run here.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    choice: int = 0
    ran_by_provider: bool = False


@dataclass(frozen=True, slots=True)
class ProviderToolResult:
    """What a tool that the provider ran itself returned."""

    id: str
    result: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counts them; None where it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None

    def as_dict(self) -> dict[str, int]:
        """Only what the provider said."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


@dataclass(frozen=True, slots=True)
class ModelNamed:
    """The model that answers, when the provider names it (it may differ from the one asked for)."""

    model: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """One choice has ended. ``reason``: stop, length, tool_calls, content_filter, refusal, or the dialect's word."""

    reason: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ProviderNotice:
    """Something a reader should know while the call goes on: a retry, a fallback. ``delay_s`` is the wait ahead."""

    code: str
    message: str
    attempt: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ProviderChosen:
    """Who answers from here on, and how; ``fallback`` says why it is not who was asked first, or not as a stream.

    Reasons stand in the order in which they came about (``joined``). ``after``: what the last one failed of.
    """

    provider: str
    streaming: bool
    fallback: str = ""
    after: str = field(default="", compare=False)


def joined(*reasons: str) -> str:
    """Reasons for a fallback, single or joined, in the order in which they came about, as they are stored."""
    return ", ".join(dict.fromkeys(one for reason in reasons for one in reason.split(", ") if one))


ProviderEvent = (
    TextDelta
    | ThinkingDelta
    | ToolCallDelta
    | ProviderToolResult
    | Usage
    | ModelNamed
    | Stopped
    | ProviderNotice
    | ProviderChosen
)


# --- what a reader is told ------------------------------------------------------------------------------------------


class PolicyRef(TypedDict):
    """The policy a session runs under."""

    name: str
    version: int
    digest: str


class ServerEvent:
    """Base of all server events. ``OPTIONAL`` fields are left out of the payload while they are None."""

    __slots__ = ()
    type: ClassVar[str] = ""
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    def payload(self) -> dict[str, object]:
        """The event's own fields with its type, JSON-ready, without the envelope."""
        out: dict[str, object] = {"type": self.type}
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, item.name)
            if value is None and item.name in self.OPTIONAL:
                continue
            out[item.name] = value
        return out


@dataclass(frozen=True, slots=True)
class MessageNew(ServerEvent):
    """A placeholder exists (role ``user``: the prompt as stored; its text follows in a ``message_update``)."""

    type: ClassVar[str] = "message_new"
    message_id: str
    conversation_id: str
    role: str
    provider: str
    model: str
    policy: PolicyRef


@dataclass(frozen=True, slots=True)
class MessageStream(ServerEvent):
    """Released text. ``is_final`` (with an empty chunk) only ends a run of chunks."""

    type: ClassVar[str] = "message_stream"
    message_id: str
    channel: str
    choice: int
    chunk: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Hold(ServerEvent):
    """What is held now and why; ``chars`` 0 ends a hold."""

    type: ClassVar[str] = "hold"
    message_id: str
    channel: str
    chars: int
    guardrail: str
    rule: str


@dataclass(frozen=True, slots=True)
class Redaction(ServerEvent):
    """A chip. ``label`` is the placeholder exactly as it stands in the visible text at code point ``at``."""

    type: ClassVar[str] = "redaction"
    message_id: str
    channel: str
    at: int
    label: str


@dataclass(frozen=True, slots=True)
class ToolCall(ServerEvent):
    """Arguments are complete and checked (``arguments``: JSON text, or the visible part of it)."""

    type: ClassVar[str] = "tool_call"
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolProgress(ServerEvent):
    """``progress`` 0..1."""

    type: ClassVar[str] = "tool_progress"
    id: str
    message: str
    progress: float


@dataclass(frozen=True, slots=True)
class ToolResult(ServerEvent):
    """Result or error of a tool call; exactly one of the two is set."""

    type: ClassVar[str] = "tool_result"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"result", "error"})
    id: str
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GuardrailStatus(ServerEvent):
    """A guardrail's state changed. Times are milliseconds, None while nothing has been measured."""

    type: ClassVar[str] = "guardrail_status"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"error"})
    guardrail: str
    checkpoint: str
    state: str
    last_ms: float | None = None
    p95_ms: float | None = None
    error: str | None = None


StatusState = Literal[
    "idle", "waiting", "checking", "passed", "hit", "would_block",
    "error", "timeout", "expired", "circuit_open", "slower_than_declared",
]  # fmt: skip
STATUS_STATES: frozenset[str] = frozenset(get_args(StatusState))
"""What ``GuardrailStatus.state`` may say."""


@dataclass(frozen=True, slots=True)
class FindingEvent(ServerEvent):
    """A hit, also a deferred one; the finding's own fields stand flat beside the type."""

    type: ClassVar[str] = "finding"
    finding: Finding

    def payload(self) -> dict[str, object]:
        """Type and the finding's fields."""
        return {"type": self.type, **self.finding.as_dict()}


@dataclass(frozen=True, slots=True)
class Blocked(ServerEvent):
    """The answer (or the prompt, then ``message_id`` is the answer that never came) was stopped."""

    type: ClassVar[str] = "blocked"
    message_id: str
    reason: str
    guardrail: str
    withheld_chars: int


@dataclass(frozen=True, slots=True)
class MessageUpdate(ServerEvent):
    """Ends a message. ``content`` is its visible text; ``metadata`` {provider, model, usage, in_reply_to, …}."""

    type: ClassVar[str] = "message_update"
    message_id: str
    content: str
    metadata: Json


@dataclass(frozen=True, slots=True)
class Timing(ServerEvent):
    """For the timeline. ``arrivals`` and ``releases`` are [ms since start, characters] pairs in order.

    ``naive_calls``: what a check of every chunk would have taken; 0 where nobody knows how many there were.
    """

    type: ClassVar[str] = "timing"
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    releases: list[tuple[int, int]] = field(default_factory=list)
    calls: int = 1
    audit_rows: int = 1
    naive_calls: int = 0


@dataclass(frozen=True, slots=True)
class ErrorEvent(ServerEvent):
    """Something failed or is being retried. ``recoverable``: trying again (or resuming) can help."""

    type: ClassVar[str] = "error"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"field"})
    code: str
    message: str
    recoverable: bool
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Done(ServerEvent):
    """The answer is over; ``final`` is the whole visible text."""

    type: ClassVar[str] = "done"
    final: str
    outcome: str


@dataclass(frozen=True, slots=True)
class StateChange(ServerEvent):
    """ACTIVE, MONITORING or COMPLETE; ``outcome`` from the answer's end on."""

    type: ClassVar[str] = "state"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"outcome"})
    state: str
    outcome: str | None = None


def stamp(payload: Json, *, seq: int, session_id: str, ms: int) -> dict[str, object]:
    """The payload with its envelope: ``seq`` counts from 1 per session, ``ms`` since the session's start."""
    return {**payload, "seq": seq, "session_id": session_id, "ms": ms}
