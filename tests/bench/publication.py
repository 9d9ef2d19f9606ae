"""What publication costs its author and what a version costs each process: seconds, memory, bytes for clients.

The limits that publication itself enforces (``guardrails.publication``) are a last resort, far above what is usual; the
targets here are what a real rule pack may cost.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from guardrails import services
from guardrails.publication import examine_document
from tests.bench.registry import Row, SkipBench, at_most, bench, context
from tests.bench.rules import many, pack_document

COMPILE_S = 2.0
MEMORY_MB = 100.0


@bench("publication")
def publication() -> Iterator[Row]:
    """The starter policy, two hundred rules that clients may run, and the rule pack where there is one."""
    starter = json.loads((Path(services.__file__).parent / "starters" / "basic.json").read_text("utf-8"))
    yield from _rows("basic", "starter policy “basic”", starter)
    patterns = many(200)
    rules = [{"id": id_, "pattern": pattern} for id_, pattern in patterns.items()]
    own = {"name": "rules", "kind": "regex", "action": "redact", "client": True, "config": {"rules": rules}}
    started = time.perf_counter()
    for pattern in patterns.values():
        re.compile(pattern)
    anchor = f"{(time.perf_counter() - started) * 1_000:.0f} ms to compile them with re"
    yield from _rows("200", "200 rules for clients", {"policy": "bench", "guardrails": [own]}, anchor)
    try:
        document = pack_document()
    except SkipBench:
        return  # what measures the pack itself says that it is missing
    yield from _rows("pack", "rule pack + PII kinds", document)


def _rows(name: str, what: str, document: Mapping[str, object], anchor: str = "") -> Iterator[Row]:
    re.purge()
    started = time.perf_counter()
    examined = examine_document(document)
    whole = time.perf_counter() - started
    report = examined.as_dict()
    client = report["client"]
    assert isinstance(client, dict)
    yield at_most(f"publication_{name}", f"{what}: compiled", examined.compile_s, COMPILE_S, "s", anchor)
    yield at_most(f"publication_{name}_memory", "… kept with its examples run", examined.memory_mb, MEMORY_MB, "MB")
    yield context(f"publication_{name}_whole", "… with examples, bounds, client rules and parity vectors", whole, "s")
    if client["rules"]:
        told = f"{client['rules']:,} rules, {client['vectors']:,} vectors"
        yield context(f"publication_{name}_client", "… its rules for clients", client["bytes"] / 1_000, "kB", told)
