"""The project's ASGI application with one kind of guardrail more: a web hook that is asked at the end of a sentence.

Served by a real server of its own, so that a test decides how long a sentence is held there. Never imported by tests:
the kind is registered where this module is.
"""

from __future__ import annotations

from typing import ClassVar

from guardrails.kinds.base import Example
from guardrails.kinds.webhook import WebhookKind
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass
from project.asgi import application as application


class SentenceHook(WebhookKind):
    """The web hook, declared fast enough to decide about each sentence."""

    name = "sentence_hook"
    family = Family.AI
    description = "Your own HTTP endpoint judges each sentence."
    performance = PerformanceCharacteristics(
        PerformanceClass.MODERATE, 200.0, 500.0, 900.0, deterministic=False, cpu=False, network=True
    )
    examples: ClassVar[tuple[Example, ...]] = (Example({"url": "https://checks.example/judge"}, hits=(), passes=()),)
