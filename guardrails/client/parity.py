"""The spans of a rule as other engines find them, from the emitted pattern alone.

Exists because a client has nothing but the pattern: publication asks Python's ``re`` and RE2 for the spans of every
parity vector, a client asks JavaScript before it believes its rules. The way is the same everywhere: starts
ascending; for one start, ends descending; the first candidate that the rule's check accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import re2

from guardrails.patterns.behind import BEGINS
from guardrails.patterns.charset import contains
from guardrails.patterns.compiler import CompiledRule
from guardrails.patterns.emit import Dialect, emit
from guardrails.patterns.folding import Folded, table
from guardrails.patterns.rule import Candidate

Spans = list[tuple[int, int]]
Finder = Callable[[str], Spans]
_Groups = Callable[[int], tuple[int, int]]
_Fits = Callable[[str, int, int], _Groups | None]


def group_numbers(compiled: CompiledRule, dialect: Dialect) -> list[int]:
    """The emitted groups that may carry the secret, the first non-empty one does; none: the whole match is it."""
    wanted = compiled.rule.secret_group
    if not wanted:
        return []
    emitted = compiled.emit(dialect)
    if wanted == -1:
        return [number for numbers in emitted.groups.values() for number in numbers]
    return emitted.groups.get(wanted, [])


def finder_in_python(compiled: CompiledRule) -> Finder:
    """Spans in code points, found by ``re``.

    It does not look behind the end that it is given: the text is cut one character behind each end. The word characters
    that a listed word may not stand beside are looked up here: ``re`` takes 50 ms to read their class, word by word.
    """
    before, behind = compiled.source.not_after, compiled.source.not_before
    word = table().word
    pattern = emit(
        compiled.tree,
        Dialect.PYTHON,
        not_after=() if before == word else before,
        not_before=() if behind == word else behind,
    ).pattern
    inside = re.compile(f"(?:{pattern})(?=[\\s\\S]\\Z)", re.ASCII)
    at_end = re.compile(f"(?:{pattern})\\Z", re.ASCII)

    def fits(folded: str, start: int, end: int) -> _Groups | None:
        if _beside(compiled, folded, start, end):
            return None
        found = at_end.match(folded, start) if end == len(folded) else inside.match(folded[: end + 1], start)
        return None if found is None else found.span

    return _finder(compiled, fits, group_numbers(compiled, Dialect.PYTHON))


def finder_in_re2(compiled: CompiledRule) -> Finder:
    """Spans in code points, found by RE2; it has no look-around, so the neighbours are looked at here."""
    options = re2.Options()
    options.max_mem = 64 << 20
    options.log_errors = False
    pattern = re2.compile(compiled.emit(Dialect.RE2).pattern, options)

    def fits(folded: str, start: int, end: int) -> _Groups | None:
        if _beside(compiled, folded, start, end):
            return None
        found = pattern.fullmatch(folded, start, end)
        return None if found is None else found.span

    return _finder(compiled, fits, group_numbers(compiled, Dialect.RE2))


def _beside(compiled: CompiledRule, text: str, start: int, end: int) -> bool:
    """Whether a character stands beside that the rule may not stand beside; its escaped form may stand behind any."""
    free = bool(compiled.rule.escaped) and text[start] in BEGINS
    if start and not free and contains(compiled.source.not_after, ord(text[start - 1])):
        return True
    return end < len(text) and contains(compiled.source.not_before, ord(text[end]))


def _finder(compiled: CompiledRule, fits: _Fits, groups: list[int]) -> Finder:
    def find(text: str) -> Spans:
        folded = compiled.fold(text)
        out: Spans = []
        start = 0
        while start < len(folded.text):
            end = _end(compiled, folded, start, fits, groups, out)
            start = start + 1 if end is None else end
        return out

    return find


def _end(
    compiled: CompiledRule,
    folded: Folded,
    start: int,
    fits: _Fits,
    groups: list[int],
    out: Spans,
) -> int | None:
    text, validator = folded.text, compiled.rule.validator
    for end in range(len(text), start, -1):
        span = fits(text, start, end)
        if span is None:
            continue
        filled = [found for found in map(span, groups) if found[1] > found[0] >= 0]
        first, last = filled[0] if filled else (start, end)
        left = text[max(0, start - compiled.trimmed_width) : start]
        candidate = Candidate(text[first:last], text[start:end], left + text[start:end])
        if validator is None or validator(candidate):
            out.append((folded.start(first), folded.end(last)))
            return end
    return None
