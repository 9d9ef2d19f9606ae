"""What a rule costs and whether it does what its author says: bounds, trimmed forms, example results.

Publication, `rules lint` and the admin's rule form ask the same questions; this is where they are answered, so that
they are answered alike. Protects promise 5 (every rule carries a proven bound) and the rule that publication runs
every rule's own examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from guardrails.findings import Action, AppliesTo
from guardrails.patterns.compiler import CompiledRule, compile_rule
from guardrails.patterns.rule import Rule
from guardrails.patterns.show import readable
from guardrails.policy import Guardrail, Policy, compile_policy

LONG_HOLD = 600
"""Characters: a deciding rule that may hold more gets a remark."""

_SENT_UPSTREAM = frozenset({AppliesTo.PROMPT, AppliesTo.TOOL_RESULT, AppliesTo.DOCUMENT})


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """One of a rule's own texts. ``ok`` says whether it came out as its author wrote; ``key`` names it in its rule."""

    text: str
    must: Literal["match", "pass"]
    ok: bool
    key: str


@dataclass(frozen=True, slots=True)
class RuleReport:
    """One rule: what it holds at most (folded characters), what was cut off, and how its examples fared.

    ``trimmed`` is the rule as it runs if a leading piece was cut off, else empty; ``trimmed_width`` the characters
    that piece could have taken. ``path`` is its place in its guardrail; a kind's own rules have only ``config``.
    """

    id: str
    holds: int
    holds_with_ignorables: int
    folds: bool
    trimmed: str
    trimmed_width: int
    examples: tuple[ExampleResult, ...]
    path: str = "config"

    @property
    def failures(self) -> tuple[ExampleResult, ...]:
        """The examples that came out wrong."""
        return tuple(example for example in self.examples if not example.ok)


@dataclass(frozen=True, slots=True)
class GuardrailReport:
    """One guardrail and its rules. ``remarks`` are worth reading, not failures."""

    name: str
    kind: str
    performance_class: str
    checkpoint: str
    mode: str
    action: str
    decides: bool
    rules: tuple[RuleReport, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LintReport:
    """A whole policy. ``bounds`` is what a session can hold, in words, for each kind of text it applies to."""

    policy: str
    guardrails: tuple[GuardrailReport, ...]
    bounds: dict[str, str]

    @property
    def failures(self) -> tuple[str, ...]:
        """Every example that came out wrong, with the path of its key."""
        return tuple(
            f"guardrails[{i}].{rule.path}.{example.key}: "
            f"{guardrail.name}/{rule.id} must {example.must}, but does not: {example.text!r}"
            for i, guardrail in enumerate(self.guardrails)
            for rule in guardrail.rules
            for example in rule.failures
        )


def spans_in(rule: CompiledRule, text: str) -> list[tuple[int, int]]:
    """Spans of one rule in a finished text, in code points: starts ascending, matching resumes at a match's end."""
    folded = rule.fold(text)
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(folded.text):
        found = rule.matcher.match(folded, at, "", lead="", final=True)
        if found is None:
            at += 1
            continue
        spans.append((folded.start(found.first), folded.end(found.last)))
        at = found.end
    return spans


def examine(rule: Rule | CompiledRule) -> RuleReport:
    """Compile a rule (if need be) and run its examples. Raises ``PatternError`` if it is refused."""
    compiled = compile_rule(rule) if isinstance(rule, Rule) else rule
    written = compiled.rule
    examples = [
        ExampleResult(text, "match", bool(spans_in(compiled, text)), f"must_match[{n}]")
        for n, text in enumerate(written.must_match)
    ]
    examples += [
        ExampleResult(text, "pass", not spans_in(compiled, text), f"must_not_match[{n}]")
        for n, text in enumerate(written.must_not_match)
    ]
    return RuleReport(
        id=written.id,
        holds=compiled.bound.characters,
        holds_with_ignorables=compiled.bound.with_ignorables,
        folds=compiled.folds,
        trimmed=readable(compiled.tree) if compiled.trimmed_width else "",
        trimmed_width=compiled.trimmed_width,
        examples=tuple(examples),
    )


def lint_policy(policy: Policy) -> LintReport:
    """Examine every rule of a compiled policy."""
    texts = [text for text in AppliesTo if policy.running(text)]
    return LintReport(
        policy=policy.name,
        guardrails=tuple(map(_guardrail, policy.guardrails)),
        bounds={text.value: str(policy.bound(text)) for text in texts},
    )


def lint_document(document: Mapping[str, object]) -> LintReport:
    """Compile a policy document and examine it. Raises ``PolicyError`` with the path of what is refused."""
    return lint_policy(compile_policy(document))


def _guardrail(guardrail: Guardrail) -> GuardrailReport:
    listed = [written.id for written in getattr(guardrail.impl.config, "rules", ())]
    paths = {rule_id: f"config.rules[{n}]" for n, rule_id in enumerate(listed)}
    rules = tuple(replace(report, path=paths.get(report.id, report.path)) for report in map(examine, guardrail.rules))
    row = guardrail.impl.decision()
    remarks: list[str] = list(guardrail.impl.remarks())
    if guardrail.mode is not row.mode and row.override_warning:
        remarks.append(row.override_warning)
    if guardrail.decides:
        remarks += [f"rule {rule.id} may hold {rule.holds:,} characters" for rule in rules if rule.holds > LONG_HOLD]
    if guardrail.action is Action.MASK:
        if not guardrail.rules:
            remarks.append("mask: it judges whole texts and names no values in them, so that it redacts")
        elif not guardrail.applies_to & _SENT_UPSTREAM:
            remarks.append("mask: it looks at nothing that is sent to a model, so that it redacts")
    return GuardrailReport(
        name=guardrail.name,
        kind=guardrail.kind,
        performance_class=guardrail.impl.get_performance_characteristics().performance_class.value,
        checkpoint=guardrail.checkpoint.value,
        mode=guardrail.mode.value,
        action=guardrail.action.value,
        decides=guardrail.decides,
        rules=rules,
        remarks=tuple(remarks),
    )
