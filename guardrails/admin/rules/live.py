"""What a draft's rules cost and whether they do what their author says, asked while they are typed and at saving.

Unlike publication it goes on after the first refusal, and while somebody types it stops in time: rules and guardrails
that were examined are remembered, so the next question goes on where this one stopped. Protects the promise that what
cannot be bounded or built is not saved.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from guardrails.admin.rules.nodes import home_of
from guardrails.document import parse_document
from guardrails.kinds.base import all_kinds
from guardrails.kinds.regex import Allow, PatternRule, RegexConfig
from guardrails.lint import GuardrailReport, RuleReport, examine, lint_policy
from guardrails.patterns.compiler import compile_rule
from guardrails.patterns.errors import PatternError
from guardrails.policy import Guardrail, Policy, PolicyBound, PolicyError, compile_policy

TYPING_BUDGET_S = 1.0
"""Seconds after which an answer to somebody who types says what is known so far."""

LARGE = 12_000
"""Characters of JSON of a guardrail, its own rules apart, above which it is compiled only when it is saved."""

EXAMPLE_STEPS = 250_000
"""Characters of a rule's examples times what the rule may hold: more are run at publication only (25 ms)."""


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """One rule, examined: its report, or what is refused of it by path within the rule."""

    report: RuleReport | None
    problems: tuple[tuple[str, str], ...] = ()
    not_run: int = 0


@dataclass(slots=True)
class Facts:
    """A draft, examined. Keys are document paths; ``document`` has its defaults if nothing is refused."""

    document: dict[str, object] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    rules: dict[str, RuleFacts] = field(default_factory=dict)
    guardrails: dict[str, GuardrailReport] = field(default_factory=dict)
    bounds: dict[str, str] = field(default_factory=dict)
    unfinished: bool = False
    skipped: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Examples that come out wrong, each with the path of its key."""
        return [
            f"{path}.{example.key}: {facts.report.id} must {example.must}, but does not: {example.text!r}"
            for path, facts in self.rules.items()
            if facts.report
            for example in facts.report.failures
        ]


def examine_draft(
    document: Mapping[str, object], *, budget_s: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Facts:
    """Examine a document, all of it or as far as ``budget_s`` (seconds) lets; raises nothing for what is refused."""
    facts = Facts()
    end = None if budget_s is None else clock() + budget_s

    def late() -> bool:
        return end is not None and clock() > end

    _refused(facts, "", lambda: parse_document({**document, "guardrails": []}))
    entries = document.get("guardrails", [])
    compiled: list[Guardrail] = []
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        path = f"guardrails[{i}]"
        before = len(facts.problems)
        _refused(facts, path, functools.partial(_parse_alone, entry))
        for where, rule in _pattern_rules(entry, path):
            if late():
                facts.unfinished = True
                return facts
            found = rule_facts(json.dumps(rule, sort_keys=True))
            facts.rules[where] = found
            for inside, message in found.problems:
                _add(facts, f"{where}{inside}", message)
        if len(facts.problems) > before or not isinstance(entry, Mapping):
            continue
        bare = json.dumps(_without_examples(entry), sort_keys=True)
        if end is not None and len(bare) - len(json.dumps(_listed(entry))) > LARGE:
            facts.skipped.append(path)
            continue
        if late():
            facts.unfinished = True
            return facts
        built: list[Guardrail] = []
        _refused(facts, path, functools.partial(_build, bare, built))
        for guardrail in built:
            compiled.append(guardrail)
            facts.guardrails[path] = _report(bare)
    if not facts.problems:
        _refused(facts, "", lambda: _finish(facts, document, compiled))
    return facts


@functools.lru_cache(maxsize=2048)
def rule_facts(rule_json: str) -> RuleFacts:
    """Compile one rule of the rule form and run its examples."""
    try:
        written = PatternRule.model_validate(json.loads(rule_json))
    except ValidationError as error:
        return RuleFacts(None, tuple(_words(error)))
    rule = written.rule()
    try:
        compiled = compile_rule(rule)
    except PatternError as refused:
        return RuleFacts(None, ((".pattern", f"refused: {refused}"),))
    steps = EXAMPLE_STEPS
    kept: dict[str, list[str]] = {"must_match": [], "must_not_match": []}
    for key, texts in (("must_match", rule.must_match), ("must_not_match", rule.must_not_match)):
        for text in texts:
            steps -= len(text) * max(1, min(len(text), compiled.bound.characters))
            if steps >= 0:
                kept[key].append(text)
    runnable = replace(rule, must_match=tuple(kept["must_match"]), must_not_match=tuple(kept["must_not_match"]))
    report = examine(replace(compiled, rule=runnable))
    written_down = len(rule.must_match) + len(rule.must_not_match)
    return RuleFacts(report, (), written_down - len(report.examples))


@functools.lru_cache(maxsize=64)
def _compiled(entry_json: str) -> Policy:
    return compile_policy({"policy": "draft", "guardrails": [json.loads(entry_json)]})


@functools.lru_cache(maxsize=64)
def _report(entry_json: str) -> GuardrailReport:
    return lint_policy(_compiled(entry_json)).guardrails[0]


def _build(entry_json: str, into: list[Guardrail]) -> None:
    into.append(_compiled(entry_json).guardrails[0])


def _parse_alone(entry: object) -> None:
    parse_document({"policy": "draft", "guardrails": [entry]})


def _finish(facts: Facts, document: Mapping[str, object], compiled: list[Guardrail]) -> None:
    """The document with its defaults, and what a session under it can hold."""
    parsed = parse_document(document)
    facts.document = parsed.as_dict()
    if len(compiled) == len(parsed.guardrails):
        policy = Policy(parsed.name, parsed.description, 0, "", tuple(compiled))
        texts = dict.fromkeys(text for guardrail in parsed.guardrails for text in guardrail.applies_to)
        facts.bounds = {text.value: _bound(policy.bound(text)) for text in texts if policy.running(text)}


def _bound(bound: PolicyBound) -> str:
    """The bound in words, with the rule that sets it."""
    return f"{bound} (set by {bound.guardrail}/{bound.rule})" if bound.rule else str(bound)


def _refused(facts: Facts, path: str, step: Callable[[], object]) -> None:
    """Do a step with a document whose only guardrail is the one at ``path``; note what is refused."""
    try:
        step()
    except PolicyError as error:
        where = path + error.path.removeprefix("guardrails[0]") if path else error.path
        _add(facts, where, error.message)


def _add(facts: Facts, path: str, message: str) -> None:
    """Note a problem, unless the same place or one inside it has one: the first words are the nearest to the cause."""
    if not any(home_of(known, {path: None}) == path for known in facts.problems):
        facts.problems[path] = message


def _pattern_rules(entry: object, path: str) -> Iterator[tuple[str, object]]:
    """Path and content of every rule that the author wrote out, in full or in the short form."""
    shared = _shared_allow(entry)
    for i, rule in enumerate(_listed(entry)):
        if shared and isinstance(rule, Mapping) and isinstance(own := rule.get("allow", []), list):
            yield f"{path}.config.rules[{i}]", {**rule, "allow": [*own, *shared]}
        else:
            yield f"{path}.config.rules[{i}]", rule
    if isinstance(entry, Mapping) and entry.get("kind") == "regex" and isinstance(entry.get("config"), Mapping):
        try:
            config = RegexConfig.model_validate(entry["config"])
        except ValidationError:
            return
        for i, short in enumerate(config.short_rules()):
            yield f"{path}.config.patterns[{i}]", short.model_dump(mode="json")


def _shared_allow(entry: object) -> list[object]:
    """Allow-lists that the guardrail lays over each of its rules; none if one of them is refused, which is told."""
    if not isinstance(entry, Mapping) or not isinstance(config := entry.get("config"), Mapping):
        return []
    shared = config.get("allow", [])
    try:
        return [Allow.model_validate(one).model_dump(mode="json") for one in shared] if _listed(entry) else []
    except (ValidationError, TypeError):
        return []


def _listed(entry: object) -> list[object]:
    """The rules written out in full, of a kind whose ``rules`` are of that form."""
    if not isinstance(entry, Mapping) or not isinstance(config := entry.get("config"), Mapping):
        return []
    kind = all_kinds().get(str(entry.get("kind")))
    if kind is None or "rules" not in kind.Config.model_fields:
        return []
    rules = config.get("rules", [])
    return list(rules) if isinstance(rules, list | tuple) else []


def _without_examples(entry: Mapping[str, object]) -> Mapping[str, object]:
    """The entry without its rules' examples, which change nothing that is compiled and are run rule by rule."""
    if not (listed := _listed(entry)):
        return entry
    kept = [
        {key: value for key, value in rule.items() if key not in ("must_match", "must_not_match")}
        for rule in listed
        if isinstance(rule, Mapping)
    ]
    config = entry["config"]
    assert isinstance(config, Mapping)
    return {**entry, "config": {**config, "rules": kept}}


def _words(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Every complaint about a rule, with its path."""
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"])
        yield where, "unknown key" if one["type"] == "extra_forbidden" else one["msg"].removeprefix("Value error, ")
