"""The whole-text check written a second time, from the promise and not from the gate.

Matching goes through Python's ``re`` on the emitted pattern, one candidate (start, end) at a time; folding and the
order of decisions are spelled out naively. Slow on purpose: nothing here is shared with the code it judges, except the
rule's final tree (trimmed and capped: "the trimmed rule is the rule") and the shipped folding table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guardrails.findings import HIDING, Action
from guardrails.patterns.charset import SENTINEL
from guardrails.patterns.compiler import CompiledRule
from guardrails.patterns.emit import Dialect
from guardrails.patterns.folding import MAX_RUN, table
from guardrails.patterns.rule import Candidate
from guardrails.policy import Policy


def fold(text: str, folds: bool) -> tuple[str, list[int]]:
    out: list[str] = []
    where: list[int] = []
    run = 0
    for i, char in enumerate(text):
        target = table().fold.get(char, char) if folds else char.replace(SENTINEL, "\ufffd")
        if target:
            run = 0
        else:
            run += 1
            if run == MAX_RUN + 1:
                target = SENTINEL
        for piece in target:
            out.append(piece)
            where.append(i)
    return "".join(out), where


class Finder:
    """All matches of one rule in a text, by trying every (start, end)."""

    def __init__(self, compiled: CompiledRule) -> None:
        self.compiled = compiled
        emitted = compiled.emit(Dialect.PYTHON)
        self.inside = re.compile(f"(?:{emitted.pattern})(?=[\\s\\S]\\Z)", re.ASCII)
        self.at_end = re.compile(f"(?:{emitted.pattern})\\Z", re.ASCII)
        group = compiled.rule.secret_group
        if group == -1:
            self.groups = [n for numbers in emitted.groups.values() for n in numbers]
        else:
            self.groups = emitted.groups.get(group or 0, [])

    def candidate(self, text: str, start: int, end: int) -> re.Match[str] | None:
        if end == len(text):
            return self.at_end.match(text, start)
        found = self.inside.match(text[: end + 1], start)
        return found

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Spans in code points of the original text."""
        folded, where = fold(text, self.compiled.folds)
        width = self.compiled.trimmed_width
        out: list[tuple[int, int]] = []
        start = 0
        while start < len(folded):
            for end in range(len(folded), start, -1):
                found = self.candidate(folded, start, end)
                if found is None:
                    continue
                first, last = start, end
                for group in self.groups:
                    if found.end(group) > found.start(group) >= 0:
                        first, last = found.span(group)
                        break
                validator = self.compiled.rule.validator
                if validator is not None and not validator(
                    Candidate(folded[first:last], folded[start:end], folded[max(0, start - width) : end])
                ):
                    continue
                out.append((where[first], where[last - 1] + 1))
                resume = where[end - 1] + 1
                while start < len(folded) and where[start] < resume:
                    start += 1
                break
            else:
                start += 1
        return out


@dataclass(frozen=True)
class Expected:
    visible: str
    findings: list[tuple[int, int, str, str, str, int]]
    blocked: bool


def expected(policy: Policy, text: str, spans: dict[str, list[tuple[int, int]]] | None = None) -> Expected:
    """Verdict and visible text by the promise. ``spans`` may carry precomputed spans by rule id."""
    hits: list[tuple[int, int, int, object, CompiledRule]] = []
    order = 0
    for guardrail in policy.guardrails:
        for compiled in guardrail.rules:
            found = spans[compiled.rule.id] if spans is not None else Finder(compiled).spans(text)
            hits.extend((first, last, order, guardrail, compiled) for first, last in found)
            order += 1
    hits.sort(key=lambda hit: (hit[0], hit[2]))
    deciding = [hit for hit in hits if hit[3].decides]
    blocks = [hit for hit in deciding if hit[3].action is Action.BLOCK]
    stop = blocks[0][0] if blocks else len(text)
    shown = ["" for _ in text]
    hidden = [False] * len(text)
    hidden_to = 0
    for first, last, _, guardrail, compiled in deciding:
        if first >= stop:
            break
        if guardrail.action in HIDING:
            if first >= hidden_to:
                shown[first] = compiled.rule.placeholder
            for i in range(first, last):
                hidden[i] = True
            hidden_to = max(hidden_to, last)
    visible = "".join(shown[i] + ("" if hidden[i] else text[i]) for i in range(stop))
    findings = []
    for first, last, _, guardrail, compiled in hits:
        if first < stop or (blocks and (first, last, guardrail, compiled) == (*blocks[0][:2], *blocks[0][3:])):
            exposed = 0 if guardrail.decides else sum(not hidden[i] for i in range(first, min(last, stop)))
            findings.append((first, last, guardrail.name, compiled.rule.id, str(guardrail.action), exposed))
    return Expected(visible, sorted(findings), bool(blocks))
