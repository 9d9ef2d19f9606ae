"""The form of a policy's draft: fields for every guardrail, and the same document as a file beside them.

Protects two rules: what cannot be bounded or built is refused at its field, and nothing that was typed is lost by it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from django import forms
from django.http import QueryDict
from unfold.widgets import UnfoldAdminTextareaWidget

from guardrails.admin.rules.envelope import Sheet, read, sheet
from guardrails.admin.rules.live import Facts, examine_draft
from guardrails.admin.rules.reading import PREFIX, Reading, pairs_from_json
from guardrails.models import Policy

EMPTY: dict[str, object] = {"policy": "", "description": "", "guardrails": []}
BY_FILE = "file"
"""Value of the button that saves the file in place of the fields."""


def as_file(document: object) -> str:
    """A document as people read it."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def stored_document(policy: Policy) -> Mapping[str, object]:
    """What editing begins with: the draft, else what is active, else the newest version; empty if there is nothing."""
    if policy.draft:
        return cast("dict[str, object]", policy.draft)
    version = policy.active_version
    if version is None and policy.pk:
        version = policy.versions.order_by("-number").first()
    return version.document if version else {}


class PolicyForm(forms.ModelForm[Policy]):
    """A policy's draft. ``cleaned_data["draft"]`` is the document with its defaults, whichever way it came."""

    fields_sent = forms.CharField(required=False, strip=False, widget=forms.HiddenInput)
    draft = forms.CharField(
        label="Policy file",
        required=False,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 24, "spellcheck": "false"}),
        help_text="The draft as a policy file (JSON): copy it, or put another one in its place.",
    )

    class Meta:
        model = Policy
        fields: ClassVar[list[str]] = ["draft"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stored: Mapping[str, object] = stored_document(self.instance) or EMPTY
        self.initial["draft"] = as_file(self.stored) if self.instance.pk else ""
        self.facts = Facts()

    @functools.cached_property
    def posted(self) -> dict[str, object] | None:
        """The document that the posted fields mean; None if there were no fields."""
        data = self.data
        if sent := data.get("fields_sent"):
            try:
                pairs = pairs_from_json(sent)
            except ValueError:
                return None  # not the page's script, then: what counts is the file
        elif isinstance(data, QueryDict):
            pairs = [(name, value) for name in data if name.startswith(PREFIX + ".") for value in data.getlist(name)]
        else:
            pairs = []
        if not pairs:
            return None
        reading = Reading(pairs)
        document = read(reading)
        self.facts.problems |= reading.problems
        return document

    @functools.cached_property
    def sheet(self) -> Sheet:
        """The fields as they are drawn: what was posted, else what is stored."""
        drawn = sheet(self.posted or self.stored, {} if self._by_file else self.facts.problems)
        if self.instance.pk:
            drawn.head[0].facts["readonly"] = "readonly"
        return drawn

    @property
    def _by_file(self) -> bool:
        return self.data.get("_continue") == BY_FILE or (self.is_bound and self.posted is None)

    def clean(self) -> dict[str, Any]:
        """The document, examined; refused with every path that is wrong."""
        cleaned = dict(self.cleaned_data)
        try:
            by_file = self._by_file
            document = self._file() if by_file else self.posted
        except ValueError as error:
            self.add_error("draft", f"This is no policy document: {error}.")
            return cleaned
        if not isinstance(document, Mapping):
            self.add_error("draft", "This is no policy document: it must be a JSON object.")
            return cleaned
        before = self.facts.problems
        self.facts = examine_draft(document)
        self.facts.problems |= before
        self._check_name(str(document.get("policy", "")))
        if self.facts.problems:
            told = [f"{path}: {message}" if path else message for path, message in self.facts.problems.items()]
            self.add_error("draft" if by_file else None, ["Nothing was saved.", *told])
            return cleaned
        cleaned["draft"] = self.facts.document
        return cleaned

    def _file(self) -> object:
        try:
            return json.loads(self.cleaned_data.get("draft") or "")
        except RecursionError:
            raise ValueError("too deeply nested") from None

    def _check_name(self, name: str) -> None:
        if self.instance.pk and name != self.instance.name:
            words = f"must stay {self.instance.name!r}; another name is another policy"
        elif not self.instance.pk and Policy.objects.filter(name=name).exists():
            words = f"{name!r} exists already"
        else:
            return
        self.facts.problems.setdefault("policy", words)
