"""A policy as it runs: validated, compiled, frozen, shared by every session of the process.

Compiling is where a document stops being text: each guardrail's rules become automaton positions, and the rules that
decide stand in a scanner of their own, because only they may hold text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from guardrails.document import GuardrailDocument, PolicyDocument, PolicyError, parse_document
from guardrails.findings import HIDING, Action, AppliesTo, Mode, OnError
from guardrails.kinds.base import Config, Kind, Limit
from guardrails.patterns.automaton import Scanner
from guardrails.patterns.compiler import Bound, CompiledRule, compile_rule
from guardrails.patterns.errors import PatternError
from guardrails.patterns.grouping import groups
from guardrails.performance import TIME_LIMIT_S, Checkpoint, later

__all__ = ["Guardrail", "Lane", "Plan", "Policy", "PolicyBound", "PolicyError", "RuleEntry", "compile_policy",
           "normalise"]  # fmt: skip

SENTENCE_CHARS = 600
"""The longest sentence a BATCHED guardrail may hold, in characters."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A guardrail as it runs. ``rules`` is empty unless it is an IMMEDIATE pattern guardrail.

    ``circuit`` names its breaker: policy, guardrail and a digest of kind and parameters, so that versions which ask the
    same side in the same way share one, and no other does.
    """

    name: str
    kind: str
    impl: Kind[Config]
    applies_to: frozenset[AppliesTo]
    mode: Mode
    action: Action
    on_error: OnError
    checkpoint: Checkpoint
    time_limit_s: float
    client: bool
    rules: tuple[CompiledRule, ...]
    limits: tuple[Limit, ...]
    circuit: str = ""
    apart: Policy | None = field(default=None, repr=False, compare=False)
    """For a guardrail with rules that runs later than declared: the policy of it alone, run over a text as a check."""

    @property
    def decides(self) -> bool:
        """Does a hit keep text from the reader?"""
        return self.mode is Mode.BLOCK and self.action in HIDING


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A rule in a lane: whose it is, and its place in policy order."""

    guardrail: Guardrail
    compiled: CompiledRule
    order: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Rules that run in one scanner: all deciding or none, all folding or none."""

    scanner: Scanner
    entries: tuple[RuleEntry, ...]
    decides: bool
    folds: bool
    lead_width: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a gate needs for one kind of text. Deciding lanes come first."""

    lanes: tuple[Lane, ...]
    limits: tuple[tuple[Guardrail, Limit, int], ...]
    batched: tuple[Guardrail, ...]
    whole: tuple[Guardrail, ...]
    monitor: bool
    lead_width: int


@dataclass(frozen=True, slots=True)
class PolicyBound:
    """How much text a policy can hold. ``characters`` covers the pattern rules; ``rule`` is the one that sets it.

    ``characters`` are folded ones; of the original text's, ``with_ignorables`` is the bound, and is said with it.
    """

    characters: int
    with_ignorables: int
    guardrail: str
    rule: str
    sentence: int | None
    whole_answer: bool

    def __str__(self) -> str:
        more = f", {self.with_ignorables:,} with ignorable ones between them"
        words = [f"at most {self.characters:,} characters{more if self.with_ignorables > self.characters else ''}"]
        if self.sentence is not None:
            words.append(f"up to a sentence of {self.sentence} characters and its time limit")
        if self.whole_answer:
            words.append("the whole answer")
        return "; ".join(words)


@dataclass(frozen=True, slots=True)
class Policy:
    """A compiled policy. ``version`` 0 and an empty ``digest`` mean that it was never published."""

    name: str
    description: str
    version: int
    digest: str
    guardrails: tuple[Guardrail, ...]
    _plans: dict[tuple[AppliesTo, bool], Plan] = field(default_factory=dict, repr=False, compare=False)
    _scanners: dict[tuple[tuple[int, ...], bool], Scanner] = field(default_factory=dict, repr=False, compare=False)
    _parts: dict[Checkpoint, Policy] = field(default_factory=dict, repr=False, compare=False)
    demotions: tuple[tuple[str, Checkpoint], ...] = ()
    """Guardrails that run later than they declare, by name, with where."""
    _demoted: dict[tuple[tuple[str, Checkpoint], ...], Policy] = field(default_factory=dict, repr=False, compare=False)
    restore_in_tools: frozenset[str] = frozenset()
    """Tools in whose arguments the gateway puts masked values back (``guardrails.masking``)."""

    def guardrail(self, name: str) -> Guardrail:
        """A guardrail by name. Raises ``KeyError``."""
        for guardrail in self.guardrails:
            if guardrail.name == name:
                return guardrail
        raise KeyError(name)

    def running(self, applies_to: AppliesTo) -> tuple[Guardrail, ...]:
        """Guardrails that are not DISABLED and look at this kind of text, in policy order."""
        return tuple(g for g in self.guardrails if g.mode is not Mode.DISABLED and applies_to in g.applies_to)

    def batched(self, applies_to: AppliesTo) -> tuple[Guardrail, ...]:
        """Guardrails that run at sentence ends."""
        return tuple(g for g in self.running(applies_to) if g.checkpoint is Checkpoint.BATCHED)

    def deferred(self, applies_to: AppliesTo) -> tuple[Guardrail, ...]:
        """Guardrails that run in a worker when the answer has ended."""
        return tuple(g for g in self.running(applies_to) if g.checkpoint is Checkpoint.DEFERRED)

    def only(self, checkpoint: Checkpoint) -> Policy:
        """The same version with its guardrails of one checkpoint alone; built once."""
        known = self._parts.get(checkpoint)
        if known is None:
            chosen = tuple(g for g in self.guardrails if g.checkpoint is checkpoint)
            # The scanners are shared: they are found by the rules that stand in them.
            known = self._parts[checkpoint] = replace(self, guardrails=chosen, _plans={}, _parts={})
        return known

    def demoted(self, to: Mapping[str, Checkpoint]) -> Policy:
        """The same version with these guardrails at a later checkpoint; built once.

        Only those in MONITOR are moved, and only to later: whatever ``to`` says of others is passed over.
        """
        moved = tuple(
            (g.name, to[g.name])
            for g in self.guardrails
            if g.name in to and g.mode is Mode.MONITOR and later(g.checkpoint, to[g.name]) is not g.checkpoint
        )
        if not moved:
            return self
        known = self._demoted.get(moved)
        if known is None:
            chosen = dict(moved)
            guardrails = tuple(self._at(g, chosen[g.name]) if g.name in chosen else g for g in self.guardrails)
            known = self._demoted[moved] = replace(
                self, guardrails=guardrails, demotions=self._moved(moved), _plans={}, _parts={}, _demoted={}
            )
        return known

    def _moved(self, moved: tuple[tuple[str, Checkpoint], ...]) -> tuple[tuple[str, Checkpoint], ...]:
        again = {name for name, _ in moved}
        return (*(before for before in self.demotions if before[0] not in again), *moved)

    def alone(self, guardrail: Guardrail) -> Policy:
        """The version with one of its guardrails, as if it had no other."""
        return replace(self, guardrails=(guardrail,), _plans={}, _parts={}, _demoted={})

    def _at(self, guardrail: Guardrail, checkpoint: Checkpoint) -> Guardrail:
        """The guardrail at a later checkpoint, with the time that checks have there."""
        apart = self.alone(guardrail) if guardrail.rules or guardrail.limits else None
        limit = max(guardrail.time_limit_s, TIME_LIMIT_S[checkpoint])
        return replace(guardrail, checkpoint=checkpoint, time_limit_s=limit, apart=apart)

    def bound(self, applies_to: AppliesTo) -> PolicyBound:
        """What a session under this policy can hold at most."""
        running = self.running(applies_to)
        best: tuple[Bound, str, str] = (Bound(0, 0), "", "")
        with_ignorables = 0
        for guardrail in running:
            for compiled in guardrail.rules if guardrail.decides else ():
                with_ignorables = max(with_ignorables, compiled.bound.with_ignorables)
                if compiled.bound.characters > best[0].characters:
                    best = (compiled.bound, guardrail.name, compiled.rule.id)
        return PolicyBound(
            characters=best[0].characters,
            with_ignorables=with_ignorables,
            guardrail=best[1],
            rule=best[2],
            sentence=SENTENCE_CHARS if any(g.decides for g in self.batched(applies_to)) else None,
            whole_answer=any(g.decides for g in self.deferred(applies_to)),
        )

    def plan(self, applies_to: AppliesTo, *, monitor: bool = False) -> Plan:
        """What a gate runs for one kind of text; built once. ``monitor``: nothing decides, everything is recorded."""
        known = self._plans.get((applies_to, monitor))
        if known is None:
            known = self._plans[applies_to, monitor] = self._plan(applies_to, monitor)
        return known

    def _plan(self, applies_to: AppliesTo, monitor: bool) -> Plan:
        running = self.running(applies_to)
        entries: list[RuleEntry] = []
        limits: list[tuple[Guardrail, Limit, int]] = []
        order = 0
        for guardrail in running:
            if guardrail.apart is not None:
                continue
            for compiled in guardrail.rules:
                entries.append(RuleEntry(guardrail, compiled, order))
                order += 1
            for limit in guardrail.limits:
                limits.append((guardrail, limit, order))
                order += 1
        lanes: list[Lane] = []
        for decides in (True, False):
            for folds in (True, False):
                chosen = tuple(
                    entry
                    for entry in entries
                    if (entry.guardrail.decides and not monitor) is decides and entry.compiled.folds is folds
                )
                lanes.extend(
                    Lane(
                        self._scanner(part, folds),
                        part,
                        decides,
                        folds,
                        max(entry.compiled.trimmed_width for entry in part),
                    )
                    for part in _parts(chosen)
                )
        return Plan(
            lanes=tuple(lanes),
            limits=tuple(limits),
            batched=self.batched(applies_to),
            whole=tuple(g for g in self.deferred(applies_to) if g.decides and not monitor),
            monitor=monitor,
            lead_width=max((lane.lead_width for lane in lanes), default=0),
        )

    def _scanner(self, entries: Sequence[RuleEntry], folds: bool) -> Scanner:
        """One scanner per set of rules: prompt and response mostly share theirs."""
        key = (tuple(id(entry.compiled) for entry in entries), folds)
        known = self._scanners.get(key)
        if known is None:
            known = self._scanners[key] = Scanner([entry.compiled.source for entry in entries], folds=folds)
        return known


def _parts(entries: tuple[RuleEntry, ...]) -> list[tuple[RuleEntry, ...]]:
    """Entries that share an automaton."""
    rules = [(entry.compiled.tree, entry.compiled.own_program) for entry in entries]
    return [tuple(entries[i] for i in part) for part in groups(rules)]


def normalise(document: Mapping[str, object]) -> dict[str, object]:
    """A validated policy document with every default written out. Raises ``PolicyError``."""
    return parse_document(document).as_dict()


def compile_policy(document: Mapping[str, object], *, version: int = 0, digest: str = "") -> Policy:
    """Compile a policy document. Raises ``PolicyError`` with the path of what is refused."""
    parsed = parse_document(document)
    return Policy(
        name=parsed.name,
        description=parsed.description,
        version=version,
        digest=digest,
        guardrails=tuple(_compile(entry, f"guardrails[{i}]", parsed.name) for i, entry in enumerate(parsed.guardrails)),
        restore_in_tools=frozenset(parsed.restore_in_tools),
    )


def validated(document: Mapping[str, object]) -> PolicyDocument:
    """The parsed document alone, without compiling its rules. Raises ``PolicyError``."""
    return parse_document(document)


def _compile(entry: GuardrailDocument, path: str, policy: str) -> Guardrail:
    compiled: list[CompiledRule] = []
    try:
        rules = list(entry.kind.rules())
    except ValueError as error:
        raise PolicyError(f"{path}.config", str(error)) from None
    seen: set[str] = set()
    listed = [written.id for written in getattr(entry.kind.config, "rules", ())]
    for rule in rules:  # a kind's own rules and those of a short form stand beside the written ones
        where = f"{path}.config" + (f".rules[{listed.index(rule.id)}]" if rule.id in listed else "")
        if rule.id in seen:
            raise PolicyError(where, f"rule id {rule.id!r} is used twice")
        seen.add(rule.id)
        try:
            compiled.append(compile_rule(replace(rule, client=rule.client or entry.client)))
        except PatternError as error:
            raise PolicyError(f"{where}.pattern", f"rule {rule.id!r}: {error}") from None
    return Guardrail(
        name=entry.name,
        kind=entry.kind.name,
        impl=entry.kind,
        applies_to=frozenset(entry.applies_to),
        mode=entry.mode,
        action=entry.action,
        on_error=entry.on_error,
        checkpoint=entry.checkpoint,
        time_limit_s=entry.time_limit_s,
        client=entry.client,
        rules=tuple(compiled),
        limits=tuple(entry.kind.limits()),
        circuit=_circuit(entry, policy),
    )


def _circuit(entry: GuardrailDocument, policy: str) -> str:
    written = f"{entry.kind.name} {entry.kind.config.model_dump_json()}"
    return f"{policy}/{entry.name}/{hashlib.sha256(written.encode()).hexdigest()[:12]}"
