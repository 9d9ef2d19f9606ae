"""Client rules as the server makes them, but of any policy: parity wants rules that no publication would let pass."""

from __future__ import annotations

from guardrails.client.parity import group_numbers
from guardrails.client.subset import folding_digest
from guardrails.findings import AppliesTo
from guardrails.patterns.compiler import CompiledRule
from guardrails.patterns.emit import Dialect
from guardrails.patterns.folding import table
from guardrails.patterns.validators import as_data
from guardrails.policy import Policy

Json = dict[str, object]


def rule_data(compiled: CompiledRule) -> Json:
    """One rule, without parity vectors."""
    rule = compiled.rule
    checks = as_data(rule.validator)
    assert checks is not None, rule.id
    return {
        "id": rule.id,
        "pattern": compiled.emit(Dialect.JAVASCRIPT).pattern,
        "flags": "u",
        "bound": compiled.bound.characters,
        "fold": compiled.folds,
        "placeholder": rule.placeholder,
        "category": rule.category,
        "secret_group": group_numbers(compiled, Dialect.JAVASCRIPT),
        "validators": checks,
        "vectors": [],
    }


def client_rules(policy: Policy) -> Json:
    """All rules of a policy that decide, whether they are marked for clients or not."""
    return {
        "policy": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "folding": {"version": table().version, "digest": folding_digest()},
        "classes": {},
        "covers": {AppliesTo.PROMPT.value: True, AppliesTo.RESPONSE.value: True},
        "guardrails": [
            {
                "name": guardrail.name,
                "kind": guardrail.kind,
                "action": guardrail.action.value,
                "applies_to": sorted(text.value for text in guardrail.applies_to),
                "rules": [rule_data(compiled) for compiled in guardrail.rules],
            }
            for guardrail in policy.guardrails
            if guardrail.decides
        ],
    }
