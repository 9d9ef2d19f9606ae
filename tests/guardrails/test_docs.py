"""The documentation page and the program read the same data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardrails import docs
from guardrails.kinds.base import all_kinds
from guardrails.lint import examine
from guardrails.patterns.folding import MAX_RUN
from guardrails.patterns.rule import Rule
from streaming.core.gate import Gate
from tests.streaming.drive import regex_policy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guardrails.md"
TUNING = PAGE.with_name("tuning.md")


def test_it_works() -> None:
    page = PAGE.read_text("utf-8")
    assert docs.filled_in(page) == page, "run: manage.py rules docs --write docs/guardrails.md"


def test_every_kind_and_parameter_is_on_the_page() -> None:
    page = PAGE.read_text("utf-8")
    for name, kind in all_kinds().items():
        assert f"### `{name}`" in page
        for parameter in kind.Config.model_fields:
            assert f"| `{parameter}` |" in page


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks for the section 'decision table'"):
        docs.filled_in("# Guardrails")


def test_stale_text_between_the_marks_is_replaced() -> None:
    page = PAGE.read_text("utf-8")
    assert docs.filled_in(re.sub(r"\| INSTANT \|", "| SLOW |", page)) == page


def test_every_starter_policy_is_named() -> None:
    page = PAGE.read_text("utf-8")
    starters = Path(docs.__file__).parent / "starters"
    for path in starters.glob("*.json"):
        assert f"| `{path.stem}` |" in page


def tuning_rows() -> list[tuple[str, int, str]]:
    """Every rule of the tuning guide's table: pattern, bound, and what it is said to hold of ordinary text."""
    rows = re.findall(r"^\| `(.+?)` \| ([0-9,]+) \| (.+) \|$", TUNING.read_text("utf-8"), re.MULTILINE)
    return [(pattern, int(bound.replace(",", "")), holds) for pattern, bound, holds in rows]


def test_every_bound_in_the_tuning_guide_is_the_compilers() -> None:
    rows = tuning_rows()
    assert len(rows) == TUNING.read_text("utf-8").count("\n| `") >= 7
    for pattern, bound, holds in rows:
        report = examine(Rule("r", pattern))
        assert (pattern, report.holds) == (pattern, bound)
        assert report.holds_with_ignorables == bound * (MAX_RUN + 1)
        assert bool(report.trimmed) == ("is cut off" in holds), pattern
        if report.trimmed:
            assert f"it runs as `{report.trimmed}`" in holds


@pytest.mark.parametrize(
    ("pattern", "text", "least", "most"),
    [
        (r"sk-ant-[\w-]{20,200}", "He asks a skier, she skis. ", 0, 2),
        ("[0-9]{3}-[0-9]{2}-[0-9]{4}", "1234 pages, 56 plates. ", 2, 3),
        (r"[\w.+-]{1,64}@[a-z.]{4,40}", "An extraordinary fox. ", 13, 14),
        (".{0,200}password", "Wax on, pass it on. ", 0, 4),
        ("x.{0,200}password", "Wax on, pass it on. ", 200, 209),
        ("password.{0,200}x", "Pass it on, pass it off. ", 0, 4),
        ("password.{0,200}x", "The password is gone. ", 200, 209),
        (r"\bcurl\b[^\n]{1,200}\bsh", "A line without that word, said she. ", 0, 0),
        (r"\bcurl\b[^\n]{1,200}\bsh", "Use curl for it.\n", 11, 15),
    ],
)
def test_what_the_tuning_guide_says_of_ordinary_text_is_so(pattern: str, text: str, least: int, most: int) -> None:
    assert pattern in [row[0] for row in tuning_rows()]
    gate = Gate(regex_policy(("redact", [("r", pattern)])))
    held = []
    for char in text * 30:
        gate.feed(char)
        held.append(gate.held)
    assert least <= max(held) <= most
