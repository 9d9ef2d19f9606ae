"""The parity vectors in JavaScript: the very worker that browsers load, in V8.

Exists because a client believes its rules only after it has tried every vector, and an author should hear of a rule
that browsers would refuse before anybody signs it. Nothing but the rules and the folding table goes in; the engine runs
in a process of its own, without files or network, within a time limit.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from guardrails.patterns import folding

TIME_LIMIT_S = 60.0
"""For all vectors of a policy together."""

_ROOT = Path(__file__).resolve().parents[2]
_WORKER = _ROOT / "static" / "client" / "worker.js"


@functools.cache
def _table() -> str:
    return Path(folding.__file__).with_name(f"folding_v{folding.table().version}.json").read_text("ascii")


def disparity_in_javascript(payload: Mapping[str, object]) -> str:
    """What the worker says against these client rules: empty if every vector gives the spans that are stated.

    Otherwise ``guardrail/rule`` of the first that does not, or why the rules could not be read or tried at all.
    """
    return _said(json.dumps({"guardrails": payload["guardrails"], "classes": payload["classes"]}, sort_keys=True))


@functools.lru_cache(maxsize=32)
def _said(rules: str) -> str:
    question = f'{{"n": 1, "does": "load", "rules": {rules}, "table": {_table()}}}'
    command = [sys.executable, "-m", "guardrails.client.v8", str(_WORKER)]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command, cwd=_ROOT, input=question, capture_output=True, text=True, encoding="utf-8", timeout=TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"the rules were not tried within {TIME_LIMIT_S:g} s"
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}"
        return f"the rules cannot be tried ({why})"
    said = json.loads(done.stdout)
    return str(said.get("error") or said.get("out") or "")
