"""JSON of which numbers were hidden: what stands for one is text, so they are strings.

Exists because a rule looks at JSON as it is written and finds a number there that a field's name gives away. Protects
the rule that what was JSON goes upstream as JSON, and that nothing is looked at twice for that: what was found stands
where it stood, a quote or two further on. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

from guardrails.findings import HIDING, Finding, Mode
from streaming.checks import CheckedText
from streaming.gateway.laid import spans
from streaming.gateway.loose_json import is_json, numbers_with


def hides(finding: Finding) -> bool:
    """Whether what it found is kept from who reads on."""
    return finding.mode is Mode.BLOCK and finding.action in HIDING


def quoted(text: str, checked: CheckedText) -> tuple[str, CheckedText] | None:
    """The text with quotes around the numbers of which something is hidden, and what was found, with its places there.

    None where it needs no quotes: it was no JSON, still is, or is none with them either.
    """
    if checked.blocked is not None or checked.visible == text or text.lstrip()[:1] not in ("{", "["):
        return None
    hidden = [finding for finding in checked.findings if hides(finding)]
    if any(finding.kind == "length" for finding in hidden) or not is_json(text) or is_json(checked.visible):
        return None
    numbers = numbers_with(text, hidden)
    starts, ends = [start for start, _ in numbers], [end for _, end in numbers]
    parts: list[str] = []
    at = 0
    for start, end in numbers:
        parts += (text[at:start], f'"{text[start:end]}"')
        at = end
    made = "".join((*parts, text[at:]))
    moved = [
        replace(
            one,
            start=one.start + bisect_right(starts, one.start) + bisect_right(ends, one.start),
            end=one.end + bisect_left(starts, one.end) + bisect_left(ends, one.end),
        )
        for one in checked.findings
    ]
    redactions: list[tuple[int, str]] = []
    places, labels = spans(moved), [label for _, label in checked.redactions]
    if len(places) != len(labels):
        return None
    at, parts, length = 0, [], 0
    for (start, end), label in zip(places, labels, strict=True):
        length += start - at
        redactions.append((length, label))
        parts += (made[at:start], label)
        at, length = end, length + len(label)
    visible = "".join((*parts, made[at:]))
    if not is_json(visible):
        return None
    return made, replace(checked, findings=moved, redactions=redactions, visible=visible)
