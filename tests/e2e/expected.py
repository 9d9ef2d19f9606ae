"""What a page must show in the end, computed by the whole-text check and not by the streaming gate's way of cutting."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from streaming.core.gate import gate_text

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def demo_policy() -> Policy:
    """The starter policy that the demo page runs under."""
    return compile_policy(json.loads((ROOT / "guardrails" / "starters" / "demo.json").read_text()))


def visible(text: str) -> str:
    """What a reader may see of a finished answer."""
    return gate_text(demo_policy(), text, applies_to=AppliesTo.RESPONSE).visible
