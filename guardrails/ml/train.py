"""Train the local classifiers: ``python -m guardrails.ml.train DATA_DIR`` (needs the extra ``ml``).

Exists so that the shipped weights are no riddle: this command makes them, from the collections named in docs/
classifiers.md, with a fixed seed. Protects the judgement: what is judged on is split off before anything is trained
and nothing is tuned on it; the split is by a hash of the text, so that a copy never stands on both sides.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from guardrails.ml.features import BUCKETS, features, plain, windows
from guardrails.ml.made import sentences
from guardrails.ml.model import WEIGHTS, read

Row = tuple[str, int]
C = 4.0
"""Inverse strength of the regularisation; 1 and 16 give the same figures within their noise."""
THRESHOLDS = {"prompt_injection": 0.75, "toxicity": 0.75}
POST_WEIGHT = 6
"""The 840 posts are ordinary language, the 4,000 tweets are not; without a weight nothing would be learnt from them."""
TOXIC = ("H", "H2", "HR", "V", "V2")
"""Labels of the moderation collection that count: hate, harassment, violence. Sexual and self-harm texts do not."""


def held_out(text: str) -> bool:
    """Every fifth text, by its own hash."""
    return hashlib.sha256(plain(text).encode()).digest()[0] % 5 == 0


def injection(data: Path) -> tuple[list[Row], dict[str, list[Row]]]:
    """Training rows, and judging rows by collection."""
    harmless_prompts = [(row["text"], 0) for row in _lines(data / "benign-prompts-500.jsonl")]
    prose = [(row["text"], 0) for row in _lines(data / "openai-moderation-half.jsonl")]
    judging = {
        "S-Labs, validation": _csv(data / "s-labs-validation.csv"),
        "neuralchemy, validation": _parquet(data / "neuralchemy-core-validation.parquet"),
        "harmless prompts on touchy subjects": [row for row in harmless_prompts if held_out(row[0])],
        "harmless sentences with trigger words": _tricky(judging=True, count=500),
        "prose": [row for row in prose if held_out(row[0])],
    }
    training = _csv(data / "s-labs-train.csv") + _parquet(data / "neuralchemy-core-train.parquet")
    training += [row for row in harmless_prompts + prose if not held_out(row[0])]
    training += _tricky(judging=False, count=2_500)
    return training, judging


def toxicity(data: Path) -> tuple[list[Row], dict[str, list[Row]]]:
    """Training rows, and judging rows by collection."""
    tweets = [
        (row["text"], int(row["label"] != "neither")) for row in _lines(data / "davidson-hate-offensive-4000.jsonl")
    ]
    posts = [
        (row["text"], int(any(row["labels"].get(label) for label in TOXIC)))
        for row in _lines(data / "openai-moderation-half.jsonl")
    ]
    prompts = [(row["text"], 0) for row in _lines(data / "benign-prompts-500.jsonl")]
    asked = [row for row in _csv(data / "s-labs-train.csv") if row[1] == 0]
    sets = {"tweets (Davidson)": tweets, "posts (OpenAI moderation)": posts, "harmless prompts": prompts + asked}
    judging = {name: [row for row in rows if held_out(row[0])] for name, rows in sets.items()}
    judging["harmless sentences with trigger words"] = _tricky(judging=True, count=500)
    judging["made sentences, hostile and mild"] = _both(judging=True, count=120)
    training = [row for rows in sets.values() for row in rows if not held_out(row[0])]
    training += _tricky(judging=False, count=1_500) + _both(judging=False, count=500)
    return training, judging


def _tricky(*, judging: bool, count: int) -> list[Row]:
    return [(text, 0) for text in sentences("tricky", judging=judging, count=count)]


def _both(*, judging: bool, count: int) -> list[Row]:
    rude = [(text, 1) for text in sentences("hostile", judging=judging, count=count)]
    return rude + [(text, 0) for text in sentences("mild", judging=judging, count=count)]


def matrix(texts: Iterable[str]) -> csr_matrix:
    """One row a text, each of length 1."""
    starts, columns, values = [0], list[int](), list[float]()
    for text in texts:
        found = sorted(features(text))
        columns += found
        values += [1 / math.sqrt(len(found))] * len(found)
        starts.append(len(columns))
    return csr_matrix((np.array(values), columns, starts), shape=(len(starts) - 1, BUCKETS))


def train(name: str, data: Path, rows: Sequence[Row], judging: dict[str, list[Row]]) -> None:
    """Fit, write weights and description, judge what was written."""
    seen = {plain(text) for part in judging.values() for text, _ in part}
    kept = sorted({row for row in rows if row[0].strip() and plain(row[0]) not in seen})
    # Every part of a harmless text is harmless; of a hit only the whole is known to be one.
    kept += [(part, 0) for text, label in kept if not label for part in windows(text, 400, 200) if part != text]
    posts = {row["text"] for row in _lines(data / "openai-moderation-half.jsonl")} if name == "toxicity" else set()
    weights = [POST_WEIGHT if text in posts else 1 for text, _ in kept]
    fitted = LogisticRegression(C=C, class_weight="balanced", solver="liblinear", max_iter=1_000, random_state=0)
    fitted.fit(matrix(text for text, _ in kept), [label for _, label in kept], sample_weight=weights)
    scale = float(np.abs(fitted.coef_[0]).max()) / 32_767
    raw = np.round(fitted.coef_[0] / scale).astype("<i2").tobytes()
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{name}.json"
    path.with_suffix(".i16").write_bytes(raw)
    metrics: dict[str, dict[str, float]] = {}
    about: dict[str, object] = {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "scale": scale,
        "bias": float(fitted.intercept_[0]),
        "threshold": THRESHOLDS[name],
        "trained_on": len(kept),
        "metrics": metrics,
    }
    path.write_text(json.dumps(about))
    model = read(path)
    for part, found in judging.items():
        metrics[part] = measure([(model.score(text), label) for text, label in found], model.threshold)
    path.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    for part, figures in metrics.items():
        sys.stdout.write(f"{name}: {part}: " + ", ".join(f"{k} {v:g}" for k, v in figures.items()) + "\n")


def measure(scored: Sequence[tuple[float, int]], threshold: float) -> dict[str, float]:
    """ROC-AUC, recall at 1 % false positives, recall and false-positive rate at the threshold; of what applies."""
    hits = [score for score, label in scored if label]
    rest = [score for score, label in scored if not label]
    out: dict[str, float] = {"texts": len(scored)}
    if hits and rest:
        labels, scores = [label for _, label in scored], [score for score, _ in scored]
        wrong, right, _ = roc_curve(labels, scores)
        out["roc_auc"] = round(float(roc_auc_score(labels, scores)), 4)
        out["recall_at_1pc_fpr"] = round(float(right[wrong <= 0.01].max()), 3)
    if hits:
        out["recall"] = round(sum(score >= threshold for score in hits) / len(hits), 3)
    if rest:
        out["false_positive_rate"] = round(sum(score >= threshold for score in rest) / len(rest), 3)
    return out


def _lines(path: Path) -> list[dict]:  # type: ignore[type-arg]  # rows of three foreign forms
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def _csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def _parquet(path: Path) -> list[Row]:
    return [(row["text"], int(row["label"])) for row in parquet.read_table(path).to_pylist()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is named, else everything."""
    tasks = {"prompt_injection": injection, "toxicity": toxicity}
    parser = argparse.ArgumentParser(prog="python -m guardrails.ml.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("names", nargs="*", choices=[[], *tasks], metavar="NAME")
    given = parser.parse_args(arguments)
    for name in given.names or tasks:
        train(name, given.data, *tasks[name](given.data))


if __name__ == "__main__":
    main()
