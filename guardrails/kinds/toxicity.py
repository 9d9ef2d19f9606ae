"""A local classifier for insults, threats and contempt for groups of people.

Exists because a list of words finds the words and not the insult. Protects readers, and whoever a prompt is about.
Trained on little plain language: it finds the plain cases and is no moderator. Figures and what it misses:
docs/classifiers.md.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from guardrails.findings import Verdict
from guardrails.kinds.base import CheckRequest, Config, Example, Kind
from guardrails.ml.model import load
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass


class ToxicityConfig(Config):
    """Parameters of the `toxicity` kind."""

    threshold: float = Field(
        default=0.9, ge=0, le=1, description="Score from which a text is a hit; lower finds more and errs more."
    )


class ToxicityKind(Kind[ToxicityConfig]):
    """Hashed n-grams and a linear model; no network."""

    name = "toxicity"
    family = Family.LOCAL_ML
    description = "Insults, threats and contempt for groups of people, found by a local classifier."
    performance = PerformanceCharacteristics(
        PerformanceClass.MODERATE,
        1.0,
        20.0,
        50.0,
        cacheable=True,
        cache_seconds=3_600,
        memory_mb=5.0,
        earliest_checkpoint=Checkpoint.BATCHED,
    )
    computes = True
    Config = ToxicityConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {},
            hits=("Shut up, you stupid moron.", "I will find you and kill you."),
            passes=("Have a nice day, my friend.", "Heat kills the bacteria in milk.", "I hate rainy Mondays."),
        ),
    )

    def judge(self, request: CheckRequest) -> Verdict:
        """Judge the text. Raises ``ModelRefused`` or ``OSError`` when the weights cannot be used."""
        score = load(self.name).score(request.text)
        hit = score >= self.config.threshold
        return Verdict(hit, score=round(score, 3), category=self.name if hit else "")
