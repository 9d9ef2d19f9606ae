"""Which findings of an answer a page lists; the others it counts, guardrail by guardrail.

Exists because a long text full of addresses has ten thousand. Protects the rule that a page shows the same of an answer
while it runs and when it is loaded again: the first so many, and always what blocked it.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import Q

from streaming.presentation import whole_number

SHOWN = 200
"""Of one answer."""
BLOCKING = Q(action="block", mode="BLOCK")


def listed(finding: Mapping[str, object]) -> bool:
    """Whether this one is listed; a ``finding`` event."""
    blocking = (finding.get("action"), finding.get("mode")) == ("block", "BLOCK")
    return blocking or whole_number(finding.get("n")) <= SHOWN


def listed_rows() -> Q:
    """The same of stored rows."""
    return Q(n__lte=SHOWN) | BLOCKING
