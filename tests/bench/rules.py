"""Rules to measure with, as plain patterns that every engine in the comparison reads the same way."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

from guardrails.importers.gitleaks import import_gitleaks
from guardrails.policy import Policy, compile_policy
from tests.bench.registry import SkipBench

PACK = Path(__file__).resolve().parents[3] / "shared" / "data" / "rulepacks" / "gitleaks.toml"

TWELVE = {
    "ssn": r"\b\d{3}-\d{2}-\d{4}\b",
    "card": r"\b(?:\d{4}[ -]?){3}\d{4}\b",
    "email": r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}",
    "phone": r"\(\d{3}\) ?\d{3}-\d{4}|\b\d{3}-\d{3}-\d{4}\b",
    "api_key": r"\bsk-[A-Za-z0-9_-]{20,100}",
    "aws_key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "github": r"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    "ip": r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}\b",
    "url": r"\bhttps?://[^\s<>\"]{3,200}",
    "jwt": r"\beyJ[A-Za-z0-9_-]{8,200}\.[A-Za-z0-9_-]{8,200}\.[A-Za-z0-9_-]{8,200}",
    "phrase": r"(?i:project blue heron)",
}
"""The twelve kinds of value that nearly every deployment looks for."""


def policy_of(patterns: dict[str, str], action: str = "redact") -> Policy:
    """One guardrail with these rules."""
    rules = [{"id": id_, "pattern": pattern} for id_, pattern in patterns.items()]
    guardrail = {"name": "rules", "kind": "regex", "action": action, "config": {"rules": rules}}
    return compile_policy({"policy": "bench", "guardrails": [guardrail]})


def many(count: int, seed: int = 1) -> dict[str, str]:
    """``count`` rules of the sorts that rule packs consist of: token formats, assignments, numbers, phrases."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def word(size: int) -> str:
        return "".join(chance.choice(letters) for _ in range(size))

    out: dict[str, str] = {}
    for n in range(count):
        match n % 5:
            case 0 | 1:
                pattern = rf"\b{word(4)}_[A-Za-z0-9]{{{chance.randint(16, 40)}}}\b"
            case 2:
                pattern = rf"(?i:{word(6)})[_-](?:key|token)\s{{0,3}}[=:]\s{{0,3}}[\"']?[a-z0-9]{{32}}"
            case 3:
                pattern = rf"\b{word(2).upper()}\d{{{chance.randint(6, 12)}}}\b"
            case _:
                pattern = rf"(?i:\b{word(5)} {word(7)}\b)"
        out[f"r{n}"] = pattern
    return out


def pack_document() -> dict[str, object]:
    """The imported rule pack with the PII kinds in front. Raises ``SkipBench`` when the pack is absent."""
    if not PACK.exists():
        raise SkipBench("no rule pack at ../shared/data/rulepacks/gitleaks.toml")
    imported = import_gitleaks(tomllib.loads(PACK.read_text("utf-8")), name="pack").document
    guardrails = imported["guardrails"]
    assert isinstance(guardrails, list)
    return {**imported, "guardrails": [{"name": "pii", "kind": "pii"}, *guardrails]}
