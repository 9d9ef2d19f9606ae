"""How fast a guardrail is, when it therefore runs, and what it may decide: one table, as data.

The admin form, the scheduler and the documentation page read ``DECISION_TABLE``; nothing else repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from guardrails.findings import Action, Mode, OnError


class PerformanceClass(StrEnum):
    """Declared speed, by expected 95th percentile."""

    INSTANT = "INSTANT"
    FAST = "FAST"
    MODERATE = "MODERATE"
    SLOW = "SLOW"
    VERY_SLOW = "VERY_SLOW"


class Checkpoint(StrEnum):
    """When a guardrail runs: on every chunk, at sentence ends, or after the answer in a worker."""

    IMMEDIATE = "IMMEDIATE"
    BATCHED = "BATCHED"
    DEFERRED = "DEFERRED"


CLASS_LIMITS_MS: dict[PerformanceClass, tuple[float, float]] = {
    PerformanceClass.INSTANT: (0.0, 10.0),
    PerformanceClass.FAST: (10.0, 100.0),
    PerformanceClass.MODERATE: (100.0, 1_000.0),
    PerformanceClass.SLOW: (1_000.0, 5_000.0),
    PerformanceClass.VERY_SLOW: (5_000.0, float("inf")),
}
"""Milliseconds, lower bound inclusive and upper bound exclusive, of each class."""

CHECKPOINT_OF: dict[PerformanceClass, Checkpoint] = {
    PerformanceClass.INSTANT: Checkpoint.IMMEDIATE,
    PerformanceClass.FAST: Checkpoint.IMMEDIATE,
    PerformanceClass.MODERATE: Checkpoint.BATCHED,
    PerformanceClass.SLOW: Checkpoint.DEFERRED,
    PerformanceClass.VERY_SLOW: Checkpoint.DEFERRED,
}

TIME_LIMIT_S: dict[Checkpoint, float] = {
    Checkpoint.IMMEDIATE: 0.05,
    Checkpoint.BATCHED: 1.0,
    Checkpoint.DEFERRED: 30.0,
}
"""Seconds one check may take before it counts as failed."""


def class_of(p95_ms: float) -> PerformanceClass:
    """The class that a 95th percentile of so many milliseconds belongs to."""
    return next(each for each, (_, most) in CLASS_LIMITS_MS.items() if p95_ms < most)


def later(first: Checkpoint, second: Checkpoint) -> Checkpoint:
    """Whichever of the two comes later."""
    return max(first, second, key=list(Checkpoint).index)


@dataclass(frozen=True, slots=True)
class PerformanceCharacteristics:
    """What a kind promises about its speed and needs. Times are milliseconds, memory megabytes.

    Raises ``ValueError`` when p50 <= p95 <= p99 does not hold or the class is faster than p95.
    """

    performance_class: PerformanceClass
    p50_ms: float
    p95_ms: float
    p99_ms: float
    deterministic: bool = True
    cacheable: bool = False
    cache_seconds: int = 0
    cpu: bool = True
    memory_mb: float = 1.0
    network: bool = False
    supports_streaming: bool = False
    batch_size: int = 1
    earliest_checkpoint: Checkpoint = Checkpoint.IMMEDIATE

    def __post_init__(self) -> None:
        if not 0 <= self.p50_ms <= self.p95_ms <= self.p99_ms:
            raise ValueError(f"p50 <= p95 <= p99 does not hold: {self.p50_ms}, {self.p95_ms}, {self.p99_ms}")
        if self.p95_ms >= CLASS_LIMITS_MS[self.performance_class][1]:
            raise ValueError(f"p95 of {self.p95_ms} ms is slower than class {self.performance_class.value}")

    @property
    def checkpoint(self) -> Checkpoint:
        """Where a guardrail of this speed runs: its class's checkpoint, or its earliest one if that is later."""
        return later(CHECKPOINT_OF[self.performance_class], self.earliest_checkpoint)


class Family(StrEnum):
    """Row of the decision table a kind belongs to."""

    PATTERN = "pattern"
    LISTED = "listed"
    LOCAL_ML = "local_ml"
    AI = "ai"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Decision:
    """One row of the decision table: the defaults of a family and whether its mode may be overridden."""

    label: str
    performance_class: PerformanceClass
    mode: Mode
    override: bool
    action: Action
    on_error: OnError
    override_warning: str = ""


DECISION_TABLE: dict[Family, Decision] = {
    Family.PATTERN: Decision(
        "regex, PII, secrets", PerformanceClass.INSTANT, Mode.BLOCK, False, Action.REDACT, OnError.BLOCK
    ),
    Family.LISTED: Decision(
        "keywords, topics, URLs, length, code", PerformanceClass.FAST, Mode.BLOCK, True, Action.BLOCK, OnError.BLOCK
    ),
    Family.LOCAL_ML: Decision(
        "local machine learning", PerformanceClass.MODERATE, Mode.BLOCK, True, Action.WARN, OnError.WARN
    ),
    Family.AI: Decision(
        "AI analysis (a model as judge)",
        PerformanceClass.SLOW,
        Mode.MONITOR,
        True,
        Action.BLOCK,
        OnError.ALLOW,
        "In BLOCK mode the whole answer is held until the judge has spoken.",
    ),
    Family.EXTERNAL: Decision(
        "external API (moderation endpoint, web hook)",
        PerformanceClass.VERY_SLOW,
        Mode.MONITOR,
        False,
        Action.BLOCK,
        OnError.ALLOW,
    ),
}
