"""What a shadow came to in one session, and how that compares with what the active version did.

Exists apart from the running so that the arithmetic can be read alone. Protects two rules: "clean" is said only of a
shadow that has seen everything it would have decided on; and what a shadow found is kept apart from the session's own
findings, with its version's number on each, so that nobody takes one for the other. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from guardrails.findings import HIDING, Action, Finding, Mode
from guardrails.kinds.base import Turn
from guardrails.policy import Policy

MAX_FINDINGS = 200
"""Findings of a shadow that are kept of one session; the others are counted."""


class Comparison(StrEnum):
    """Both versions over one session. To act is to block or to redact; a warning is none.

    ``UNKNOWN``: the shadow did not act, but it did not look at everything either.
    """

    BOTH_CLEAN = "both_clean"
    BOTH_ACTED = "both_acted"
    ONLY_ACTIVE = "only_active"
    ONLY_SHADOW = "only_shadow"
    UNKNOWN = "unknown"


COMPARISON_WORDS = {
    "both_clean": "Both clean",
    "both_acted": "Both acted",
    "only_active": "Only the active version acted",
    "only_shadow": "Only the shadow would have acted",
    "unknown": "The shadow did not look at everything",
}
"""How a screen says it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text to be judged by itself, or a sentence of one. Offsets are code points of the channel's original text;
    ``exposed`` of its characters were shown. ``text``: as the guardrail may be told it."""

    channel: str
    start: int
    end: int
    exposed: int
    text: str


@dataclass(frozen=True, slots=True)
class LateCheck:
    """What a worker shall ask one guardrail of the shadow about one kind of text. ``part`` numbers those of a kind."""

    guardrail: str
    applies_to: str
    pieces: tuple[Piece, ...]
    turns: tuple[Turn, ...] = ()
    part: int = 0


@dataclass(frozen=True, slots=True)
class ShadowRecord:
    """One session's shadow. ``would_have``: what the version would have done as the active one, at its worst.

    ``unanswered`` counts texts that no verdict came for in time, ``failures`` failed checks by guardrail; ``not_run``
    names guardrails that have not answered: those of ``late``, which workers ask, those that ``shared`` names, which
    the active version asks as well, and those that nobody asks here. ``ms``: what it cost the stream's own thread.
    ``acted``: whether the active version did, for verdicts that come later.
    """

    version: int
    digest: str
    comparison: Comparison
    would_have: str = ""
    findings: tuple[Finding, ...] = ()
    error: str = ""
    unanswered: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    not_run: tuple[str, ...] = ()
    ms: float = 0.0
    acted: bool = False
    late: tuple[LateCheck, ...] = ()
    shared: tuple[str, ...] = ()

    def details(self) -> dict[str, object]:
        """What is stored beside the columns, JSON-ready."""
        kept = [{**finding.as_dict(), "version": self.version} for finding in self.findings[:MAX_FINDINGS]]
        return {
            "digest": self.digest,
            "findings": kept,
            "more": len(self.findings) - len(kept),
            "error": self.error,
            "unanswered": self.unanswered,
            "failures": dict(self.failures),
            "not_run": list(self.not_run),
            "ms": round(self.ms, 3),
            "acted": self.acted,
            **({"late": dict(Counter(one.guardrail for one in self.late))} if self.late else {}),
            **({"shared": list(self.shared)} if self.shared else {}),
        }


def recorded(
    *,
    version: int,
    digest: str,
    policy: Policy | None,
    active_acted: bool,
    findings: Sequence[Finding] = (),
    error: str = "",
    unanswered: int = 0,
    failures: Mapping[str, int] | None = None,
    not_run: Sequence[str] = (),
    late: Sequence[LateCheck] = (),
    shared: Sequence[str] = (),
    ms: float = 0.0,
) -> ShadowRecord:
    """The record of a shadow that has ended. ``findings`` are numbered here, in the order given.

    ``policy`` None: the version did not load, for ``error``. ``not_run``: those that nobody asks.
    """
    missing = tuple(dict.fromkeys([*not_run, *shared, *(one.guardrail for one in late)]))
    mine = tuple(
        replace(finding, n=n, would_have=finding.would_have if _decides(policy, finding) else None)
        for n, finding in enumerate(findings, start=1)
    )
    said = {finding.would_have for finding in mine}
    would_have = "blocked" if "blocked" in said else "redacted" if "redacted" in said else ""
    missed = any(policy is not None and policy.guardrail(name).decides for name in missing)
    whole = not (error or unanswered or failures or missed)
    return ShadowRecord(
        version=version,
        digest=digest,
        comparison=compared(active=active_acted, shadow=bool(would_have), whole=whole),
        would_have=would_have,
        findings=mine,
        error=error,
        unanswered=unanswered,
        failures=dict(failures or {}),
        not_run=missing,
        ms=ms,
        acted=active_acted,
        late=tuple(late),
        shared=tuple(shared),
    )


def _decides(policy: Policy | None, finding: Finding) -> bool:
    """Outside MONITOR, would this have been more than a record? Not of a guardrail that itself stands in MONITOR."""
    return policy is not None and policy.guardrail(finding.guardrail).mode is Mode.BLOCK


def compared(*, active: bool, shadow: bool, whole: bool) -> Comparison:
    """``whole``: the shadow has looked at everything."""
    if shadow:
        return Comparison.BOTH_ACTED if active else Comparison.ONLY_SHADOW
    if not whole:
        return Comparison.UNKNOWN
    return Comparison.ONLY_ACTIVE if active else Comparison.BOTH_CLEAN


def acted(policy: Policy | None, findings: Iterable[Finding], *, monitor: bool) -> bool:
    """Has the active version hidden anything? In a session wholly in MONITOR: would it have?"""
    hits = [finding for finding in findings if finding.action in HIDING]
    if monitor:
        return any(_decides(policy, finding) for finding in hits)
    return any(finding.mode is Mode.BLOCK for finding in hits)


def stops(findings: Iterable[Finding]) -> bool:
    """Whether the active version blocked the text that it found these in."""
    return any(finding.mode is Mode.BLOCK and finding.action is Action.BLOCK for finding in findings)


def with_exposure(findings: Iterable[Finding], active: Iterable[Finding], released: int) -> list[Finding]:
    """A shadow's findings in one text, in text order, each with how many of its characters the active version showed.

    ``active`` are the active version's findings in that text, ``released`` the characters that it showed.
    """
    exposed = exposure(active, released)
    return [
        replace(finding, exposed=exposed(finding.start, finding.end))
        for finding in sorted(findings, key=lambda finding: (finding.start, finding.end))
    ]


def exposure(active: Iterable[Finding], released: int) -> Callable[[int, int], int]:
    """Says of a span of a text how many of its characters the active version showed."""
    shown = list(_shown(active, released))
    ends = [end for _, end in shown]

    def exposed(first: int, last: int) -> int:
        number, at = 0, bisect_right(ends, first)  # a text may be full of holes
        while at < len(shown) and shown[at][0] < last:
            start, end = shown[at]
            number += min(end, last) - max(start, first)
            at += 1
        return number

    return exposed


def _shown(active: Iterable[Finding], released: int) -> Iterator[tuple[int, int]]:
    """The stretches of the original text that were shown: all that is not hidden, until ``released`` is used up."""
    hidden = sorted((f.start, f.end) for f in active if f.mode is Mode.BLOCK and f.action in HIDING)
    at, left = 0, released
    for start, end in hidden:
        if start > at and left:
            taken = min(left, start - at)
            yield at, at + taken
            left -= taken
        at = max(at, end)
    if left:
        yield at, at + left
