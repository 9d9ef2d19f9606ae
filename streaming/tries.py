"""How often, and after what wait, a guardrail that asks somebody else is asked again.

Exists because one bad answer of a busy endpoint says nothing of a text. Protects two rules: tries that failed at the
same moment do not come back at the same moment; and where somebody waits for the verdict, the waits between the tries
take a part of what is left of the guardrail's time limit and never all of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

TRIES = 3
"""Times that a guardrail is asked about one text where its verdict is waited for, the first one included."""
FIRST_WAIT_S, LONGEST_WAIT_S, JITTER_S = 1.0, 10.0, 1.0
"""Seconds from a failed attempt to the next one: twice as many each time, with a random part so that they spread."""
SHARE = 0.25
"""So much of the time that is left may be spent on waiting for the next try."""

Chance = Callable[[], float]
"""Gives 0..1."""


def wait_s(attempt: int, chance: Chance = random.random) -> float:
    """Seconds from the failure of the ``attempt``-th attempt (from 1) to the next one."""
    return min(FIRST_WAIT_S * 2.0 ** (attempt - 1) + JITTER_S * chance(), LONGEST_WAIT_S)


def wait_within_s(attempt: int, left_s: float, chance: Chance = random.random) -> float:
    """The same where ``left_s`` seconds are left for wait and try together; most of them stay for the try."""
    most = left_s * SHARE
    return min(wait_s(attempt, chance), most - most / 2 * chance())
