"""Train the local classifiers: ``python -m guardrails.ml.train DATA_DIR`` (needs the extra ``ml``).

Exists so that the shipped weights are no riddle: this command makes them, from the collections named in docs/
classifiers.md, with a fixed seed. Protects the judgement: what is judged on is split off before anything is trained
(``split``), and nothing is tuned on it; the threshold is chosen on a third part.
"""

from __future__ import annotations

import argparse
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

from guardrails.ml.features import BUCKETS, features
from guardrails.ml.model import WEIGHTS, read
from guardrails.ml.split import Collected, Row, injection, lines, lowest_threshold, split, toxicity

C = 16.0
"""Inverse strength of the regularisation, chosen on the tuning part: recall at 1 % false positives there was 0.854,
0.847 and 0.874 for 1, 4 and 16 (toxicity: 0.818, 0.850, 0.871)."""
MOST_WRONG = 0.01
"""Of the harmless texts of the tuning part so many may be called hits: it says where the threshold is."""
MIN_WORDS = {"prompt_injection": 3, "toxicity": 0}
"""One word insults; one or two give no order. "DAN mode" is missed, and "continue" is what people say all the time."""
POST_WEIGHT = 6
"""The 840 posts are ordinary language, the 4,000 tweets are not; without a weight nothing would be learnt from them.
On the tuning part 3 and 12 give the same figures within their noise."""


def matrix(texts: Iterable[str]) -> csr_matrix:
    """One row a text, each of length 1."""
    starts, columns, values = [0], list[int](), list[float]()
    for text in texts:
        found = sorted(features(text))
        columns += found
        values += [1 / math.sqrt(len(found))] * len(found)
        starts.append(len(columns))
    return csr_matrix((np.array(values), columns, starts), shape=(len(starts) - 1, BUCKETS))


def train(name: str, data: Path, found: Collected) -> None:
    """Fit, write weights and description, choose the threshold, judge what was written."""
    parts = split(found)
    posts = {row["text"] for row in lines(data / "openai-moderation-half.jsonl")} if name == "toxicity" else set()
    weights = [POST_WEIGHT if text in posts else 1 for text, _ in parts.training]
    fitted = LogisticRegression(C=C, class_weight="balanced", solver="liblinear", max_iter=1_000, random_state=0)
    fitted.fit(
        matrix(text for text, _ in parts.training), [label for _, label in parts.training], sample_weight=weights
    )
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
        "threshold": 1.0,
        "min_words": MIN_WORDS[name],
        "trained_on": len(parts.training),
        "tuned_on": len(parts.tuning),
        "metrics": metrics,
    }
    path.write_text(json.dumps(about))
    model = read(path)
    tuning = [(model.score(text), label) for text, label in parts.tuning]
    about["threshold"] = chosen = lowest_threshold([score for score, label in tuning if not label], MOST_WRONG)
    for part, rows in found.judging.items():
        metrics[part] = measure([(model.score(text), label) for text, label in rows], chosen)
    path.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    for part, figures in {"tuning": measure(tuning, chosen), **metrics}.items():
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
        train(name, given.data, tasks[name](given.data, _parquet))


if __name__ == "__main__":
    main()
