"""What is caught when a model does not write a value as it is: measured, for every starter policy.

Exists because a table of limits that somebody wrote down is wrong after the next rule. Protects the rule that the
documentation says what the program does: ``manage.py gateway_limits --write docs/gateway-limits.md`` measures, and a
test fails while the page says something else.

A value counts as caught when not one character of what stands for it is shown. Only guardrails that answer at once are
measured (rules, within the gate); judges and classifiers are asked about sentences and are not in the table.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import guardrails
from guardrails.findings import HIDING, AppliesTo, Mode
from guardrails.performance import Checkpoint
from guardrails.policy import Policy, compile_policy
from streaming.core.effects import FOUND, Effect
from streaming.core.gate import Gate

BEGIN, END = "<!-- generated: disguises -->", "<!-- end of generated: disguises -->"

VALUES = (
    "ann.cope@example.com",
    "123-45-6789",
    "4111 1111 1111 1111",
    "(212) 555-0123",
    "DE89 3704 0044 0532 0130 00",
    "192.0.2.17",
    "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "Blue Heron",
)
"""A mail address, a social security number, a card, a telephone, an account, an address of a machine, a token, and a
code name."""
CODE_NAMES = {"name": "own_code_names", "kind": "keywords", "action": "redact", "config": {"keywords": ["Blue Heron"]}}
"""What an operator adds for the last one: no release knows it."""

SENTENCE = "I looked it up for you: ~, as you asked."

BEHIND = "\\n"
"""What may stand right before a value and is no part of it."""

_LIKE = str.maketrans("aceopxyABCEHIKMOPTXijs", "асеорхуАВСЕНІКМОРТХіјѕ")
_JSON_SIGNS = {ord(sign): f"\\u{ord(sign):04X}" for sign in "@- "}
_WIDE_DIGITS = str.maketrans({digit: chr(ord(digit) + 0xFEE0) for digit in "0123456789"})


def _halves(value: str) -> Sequence[str]:
    return [value[: len(value) // 2], value[len(value) // 2 :]]


DISGUISES: tuple[tuple[str, Callable[[str], Sequence[str]]], ...] = (
    ("as it is", lambda value: [value]),
    ("percent-encoded (`%40`, `%2D`, `%20`)", lambda value: [quote(value, safe="()").replace("-", "%2D")]),
    ("signs as JSON escapes them (`\\u0040`, `\\u002D`, `\\u0020`)", lambda value: [value.translate(_JSON_SIGNS)]),
    ("behind an escape of JSON or code (`\\n`)", lambda value: [BEHIND + value]),
    ("full-width digits", lambda value: [value.translate(_WIDE_DIGITS)]),
    ("look-alike letters (Cyrillic)", lambda value: [value.translate(_LIKE)]),
    ("invisible characters between all", lambda value: ["\u200b".join(value)]),
    ("every character percent-encoded", lambda value: ["".join(f"%{ord(char):02X}" for char in value)]),
    ("HTML entity for each sign (`&#64;`)",
     lambda value: ["".join(char if char.isalnum() else f"&#{ord(char)};" for char in value)]),
    ("HTML entities for all", lambda value: ["".join(f"&#{ord(char)};" for char in value)]),
    ("blanks between all", lambda value: [" ".join(value)]),
    ("base64", lambda value: [base64.b64encode(value.encode()).decode()]),
    ("backwards", lambda value: [value[::-1]]),
    ("half in one channel or choice, half in another", _halves),
)  # fmt: skip
"""Each with what is written instead of a value: one text, or one for each channel."""


def starters() -> dict[str, Policy]:
    """The policies that come with the release, by name, with a code name: their guardrails that answer at once."""
    folder = Path(guardrails.__path__[0]) / "starters"
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    found = [compile_policy({**one, "guardrails": [*one["guardrails"], CODE_NAMES]}) for one in documents]
    return {policy.name: policy.only(Checkpoint.IMMEDIATE) for policy in found}


def hidden(policy: Policy, text: str, start: int, end: int) -> bool:
    """Is every character of ``text[start:end]`` kept from the reader, one character a chunk? Code points."""
    gate = Gate(policy, AppliesTo.RESPONSE)
    effects: list[Effect] = []
    for char in text:
        effects += gate.feed(char)
    effects += gate.finish()
    left = set(range(start, end))
    for effect in effects:
        if effect[0] == FOUND and effect[1].mode is Mode.BLOCK and effect[1].action in HIDING:
            left -= set(range(effect[1].start, effect[1].end))
    if gate.block is not None:
        left = {at for at in left if at < gate.block.start}
    return not left


def caught(policy: Policy, written: Sequence[str]) -> bool:
    """Is everything hidden that stands for a value, each part in a channel of its own?"""
    at = SENTENCE.index("~")
    texts = ((SENTENCE.replace("~", part), at + len(part), part.removeprefix(BEHIND)) for part in written)
    return all(hidden(policy, text, end - len(said), end) for text, end, said in texts)


def table() -> str:
    """The table as Markdown: how many of the values that a policy catches as they are it still catches."""
    policies = starters()
    known = {name: [value for value in VALUES if caught(policy, [value])] for name, policy in policies.items()}
    lines = ["| written | " + " | ".join(f"`{name}`" for name in policies) + " |", "| --- |" + " --- |" * len(policies)]
    for label, disguise in DISGUISES:
        cells = []
        for name, policy in policies.items():
            count = sum(caught(policy, disguise(value)) for value in known[name])
            cells.append(f"{count} of {len(known[name])}" if known[name] else "none looked for")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filled_in(page: str) -> str:
    """The page with its table brought up to date. Raises ``ValueError`` if the marks are missing."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError("the page has no marks for the table")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
