"""Search in the project's own documentation, so that the demo's model can say something about what it runs in."""

from __future__ import annotations

import asyncio
import functools
import math
import re
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, Field

from streaming.tools.base import Context, ToolError, tool

DOCS = Path(__file__).resolve().parents[2] / "docs"
MOST_CHARS = 700
_WORD = re.compile(r"\w{2,}")


class Question(BaseModel):
    """What is looked for."""

    query: str = Field(min_length=2, max_length=300, description="A few words.")
    results: int = Field(default=3, ge=1, le=8, description="How many passages.")


@tool("search_docs", "Searches Sluicegate's documentation and returns the passages that fit best.")
async def search(given: Question, context: Context) -> str:
    """The best passages, each with its page and heading."""
    found = await asyncio.to_thread(_search, given.query, given.results)
    if not found:
        raise ToolError("nothing in the documentation fits")
    return "\n\n".join(found)


def _search(query: str, results: int) -> list[str]:
    sections = _sections()
    wanted = set(_WORD.findall(query.lower()))
    spread = Counter(word for _, words in sections for word in wanted & words.keys())

    def score(words: Counter[str]) -> float:
        return sum(
            math.log(1 + len(sections) / spread[word]) * words[word] / (words[word] + 1 + words.total() / 300)
            for word in wanted & words.keys()
        )

    ranked = sorted(((score(words), text) for text, words in sections), key=lambda pair: -pair[0])
    return [text[:MOST_CHARS] for points, text in ranked[:results] if points > 0]


@functools.cache
def _sections() -> list[tuple[str, Counter[str]]]:
    """Every section of every page with its words; none where the documentation is not there."""
    parts = [
        (page.relative_to(DOCS), part.strip())
        for page in sorted(DOCS.rglob("*.md"))
        for part in re.split(r"\n(?=#{1,3} )", page.read_text("utf-8"))
    ]
    return [(f"[{page}] {text}", Counter(_WORD.findall(text.lower()))) for page, text in parts if text]
