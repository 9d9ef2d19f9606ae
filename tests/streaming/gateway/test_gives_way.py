"""Large requests: while one is looked at, all others' answers go on, and nothing in it costs more than its size."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import MAX_NAME_CHARS, BadRequest, guarded
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_prompts import passed, user

PII: Json = {"name": "pii", "kind": "pii", "action": "mask", "applies_to": ["prompt"]}
JUDGE: Json = {"name": "judge", "kind": "ai_judge", "mode": "MONITOR", "config": {"rubric": "harm"}}
MASKING = widened(compile_policy({"policy": "m", "guardrails": [PII]}))
ASKING = widened(compile_policy({"policy": "m", "guardrails": [PII, JUDGE]}))


@asynccontextmanager
async def others(at_least: int) -> AsyncIterator[None]:
    """Another task has its turn so often meanwhile."""
    turns = 0

    async def go() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(go())
    try:
        yield
    finally:
        task.cancel()
    assert turns >= at_least


async def masked(body: Json, *, asking: bool = False) -> Json:
    policy = ASKING if asking else MASKING
    masks = Masks(policy, body, caller="c")
    mask, swept, hide = masks.mask, masks.swept, masks.hidden
    return (await guarded(policy, body, media_allowed=False, mask=mask, swept=swept, hide=hide)).body


async def test_it_works() -> None:
    """Fields whose names are all hidden: each stays a field of its own, at the cost of looking at it."""
    fields = {f"a{number}@b.example": number for number in range(2_500)}
    began = time.process_time()
    async with others(100):
        found = await passed([user("Hi")], metadata=fields)
    assert time.process_time() - began < 12
    names = found.body["metadata"]
    assert list(names.values()) == list(fields.values())  # type: ignore[union-attr]
    assert not any("@" in name for name in names)  # type: ignore[union-attr]


async def test_a_text_full_of_values_and_escapes_is_laid_open_in_turns() -> None:
    text = "".join(f"x\\njoe{number}@b.example;" for number in range(1_000))
    async with others(40):
        found = await passed([user(text)])
    assert "@" not in json.dumps(found.body)


async def test_values_are_learned_and_swept_in_turns() -> None:
    """Of many values, where somebody is asked over the network, none is looked for as often as there are others."""
    body: Json = {"model": "m", "messages": [user(json.dumps([f"a{number}@b.example" for number in range(900)]))]}
    began = time.process_time()
    async with others(800):
        sent = await masked(body, asking=True)
    assert time.process_time() - began < 12
    assert "@" not in json.dumps(sent)


async def test_a_long_text_is_swept_beside_everybody_else() -> None:
    body: Json = {"model": "m", "messages": [user("joe@b.example"), user("word " * 40_000 + "JOE%40b.example")]}
    async with others(200):
        sent = await masked(body)
    assert "example" not in json.dumps(sent)


async def test_a_name_longer_than_names_are_is_refused() -> None:
    with pytest.raises(BadRequest, match="more than 2,000 characters") as refused:
        await passed([user("Hi")], metadata={"a" * (MAX_NAME_CHARS + 1): 1})
    assert refused.value.field == "metadata"
    assert (await passed([user("Hi")], metadata={"a" * MAX_NAME_CHARS: 1})).body["metadata"]


@pytest.mark.parametrize("many", ["names", "numbers"])
async def test_names_and_long_numbers_count_like_strings(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.prompt.MAX_STRINGS", 40)
    value: object = {f"n{number}": 1 for number in range(50)} if many == "names" else list(range(1_000_000, 1_000_050))
    with pytest.raises(BadRequest, match="more than 40 strings, names of fields and long numbers"):
        await passed([user("Hi")], metadata=value)
