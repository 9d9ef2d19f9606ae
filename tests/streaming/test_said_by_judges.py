"""Whoever judges a text has read it: nothing of its answer but what was asked for reaches readers, rows or logs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from channels.db import database_sync_to_async

from guardrails.kinds.ai_judge import fence_mark
from guardrails.policy import Policy, compile_policy
from streaming import breakers, checks, deferred
from streaming.log import MemoryLog
from streaming.models import DeferredCheck, Finding
from streaming.providers.base import ProviderRequest

from .pumping import policy_of, trial
from .test_judge_deferred import waiting
from .test_nothing_in_clear import tables

pytestmark = pytest.mark.django_db(transaction=True)
SSN = "123-45-6789"
TEXT = f"The number of the project Blue Heron is {SSN}, and that is all."
KEYS = {
    "a megabyte": "k" * 1_000_000,
    "a number that is withheld": SSN,
    "NUL": "a\0b",
    "half a pair": "x\ud800y",
}
CATEGORIES = [SSN, "Blue Heron", "blue_heron", "HERON", "ssn " + SSN, "BlueHeron", "b\0c", "x" * 41,
              "onetwothreefourfivesixseven", "norehB eulB", "harm ful", "disclosurE of heron"]  # fmt: skip


class Says:
    """A judge that gives its verdict and more."""

    def __init__(self, **more: object) -> None:
        self.more = more
        self.asked = 0

    async def complete(self, request: ProviderRequest) -> str:
        self.asked += 1
        return json.dumps({"id": fence_mark(request.messages[-1].text), "score": 0.9, **self.more})


@pytest.fixture(autouse=True)
def apart(settings: object) -> Iterator[None]:
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    breakers.forget()
    yield
    breakers.forget()


def says(monkeypatch: pytest.MonkeyPatch, **more: object) -> Says:
    judge = Says(**more)
    monkeypatch.setattr(checks, "get_provider", lambda name: judge)
    policy = policy_of()
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: policy)
    return judge


def deciding() -> Policy:
    judge = {"name": "harm", "kind": "ai_judge", "mode": "BLOCK", "on_error": "warn", "config": {"rubric": "harm"}}
    return compile_policy({"policy": "trial", "guardrails": [judge]}, version=3, digest="sha256:trial")


async def everywhere(log: MemoryLog, session_id: str) -> str:
    """All that is told and all that is stored, but for the text itself, which is encrypted where it stands."""
    told = json.dumps(await log.read(session_id, 0, 10_000))
    return told + json.dumps(await database_sync_to_async(lambda: list(tables()))())


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, category="disclosure", reason="r")
    session_id, pk = await waiting(TEXT)
    assert await deferred.run_deferred(pk, MemoryLog())
    assert (await Finding.objects.aget(session_id=session_id)).category == "disclosure"


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_keys_that_a_judge_makes_up_are_not_named_after_the_answer(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, **{key: 1})
    session_id, pk = await waiting(TEXT)
    log = MemoryLog()
    assert await deferred.run_deferred(pk, log)
    row = await DeferredCheck.objects.aget(pk=pk)
    assert (row.state, len(row.error) < 300) == ("error", True)
    why = "the answer: Input should be a valid string" if key == KEYS["half a pair"] else "(another key): Extra inputs"
    assert f"not of the form asked for: {why}" in row.error
    assert key[:1000] not in row.error
    assert key not in await everywhere(log, session_id)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_keys_that_a_judge_makes_up_are_not_named_in_a_stream(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, **{key: 1})
    one = await trial(["All is well."], policy=deciding(), prompt="")
    await one.pump.run()
    lines = [event for event in await one.of("guardrail_status") if event.get("error")]
    assert lines
    assert all("not of the form" in str(line["error"]) and len(str(line["error"])) < 300 for line in lines)
    assert key not in await everywhere(one.log, one.session_id)


@pytest.mark.parametrize("category", CATEGORIES, ids=ascii)
async def test_a_category_is_no_way_out_for_withheld_text(category: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, category=category)
    one = await trial([TEXT], policy=deciding(), prompt="")
    await one.pump.run()
    (blocked,) = await one.of("blocked")
    assert blocked["reason"] == "The answer was stopped by the guardrail “harm” (ai judge)."
    said = await everywhere(one.log, one.session_id)
    assert json.dumps(category)[1:-1] not in said
    assert SSN not in said

    session_id, pk = await waiting(TEXT)
    log = MemoryLog()
    assert await deferred.run_deferred(pk, log)
    assert (await Finding.objects.aget(session_id=session_id)).category == ""
    # the conversation's text is sealed, so that whatever is found here was said by the judge
    assert json.dumps(category)[1:-1] not in await everywhere(log, session_id)


async def test_an_error_of_any_length_in_any_characters_is_stored_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only judges speak: an upstream's own words are no shorter and no cleaner."""

    class Fails:
        async def complete(self, request: ProviderRequest) -> str:
            raise checks.ProviderError("no\0\ud800" + "x" * 1_000_000)

    says(monkeypatch)
    monkeypatch.setattr(checks, "get_provider", lambda name: Fails())
    _, pk = await waiting(TEXT)
    assert await deferred.run_deferred(pk, MemoryLog())
    row = await DeferredCheck.objects.aget(pk=pk)
    assert row.state == "error"
    assert row.error.startswith("no\ufffd")
    assert row.error.endswith("x")
    assert len(row.error) == checks.ERROR_CHARS
