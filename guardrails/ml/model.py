"""A linear classifier over hashed n-grams: 131,072 weights of 16 bits, one sum, one sigmoid.

Exists so that a local guardrail needs no library, no network and no start-up: the weights are a plain array beside a
JSON file that says what they are. Protects the rule that nothing is unpickled, and that weights which are not the ones
described (a broken download, a swapped file) are refused instead of used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import sys
import time
from array import array
from dataclasses import dataclass
from pathlib import Path

from guardrails.ml.features import BUCKETS, features, plain, windows

WEIGHTS = Path(__file__).parent / "weights"
SHORT_CHARS = 24
_WORDS = re.compile(r"\w+")


class ModelRefused(ValueError):
    """Weights that are not what their description says."""

    permanent = True


@dataclass(frozen=True, slots=True)
class Model:
    """``score`` is the probability that the training labels would call the text a hit.

    ``min_words``: a short text of fewer words has the score 0. Trained on sentences, the model has nothing to go by in
    "continue" or "{}", and says anything.
    """

    name: str
    threshold: float
    metrics: dict[str, dict[str, float]]
    _weights: array[int]
    _scale: float
    _bias: float
    min_words: int = 0

    def score(self, text: str) -> float:
        """0..1; of a long text, that of its worst window. About 1 ms per 500 characters.

        Between two windows whoever waits for the interpreter has its turn: beside a stream this runs in a thread, and
        a thread that computes on and on lets the event loop in only every 5 ms.
        """
        if self._says_nothing(text):
            return 0.0
        worst = 0.0
        for number, window in enumerate(windows(text)):
            if number:
                time.sleep(0)
            worst = max(worst, self._one(window))
        return worst

    def _says_nothing(self, text: str) -> bool:
        # Scripts that write no spaces are not counted by words, and neither is a long text without any.
        if not self.min_words or len(text) > SHORT_CHARS:
            return False
        bare = plain(text)
        return bare.isascii() and len(_WORDS.findall(bare)) < self.min_words

    def _one(self, window: str) -> float:
        found = features(window)
        weights = self._weights
        total = sum([weights[bucket] for bucket in found]) * self._scale / math.sqrt(len(found))
        return 1 / (1 + math.exp(-max(-40.0, min(40.0, total + self._bias))))


@functools.cache
def load(name: str) -> Model:
    """The model of that name. Raises ``ModelRefused``, ``OSError``."""
    return read(WEIGHTS / f"{name}.json")


def read(path: Path) -> Model:
    """A model by its description file; its weights lie beside it. Raises ``ModelRefused``, ``OSError``."""
    about = json.loads(path.read_text("utf-8"))
    raw = path.with_suffix(".i16").read_bytes()
    if hashlib.sha256(raw).hexdigest() != about["sha256"] or len(raw) != 2 * BUCKETS:
        raise ModelRefused(f"the weights of {path.stem} are not those that its description names")
    weights = array("h")
    weights.frombytes(raw)
    if sys.byteorder == "big":
        weights.byteswap()
    return Model(
        path.stem, about["threshold"], about["metrics"], weights, about["scale"], about["bias"], about["min_words"]
    )
