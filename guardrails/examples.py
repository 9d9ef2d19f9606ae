"""A false positive becomes an example that its rule must not match.

Exists because what a reviewer finds wrong is worth most where the next version is tried. Protects two rules: an example
is added to the newest draft and nothing else of it is altered in meaning, so that nobody's edit is lost; and it goes
where publication tries it, so that a version which still matches cannot be published. Patterns of the short form have
no place for examples: they become written-out rules of the same ids, which match the same.

    Refused     the rule carries no examples, is gone, or has this one already
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from pydantic import ValidationError

from guardrails.kinds.regex import RegexConfig
from guardrails.models import Policy
from guardrails.services import Refused, save_draft

EXAMPLE_CHARS = 2_000
KIND = "regex"
"""The kind whose rules carry examples of their own."""
_SHORT = ("patterns", "case_sensitive", "validator", "secret_group", "placeholder")
"""Its parameters that are the short form."""


@transaction.atomic
def add_must_not_match(*, policy: str, guardrail: str, rule: str, text: str, by: AbstractBaseUser) -> Policy:
    """Add ``text`` to the rule's ``must_not_match`` in the policy's draft, which begins with what is active.

    Raises ``Refused``, and ``PolicyError`` for a draft that is refused for something else.
    """
    if not text.strip():
        raise Refused("write the text that the rule must not match")
    if len(text) > EXAMPLE_CHARS:
        raise Refused(f"an example has at most {EXAMPLE_CHARS:,} characters")
    locked = Policy.objects.select_for_update(of=("self",)).select_related("active_version").filter(name=policy).first()
    if locked is None:
        raise Refused(f"there is no policy {policy} any more")
    if locked.draft is None and locked.active_version is None:
        raise Refused(f"{policy} has neither a draft nor an active version to begin one with")
    begun = locked.draft if locked.draft is not None else locked.active_version and locked.active_version.document
    document: dict[str, object] = copy.deepcopy(dict(begun or {}))
    examples = _examples_of(document, policy, guardrail, rule)
    if text in examples:
        raise Refused(f"rule {rule} of {guardrail} has this example already")
    examples.append(text)
    return save_draft(document=document, by=by)


def carries_examples(kind: str) -> bool:
    """Whether the rules of this kind of guardrail have ``must_not_match``."""
    return kind == KIND


def _examples_of(document: Mapping[str, object], policy: str, guardrail: str, rule: str) -> list[object]:
    """The rule's own list, inside of the document."""
    guardrails = document.get("guardrails")
    found = next((one for one in _dicts(guardrails) if one.get("name") == guardrail), None)
    if found is None:
        raise Refused(f"{policy} has no guardrail {guardrail} any more")
    if not carries_examples(str(found.get("kind"))):
        raise Refused(f"{guardrail} is of kind {found.get('kind')}, whose rules carry no examples; only {KIND} does")
    config = found.get("config")
    parameters = config if isinstance(config, dict) else found
    named = next((one for one in _dicts(parameters.get("rules")) if one.get("id") == rule), None)
    if named is None:
        named = _written_out(parameters, rule)
    if named is None:
        raise Refused(f"{guardrail} has no rule {rule} any more")
    examples = named.setdefault("must_not_match", [])
    if not isinstance(examples, list):
        raise Refused(f"the examples of rule {rule} of {guardrail} are no list")
    return examples


def _written_out(parameters: dict[str, object], rule: str) -> dict[str, object] | None:
    """The rule of this id among those of the short form, which is a list of written-out rules from here on."""
    try:
        short = RegexConfig.model_validate({name: parameters[name] for name in _SHORT if name in parameters})
    except ValidationError:
        return None  # what is wrong with the draft is said where it is stored
    made = [one.model_dump(mode="json", exclude_defaults=True) for one in short.short_rules()]
    named = next((one for one in made if one["id"] == rule), None)
    if named is not None:
        written = parameters.get("rules")
        parameters["rules"] = [*(written if isinstance(written, list | tuple) else ()), *made]
        for name in _SHORT:
            parameters.pop(name, None)
    return named


def _dicts(value: object) -> list[dict[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
