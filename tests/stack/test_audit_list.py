"""The audit list over a big database answers at once, whatever it is narrowed to, in the same number of queries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest

from tests.stack.runs import installed
from tests.stack.servers import ROOT

LIMIT_MS = 200.0
MOST_MEMORY = 48_000_000
"""Bytes that an export of any length may add: a page of rows, the piece made of it, and what Python keeps for reuse."""


class Answer(TypedDict):
    ms: list[float]
    cpu_ms: float
    lines: int
    queries: int


def asked(folder: Path, sessions: int) -> dict[str, Answer]:
    with installed(folder, "postgresql") as env:
        command = [sys.executable, "-m", "tests.stack.big_list", str(sessions)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3_600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert list(said["also"].values()) == [200, 200, 200, 200, 302, 409, 200, 302], said["also"]
    assert said["faults"] == {"number": sessions + sessions // 10, "codes": ["session_added"]}, "no entry tells of them"
    file = said["file"]
    sys.stdout.write(f"export: {file}\n")
    assert file["lines"] == sessions
    assert file["pieces"] >= sessions / 200, "it is sent page by page"
    assert file["grew"] < MOST_MEMORY
    answers: dict[str, Answer] = said["answers"]
    for name, answer in answers.items():
        best, middle = answer["ms"][0], answer["ms"][len(answer["ms"]) // 2]
        told = f"{best:7.1f} {middle:7.1f} ms (best, middle) {answer['cpu_ms']:6.1f} ms of a processor"
        sys.stdout.write(f"{name:34} {told} {answer['lines']:3} lines {answer['queries']:3} queries\n")
    return answers


def right(answers: dict[str, Answer]) -> None:
    lines = {name: answer["lines"] for name, answer in answers.items()}
    full = ("all", "further page", "common outcome", "policy", "common guardrail", "guardrail that was retired",
            "client", "a day", "not judged", "not judged, of a guardrail")  # fmt: skip
    assert {name: lines[name] for name in full} == dict.fromkeys(full, 50)
    assert (lines["rare outcome"], lines["rare guardrail"], lines["session id"]) == (20, 30, 1)
    assert lines["correlation id that is not there"] == 0
    assert max(answer["queries"] for answer in answers.values()) <= 11


def test_it_works(tmp_path: Path) -> None:
    right(asked(tmp_path, 5_000))


@pytest.mark.long
def test_two_hundred_thousand_sessions_with_a_million_findings_answer_within_the_limit(tmp_path: Path) -> None:
    """By the clock; where others keep the machine busy, by what the answer takes of a processor."""
    answers = asked(tmp_path, 200_000)
    right(answers)
    costs = {name: min(answer["ms"][len(answer["ms"]) // 2], answer["cpu_ms"]) for name, answer in answers.items()}
    assert {name: cost for name, cost in costs.items() if cost >= LIMIT_MS} == {}
