"""The gitleaks rule format (TOML) -> a policy with one `secrets` guardrail.

Protects the rule that nothing is dropped in silence: what a stream cannot honour (paths, commits, whole lines, rules
our syntax refuses) is listed with the reason. The words are gitleaks' own: ids, keywords, entropy, secret groups and
allow-lists keep their meaning, which is documented in its README, section "Configuration".

What differs by nature. A scanner asks whether a keyword stands anywhere in a file before it tries a rule; a stream
cannot know its end, so one of the keywords has to stand in the match (with what was trimmed off its left).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from guardrails.kinds.regex import Allow, PatternRule
from guardrails.kinds.secrets import SecretsConfig
from guardrails.patterns.compiler import compile_rule
from guardrails.patterns.errors import PatternError
from guardrails.policy import PolicyError

_RULE_KEYS = {"id", "description", "regex", "path", "keywords", "entropy", "secretGroup", "allowlist", "allowlists",
              "tags"}  # fmt: skip
_ALLOW_KEYS = {"description", "regexes", "regexTarget", "stopwords", "condition", "paths", "commits"}
_TOP_KEYS = {"title", "description", "minVersion", "allowlist", "allowlists", "rules"}


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was not taken as it stood. ``rule`` is the rule's id, or empty for the whole file."""

    rule: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule or 'the whole file'}: {self.what}: {self.reason}"


@dataclass(slots=True)
class Imported:
    """The policy document, how many rules it holds, and what could not be taken.

    ``refused`` are rules that are missing from the document, ``changed`` those in it without a part of theirs.
    """

    document: dict[str, object]
    rules: int = 0
    refused: list[Note] = field(default_factory=list)
    changed: list[Note] = field(default_factory=list)


def is_gitleaks(document: Mapping[str, object]) -> bool:
    """Is this the content of a gitleaks configuration rather than a policy file?"""
    rules = document.get("rules")
    return "policy" not in document and "guardrails" not in document and isinstance(rules, list)


def import_gitleaks(document: Mapping[str, object], *, name: str) -> Imported:
    """Turn a parsed gitleaks configuration into a policy document named ``name``. Raises ``PolicyError``."""
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        raise PolicyError("rules", "a gitleaks configuration has a list of rules")
    out = Imported({})
    for key in document.keys() - _TOP_KEYS:
        reason = "only this file is read, no other configuration" if key == "extend" else "unknown key"
        out.changed.append(Note("", str(key), reason))
    shared = _shared_allow_lists(document, out)
    taken: dict[str, dict[str, object]] = {}
    for n, entry in enumerate(rules):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise PolicyError(f"rules[{n}]", "a rule is a table with an id")
        rule = _rule(entry, [allow for targets, allow in shared if entry["id"] in targets], out)
        if rule is None:
            continue
        if entry["id"] in taken:
            out.refused.append(Note(entry["id"], "the rule", "a second rule of the same id"))
            continue
        taken[entry["id"]] = rule
    if not taken:
        raise PolicyError("rules", "none of the rules could be taken")
    out.rules = len(taken)
    config = {
        "tokens": False,
        "private_keys": False,
        "assignments": False,
        "allow": [allow for targets, allow in shared if not targets],
        "rules": list(taken.values()),
    }
    try:
        SecretsConfig.model_validate(config)
    except ValidationError as error:
        raise PolicyError("rules", str(error.errors(include_url=False, include_input=False)[0]["msg"])) from None
    out.document = {
        "policy": name,
        "description": f"Imported from a gitleaks configuration: {document.get('title', 'untitled')}",
        "guardrails": [{"name": "secrets", "kind": "secrets", "action": "redact", "config": config}],
    }
    return out


def _rule(entry: Mapping[str, object], allow: list[dict[str, object]], out: Imported) -> dict[str, object] | None:
    rule_id = str(entry["id"])
    if not isinstance(entry.get("regex"), str):
        out.refused.append(Note(rule_id, "the rule", "it looks at file names only, and a stream has none"))
        return None
    if "path" in entry:
        out.changed.append(Note(rule_id, "path", "a stream has no file name: the rule looks at every text"))
    for key in entry.keys() - _RULE_KEYS:
        out.changed.append(Note(rule_id, str(key), "unknown key"))
    own = (_allow(table, rule_id, out) for table in _tables(entry))
    allow.extend(taken for taken in own if taken is not None)
    raw: dict[str, object] = {
        "id": rule_id,
        "pattern": entry["regex"],
        # gitleaks: the group that is named, or the first one that holds something
        "secret_group": entry.get("secretGroup") or -1,
        "placeholder": "[SECRET]",
        "category": "secret",
        "keywords": entry.get("keywords", []),
        "allow": allow,
    }
    if entry.get("entropy"):
        raw["entropy"] = entry["entropy"]
    try:
        rule = PatternRule.model_validate(raw)
        compile_rule(rule.rule())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        out.refused.append(Note(rule_id, "the rule", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))
        return None
    except PatternError as error:
        out.refused.append(Note(rule_id, "the rule", str(error)))
        return None
    return rule.model_dump(mode="json", exclude_defaults=True)


def _tables(entry: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Allow-lists in their present form (a list of tables) and in the earlier one (one table)."""
    found: list[Mapping[str, object]] = []
    for key in ("allowlist", "allowlists"):
        value = entry.get(key, [])
        found += [table for table in (value if isinstance(value, list) else [value]) if isinstance(table, dict)]
    return found


def _shared_allow_lists(
    document: Mapping[str, object], out: Imported
) -> list[tuple[tuple[str, ...], dict[str, object]]]:
    """The file's own allow-lists, each with the rules it is meant for (none named: all)."""
    found = []
    for table in _tables(document):
        targets = table.get("targetRules", [])
        rest = {key: value for key, value in table.items() if key != "targetRules"}
        if (taken := _allow(rest, "", out)) is not None:
            found.append((tuple(map(str, targets)) if isinstance(targets, list) else (), taken))
    return found


def _allow(table: Mapping[str, object], rule_id: str, out: Imported) -> dict[str, object] | None:
    """One allow-list as our form writes it, or None (with a note) if nothing of it can be honoured."""

    def note(what: str, reason: str) -> None:
        out.changed.append(Note(rule_id, f"allow-list ({what})", reason))

    for key in table.keys() - _ALLOW_KEYS:
        note(str(key), "unknown key")
    target = table.get("regexTarget", "secret")
    places = [key for key in ("paths", "commits") if table.get(key)]
    both = str(table.get("condition", "OR")).upper() in ("AND", "&&")
    raw: dict[str, object] = {"regexes": table.get("regexes", []), "stopwords": table.get("stopwords", [])}
    if raw["regexes"] and target == "line":
        note('regexTarget = "line"', "a stream's line is not complete when the match has to be decided")
        if both:
            return None
        raw["regexes"] = []
    for place in places:
        note(place, "a stream has no files and no commits")
        if both:
            return None
    if not raw["regexes"] and not raw["stopwords"]:
        return None
    if target == "match":
        raw["target"] = "match"
    if both:
        raw["require_all"] = True
    try:
        return Allow.model_validate(raw).model_dump(mode="json", exclude_defaults=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        note(".".join(map(str, first["loc"])) or "the list", str(first["msg"]).removeprefix("Value error, "))
        return None
