"""Which texts the classifiers are trained on, tuned on and judged on.

Exists apart from the training so that the borders can be tested without its libraries. Protects the figures: what is
judged on is split off first, then what the threshold is chosen on, and only the rest is trained on. Who belongs where
is said by a hash of the text or by its collection, and a text counts as the same one when its words are the same, so
that no copy with another full stop stands on two sides.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guardrails.ml.features import plain, windows
from guardrails.ml.made import sentences

Row = tuple[str, int]
"""A text and whether it is a hit."""
Table = Callable[[Path], list[Row]]
"""Reads a collection that stands in a column store."""
TOXIC = ("H", "H2", "HR", "V", "V2")
"""Labels of the moderation collection that count: hate, harassment, violence. Sexual and self-harm texts do not."""
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Collected:
    """``rows`` to train and tune on, ``made`` ones to train on, and what is judged on, by collection."""

    rows: Sequence[Row]
    made: Sequence[Row]
    judging: Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Split:
    """Three parts that have no text in common. ``training`` has parts of its long harmless texts as well."""

    training: list[Row]
    tuning: list[Row]


def same(text: str) -> str:
    """What two texts have in common that count as one: their words, without disguises, case and punctuation."""
    bare = plain(text)
    return " ".join(_WORDS.findall(bare)) or bare.strip()


def held_out(text: str) -> bool:
    """Every fifth text, by its own hash."""
    return hashlib.sha256(plain(text).encode()).digest()[0] % 5 == 0


def tuned_on(text: str) -> bool:
    """Every eighth of the others."""
    return hashlib.sha256(f"tuning {same(text)}".encode()).digest()[0] % 8 == 0


def split(found: Collected) -> Split:
    """Training and tuning rows; no text of either is judged on, and none stands in both."""
    judged = {same(text) for part in found.judging.values() for text, _ in part}
    left = sorted({row for row in found.rows if row[0].strip() and same(row[0]) not in judged})
    tuning = [row for row in left if tuned_on(row[0])]
    closed = judged | {same(text) for text, _ in tuning}
    training = [row for row in left if not tuned_on(row[0])]
    training += [row for row in sorted(set(found.made)) if same(row[0]) not in closed]
    # Every part of a harmless text is harmless; of a hit only the whole is known to be one.
    training += [
        (part, 0)
        for text, label in training
        if not label
        for part in windows(text, 400, 200)
        if part != text and same(part) not in closed
    ]
    return Split(training, tuning)


def lowest_threshold(harmless: Sequence[float], most_wrong: float) -> float:
    """The lowest score, in steps of 0.01, that at most this share of the harmless texts' scores reaches; else 1."""
    steps = (number / 100 for number in range(100))
    return next((one for one in steps if sum(score >= one for score in harmless) <= most_wrong * len(harmless)), 1.0)


def injection(data: Path, table: Table) -> Collected:
    """What ``prompt_injection`` is made of."""
    harmless_prompts = [(str(row["text"]), 0) for row in lines(data / "benign-prompts-500.jsonl")]
    prose = [(str(row["text"]), 0) for row in lines(data / "openai-moderation-half.jsonl")]
    judging = {
        "S-Labs, validation": _csv(data / "s-labs-validation.csv"),
        "neuralchemy, validation": table(data / "neuralchemy-core-validation.parquet"),
        "harmless prompts on touchy subjects": [row for row in harmless_prompts if held_out(row[0])],
        "harmless sentences with trigger words": _tricky(judging=True, count=500),
        "prose": [row for row in prose if held_out(row[0])],
    }
    rows = _csv(data / "s-labs-train.csv") + table(data / "neuralchemy-core-train.parquet")
    rows += [row for row in harmless_prompts + prose if not held_out(row[0])]
    return Collected(rows, _tricky(judging=False, count=2_500), judging)


def toxicity(data: Path, table: Table) -> Collected:
    """What ``toxicity`` is made of."""
    tweets = [
        (str(row["text"]), int(row["label"] != "neither")) for row in lines(data / "davidson-hate-offensive-4000.jsonl")
    ]
    posts = [(str(row["text"]), int(_is_toxic(row["labels"]))) for row in lines(data / "openai-moderation-half.jsonl")]
    prompts = [(str(row["text"]), 0) for row in lines(data / "benign-prompts-500.jsonl")]
    asked = [row for row in _csv(data / "s-labs-train.csv") if row[1] == 0]
    sets = {"tweets (Davidson)": tweets, "posts (OpenAI moderation)": posts, "harmless prompts": prompts + asked}
    judging = {name: [row for row in rows if held_out(row[0])] for name, rows in sets.items()}
    judging["harmless sentences with trigger words"] = _tricky(judging=True, count=500)
    judging["made sentences, hostile and mild"] = _both(judging=True, count=120)
    rows = [row for part in sets.values() for row in part if not held_out(row[0])]
    return Collected(rows, _tricky(judging=False, count=1_500) + _both(judging=False, count=500), judging)


def lines(path: Path) -> list[dict[str, object]]:
    """The objects of a file that has one a line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def _is_toxic(labels: object) -> bool:
    return isinstance(labels, dict) and any(labels.get(label) for label in TOXIC)


def _csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def _tricky(*, judging: bool, count: int) -> list[Row]:
    return [(text, 0) for text in sentences("tricky", judging=judging, count=count)]


def _both(*, judging: bool, count: int) -> list[Row]:
    rude = [(text, 1) for text in sentences("hostile", judging=judging, count=count)]
    return rude + [(text, 0) for text in sentences("mild", judging=judging, count=count)]
