"""The page that shows what differs between any two versions of a policy, or a version and the draft.

Exists because whoever signs, activates or rolls back decides on what changed. Protects two rules: what the page shows
is text, never markup, whatever somebody wrote into a rule; and a character that cannot be seen is written out, so that
two rules that differ never look the same.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from django import forms
from django.http import QueryDict
from unfold.widgets import UnfoldAdminSelectWidget

from guardrails.diff import Change, What, changes
from guardrails.models import Policy

DRAFT = "draft"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that differs, ready to be shown. ``before`` and ``after`` are JSON, empty where there is nothing."""

    what: What
    rule: str
    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Part:
    """All that differs in one guardrail; ``guardrail`` empty: in the policy itself."""

    guardrail: str
    lines: tuple[Line, ...]


class CompareForm(forms.Form):
    """Which two are compared; without an answer, what is active with what would come next."""

    old = forms.ChoiceField(widget=UnfoldAdminSelectWidget(), label="From")
    new = forms.ChoiceField(widget=UnfoldAdminSelectWidget(), label="To")

    def __init__(self, policy: Policy, asked: QueryDict) -> None:
        numbers = list(policy.versions.order_by("-number").values_list("number", flat=True))
        active = policy.active_version.number if policy.active_version else None
        shadow = policy.shadow_version.number if policy.shadow_version else None
        marks = {active: " (active)", shadow: " (shadow)"}
        choices = [(str(number), f"Version {number}{marks.get(number, '')}") for number in numbers]
        if policy.draft is not None:
            choices.insert(0, (DRAFT, "Draft"))
        newest = choices[0][0] if choices else ""
        before = next((str(number) for number in numbers if str(number) != newest), newest)
        old = str(active) if active is not None and str(active) != newest else before
        super().__init__({"old": asked.get("old", old), "new": asked.get("new", newest)})
        for name in ("old", "new"):
            self.fields[name].choices = choices  # type: ignore[attr-defined]  # a ChoiceField's


def comparison(policy: Policy, asked: QueryDict) -> dict[str, object]:
    """What the page shows: the form, and the differences or why there are none to be told."""
    form = CompareForm(policy, asked)
    shown_always: dict[str, object] = {"form": form}
    if not form.is_valid():
        return {**shown_always, "trouble": "There is no such version. Choose two of those that there are."}
    try:
        old, new = (document_of(policy, form.cleaned_data[name]) for name in ("old", "new"))
        parts = differences(old, new)
    except ValueError as error:
        return {**shown_always, "trouble": str(error)}
    return {**shown_always, "parts": parts, "count": sum(len(part.lines) for part in parts)}


def document_of(policy: Policy, name: str) -> Mapping[str, object]:
    """The document that a choice of ``CompareForm`` stands for. Raises ``ValueError`` if it cannot be read."""
    if name == DRAFT:
        return policy.draft or {}
    try:
        return policy.versions.get(number=int(name)).document
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"version {name} cannot be read; it was altered ({error})") from error


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[Part]:
    """What differs, guardrail by guardrail in the order in which they are asked. Raises ``ValueError``."""
    lines: dict[str, list[Line]] = {}
    try:
        for change in changes(before, after):
            lines.setdefault(change.guardrail, []).append(_line(change))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"one of the two is no policy document ({error})") from error
    return [Part(shown(guardrail), tuple(own)) for guardrail, own in lines.items()]


def shown(text: str) -> str:
    """``text`` with every character written out that has no shape of its own: those that join, hide or turn text."""
    return "".join(char if _has_shape(char) else json.dumps(char)[1:-1] for char in text)


def _has_shape(char: str) -> bool:
    return char in " \n" or unicodedata.category(char)[0] not in "CZ"


def _line(change: Change) -> Line:
    if change.what == "moved":
        before, after = f"place {change.before}", f"place {change.after}"
    else:
        before = "" if change.what == "added" else _json(change.before)
        after = "" if change.what == "removed" else _json(change.after)
    return Line(change.what, shown(change.rule), shown(change.key), before, after)


def _json(value: object) -> str:
    """JSON, so that the number 1 and the text 1 differ; what is larger than a value has a line for each key."""
    return shown(json.dumps(value, ensure_ascii=False, indent=2 if isinstance(value, dict) else None))
