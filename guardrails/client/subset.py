"""The client rules of a policy version: what enters the bundle, and why the rest does not.

The payload is signed with the version and never changes afterwards. Spans and lengths are code points.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from guardrails.client.parity import finder_in_python, finder_in_re2, group_numbers
from guardrails.client.vectors import vectors
from guardrails.findings import AppliesTo, Mode
from guardrails.patterns import folding
from guardrails.patterns.compiler import CompiledRule, compile_rule
from guardrails.patterns.emit import Dialect, char_class
from guardrails.patterns.rule import Rule
from guardrails.patterns.tree import Alt, Assert, Group, Node, Repeat, Seq
from guardrails.patterns.validators import Contains, as_data
from guardrails.performance import Checkpoint, PerformanceClass
from guardrails.policy import Guardrail, Policy

KINDS = ("regex", "keywords", "pii", "secrets")
CLASSES = (PerformanceClass.INSTANT, PerformanceClass.FAST)
LONGEST_PATTERN = 20_000
"""Characters of a pattern: a longer one costs a client more than a call to the server."""
WORD = "{{word}}"
"""Stands in patterns for the class of word characters, which ``classes`` holds once; else no pattern has ``{{``."""
MOST_RULES = 1_000
"""Rules of one bundle."""
VECTORS, VECTORS_OF_MANY, MANY = 8, 2, 100
"""Parity vectors of a rule; where a bundle has ``MANY`` rules or more, fewer."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A guardrail or rule (empty: all of the guardrail's) that its author offered to clients, and why it stays here."""

    guardrail: str
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.guardrail}{f'/{self.rule}' if self.rule else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Subset:
    """The client rules of one version. ``failures`` are parity vectors on which engines do not agree."""

    payload: dict[str, object]
    rules: int
    vectors: int
    left_out: tuple[LeftOut, ...]
    failures: tuple[str, ...]


@functools.cache
def folding_digest() -> str:
    """``sha256:…`` over the bytes of the shipped folding table, of which a client has a copy."""
    table = Path(folding.__file__).with_name(f"folding_v{folding.table().version}.json")
    return "sha256:" + sha256(table.read_bytes()).hexdigest()


def client_subset(policy: Policy, *, version: int, digest: str) -> Subset:
    """The client rules of a compiled policy, with their parity vectors tried in Python's ``re`` and in RE2."""
    left_out: list[LeftOut] = []
    chosen: list[tuple[Guardrail, list[CompiledRule]]] = []
    room = MOST_RULES
    for guardrail in policy.guardrails:
        if not guardrail.client:
            continue
        if why := why_not(guardrail):
            left_out.append(LeftOut(guardrail.name, "", why))
            continue
        fitting: list[CompiledRule] = []
        for compiled in guardrail.rules:
            why = why_not_rule(compiled) or ("" if room else f"a bundle holds at most {MOST_RULES:,} rules")
            if why:
                left_out.append(LeftOut(guardrail.name, compiled.rule.id, why))
            else:
                room -= 1
                fitting.append(compiled)
        chosen.append((guardrail, fitting))
    most = VECTORS if MOST_RULES - room < MANY else VECTORS_OF_MANY
    entries: list[dict[str, object]] = []
    made: list[_ClientRule] = []
    failures: list[str] = []
    whole: set[str] = set()
    for guardrail, fitting in chosen:
        own: list[_ClientRule] = []
        for compiled in fitting:
            one = _client_rule(compiled.rule, most)
            place = f"{guardrail.name}/{compiled.rule.id}"
            failures += [f"{place}: {failure}" for failure in one.failures]
            if one.hits:
                own.append(one)
            else:
                why = "no text is known that it matches, so that no client could be tried: give it an example"
                left_out.append(LeftOut(guardrail.name, compiled.rule.id, why))
        if own:
            made += own
            entries.append(_entry(guardrail, own))
        if len(own) == len(guardrail.rules):
            whole.add(guardrail.name)
    payload: dict[str, object] = {
        "policy": policy.name,
        "version": version,
        "digest": digest,
        "folding": {"version": folding.table().version, "digest": folding_digest()},
        "classes": {},
        "covers": {text.value: covers(policy, text, whole) for text in (AppliesTo.PROMPT, AppliesTo.RESPONSE)},
        "guardrails": entries,
    }
    if any(WORD in str(rule.data["pattern"]) for rule in made):
        payload["classes"] = {WORD: word_class()}
    return Subset(payload, len(made), sum(rule.vectors for rule in made), tuple(left_out), tuple(failures))


def why_not(guardrail: Guardrail) -> str:
    """Why a guardrail that was offered to clients stays on the server; empty if it need not."""
    speed = guardrail.impl.get_performance_characteristics().performance_class
    if guardrail.kind not in KINDS:
        return f"kind {guardrail.kind} has no rules that a client can run"
    if speed not in CLASSES or guardrail.checkpoint is not Checkpoint.IMMEDIATE:
        return f"it is {speed.value}, and clients run {' and '.join(CLASSES)}"
    if guardrail.mode is not Mode.BLOCK:
        return f"in mode {guardrail.mode.value} a client has nothing to do"
    return ""


def why_not_rule(compiled: CompiledRule) -> str:
    """Why a rule stays on the server; empty if it need not."""
    rule = compiled.rule
    if not rule.client:
        return "it is not marked for clients"
    checks = as_data(rule.validator)
    if checks is None:
        return "its check has no form that clients know"
    if compiled.trimmed_width and any(check["name"] == "contains" for check in checks):
        return f"its check ({Contains.__name__.lower()}) looks at text before the match"
    if len(_short(compiled.emit(Dialect.JAVASCRIPT).pattern)) > LONGEST_PATTERN:
        return f"its pattern takes more than {LONGEST_PATTERN:,} characters"
    return ""


def covers(policy: Policy, text: AppliesTo, whole: set[str]) -> bool:
    """Whether a client that runs these guardrails needs nobody's word to show such text."""
    return all(guardrail.name in whole for guardrail in policy.running(text) if guardrail.decides)


def _entry(guardrail: Guardrail, rules: list[_ClientRule]) -> dict[str, object]:
    return {
        "name": guardrail.name,
        "kind": guardrail.kind,
        "action": guardrail.action.value,
        "applies_to": sorted(text.value for text in guardrail.applies_to),
        "rules": [rule.data for rule in rules],
    }


@dataclass(frozen=True, slots=True)
class _ClientRule:
    data: dict[str, object]
    vectors: int
    hits: int
    failures: tuple[str, ...]


@functools.lru_cache(maxsize=1_024)
def _client_rule(rule: Rule, most: int) -> _ClientRule:
    """One rule as clients get it; kept, because many policies share the rules that kinds bring along."""
    compiled = compile_rule(rule)
    tried = vectors(compiled, most=most)
    failures: list[str] = []
    for engine, find in (("Python", finder_in_python(compiled)), ("RE2", finder_in_re2(compiled))):
        for text, spans in tried:
            if (found := find(text)) != spans:
                failures.append(f"{engine} finds {found} and not {spans} in {text!r}")
    data: dict[str, object] = {
        "id": rule.id,
        "pattern": _short(compiled.emit(Dialect.JAVASCRIPT).pattern),
        "flags": "u",
        "bound": compiled.bound.characters,
        "fold": compiled.folds,
        "placeholder": rule.placeholder,
        "category": rule.category,
        "secret_group": group_numbers(compiled, Dialect.JAVASCRIPT),
        "validators": as_data(rule.validator) or [],
        "left": int(_looks(compiled.tree, right=False)),
        "right": int(_looks(compiled.tree, right=True)),
        "vectors": [{"text": text, "spans": [list(span) for span in spans]} for text, spans in tried],
    }
    return _ClientRule(data, len(tried), sum(bool(spans) for _, spans in tried), tuple(failures))


@functools.cache
def word_class() -> str:
    """The word characters of the folding table as JavaScript writes them: one class of 20,000 characters."""
    return char_class(folding.table().word, Dialect.JAVASCRIPT)


def _short(pattern: str) -> str:
    return pattern.replace(word_class(), WORD)


def _looks(node: Node, *, right: bool) -> bool:
    """Whether a match may depend on the character beside it on that side."""
    blind = ("text_start", "line_start", "not_after") if right else ("text_end", "line_end", "not_before")
    match node:
        case Assert(kind):
            return kind not in blind
        case Seq(items) | Alt(items):
            return any(_looks(item, right=right) for item in items)
        case Repeat(body) | Group(_, body):
            return _looks(body, right=right)
        case _:
            return False
