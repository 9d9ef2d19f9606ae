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
from guardrails.patterns.emit import Dialect, emit
from guardrails.patterns.folding import MAX_RUN, table
from guardrails.patterns.rule import Candidate
from guardrails.patterns.tree import Alt, Chars, Group, Node, Repeat, Seq
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


NEVER = Chars(())


def below_cap(node: Node) -> Node:
    """The matches that stay below every cap."""
    match node:
        case Repeat(body, low, high, greedy, swallow) if swallow:
            assert high is not None
            return Repeat(body, low, high - 1, greedy) if low < high else NEVER
        case Seq(items):
            return Seq((*items[:-1], below_cap(items[-1]))) if items else node
        case Alt(branches):
            return Alt(tuple(map(below_cap, branches)))
        case Group(number, body):
            return Group(number, below_cap(body))
        case _:
            return node


def at_cap(node: Node) -> Node:
    """The matches that reach a cap, with what is swallowed behind it; only what ends a rule swallows."""
    match node:
        case Repeat(body, _, high, greedy, swallow) if swallow:
            return Repeat(body, high, high, greedy, swallow=True)  # written {high,}
        case Seq(items) if items:
            return Seq((*items[:-1], at_cap(items[-1])))
        case Alt(branches):
            return Alt(tuple(map(at_cap, branches)))
        case Group(number, body):
            return Group(number, at_cap(body))
        case _:
            return NEVER


def swallows(node: Node) -> bool:
    match node:
        case Repeat(_, _, _, _, swallow):
            return swallow
        case Seq(items):
            return bool(items) and swallows(items[-1])
        case Alt(branches):
            return any(map(swallows, branches))
        case Group(_, body):
            return swallows(body)
        case _:
            return False


class Exact:
    """A tree as a pattern of ``re`` that is asked for one exact end."""

    def __init__(self, compiled: CompiledRule, tree: Node) -> None:
        source = compiled.source
        self.emitted = emit(tree, Dialect.PYTHON, not_after=source.not_after, not_before=source.not_before)
        self.inside = re.compile(f"(?:{self.emitted.pattern})(?=[\\s\\S]\\Z)", re.ASCII)
        self.at_end = re.compile(f"(?:{self.emitted.pattern})\\Z", re.ASCII)

    def match(self, text: str, start: int, end: int) -> re.Match[str] | None:
        if end == len(text):
            return self.at_end.match(text, start)
        return self.inside.match(text[: end + 1], start)

    def ends(self, text: str, start: int) -> list[int]:
        return [end for end in range(len(text), start, -1) if self.match(text, start, end)]


class Finder:
    """All matches of one rule in a text, by trying every (start, end).

    A match that reaches a cap is a match, and judged where the first way to match reaches it; what continues it is
    swallowed unjudged. Matches that end behind all that goes first, the others come after it.
    """

    def __init__(self, compiled: CompiledRule) -> None:
        self.compiled = compiled
        self.whole = Exact(compiled, compiled.tree)
        self.below = self.capped = self.whole
        self.swallows = swallows(compiled.tree)
        if self.swallows:
            self.below, self.capped = Exact(compiled, below_cap(compiled.tree)), Exact(compiled, at_cap(compiled.tree))
        group = compiled.rule.secret_group
        if group == -1:
            self.groups = [n for numbers in self.whole.emitted.groups.values() for n in numbers]
        else:
            self.groups = self.whole.emitted.groups.get(group or 0, [])

    def judged(self, text: str, start: int, end: int) -> tuple[int, int] | None:
        """The span of the candidate, or None if the rule's checks refuse it."""
        found = self.whole.match(text, start, end)
        assert found is not None
        first, last = start, end
        for group in self.groups:
            if found.end(group) > found.start(group) >= 0:
                first, last = found.span(group)
                break
        validator = self.compiled.rule.validator
        left = max(0, start - self.compiled.trimmed_width)
        if validator is not None and not validator(Candidate(text[first:last], text[start:end], text[left:end])):
            return None
        return first, last

    def matched(self, text: str, start: int) -> tuple[int, int, int] | None:
        """Span and end of the match that begins at ``start``."""
        if not self.swallows or not (self.groups or self.compiled.rule.validator):  # the longest, wherever the cap is
            for end in range(len(text), start, -1):
                if self.whole.match(text, start, end) and (span := self.judged(text, start, end)):
                    return *span, end
            return None
        capped = self.capped.ends(text, start)
        cap, run = (capped[-1], capped[0]) if capped else (0, 0)
        below = self.below.ends(text, start)
        for end in [*(e for e in below if e > run), *([cap] if cap else []), *(e for e in below if e <= run)]:
            span = self.judged(text, start, end)
            if span is not None:
                first, last = span
                return (first, run if last == cap else last, run) if end == cap else (first, last, end)
        return None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Spans in code points of the original text."""
        folded, where = fold(text, self.compiled.folds)
        out: list[tuple[int, int]] = []
        start = 0
        while start < len(folded):
            found = self.matched(folded, start)
            if found is None:
                start += 1
                continue
            first, last, end = found
            out.append((where[first], where[last - 1] + 1))
            resume = where[end - 1] + 1
            while start < len(folded) and where[start] < resume:
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
