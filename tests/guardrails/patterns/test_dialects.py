"""One meaning in every engine: the same rule gives the same spans in ours, Python's ``re``, RE2 and JavaScript."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import re2

from guardrails.lint import spans_in
from guardrails.patterns.compiler import CompiledRule, compile_rule
from guardrails.patterns.emit import Dialect
from guardrails.patterns.errors import PatternError
from guardrails.patterns.rule import Rule
from tests.streaming import generate
from tests.streaming.oracle import Finder

CASES = 10_000
SCRIPT = Path(__file__).with_name("spans.js")
DIFFERENCES = [
    (r"\s+x", "a\v\u00a0\u2003x \x1cx"),  # \s: RE2 has no \v, JavaScript has U+00A0
    (".x", "\rx\nx\u2028x\x85x"),  # what . leaves out
    ("a$", "a\n"),  # $ before a last newline
    ("^a", "b\ra"),  # ^ behind \r
    ("(?m:^)a", "b\ra\na\u2028a"),
    ("(?i:k)", "K\u212ak"),  # Unicode folding of (?i)
    ("(?i:s)", "\u017fsS"),
    ("xa{,2}y", "xaay xa{,2}y"),
    (r"\bé|\w+", "éa été"),  # \w and \b are ASCII
    (r"\d+", "1\u0663２2"),
    ("[^a]b", "\nb\U0001f642b"),
    ("a|ab|abc", "xabcab"),  # longest, not first
    ("a+?", "aaa"),
    ("(?:a|ab)(?:c|bcd)?", "abcd"),
]  # fmt: skip


@cache
def cases() -> list[tuple[CompiledRule, str]]:
    """Rules that a small grammar gives, not folding (the drivers see the text as it is), and texts of their pieces."""
    out = [(compile_rule(Rule("d", pattern, fold=False)), text) for pattern, text in DIFFERENCES]
    chance = random.Random(20)
    while len(out) < CASES:
        try:
            rule = compile_rule(Rule("g", generate.pattern(chance), fold=False, cap=chance.choice([4, 9, 512])))
        except PatternError:
            continue
        for _ in range(4):
            text = generate.text([rule.tree], chance, pieces=3)[:18]
            out.append((rule, text.replace("\U0010ffff", "")))
    return out[:CASES]


@cache
def ours() -> list[list[tuple[int, int]]]:
    return [list(spans_in(rule, text)) for rule, text in cases()]


def compare(found: list[list[tuple[int, int]]]) -> None:
    for (rule, text), want, got in zip(cases(), ours(), found, strict=True):
        assert got == want, (rule.rule.pattern, text)


def test_it_works() -> None:
    assert sum(bool(spans) for spans in ours()) > CASES // 4
    assert sum(len(spans) > 1 for spans in ours()) > CASES // 20


def test_python_gives_the_same_spans() -> None:
    compare([Finder(rule).spans(text) for rule, text in cases()])


def test_re2_gives_the_same_spans() -> None:
    options = re2.Options()
    options.longest_match = True
    found = []
    for rule, text in cases():
        pattern = re2.compile(rule.emit(Dialect.RE2).pattern, options)
        spans, at = [], 0
        while at < len(text) and (match := pattern.search(text, at)) is not None:
            spans.append(match.span())
            at = match.end()
        found.append(spans)
    compare(found)


def test_javascript_gives_the_same_spans() -> None:
    payload = [[rule.emit(Dialect.JAVASCRIPT).pattern, text] for rule, text in cases()]
    found = in_node(payload) if shutil.which("node") else in_chromium(payload)
    compare([[(start, end) for start, end in spans] for spans in found])


def in_node(payload: list[list[str]]) -> list[list[list[int]]]:
    done = subprocess.run(
        ["node", str(SCRIPT)], input=json.dumps(payload), capture_output=True, text=True, check=True, timeout=250
    )
    return json.loads(done.stdout)


def in_chromium(payload: list[list[str]]) -> list[list[list[int]]]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("neither Node nor Chromium is there to run JavaScript")
        pytest.skip("neither Node nor Chromium is there: emitted JavaScript patterns were NOT compared")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            page.add_script_tag(content=SCRIPT.read_text())
            return page.evaluate("cases => run(cases)", payload)
        finally:
            browser.close()
