"""The documentation page and the program read the same data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardrails import docs
from guardrails.kinds.base import all_kinds

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guardrails.md"


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
