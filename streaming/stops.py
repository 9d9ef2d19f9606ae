"""Why an answer ended: which reasons are the end of an answer, and words for those that are not.

Exists because an answer that was cut off looks like one that is complete. Protects two rules: whatever is not known to
be a normal end is told; and a reason is the provider's word, so only one that is a plain name is shown or kept, and one
that is not known here has to pass the guardrails like any other of its words. Pure.
"""

from __future__ import annotations

import re

NORMAL = frozenset(
    {"stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "tool_calls", "tool_use", "function_call"}
)
"""The answer is over, or the model waits for what its tools return."""
OTHER = "other"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_CUT = {
    "length": "The answer is cut off: it has as many tokens as it may have.",
    "content_filter": "The answer is cut off: the provider's content filter stopped it.",
    "refusal": "The answer ends here: the model refused to go on.",
    "pause_turn": "The answer is not finished: the provider paused it. Asking the model to go on may help.",
}
_SAME = {"max_tokens": "length", "model_length": "length", "content-filter": "content_filter"}


def known(reason: str) -> bool:
    """Is it a word of ours as well, in which nothing else can stand?"""
    return reason.lower() in NORMAL or reason in _CUT or reason in _SAME


def kept(reason: str) -> str:
    """The reason as it may be stored and shown."""
    return reason if _NAME.fullmatch(reason) else OTHER


def cut(reason: str) -> str:
    """What a reader is told of an answer that ended for this reason; empty: it is complete."""
    if reason.lower() in NORMAL:
        return ""
    words = _CUT.get(_SAME.get(reason, reason))
    return words or f"The provider ended the answer for a reason of its own ({kept(reason)})."
