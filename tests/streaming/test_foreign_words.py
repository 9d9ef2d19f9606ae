"""An endpoint's words about its failure: guardrails look at them before anybody reads or stores them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import stamina

from guardrails.findings import AppliesTo
from guardrails.kinds.base import CheckRequest
from streaming import breakers, checks, registry
from streaming.foreign_words import WITHHELD, fit
from streaming.log_redis import close_shared_log
from streaming.providers import anthropic_events
from streaming.providers.base import ProviderRefused
from streaming.providers.failures import MAX_ERROR_CHARS
from streaming.providers.openai import OpenAIProvider
from tests.streaming.chats import chat
from tests.streaming.faults.server import status
from tests.streaming.local_server import HEAD, serve
from tests.streaming.pumping import SSN, policy_of

pytestmark = pytest.mark.django_db(transaction=True)
POLICY = policy_of(without="harm")
QUOTES = f"the account of {SSN} is closed"
NAMES = "project blue heron has no quota"


@pytest.fixture(autouse=True)
async def alone() -> AsyncIterator[None]:
    breakers.forget()
    stamina.set_testing(True, attempts=3, cap=True)
    yield
    stamina.set_testing(False)
    await registry.shutdown()
    await close_shared_log()


def in_stream(words: str) -> bytes:
    text = {"choices": [{"index": 0, "delta": {"content": "Well. "}}]}
    error = {"error": {"type": "invalid_request_error", "message": words}}
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in (text, error))


def instead(code: str, words: str) -> bytes:
    return status(code, json.dumps({"error": {"message": words}}).encode())


@pytest.mark.parametrize(
    ("head", "body", "tries"),
    [(b"", instead("400 Bad Request", QUOTES), 0), (b"", instead("503 Busy", QUOTES), 5), (HEAD, in_stream(QUOTES), 0)],
    ids=["refused", "tried again", "in the stream"],
)
async def test_it_works(head: bytes, body: bytes, tries: int) -> None:
    async with serve([body], head=head) as endpoint:
        answered = await chat(OpenAIProvider(endpoint.base_url), POLICY)
    told = [str(event["message"]) for event in answered.of("error")]
    assert len(told) >= 1 + tries > 0
    assert all("account of [SSN] is closed" in words for words in told)
    assert "account of [SSN] is closed" in answered.row.error
    assert SSN not in str(answered.events) + answered.row.error + str(answered.message.metadata)


async def test_words_that_would_stop_an_answer_are_not_told_and_not_stored() -> None:
    async with serve([instead("400 Bad Request", NAMES)], head=b"") as endpoint:
        answered = await chat(OpenAIProvider(endpoint.base_url), POLICY)
    assert [event["message"] for event in answered.of("error")][-1] == WITHHELD == answered.row.error
    assert "blue heron" not in str(answered.events)
    assert (answered.row.error_code, answered.row.outcome) == ("provider_refused", "error")


def test_a_session_in_monitor_hides_nothing_of_them() -> None:
    assert fit(POLICY, f"{NAMES}, {SSN}", monitor=True) == f"{NAMES}, {SSN}"


async def test_what_is_hidden_is_hidden_before_the_words_are_shortened() -> None:
    """A value that is written in groups, over the place where the message ends for its readers."""
    spaced = SSN.replace("-", " ")
    first = spaced.split()[0]
    for filled in range(MAX_ERROR_CHARS - 60, MAX_ERROR_CHARS, 4):
        words = f"{'no ' * (filled // 3)}account of {spaced} is closed, {'and why ' * 20}"
        async with serve([instead("400 Bad Request", words)], head=b"") as endpoint:
            answered = await chat(OpenAIProvider(endpoint.base_url), POLICY)
        said = [str(event["message"]) for event in answered.of("error")][-1]
        assert said == answered.row.error
        assert len(said) <= MAX_ERROR_CHARS
        assert first not in said.split()


async def test_what_a_judges_endpoint_says_of_a_text_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It quotes what it was asked about, which may be held just then."""

    async def refused(provider: str, turns: object, time_limit_s: float) -> str:
        raise ProviderRefused(f"the provider answered 400: your text “{SSN}” is against our rules")

    monkeypatch.setattr(checks, "complete", refused)
    guardrail = next(one for one in policy_of().guardrails if one.kind == "ai_judge")
    made = await checks.run_check(guardrail, CheckRequest(SSN, AppliesTo.RESPONSE), tries=1)
    assert made.verdict.error == "the provider answered 400"


@pytest.mark.parametrize(
    "kind",
    [f"your text “{SSN}”", f"quoted_{SSN}", SSN, "Overloaded", "overloaded_error\n", "blue heron", "x" * 65, "é"],
    ids=range(8),
)
async def test_what_an_endpoint_calls_the_kind_of_its_failure_is_no_place_for_words(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(provider: str, turns: object, time_limit_s: float) -> str:
        raise anthropic_events.in_stream({"type": kind, "message": "no"})

    assert str(anthropic_events.in_stream({"type": "x" * 64})) == f"the provider reported an error ({'x' * 64})"
    assert str(anthropic_events.in_stream({"type": kind, "message": "no"})) == "the provider reported an error: no"
    monkeypatch.setattr(checks, "complete", failed)
    guardrail = next(one for one in policy_of().guardrails if one.kind == "ai_judge")
    made = await checks.run_check(guardrail, CheckRequest(SSN, AppliesTo.RESPONSE), tries=1)
    assert made.verdict.error == "the provider reported an error"


@pytest.mark.parametrize(
    ("model", "kept"),
    [("gpt-4.1-mini", "gpt-4.1-mini"), ("m" * 500, "m" * 198 + " …"), (f"of {SSN}", "of [SSN]"),
     ("x" * 190 + f" {SSN} " + "y" * 300, "x" * 190 + " [SSN] …"), ("project blue heron", "asked-for"),
     ("z" * 1_000_000, "z" * 198 + " …")],
    ids=["as it is", "too long", "a value", "a value at the cut", "words that would stop an answer", "a megabyte"],
)  # fmt: skip
async def test_the_models_name_is_an_endpoints_word_too(model: str, kept: str) -> None:
    """The column takes 200 characters, and databases that look at it would not store the answer's end."""
    text = {"model": model, "choices": [{"index": 0, "delta": {"content": "Well. "}}]}
    end = {"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    body = b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in (text, end))
    async with serve([body, b"data: [DONE]\n\n"]) as endpoint:
        answered = await chat(OpenAIProvider(endpoint.base_url, model="asked-for"), POLICY)
    assert answered.row.outcome == "allowed"
    told = {answered.row.model, answered.message.model, answered.message.metadata["model"]}
    assert told == {kept}
    assert SSN not in str(answered.events) + str(answered.message.metadata)
