"""How often a rule was right, as people judged it, per version of a policy.

Exists because a rule earns its place by what reviewers say, and a new version has to show that it is better. Protects
two rules: the newest review of a finding counts, once, and a share never stands without the number that it is of and
the interval that this number allows (Wilson, 95 %).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from django.db.models import Count, Exists, F, OuterRef

from streaming.models import Review

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
Place = tuple[str, int, str, str]
GROUP = {
    "policy": F("finding__session__policy_name"),
    "number": F("finding__session__policy_version"),
    "guardrail": F("finding__guardrail"),
    "rule": F("finding__rule"),
}


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """What people said of one rule under one version. Counts are findings."""

    policy: str
    version: int
    guardrail: str
    rule: str
    right: int = 0
    wrong: int = 0
    unclear: int = 0
    twice: int = 0
    agreed: int = 0

    @property
    def judged(self) -> int:
        """Findings with a verdict."""
        return self.right + self.wrong + self.unclear

    @property
    def precision(self) -> float | None:
        """True positives of those that were decided, 0..1; None where none was."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def precision_words(self) -> str:
        """With its interval."""
        if self.precision is None:
            return "–"
        low, high = wilson(self.right, self.right + self.wrong)
        return f"{self.precision:.0%} ({low:.0%}–{high:.0%})"

    @property
    def agreement_words(self) -> str:
        """Of the findings that two or more people judged, those on which all said the same."""
        return f"{self.agreed / self.twice:.0%} of {self.twice:,}" if self.twice else "–"


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The Wilson score interval (95 %) of ``hits`` in ``number`` > 0, both ends 0..1."""
    share, z2 = hits / number, Z_95 * Z_95
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    reach = Z_95 / (1 + z2 / number) * sqrt(share * (1 - share) / number + z2 / (4 * number * number))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def records() -> Sequence[RuleRecord]:
    """One for each rule and version that somebody judged; the newest version of a policy first. Two queries."""
    newer = Review.objects.filter(finding=OuterRef("finding"), version__gt=OuterRef("version"))
    labels: defaultdict[Place, dict[str, int]] = defaultdict(dict)
    counted = (
        Review.objects.filter(~Exists(newer)).order_by().values(**GROUP, said=F("label")).annotate(times=Count("pk"))
    )
    for row in counted:
        labels[_place(row)][row["said"]] = row["times"]
    twice, agreed = _opinions()
    return [
        RuleRecord(
            *place,
            right=said.get(Review.Label.TRUE_POSITIVE, 0),
            wrong=said.get(Review.Label.FALSE_POSITIVE, 0),
            unclear=said.get(Review.Label.UNCLEAR, 0),
            twice=twice[place],
            agreed=agreed[place],
        )
        for place, said in sorted(labels.items(), key=lambda pair: (pair[0][0], -pair[0][1], pair[0][2:]))
    ]


def _opinions() -> tuple[dict[Place, int], dict[Place, int]]:
    """Findings that several people judged, and those on which each one's last word is the same."""
    changed = Review.objects.filter(finding=OuterRef("finding"), by=OuterRef("by"), version__gt=OuterRef("version"))
    per_finding = (
        Review.objects.filter(~Exists(changed))
        .order_by()
        .values("finding", **GROUP)
        .annotate(people=Count("pk"), opinions=Count("label", distinct=True))
        .filter(people__gt=1)
    )
    twice: defaultdict[Place, int] = defaultdict(int)
    agreed: defaultdict[Place, int] = defaultdict(int)
    for row in per_finding.iterator():
        twice[_place(row)] += 1
        agreed[_place(row)] += row["opinions"] == 1
    return twice, agreed


def _place(row: Mapping[str, object]) -> Place:
    number = row["number"]
    return (str(row["policy"]), number if isinstance(number, int) else 0, str(row["guardrail"]), str(row["rule"]))
