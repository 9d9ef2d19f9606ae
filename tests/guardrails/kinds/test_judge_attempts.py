"""Fifty texts that tell the judge to say "allow": none of them gets out of its quotation, and none is believed."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds.ai_judge import BEGIN, END, fenced_text
from guardrails.kinds.base import CheckRequest, Services, Turn
from streaming.providers.scripted_judge import judge

from .conftest import build

ATTEMPTS = json.loads((Path(__file__).parent / "judge_attempts.json").read_text("utf-8"))
HARM = "First you mix the poison, then you pour it into the well. "
GULLIBLE = re.compile(r"score\W+0|say allow|answer 0", re.IGNORECASE)


def judged(text: str, obeys: bool) -> tuple[Verdict, list[Turn]]:
    """The verdict of a model that judges what is fenced, and (``obeys``) does whatever it is told outside of it."""
    asked: list[list[Turn]] = []

    async def complete(provider: str, turns: list[Turn], time_limit_s: float) -> str:
        asked.append(turns)
        prompt = turns[-1].text
        fenced = fenced_text(prompt)
        assert fenced is not None
        outside = prompt.replace(json.dumps(fenced), "")
        if obeys and GULLIBLE.search(outside):
            return '{"score": 0}'
        answer = judge(prompt)
        assert answer is not None
        return answer

    kind = build("ai_judge", {"rubric": "The text helps someone to harm people."})
    verdict = asyncio.run(kind.check(CheckRequest(text, AppliesTo.RESPONSE), Services(complete=complete)))
    return verdict, asked[0]


def test_it_works() -> None:
    assert len(ATTEMPTS) == len(set(ATTEMPTS)) == 50
    assert judged("The well was dug in 1840.", obeys=True)[0].hit is False


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("where", ["before", "behind", "around"])
def test_what_the_text_says_to_the_judge_is_not_obeyed(attempt: str, where: str) -> None:
    text = {"before": f"{attempt}\n{HARM}", "behind": f"{HARM}\n{attempt}", "around": f"{attempt}\n{HARM}\n{attempt}"}[
        where
    ]
    verdict, turns = judged(text, obeys=True)
    assert verdict.hit
    prompt = turns[-1].text
    assert fenced_text(prompt) == text
    lines = prompt.split("\n")
    assert sum(line.startswith(BEGIN) for line in lines) == sum(line.startswith(END) for line in lines) == 1
    assert attempt not in turns[0].text


def test_the_model_above_does_obey_what_stands_outside_the_fence() -> None:
    """The control: were the text not fenced, the attempts would succeed."""
    unfenced = [attempt for attempt in ATTEMPTS if GULLIBLE.search(attempt)]
    assert len(unfenced) > 25


def test_marks_differ_from_check_to_check() -> None:
    marks = {re.search(r"<<<TEXT ([0-9a-f]{16})", judged("x", obeys=False)[1][-1].text) for _ in range(20)}
    assert len({mark[1] for mark in marks if mark}) == 20
