"""What an endpoint says of its own failure or of its model, made fit for readers and for the record.

Exists because such words come from outside like an answer's text, and may quote a prompt, a tool's result or somebody
else's request. Protects the rule that nothing from a provider is told or stored past the guardrails: those that answer
at once look at the words as at a response's; nobody waits for the others about a failure.
"""

from __future__ import annotations

from guardrails.findings import AppliesTo
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.core.gate import gate_text
from streaming.providers.failures import MAX_HEARD_CHARS, shortened

MODEL_CHARS = 200
"""What the column takes."""
WITHHELD = "The provider reported a failure; a guardrail withheld its words."


def fit(policy: Policy, words: str, *, monitor: bool) -> str:
    """The words as the policy lets them pass, as many as are told; where it would stop an answer, ours instead."""
    visible = _visible(policy, words, monitor=monitor)
    return WITHHELD if visible is None else shortened(visible)


def model_name(policy: Policy, said: str, *, monitor: bool) -> str:
    """What an endpoint calls its model, ``MODEL_CHARS`` at most; nothing where it would stop an answer."""
    # What is cut here is far behind the end of what is kept, so that no value is halved before it is looked at.
    visible = _visible(policy, said[:MAX_HEARD_CHARS], monitor=monitor)
    return "" if visible is None else shortened(visible, MODEL_CHARS)


def _visible(policy: Policy, words: str, *, monitor: bool) -> str | None:
    """None where the policy would stop an answer."""
    found = gate_text(policy.only(Checkpoint.IMMEDIATE), words, applies_to=AppliesTo.RESPONSE, monitor=monitor)
    return None if found.action == "block" and not monitor else found.visible
