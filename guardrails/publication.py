"""What publication finds out about a document, once, before it becomes a version: the report that is kept with it.

Compilation with its cost, every rule's bound, every example, the client rules with their parity vectors in Python's
``re``, in RE2 and in JavaScript, by the worker that browsers load. Protects the rule that what is published compiles
within a stated budget and means what its author says in every engine; a client tries the same vectors once more.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from guardrails.client.engine import disparity_in_javascript
from guardrails.client.subset import Subset, client_subset
from guardrails.lint import LintReport, lint_policy
from guardrails.patterns.deadline import limited
from guardrails.policy import Policy, compile_policy
from guardrails.signing import canonical_bytes

COMPILE_LIMIT_S = 60.0
MEMORY_LIMIT_MB = 512.0
"""What one version may cost a process: seconds to compile, after which it is ended; megabytes to keep with its examples
run."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A document that was looked at. ``failures`` are reasons not to publish it."""

    lint: LintReport
    subset: Subset
    compile_s: float
    memory_mb: float
    javascript: str = ""
    """What the browsers' worker has against the client rules, empty if nothing."""
    engines: tuple[str, ...] = ()
    """Those in which the parity vectors were tried."""

    @property
    def failures(self) -> tuple[str, ...]:
        """Wrong examples, engines that disagree, a budget that is exceeded."""
        found = list(self.lint.failures) + list(self.subset.failures)
        if self.javascript:
            found.append(f"JavaScript does not find what is stated: {self.javascript}")
        if self.compile_s > COMPILE_LIMIT_S:
            found.append(f"it takes {self.compile_s:.0f} s to compile, more than {COMPILE_LIMIT_S:.0f} s")
        if self.memory_mb > MEMORY_LIMIT_MB:
            found.append(f"it keeps {self.memory_mb:.0f} MB, more than {MEMORY_LIMIT_MB:.0f} MB")
        return tuple(found)

    def as_dict(self) -> dict[str, object]:
        """The report as JSON."""
        examples = [example for g in self.lint.guardrails for rule in g.rules for example in rule.examples]
        return {
            "budget": {
                "compile_ms": round(self.compile_s * 1_000, 1),
                "compile_limit_ms": COMPILE_LIMIT_S * 1_000,
                "memory_kb": round(self.memory_mb * 1_024),
                "memory_limit_kb": round(MEMORY_LIMIT_MB * 1_024),
            },
            "bounds": dict(self.lint.bounds),
            "examples": {"right": sum(example.ok for example in examples), "of": len(examples)},
            "guardrails": [_guardrail(asdict(guardrail)) for guardrail in self.lint.guardrails],
            "client": {
                "rules": self.subset.rules,
                "bytes": len(canonical_bytes(self.subset.payload)),
                "vectors": self.subset.vectors,
                "engines": list(self.engines),
                "covers": self.subset.payload["covers"],
                "left_out": [str(one) for one in self.subset.left_out],
            },
        }


def examine_document(document: Mapping[str, object]) -> Examined:
    """Compile a document, run its examples, make its client rules. Raises ``PolicyError``, also where compiling was
    ended because it took longer than it may; the rule at which it was is named.

    Memory is the size of the compiled policy's objects after its examples were run.
    """
    started = time.perf_counter()
    with limited(COMPILE_LIMIT_S):
        policy = compile_policy(document)
    compile_s = time.perf_counter() - started
    lint = lint_policy(policy)
    subset = subset_of(policy)
    engines: tuple[str, ...] = ("Python", "RE2") if subset.rules else ()
    javascript = ""
    if engines and not subset.failures:
        engines += ("JavaScript",)
        javascript = disparity_in_javascript(subset.payload)
    return Examined(lint, subset, compile_s, size_of(policy) / 2**20, javascript, engines)


def size_of(value: object) -> int:
    """Bytes of all Python objects that are reached from ``value``, code and modules apart."""
    seen: set[int] = set()
    found = 0
    left: list[object] = [value]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType | BuiltinFunctionType):
            continue
        seen.add(id(one))
        found += sys.getsizeof(one)
        left.extend(gc.get_referents(one))
    return found


def subset_of(policy: Policy) -> Subset:
    """The client rules of a policy that has no version yet."""
    return client_subset(policy, version=0, digest="")


def _guardrail(found: dict[str, object]) -> dict[str, object]:
    """Without the examples' texts: the document has them, and there may be thousands."""
    rules = found["rules"]
    assert isinstance(rules, tuple | list)
    kept = []
    for rule in rules:
        examples = rule.pop("examples")
        kept.append(rule | {"examples": {"right": sum(one["ok"] for one in examples), "of": len(examples)}})
    return found | {"rules": kept, "remarks": list(found["remarks"])}  # type: ignore[call-overload]


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A stored report in words, one thing a line."""
    budget, client, examples = report["budget"], report["client"], report["examples"]
    lines = [
        f"compiled in {budget['compile_ms']:,.0f} ms of {budget['compile_limit_ms']:,.0f}, "
        f"{budget['memory_kb']:,} kB of {budget['memory_limit_kb']:,}",
        f"examples: {examples['right']:,} of {examples['of']:,} right",
    ]
    lines += [f"a session holds, {text}: {bound}" for text, bound in report["bounds"].items()]
    vectors = f"{client['vectors']:,} parity vectors, the same in {', '.join(client['engines'])}"
    tried = vectors if client["engines"] else "nothing to try"
    lines.append(f"for clients: {client['rules']:,} rules, {client['bytes']:,} bytes; {tried}")
    lines += [f"clients need our word for every {text}" for text, covered in client["covers"].items() if not covered]
    lines += [f"not for clients: {one}" for one in client["left_out"]]
    for guardrail in report["guardrails"]:
        lines += [f"note: {guardrail['name']}: {remark}" for remark in guardrail["remarks"]]
    return lines
