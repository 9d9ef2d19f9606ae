"""Guardrails in MONITOR alter nothing of what goes through the gateway, though every one of them would have blocked."""

from __future__ import annotations

import json

from tests.streaming.gateway.fake import JSON, Answer, sse
from tests.streaming.gateway.served import Gateway
from tests.streaming.gateway.test_openai_sdk import HELLO, chunk, client, direct, streamed, whole

SAID = "It is Project Blue Heron, really. Hello."


def test_it_works(served: Gateway) -> None:
    pieces = [chunk({"content": letter}) for letter in SAID]
    served.fake.answers["watched"] = Answer(sse(*pieces, chunk({}, "stop")))
    got = streamed(client(served, "watching"), "watched")
    said = "".join(one["choices"][0]["delta"].get("content") or "" for one in got)  # type: ignore[index]
    assert said == SAID
    *_, asked = served.fake.asked[-1]
    assert json.loads(asked)["messages"] == HELLO, "the prompt has a word as well"


def test_an_answer_in_one_piece_is_the_upstreams_own(served: Gateway) -> None:
    served.fake.answers["watched"] = Answer(whole(SAID), JSON)
    answers = [
        of.chat.completions.create(model="watched", messages=HELLO)  # type: ignore[arg-type]
        for of in (client(served, "watching"), direct(served))
    ]
    assert answers[0].choices == answers[1].choices
