"""Ways to cut a text and to drive a gate with the pieces, checking the promise on every emission."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from guardrails.policy import Policy, compile_policy
from streaming.core.gate import BLOCKED, FOUND, REDACTED, RELEASE, Gate


@dataclass
class Driven:
    visible: str = ""
    findings: list[tuple[int, int, str, str, str, int]] = field(default_factory=list)
    blocked: bool = False
    held: list[int] = field(default_factory=list)


def every_cut(text: str) -> Iterator[list[str]]:
    """Every way of cutting a text into non-empty chunks."""
    for mask in range(1 << max(0, len(text) - 1)):
        chunks, start = [], 0
        for i in range(1, len(text)):
            if mask >> (i - 1) & 1:
                chunks.append(text[start:i])
                start = i
        chunks.append(text[start:])
        yield chunks


def random_cut(text: str, seed: int, longest: int = 8) -> list[str]:
    chance = random.Random(seed)
    chunks, at = [], 0
    while at < len(text):
        step = chance.choice((0, 1, 1, 2, 3, 5, longest))
        chunks.append(text[at : at + step])
        at += step
    return chunks


def drive(policy: Policy, chunks: Iterable[str], *, visible: str | None = None, restore: bool = False) -> Driven:
    """Feed chunks. ``visible``: the final visible text; whatever is emitted must always be a prefix of it.

    ``restore``: take the gate down to its state and up again after every chunk.
    """
    gate = Gate(policy)
    out = Driven()

    def take(effects: list[tuple]) -> None:
        for effect in effects:
            if effect[0] in (RELEASE, REDACTED):
                assert not out.blocked, "something was shown behind a block"
                out.visible += effect[1]
                if visible is not None:
                    assert visible.startswith(out.visible), f"leak: {out.visible!r} is not a prefix of {visible!r}"
            elif effect[0] == FOUND:
                f = effect[1]
                out.findings.append((f.start, f.end, f.guardrail, f.rule, str(f.action), f.exposed))
            elif effect[0] == BLOCKED:
                out.blocked = True

    for chunk in chunks:
        take(gate.feed(chunk))
        out.held.append(gate.held)
        if restore:
            gate = Gate.restore(policy, gate.state())
    take(gate.finish())
    out.findings.sort()
    return out


def regex_policy(*guardrails: tuple[str, list[tuple[str, str]]], **rule_extra: object) -> Policy:
    """A policy of regex guardrails: (action, [(id, pattern), …]) each."""
    return compile_policy(
        {
            "policy": "t",
            "guardrails": [
                {
                    "name": f"g{i}",
                    "kind": "regex",
                    "action": action,
                    "config": {
                        "rules": [
                            {"id": id_, "pattern": pattern, "placeholder": f"[{id_}]", **rule_extra}
                            for id_, pattern in rules
                        ]
                    },
                }
                for i, (action, rules) in enumerate(guardrails)
            ],
        }
    )
