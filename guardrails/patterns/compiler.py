"""Rule -> CompiledRule: parsed, folded, capped, trimmed, bounded, ready for the automaton and for other engines.

This is the one way from what an author wrote to what runs; publication, lint, gate and oracle all take it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TypeAlias

from guardrails.patterns import charset
from guardrails.patterns.charset import Ranges
from guardrails.patterns.deadline import in_time, is_limited
from guardrails.patterns.emit import Dialect, Emitted, emit
from guardrails.patterns.errors import PatternError
from guardrails.patterns.folding import MAX_RUN, Folded, fold_plain, fold_text, raw_text, table
from guardrails.patterns.nfa import Program, Source
from guardrails.patterns.rule import Rule
from guardrails.patterns.shape import Shaped, shape
from guardrails.patterns.spans import Matcher
from guardrails.patterns.syntax import parse
from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq, groups, max_width, min_width, seq

_FOLDABLE = 4_000
_KEPT_LENGTH = 2_000
"""Longer patterns are compiled anew each time: their trees are large, and few policies share them."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a rule can hold. ``characters``: longest match in folded characters plus right context.

    ``with_ignorables`` adds what zero-width characters may insert: at most ``MAX_RUN`` after each character.
    """

    characters: int
    with_ignorables: int


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule as it runs. Equality is identity: two rules may look alike and report differently."""

    rule: Rule
    tree: Node
    folds: bool
    source: Source
    trimmed_width: int
    bound: Bound
    min_width: int
    matcher: Matcher = field(repr=False)

    def emit(self, dialect: Dialect) -> Emitted:
        """The rule as a pattern of another engine."""
        return emit(self.tree, dialect, not_after=self.source.not_after, not_before=self.source.not_before)

    def own_program(self) -> Program:
        """The rule's positions by itself."""
        return self.matcher.program

    def fold(self, text: str, *, base: int = 0, run: int = 0) -> Folded:
        """A text as this rule reads it."""
        return fold_text(text, base=base, run=run) if self.folds else raw_text(text, base=base)


@dataclass(frozen=True, slots=True)
class _Form:
    """All of a rule that its text alone decides. Immutable throughout, so that rules written alike may share it."""

    shaped: Shaped
    folds: bool
    source: Source
    bound: Bound
    min_width: int
    emitted: str
    groups: tuple[int, ...]


_Written: TypeAlias = tuple[str, str, bool, bool | None, str, str, int, int | None]


def compile_rule(rule: Rule) -> CompiledRule:
    """Compile one rule. Raises ``PatternError`` (with position and construct) if it is refused."""
    in_time()
    written: _Written = (
        rule.pattern,
        rule.escaped,
        rule.ignore_case,
        rule.fold,
        rule.not_after,
        rule.not_before,
        rule.cap,
        rule.secret_group,
    )
    # What has a time limit is measured, and a form that is kept would say nothing of what it costs elsewhere.
    form = _form(written) if is_limited() or len(rule.pattern) > _KEPT_LENGTH else _kept_form(written)
    matcher = Matcher(
        form.source,
        validator=rule.validator,
        re2_pattern=form.emitted,
        groups=form.groups,
        context_width=form.shaped.trimmed_width,
    )
    return CompiledRule(
        rule=rule,
        tree=form.shaped.tree,
        folds=form.folds,
        source=form.source,
        trimmed_width=form.shaped.trimmed_width,
        bound=form.bound,
        min_width=form.min_width,
        matcher=matcher,
    )


def _form(written: _Written) -> _Form:
    pattern, escaped, ignore_case, fold, after, before, cap, secret_group = written
    tree = parse(f"{pattern}|{escaped}" if escaped else pattern, ignore_case=ignore_case)
    folds = _is_ascii(tree) if fold is None else fold
    if folds:
        tree = _fold_tree(tree)
    not_after, not_before = _context(after, folds=folds), _context(before, folds=folds)
    if min_width(tree) > 0:  # the empty match is refused by shape, with its own words
        behind = [Assert("not_before")] if not_before else []
        if escaped and not_after:
            assert isinstance(tree, Alt)
            *plain, last = tree.branches
            tree = seq(Alt((seq(Assert("not_after"), Alt(tuple(plain))), last)), *behind)
        else:
            tree = seq(*([Assert("not_after")] if not_after else []), tree, *behind)
    shaped = shape(tree, cap=cap, secret_group=secret_group)
    characters = max_width(shaped.tree) + (1 if _looks_right(shaped.tree) else 0)
    wanted = _wanted_groups(shaped.tree, secret_group)
    emitted = emit(shaped.tree, Dialect.RE2) if wanted else Emitted("")
    return _Form(
        shaped=shaped,
        folds=folds,
        source=Source(shaped.tree, not_after, not_before),
        bound=Bound(characters, characters * (MAX_RUN + 1) if folds else characters),
        min_width=min_width(shaped.tree),
        emitted=emitted.pattern,
        groups=tuple(number for group in wanted for number in emitted.groups[group]),
    )


_kept_form = functools.lru_cache(maxsize=512)(_form)


def _wanted_groups(tree: Node, secret_group: int | None) -> tuple[int, ...]:
    """Which groups of the pattern as written may carry the secret, in order of preference."""
    if secret_group == -1:
        return tuple(dict.fromkeys(number for number, inside in groups(tree) if not inside))
    return (secret_group,) if secret_group else ()


def _looks_right(node: Node) -> bool:
    """Can a match of the node depend on the character behind it?"""
    match node:
        case Assert(kind):
            return kind not in ("text_start", "line_start", "not_after")
        case Seq(items):
            for item in reversed(items):
                if _looks_right(item):
                    return True
                if min_width(item) > 0:
                    return False
            return False
        case Alt(branches):
            return any(map(_looks_right, branches))
        case Repeat(body) | Group(_, body):
            return _looks_right(body)
        case _:
            return False


def _is_ascii(node: Node) -> bool:
    """Does the tree name no character outside ASCII? Negated sets and ``.`` name what they exclude."""
    match node:
        case Chars(ranges):
            return all(hi < 128 or (hi == charset.MAX and lo <= 128) for lo, hi in ranges)
        case Seq(items) | Alt(items):
            return all(map(_is_ascii, items))
        case Repeat(body) | Group(_, body):
            return _is_ascii(body)
        case _:
            return True


def _fold_tree(node: Node) -> Node:
    """The tree over folded text: what it names is folded as the text will be."""
    in_time()
    match node:
        case Chars(ranges):
            return _fold_set(ranges)
        case Seq(items):
            return seq(*map(_fold_tree, items))
        case Alt(branches):
            return Alt(tuple(map(_fold_tree, branches)))
        case Repeat(body, low, high, greedy):
            return Repeat(_fold_tree(body), low, high, greedy)
        case Group(number, body):
            return Group(number, _fold_tree(body))
        case _:
            return node


def _fold_set(ranges: Ranges) -> Node:
    wide = [(lo, hi) for lo, hi in ranges if hi >= 128]
    if not wide or charset.size(tuple(wide)) > _FOLDABLE:
        return Chars(ranges)
    single: set[str] = set()
    several: set[str] = set()
    for lo, hi in wide:
        in_time()
        for code in range(max(lo, 128), hi + 1):
            target = fold_plain(chr(code))
            (single if len(target) == 1 else several).add(target)
    ascii_part = [(lo, min(hi, 127)) for lo, hi in ranges if lo < 128]
    chars = Chars(charset.normal([*ascii_part, *((ord(char), ord(char)) for char in single)]))
    strings = [seq(*(Chars(((ord(char), ord(char)),)) for char in target)) for target in sorted(several) if target]
    if "" in several and not strings and not chars.ranges:
        raise PatternError("the rule names only characters that folding removes; set fold to false")
    return Alt((chars, *strings)) if strings and chars.ranges else (Alt(tuple(strings)) if strings else chars)


@functools.lru_cache(maxsize=256)
def _context(spec: str, *, folds: bool) -> Ranges:
    """The set that a ``not_after`` / ``not_before`` names."""
    if not spec:
        return ()
    if spec == "unicode-word":
        return table().word
    tree = parse(f"[{spec}]")
    assert isinstance(tree, Chars)
    return tree.ranges if not folds else charset.normal(tree.ranges)
