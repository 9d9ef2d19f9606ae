"""Numbers and moments in words, for the rule form; protects the rule that numbers carry units and can be read."""

from __future__ import annotations

from django import template

from guardrails.performance import Checkpoint

register = template.Library()
_MOMENTS = {
    Checkpoint.IMMEDIATE: "on every chunk",
    Checkpoint.BATCHED: "at sentence ends",
    Checkpoint.DEFERRED: "after the answer, in a worker",
}


@register.filter
def grouped(number: int) -> str:
    """A number with its thousands set apart."""
    return f"{number:,}"


@register.filter
def moment(checkpoint: str) -> str:
    """When a checkpoint is, in words."""
    return _MOMENTS[Checkpoint(checkpoint)]
