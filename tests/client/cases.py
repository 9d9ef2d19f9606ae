"""Policies, texts and cuts for which the local gate of a browser must decide as the server's does."""

from __future__ import annotations

import random
from dataclasses import dataclass

from guardrails.findings import HIDING, AppliesTo, Mode
from guardrails.policy import Policy, PolicyError, compile_policy
from streaming.core.gate import BLOCKED, FOUND, REDACTED, RELEASE, Gate
from tests.client.rules import Json, client_rules
from tests.streaming import generate

TEXTS_OF_A_POLICY = 10
ACTIONS = ("redact", "redact", "redact", "mask", "block", "warn")
CHECKS: tuple[Json, ...] = ({}, {}, {"entropy": 0.9}, {"keywords": ["A1", "b"]}, {"allow": [{"stopwords": ["ab"]}]})


@dataclass(frozen=True, slots=True)
class Case:
    """A text in pieces and what the server's gate makes of it; code points."""

    pieces: list[str]
    visible: str
    findings: list[list[object]]
    blocked: bool


def random_policy(chance: random.Random) -> Policy:
    """Up to four random rules with actions, caps, folding, edges, secret groups and checks mixed."""
    guardrails: list[Json] = []
    for n in range(chance.randint(1, 4)):
        pattern = generate.pattern(chance)
        group = chance.random() < 0.3
        rule: Json = {
            "id": f"r{n}",
            "pattern": f"{generate.pattern(chance, 1)}({pattern}){generate.pattern(chance, 1)}" if group else pattern,
            "secret_group": 1 if group else None,
            "placeholder": f"[{n}]",
            "cap": chance.choice([3, 5, 512]),
            "fold": chance.random() < 0.7,
            "not_after": chance.choice(["", "", "a", "0-9"]),
            "not_before": chance.choice(["", "", "b", r"\w"]),
            **chance.choice(CHECKS),
        }
        entry: Json = {"name": f"g{n}", "kind": "regex", "action": chance.choice(ACTIONS), "config": {"rules": [rule]}}
        try:
            policy = compile_policy({"policy": "t", "guardrails": [entry]})
        except PolicyError:
            continue
        if not policy.guardrails[0].rules[0].trimmed_width:  # such checks look in front of the match
            guardrails.append(entry)
    return compile_policy({"policy": "t", "guardrails": guardrails})


def judged(policy: Policy, pieces: list[str]) -> Case:
    """What the server's gate makes of a text."""
    gate = Gate(policy, AppliesTo.RESPONSE)
    effects = [*gate.feed("".join(pieces)), *gate.finish()]
    found = [effect[1] for effect in effects if effect[0] == FOUND]
    return Case(
        pieces,
        "".join(effect[1] for effect in effects if effect[0] in (RELEASE, REDACTED)),
        sorted(
            [one.guardrail, one.rule, one.start, one.end]
            for one in found
            if one.mode is Mode.BLOCK and one.action in HIDING
        ),
        any(effect[0] == BLOCKED for effect in effects),
    )


def cut(text: str, chance: random.Random) -> list[str]:
    """The text in pieces of one to eight characters."""
    pieces = []
    while text:
        size = chance.choice((1, 1, 2, 3, 5, 8))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def random_cases(seed: int, count: int) -> list[tuple[Json, list[Case]]]:
    """``count`` cases by policy: (client rules, cases)."""
    chance = random.Random(seed)
    out: list[tuple[Json, list[Case]]] = []
    while sum(len(cases) for _, cases in out) < count:
        policy = random_policy(chance)
        trees = [compiled.tree for guardrail in policy.guardrails for compiled in guardrail.rules]
        if not trees:
            continue
        texts = [generate.text(trees, chance).replace("\U0010ffff", "") for _ in range(TEXTS_OF_A_POLICY)]
        out.append((client_rules(policy), [judged(policy, cut(text, chance)) for text in texts]))
    return out
