"""What the page says, as data: words, ids, numbers with units.

Exists so that an event and a stored row are shown in the same words, by the same partial, whether they arrive over
the socket or with the page. Protects two rules: a number never stands without its unit, and what was withheld is a
count, never a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def dom_id(prefix: str, name: str) -> str:
    """An element id that is also a plain CSS selector, one to one with ``name``."""
    return f"{prefix}-{name}" if _PLAIN.fullmatch(name) else f"{prefix}--{name.encode().hex()}"


def milliseconds(value: float | None) -> str:
    """A duration with its unit; a dash where nothing was measured."""
    if value is None:
        return "–"
    if value >= 10_000:
        return f"{value / 1000:.0f} s"
    if value >= 1_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms" if value >= 0.1 else f"{value * 1000:.0f} µs"


def count(number: int, noun: str) -> str:
    """``1 character``, ``1,200 characters``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# --- holding --------------------------------------------------------------------------------------------------------

_MAY_BE = {
    "ssn": "a social security number",
    "credit_card": "a card number",
    "email": "an e-mail address",
    "phone": "a phone number",
    "ip_address": "an IP address",
    "iban": "an IBAN",
    "passport": "a passport number",
    "driver_license": "a driver's licence number",
    "bank_account": "a bank account number",
    "date_of_birth": "a date of birth",
}
"""Words for rules that a reader can name; the id of a rule is the part before the first separator that is known."""


def rule_words(guardrail: str, rule: str) -> str:
    """What text held for this rule may turn out to be."""
    for known, words in _MAY_BE.items():
        if rule == known or rule.startswith((f"{known}_", f"{known}-", f"{known}.", f"{known}:")):
            return words
    if guardrail == "secrets" and rule:
        return f"a secret ({rule.replace('_', ' ').replace('-', ' ')})"
    return f"a match of {guardrail} / {rule}" if rule and rule != guardrail else f"a match of {guardrail}"


def hold_note(chars: int, guardrail: str, rule: str) -> str:
    """``holding 7 characters: may be an e-mail address``."""
    if not chars:
        return "nothing held"
    if not guardrail:
        return f"holding {count(chars, 'character')}"
    return f"holding {count(chars, 'character')}: may be {rule_words(guardrail, rule)}"


# --- outcomes and states --------------------------------------------------------------------------------------------

_OUTCOMES = {
    "allowed": "Allowed",
    "redacted": "Redacted",
    "blocked": "Blocked",
    "warned": "Allowed, with a warning",
    "interrupted": "Stopped by you",
    "abandoned": "Ended: nobody was reading",
    "expired": "Expired",
    "error": "Ended with an error",
}


def outcome_words(outcome: str) -> str:
    """The outcome of a session as a reader would say it."""
    return _OUTCOMES.get(outcome, outcome)


def state_words(state: str, outcome: str) -> str:
    """``ACTIVE``, ``MONITORING`` or ``COMPLETE`` with what it means now."""
    if state == "ACTIVE":
        return "ACTIVE · streaming"
    if state == "MONITORING":
        return "MONITORING · deferred checks are running"
    words = outcome_words(outcome)
    return f"COMPLETE · {words}" if words else "COMPLETE"


@dataclass(frozen=True, slots=True)
class StatusView:
    """State of one guardrail in its lane. Times are milliseconds."""

    guardrail: str
    state: str = "idle"
    last_ms: float | None = None
    p95_ms: float | None = None
    error: str = ""

    _SIGNS = {
        "idle": ("○", "idle"),
        "waiting": ("◌", "waiting"),
        "checking": ("◐", "checking"),
        "passed": ("✓", "passed"),
        "hit": ("●", "hit"),
        "would_block": ("▲", "would block"),
        "error": ("✕", "error"),
        "timeout": ("✕", "timed out"),
        "expired": ("✕", "expired"),
        "circuit_open": ("✕", "circuit open"),
        "slower_than_declared": ("◔", "slower than declared"),
    }

    @classmethod
    def of(cls, line: Mapping[str, object]) -> StatusView:
        """From a ``guardrail_status`` event, told or kept."""
        last, p95 = line.get("last_ms"), line.get("p95_ms")
        return cls(
            guardrail=str(line.get("guardrail") or ""),
            state=str(line.get("state") or "idle"),
            last_ms=float(last) if isinstance(last, int | float) else None,
            p95_ms=float(p95) if isinstance(p95, int | float) else None,
            error=str(line.get("error") or ""),
        )

    @property
    def id(self) -> str:
        """Id of the row; its cells add ``-state``, ``-last``, ``-p95`` and ``-hits``."""
        return dom_id("g", self.guardrail)

    @property
    def sign(self) -> str:
        """A shape, so that colour never carries the meaning alone."""
        return self._SIGNS.get(self.state, ("?", ""))[0]

    @property
    def words(self) -> str:
        """The state in words."""
        return self._SIGNS.get(self.state, ("", self.state.replace("_", " ")))[1]

    @property
    def last(self) -> str:
        """Time of the last check, with unit."""
        return milliseconds(self.last_ms)

    @property
    def p95(self) -> str:
        """95th percentile of the checks so far, with unit."""
        return milliseconds(self.p95_ms)


@dataclass(frozen=True, slots=True)
class FindingView:
    """One hit in a message's list of findings: names and numbers, never the text that was hit."""

    guardrail: str
    what: str
    effect: str
    where: str
    score: float
    n: int = 0

    @classmethod
    def of(cls, finding: Mapping[str, object]) -> FindingView:
        """From a ``finding`` event or a stored row's values (field names of guardrails.md)."""
        action = str(finding.get("action", ""))
        would = str(finding.get("would_have") or "")
        start, end = whole_number(finding.get("start")), whole_number(finding.get("end"))
        score = finding.get("score")
        effect = {"block": "blocked", "redact": "redacted", "mask": "redacted", "warn": "warned"}.get(action, action)
        mode = str(finding.get("mode", ""))
        if would:
            effect = f"would have {would}"
        elif mode == "MONITOR":
            effect = "recorded"
        names = [str(finding.get(key) or "") for key in ("category", "rule")]
        channel = str(finding.get("channel", "text"))
        where = f"characters {start:,}–{end:,}" if end > start else "the whole answer"
        return cls(
            guardrail=str(finding.get("guardrail", "")),
            what=next((name.replace("_", " ") for name in names if name), "hit"),
            effect=effect,
            where=where if channel in ("text", "response") else f"{where} of the {channel.replace('_', ' ')}",
            score=float(score) if isinstance(score, int | float) else 1.0,
            n=whole_number(finding.get("n")),
        )


# --- messages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of visible text, or a chip where something was redacted."""

    text: str
    chip: bool = False


def pieces(content: str, redactions: object) -> list[Piece]:
    """``content`` cut at its chips. ``redactions``: [visible offset, label] pairs; what does not fit is plain text."""
    out: list[Piece] = []
    done = 0
    for at, label in sorted(_pairs(redactions)):
        if at < done or content[at : at + len(label)] != label:
            continue
        if at > done:
            out.append(Piece(content[done:at]))
        out.append(Piece(label, chip=True))
        done = at + len(label)
    if done < len(content):
        out.append(Piece(content[done:]))
    return out


@dataclass(frozen=True, slots=True)
class PromptView:
    """What the visitor asked, as stored (redacted where the policy says so)."""

    id: str
    session_id: str = ""
    pieces: Sequence[Piece] = ()
    is_answer: bool = False

    @property
    def dom(self) -> str:
        """Id of the element."""
        return dom_id("m", self.id)


@dataclass(frozen=True, slots=True)
class BlockView:
    """Why an answer was stopped; ``withheld`` counts code points."""

    reason: str
    guardrail: str
    withheld: int


@dataclass(frozen=True, slots=True)
class ToolView:
    """A tool call as a card."""

    session_id: str
    id: str
    name: str
    arguments: str
    result: str = ""
    error: str = ""

    @property
    def dom(self) -> str:
        """Id of the card; a call's id is one of a kind within its session only."""
        return dom_id("t", f"{self.session_id}-{self.id}")


@dataclass(frozen=True, slots=True)
class MessageView:
    """An answer as the page shows it, new, ended or stored."""

    id: str
    session_id: str = ""
    provider: str = ""
    model: str = ""
    policy: str = ""
    status: str = "streaming"
    state: str = "ACTIVE"
    outcome: str = ""
    pieces: Sequence[Piece] = ()
    findings: Sequence[FindingView] = ()
    more: Sequence[tuple[str, int]] = ()
    """Guardrails with the number of their findings that are not among these."""
    block: BlockView | None = None
    error: str = ""
    usage: str = ""
    fallback: str = ""
    cut: str = ""
    thinking: str = ""
    tools: Sequence[ToolView] = ()
    is_answer: bool = True

    @property
    def dom(self) -> str:
        """Id of the message's element."""
        return dom_id("m", self.id)

    @property
    def session(self) -> str:
        """Id of the element that belongs to the session."""
        return dom_id("s", self.session_id)

    @property
    def words(self) -> str:
        """State of the session in words."""
        return state_words(self.state, self.outcome)

    @property
    def source(self) -> str:
        """Who answered: provider and model, and why it was not who was asked, or not the way that was wanted."""
        instead = f"fallback after {self.fallback}" if self.fallback else ""
        return " · ".join(part for part in (self.provider, self.model, instead) if part)

    @classmethod
    def pending(
        cls, *, message_id: str, session_id: str, provider: str, model: str, policy: Mapping[str, object]
    ) -> MessageView:
        """A placeholder, from ``message_new``."""
        return cls(id=message_id, session_id=session_id, provider=provider, model=model, policy=policy_words(policy))

    @classmethod
    def ended(cls, *, message_id: str, session_id: str, content: str, metadata: Mapping[str, object]) -> MessageView:
        """A finished message, from ``message_update``. A prompt replies to nothing; its text comes with it."""
        usage = metadata.get("usage")
        return cls(
            id=message_id,
            session_id=session_id,
            provider=str(metadata.get("provider") or ""),
            model=str(metadata.get("model") or ""),
            status=str(metadata.get("status") or "complete"),
            pieces=pieces(content, metadata.get("redactions")),
            usage=usage_words(usage if isinstance(usage, Mapping) else {}),
            fallback=str(metadata.get("fallback") or ""),
            is_answer=bool(metadata.get("in_reply_to")),
        )


def policy_words(policy: Mapping[str, object]) -> str:
    """``demo v3``."""
    name, version = str(policy.get("name") or ""), policy.get("version")
    return f"{name} v{version}" if version else name


def usage_words(usage: Mapping[str, object]) -> str:
    """``12 tokens in, 80 tokens out``, as far as the provider said."""
    parts = []
    for key, side in (("input_tokens", "in"), ("output_tokens", "out")):
        value = usage.get(key)
        if isinstance(value, int):
            parts.append(f"{count(value, 'token')} {side}")
    return ", ".join(parts)


def _pairs(value: object) -> list[tuple[int, str]]:
    if not isinstance(value, list | tuple):
        return []
    return [
        (item[0], str(item[1]))
        for item in value
        if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], int) and item[1]
    ]


def whole_number(value: object) -> int:
    """``value`` where it is a number, else 0."""
    return int(value) if isinstance(value, int | float) else 0
