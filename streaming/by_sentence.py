"""How the local classifiers fare as they run: ``python -m streaming.by_sentence DATA_DIR`` (needs the extra ``ml``).

The last step after ``guardrails.ml.train``: chooses the threshold by sentences, and writes the figures of both ways.

Exists because they are trained on whole texts and asked about sentences: a hit that only the whole tells is
missed, and a text of many sentences has many chances to be wrong. Protects the published figures: the texts are those
that nothing was trained or tuned on, cut by the very gate that cuts an answer, and a text's score is that of its worst
sentence, because one hit is what its reader meets.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from guardrails.findings import AppliesTo
from guardrails.ml.model import WEIGHTS, Model, load
from guardrails.ml.split import Row, Table, injection, lowest_threshold, split, toxicity
from guardrails.policy import Policy, compile_policy
from streaming.core.gate import CHECK, Gate

TASKS = {"prompt_injection": injection, "toxicity": toxicity}
MOST_WRONG = 0.01
"""As in the training: of the harmless texts of the tuning part so many may have a sentence that is called a hit."""


def sentences(policy: Policy, text: str) -> list[str]:
    """What the guardrail of this policy is asked about."""
    gate = Gate(policy, AppliesTo.PROMPT, "prompt", monitor=True)
    return [effect[1].text for effect in [*gate.feed(text), *gate.finish()] if effect[0] == CHECK]


def worst(model: Model, policy: Policy, text: str) -> float:
    """The score of the text's worst sentence."""
    return max((model.score(sentence) for sentence in sentences(policy, text)), default=0.0)


def roc_auc(hits: Sequence[float], rest: Sequence[float]) -> float:
    """How often a hit has the higher score of the two, equal ones by half."""
    ordered = sorted(rest)
    won = sum(bisect_left(ordered, score) + bisect_right(ordered, score) for score in hits)
    return won / 2 / (len(hits) * len(ordered))


def figures(scored: Sequence[tuple[float, int]], threshold: float) -> dict[str, float]:
    """Area under the curve, recall and false-positive rate at the threshold; of what applies."""
    hits = [score for score, label in scored if label]
    rest = [score for score, label in scored if not label]
    out: dict[str, float] = {}
    if hits and rest:
        out["roc_auc"] = round(roc_auc(hits, rest), 4)
    if hits:
        out["recall"] = round(sum(score >= threshold for score in hits) / len(hits), 3)
    if rest:
        out["false_positive_rate"] = round(sum(score >= threshold for score in rest) / len(rest), 3)
    return out


def judge(name: str, data: Path, table: Table) -> None:
    """Choose one classifier's threshold by sentences of the tuning part, and say what it comes to."""
    model, found = load(name), TASKS[name](data, table)
    policy = compile_policy({"policy": "measured", "guardrails": [{"name": name, "kind": name}]})
    path = WEIGHTS / f"{name}.json"
    about = json.loads(path.read_text("utf-8"))
    tuning = [(worst(model, policy, text), label) for text, label in split(found).tuning]
    about["threshold"] = chosen = lowest_threshold([score for score, label in tuning if not label], MOST_WRONG)
    sys.stdout.write(f"{name}: threshold {chosen}; by sentence on the tuning part: {figures(tuning, chosen)}\n")
    for part, rows in found.judging.items():
        whole = figures([(model.score(text), label) for text, label in rows], chosen)
        cut = figures([(worst(model, policy, text), label) for text, label in rows], chosen)
        said = about["metrics"][part]
        said |= {key: value for key, value in whole.items() if key in said}
        said |= {f"sentence_{key}": value for key, value in cut.items()}
        sys.stdout.write(f"{name}: {part}: " + ", ".join(f"{k} {v:g}" for k, v in said.items()) + "\n")
    path.write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet as parquet  # the extra's

    return [(row["text"], int(row["label"])) for row in parquet.read_table(path).to_pylist()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is named, else both."""
    parser = argparse.ArgumentParser(prog="python -m streaming.by_sentence", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("names", nargs="*", choices=[[], *TASKS], metavar="NAME")
    given = parser.parse_args(arguments)
    for name in given.names or TASKS:
        judge(name, given.data, _parquet)


if __name__ == "__main__":
    main()
