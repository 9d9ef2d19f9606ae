"""What the gate is compared with: Hyperscan in streaming mode, the standard library's ``re``, ``regex`` partially.

All of them get the rules as they were written and do the least honest thing they can: none folds, validates or
redacts, and Hyperscan cannot say what to hold.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from guardrails.policy import Policy
from streaming.core.gate import RELEASE, Effect, Gate
from tests.bench.registry import SkipBench


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SkipBench(f"{name} is not installed (it comes with the development tools)") from None


def hyperscan_stream(patterns: dict[str, str]) -> Any:
    """A streaming database over the patterns, as UTF-8."""
    hyperscan = _module("hyperscan")
    database = hyperscan.Database(mode=hyperscan.HS_MODE_STREAM)
    expressions = [pattern.encode() for pattern in patterns.values()]
    database.compile(
        expressions=expressions,
        ids=list(range(len(expressions))),
        elements=len(expressions),
        flags=[hyperscan.HS_FLAG_UTF8] * len(expressions),
    )
    database.scratch = hyperscan.Scratch(database)
    return database


def scan_all(database: Any, chunks: list[bytes]) -> list[int]:
    """Bare Hyperscan: bytes in, match ends out."""
    ends: list[int] = []

    def on_match(_id: int, _start: int, end: int, _flags: int, _context: object) -> None:
        ends.append(end)

    with database.stream(match_event_handler=on_match) as stream:
        scan = stream.scan
        for chunk in chunks:
            scan(chunk)
    return ends


class HyperscanGate(Gate):
    """The gate's own fast path with Hyperscan where the automaton's inner loop stands. It leaks: nothing is held."""

    def __init__(self, policy: Policy, stream: Any) -> None:
        super().__init__(policy)
        self.stream = stream
        self.age = 0

    def feed(self, text: str) -> list[Effect]:
        """Scan, then the identical bookkeeping."""
        one = self._one
        if one is None or self._busy or len(text) > 16_384:
            raise AssertionError("the comparison is about the fast path")
        self.stream.scan(text.encode())
        n = self._n = self._n + len(text)
        tail = self._tail + text
        if n > self._watermark:
            raise AssertionError("no limit is set")
        cut = len(tail) - self.age
        if cut <= 0:
            self._tail = tail
            return []
        self._edge = tail[cut - 1]
        self._visible += cut
        self._r = n - self.age
        if self._plan.lead_width:
            self._lead = (self._lead + tail[:cut])[-self._plan.lead_width :]
        self._tail = tail[cut:]
        return [(RELEASE, tail[:cut])]


def hyperscan_gate(policy: Policy, database: Any, chunks: list[str]) -> int:
    """A session through ``HyperscanGate``; returns how many matches were reported."""
    found = 0

    def on_match(_id: int, _start: int, _end: int, _flags: int, _context: object) -> None:
        nonlocal found
        found += 1

    with database.stream(match_event_handler=on_match) as stream:
        gate = HyperscanGate(policy, stream)
        feed = gate.feed
        for chunk in chunks:
            feed(chunk)
    return found


def re_once(patterns: dict[str, str], text: str) -> int:
    """The standard library, rule by rule, once over the finished text."""
    return sum(1 for pattern in patterns.values() for _ in re.compile(pattern, re.ASCII).finditer(text))


class PartialGate:
    """``regex`` with ``partial=True``, rule by rule over the held tail: exact about what to hold, and slow."""

    def __init__(self, patterns: dict[str, str]) -> None:
        regex = _module("regex")
        self.rules = [regex.compile(pattern, regex.ASCII) for pattern in patterns.values()]
        self.before = ""  # one released character, for word boundaries
        self.tail = ""
        self.found = 0

    def feed(self, text: str) -> str:
        """More text; returns what may be released (what was found included, uncounted)."""
        self.tail += text
        window, lead = self.before + self.tail, len(self.before)
        hold, done = len(window), lead
        for rule in self.rules:
            at = lead
            while (match := rule.search(window, at, partial=True)) is not None:
                if match.partial or match.end() == len(window):
                    hold = min(hold, match.start())
                    break
                self.found += 1
                at = match.end()
                done = max(done, at)
        cut = max(lead, hold)
        shown = window[lead:cut]
        if shown:
            self.before = shown[-1]
            self.tail = window[cut:]
        return shown

    @property
    def held(self) -> int:
        """Characters held now."""
        return len(self.tail)


def partial_all(patterns: dict[str, str], chunks: list[str]) -> PartialGate:
    """A session through ``PartialGate``."""
    gate = PartialGate(patterns)
    feed = gate.feed
    for chunk in chunks:
        feed(chunk)
    return gate
