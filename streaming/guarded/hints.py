"""How much a client may collect before it calls.

Exists because a call a chunk is what this API is there to avoid. Protects the rule that waiting for hints never costs
a reader more than the policy itself does: no text waits over a second, the call that carries it included, but where
nothing may be shown before the end.
"""

from __future__ import annotations

from typing_extensions import TypedDict  # pydantic reads it, and before Python 3.12 only this one

from guardrails.findings import AppliesTo
from guardrails.performance import Checkpoint
from guardrails.policy import Policy


class Hints(TypedDict):
    """At most so many characters, or after so many milliseconds, whichever comes first."""

    max_delta_chars: int
    flush_ms: int


USUAL = Hints(max_delta_chars=1_000, flush_ms=800)
"""The rest of the second is for the call. Shorter, and an answer of three seconds takes more than six calls."""
COVERED = Hints(max_delta_chars=4_000, flush_ms=5_000)
"""The client shows text by its own copy of the rules; the server only has to learn of it."""
AT_THE_END = Hints(max_delta_chars=8_000, flush_ms=5_000)
"""A guardrail judges the whole text, and nothing is shown before."""


def hints(policy: Policy, applies_to: AppliesTo, *, covered: bool) -> Hints:
    """What this policy allows. ``covered``: the client says that it runs the rules of this very version.

    Its word counts only where such rules can be all that decides: a guardrail that clients are not given, or one that
    is asked by sentences, keeps text until the server has judged it, and so the server has to be asked every second.
    """
    deciding = [g for g in policy.running(applies_to) if g.decides]
    if any(g.checkpoint is Checkpoint.DEFERRED for g in deciding):
        return AT_THE_END
    if covered and all(g.checkpoint is Checkpoint.IMMEDIATE and g.client for g in deciding):
        return COVERED
    return USUAL
