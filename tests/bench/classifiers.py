"""What the local classifiers cost a call: a text of a usual length, and of the longest that a prompt often has."""

from __future__ import annotations

import time
from collections.abc import Iterator

from guardrails.ml.model import load
from tests.bench.clock import percentile, quiet
from tests.bench.registry import Row, at_most, bench, context
from tests.bench.texts import mixed

MODELS = ("prompt_injection", "toxicity")
SIZES = (600, 10_000)
CALLS = 60
LIMIT_MS = 50.0


@bench("classifiers")
def classifiers() -> Iterator[Row]:
    """Each classifier on texts that it has not seen before, a call at a time: processor time, beside the clock's.

    The target is for the processor: what else runs on the machine makes a call longer and the classifier no slower.
    """
    text = mixed(sum(SIZES) * CALLS)
    for name in MODELS:
        model = load(name)
        model.score(text[:1_000])  # what is set up once is set up
        for size in SIZES:
            spent: list[float] = []
            taken: list[float] = []
            with quiet():
                for number in range(CALLS):
                    part = text[number * size : (number + 1) * size]
                    started, began = time.perf_counter(), time.thread_time()
                    model.score(part)
                    spent.append((time.thread_time() - began) * 1_000)
                    taken.append((time.perf_counter() - started) * 1_000)
            middle, late = percentile(spent, 0.5), percentile(spent, 0.95)
            clock = f"by the clock {percentile(taken, 0.5):.1f} ms"
            what = f"`{name}`, {size:,} characters, processor"
            yield at_most(f"classifier_{name}_{size}", f"{what}, p50", middle, LIMIT_MS, "ms", clock)
            yield context(f"classifier_{name}_{size}_p95", "… p95", late, "ms")
