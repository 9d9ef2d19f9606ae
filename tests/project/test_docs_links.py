"""What the documents name is there: links lead somewhere, and a test that is named as proof exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)]*))?\)")
_PATH = re.compile(r"`((?:tests|guardrails|streaming|project|docs|examples|static|templates)/[\w./-]+\.\w+)`")


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def missing(page: Path, text: str) -> list[str]:
    out = [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    for target, anchor in _LINK.findall(text):
        if "://" in target or target.startswith(("mailto:", "/")):
            continue
        there = (page.parent / target).resolve()
        if not there.exists():
            out.append(target)
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            out.append(f"{target}#{anchor}")
    return out


def test_it_works() -> None:
    page = ROOT / "docs" / "security.md"
    assert missing(page, "`tests/project/test_docs_links.py` and [links](metrics.md#what-to-ask)") == []
    assert missing(page, "`tests/project/test_nothing.py`") == ["tests/project/test_nothing.py"]
    assert missing(page, "[a](nowhere.md) [b](metrics.md#nowhere)") == ["nowhere.md", "metrics.md#nowhere"]


@pytest.mark.parametrize("document", PAGES, ids=lambda document: str(document.relative_to(ROOT)))
def test_what_a_document_names_is_there(document: Path) -> None:
    assert missing(document, document.read_text("utf-8")) == []


def test_every_threat_names_a_test_that_would_fail() -> None:
    rows = (ROOT / "docs" / "security.md").read_text("utf-8").split("## Threats")[1].split("## ")[0]
    threats = [line for line in rows.splitlines() if line.startswith("| ")][1:]
    assert len(threats) > 20
    assert [line for line in threats if "`tests/" not in line] == []
