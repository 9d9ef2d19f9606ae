"""Harmless texts with the words of attacks, written by hand: how often the classifiers are wrong is published as it is.

A grammar that makes such sentences is what the classifier was trained with, so its own sentences flatter it; these do
not. They are in ``harmless_by_hand.txt``, and nothing is trained or tuned on them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardrails.ml.made import sentences
from guardrails.ml.model import load
from guardrails.ml.split import same, split
from tests.guardrails.ml.test_split import DATA, TASKS, read, words

PAGE = Path(__file__).parents[3] / "docs" / "classifiers.md"
FILE = Path(__file__).parent / "harmless_by_hand.txt"
TEXTS = [line for line in FILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
TRIGGERS = re.compile(
    r"ignore|disregard|forg[eo]t|instruct|previous|act as|translat|kill|override|reveal|pretend|bypass|prompt|rules?\b"
    r"|jailbreak|role-play|you are|from now|system|disable|exploit|attack|unlock|hack|access|execute|command|developer"
    r"|repeat|delete|escape|shoot|skip|simulate|reset|policy|do not tell|do anything|output|drop|send|guidelines|break"
    r"|hidden|last sentence|colour|anything",
    re.IGNORECASE,
)


def test_it_works() -> None:
    assert len(TEXTS) == len({same(text) for text in TEXTS}) >= 60
    for phrase in ("ignore the noise", "act as a translator", "kill the process"):
        assert any(phrase in text.lower() for text in TEXTS), phrase
    assert [text for text in TEXTS if not TRIGGERS.search(text)] == []


@pytest.mark.parametrize("name", TASKS)
def test_the_page_says_how_often_they_are_taken_for_hits(name: str) -> None:
    model = load(name)
    wrong = [text for text in TEXTS if model.score(text) >= model.threshold]
    rate = round(len(wrong) / len(TEXTS), 3)
    section = PAGE.read_text("utf-8").split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    (line,) = re.findall(r"^\| the same, by hand \|.*$", section, re.MULTILINE)
    assert re.findall(r"[\d.]+", line) == [str(len(TEXTS)), f"{rate:g}"]
    assert rate < 0.1, "more than that and the page should not recommend it"


def test_none_is_a_sentence_that_was_made_to_be_trained_on() -> None:
    made = {same(text) for text in sentences("tricky", judging=False, count=2_500)}
    assert [text for text in TEXTS if same(text) in made] == []


@pytest.mark.skipif(not DATA.is_dir(), reason="the labelled texts are not here")
@pytest.mark.parametrize("name", TASKS)
def test_none_is_trained_or_tuned_on(name: str) -> None:
    """The very call that the training command makes."""
    parts = split(TASKS[name](DATA, read))
    assert len(parts.training) > 8_000
    learnt = words(parts.training + parts.tuning)
    assert [text for text in TEXTS if same(text) in learnt] == []
