"""What opens a guardrail's breaker: what an endpoint says of itself, and nothing that it says of one text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import pytest

from guardrails.findings import AppliesTo
from guardrails.kinds.ai_judge import fence_mark
from guardrails.kinds.base import CheckFailed, CheckRequest, NoVerdict, Reply, TextRefused
from guardrails.policy import Guardrail, compile_policy
from streaming import breakers, checks, outbound
from streaming.breakers import OPEN_S, THRESHOLD
from streaming.checks import check_text
from streaming.providers.base import (
    ProviderAuthError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderTimeout,
    ProviderUnavailable,
)
from tests.streaming.test_outbound import endpoint as endpoint_at

TEXTS = 50
run_check = partial(checks.run_check, tries=1)
"""What is asked again counts again (``test_tries``); here each text is asked about once."""
CONFIGS: Mapping[str, Mapping[str, object]] = {
    "webhook": {"url": "https://checks.example/judge"},
    "moderation_api": {"url": "https://checks.example/moderate", "key": ""},
    "ai_judge": {"rubric": "It is bad."},
}
Answer = Callable[[str], Reply | Exception]


@pytest.fixture(autouse=True)
def now(settings: object) -> list[float]:
    """The clock of the breakers, which stand in memory here."""
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    now = [1_000.0]
    breakers.forget(lambda: now[0])
    return now


def guardrail(kind: str) -> Guardrail:
    entry = {"name": "g", "kind": kind, "config": CONFIGS[kind]}
    return compile_policy({"policy": "t", "guardrails": [entry]}).guardrail("g")


def asked(text: str) -> CheckRequest:
    return CheckRequest(text, AppliesTo.RESPONSE)


async def state(tried: Guardrail) -> str:
    name = breakers.GUARDRAIL + tried.circuit
    return (await breakers.states([name]))[name]


def verdict_on(text: str) -> bytes:
    """What both endpoints may answer; each reads its own fields of it."""
    result = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.1}}
    digest = json.loads(text).get("text_sha256", "")
    return json.dumps({"score": 0.1, "text_sha256": digest, "results": [result]}).encode()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[str]]:
    """Answer every call in this way; the bodies of the calls are kept. An exception is raised."""

    def serve(answer: Answer) -> list[str]:
        bodies: list[str] = []

        async def post(url: str, body: bytes, headers: Mapping[str, str], time_limit_s: float) -> Reply:
            bodies.append(body.decode())
            reply = answer(bodies[-1])
            if isinstance(reply, Exception):
                raise reply
            return reply

        monkeypatch.setattr(outbound, "post", post)
        return bodies

    return serve


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Exception], list[ProviderRequest]]:
    """The provider that judges says this."""

    def serve(said: str | Exception) -> list[ProviderRequest]:
        requests: list[ProviderRequest] = []

        class Judge:
            async def complete(self, request: ProviderRequest) -> str:
                requests.append(request)
                if isinstance(said, Exception):
                    raise said
                mark = fence_mark(request.messages[-1].text)
                return said.replace("MARK", mark)

        monkeypatch.setattr(checks, "get_provider", lambda name: Judge())
        return requests

    return serve


Endpoint = Callable[[Answer], list[str]]
Judge = Callable[[str | Exception], list[ProviderRequest]]


async def test_it_works(endpoint: Endpoint, now: list[float]) -> None:
    tried = guardrail("webhook")
    endpoint(lambda body: Reply(503, b""))
    for n in range(THRESHOLD):
        assert (await run_check(tried, asked(f"text {n}"))).verdict.error == "the web hook answered 503"
    assert (await run_check(tried, asked("another"))).circuit_open
    now[0] += OPEN_S
    endpoint(lambda body: Reply(200, verdict_on(body)))
    assert (await run_check(tried, asked("another"))).verdict.error is None
    assert await state(tried) == "closed"


ABOUT_ONE_TEXT: Mapping[str, Reply | Exception] = {
    "400": Reply(400, b"no"),
    "413": Reply(413, b""),
    "422": Reply(422, b"{}"),
    "prose": Reply(200, b"I think that it is fine."),
    "half_json": Reply(200, b'{"score": 0.1, "results": [{"flag'),
    "nothing": Reply(200, b""),
    "too_long": Reply(200, b"x" * 1_000_000),
    "another_text": Reply(200, json.dumps({"score": 0.0, "text_sha256": "0" * 64, "results": []}).encode()),
    "over_1_mb": NoVerdict("the answer is larger than 1 MB"),
}


@pytest.mark.parametrize("kind", ["webhook", "moderation_api"])
@pytest.mark.parametrize("what", sorted(ABOUT_ONE_TEXT))
async def test_no_text_can_open_it_for_others(kind: str, what: str, endpoint: Endpoint) -> None:
    """The hostile texts and the honest one differ in nothing but what the endpoint says to them."""
    reply, tried = ABOUT_ONE_TEXT[what], guardrail(kind)
    bodies = endpoint(lambda body: reply if "hostile" in body else Reply(200, verdict_on(body)))
    for n in range(TEXTS):
        checked = await run_check(tried, asked(f"hostile text {n}"))
        assert checked.verdict.error is not None
        assert not checked.circuit_open
    honest = await run_check(tried, asked("an honest text"))
    assert (honest.verdict.error, await state(tried), len(bodies)) == (None, "closed", TEXTS + 1)


@pytest.mark.parametrize(
    "said",
    ["It is fine.", '{"score": 0.1', "", "x" * 1_000_000, '{"score": 2}', "[" * 100_000,
     ProviderRefused("the prompt is too long"), ProviderProtocolError("not its dialect")],
    ids=["prose", "half_json", "nothing", "1_mb", "out_of_range", "nested", "refused", "garbage"],
)  # fmt: skip
async def test_no_text_can_open_a_judge_for_others(said: str | Exception, judge: Judge) -> None:
    tried, requests = guardrail("ai_judge"), judge(said)
    for n in range(TEXTS):
        checked = await run_check(tried, asked(f"hostile text {n}"))
        assert checked.verdict.error is not None
        assert not checked.circuit_open
    assert (await state(tried), len(requests)) == ("closed", TEXTS)


BAD_VERDICTS = {
    "prose": "I would say that this is fine.",
    "half_json": '{"id": "MARK", "score": 0.',
    "1_mb": '{"id": "MARK", "score": 0, "reason": "' + "x" * 1_000_000 + '"}',
    "another_text": '{"id": "0123456789abcdef", "score": 0}',
}


@pytest.mark.parametrize(("on_error", "visible"), [("block", ""), ("allow", "One."), ("warn", "One.")])
@pytest.mark.parametrize("what", sorted(BAD_VERDICTS))
async def test_a_judge_that_does_not_judge_is_a_failure_that_obeys_on_error(
    what: str, on_error: str, visible: str, judge: Judge
) -> None:
    requests = judge(BAD_VERDICTS[what])
    entry = {"name": "g", "kind": "ai_judge", "mode": "BLOCK", "on_error": on_error, "config": CONFIGS["ai_judge"]}
    policy = compile_policy({"policy": "t", "guardrails": [entry]})
    done = await check_text(policy, "One.", applies_to=AppliesTo.RESPONSE)
    assert (done.visible, done.failed, done.action, len(requests)) == (visible, ["g"], on_error, 1)
    assert [status.state for status in done.statuses] == ["error"]


async def test_the_same_judge_is_believed_when_it_says_which_text_it_means(judge: Judge) -> None:
    judge('{"id": "MARK", "score": 0.9, "category": "bad"}')
    checked = await run_check(guardrail("ai_judge"), asked("text"))
    assert (checked.verdict.hit, checked.verdict.error) == (True, None)


async def test_a_web_hook_that_leads_to_a_metadata_address_is_refused_and_not_asked_again(settings: object) -> None:
    settings.SLUICEGATE_HOOK_HOSTS = ["127.0.0.0/8"]  # type: ignore[attr-defined]
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://169.254.169.254/latest/meta-data/\r\nContent-Length: 0\r\n\r\n"
    async with endpoint_at(moved) as (port, seen):
        config = {"url": f"http://127.0.0.1:{port}/judge"}
        policy = compile_policy({"policy": "t", "guardrails": [{"name": "g", "kind": "webhook", "config": config}]})
        tried = policy.guardrail("g")
        for n in range(THRESHOLD * 2):
            checked = await run_check(tried, asked(f"text {n}"))
            assert "leads to a private address" in str(checked.verdict.error)
            assert (checked.permanent, checked.circuit_open) == (True, False)
    assert len(seen) == THRESHOLD * 2


OF_ITSELF: Mapping[str, Reply | Exception] = {
    "401": Reply(401, b""),
    "403": Reply(403, b""),
    "404": Reply(404, b""),
    "429": Reply(429, b""),
    "500": Reply(500, b""),
    "503": Reply(503, b""),
    "time_out": TimeoutError(),
    "refused": CheckFailed("the call failed (ConnectError)"),
}


@pytest.mark.parametrize("kind", ["webhook", "moderation_api"])
@pytest.mark.parametrize("what", sorted(OF_ITSELF))
async def test_what_an_endpoint_says_of_itself_opens_it(kind: str, what: str, endpoint: Endpoint) -> None:
    tried, bodies = guardrail(kind), endpoint(lambda body: OF_ITSELF[what])
    for n in range(THRESHOLD):
        assert not (await run_check(tried, asked(f"text {n}"))).circuit_open
    assert (await run_check(tried, asked("text"))).circuit_open
    assert len(bodies) == THRESHOLD


@pytest.mark.parametrize(
    "said",
    [ProviderAuthError("no key"), ProviderRateLimited("wait", retry_after_s=1.0), ProviderUnavailable("away"),
     ProviderTimeout("too slow"), TimeoutError()],
    ids=["auth", "rate_limited", "unavailable", "provider_time_out", "time_out"],
)  # fmt: skip
async def test_what_a_judge_says_of_itself_opens_it(said: Exception, judge: Judge) -> None:
    tried, requests = guardrail("ai_judge"), judge(said)
    for n in range(THRESHOLD):
        assert not (await run_check(tried, asked(f"text {n}"))).circuit_open
    assert (await run_check(tried, asked("text"))).circuit_open
    assert len(requests) == THRESHOLD


async def test_an_endpoint_that_is_back_and_refuses_the_first_text_is_back(
    endpoint: Endpoint, now: list[float]
) -> None:
    tried = guardrail("webhook")
    endpoint(lambda body: Reply(500, b""))
    for n in range(THRESHOLD):
        await run_check(tried, asked(f"text {n}"))
    now[0] += OPEN_S
    endpoint(lambda body: Reply(422, b""))
    assert (await run_check(tried, asked("hostile"))).verdict.error == "the web hook answered 422"
    assert await state(tried) == "closed"


async def test_a_setting_of_ours_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody was asked; and asking again would not set the secret."""
    monkeypatch.delenv("SLUICEGATE_HOOK_MODERATION_KEY", raising=False)
    tried = compile_policy({"policy": "t", "guardrails": [{"name": "g", "kind": "moderation_api"}]}).guardrail("g")
    for n in range(THRESHOLD * 2):
        checked = await run_check(tried, asked(f"text {n}"))
        assert (checked.circuit_open, checked.permanent) == (False, True)
        assert checked.verdict.error == "SLUICEGATE_HOOK_MODERATION_KEY is not set"


@pytest.mark.parametrize(("status", "again"), [(400, False), (413, False), (422, False), (429, True), (503, True)])
async def test_a_text_that_is_not_taken_is_not_offered_again(status: int, again: bool, endpoint: Endpoint) -> None:
    endpoint(lambda body: Reply(status, b""))
    checked = await run_check(guardrail("webhook"), asked("text"))
    assert checked.permanent is not again


def test_what_is_no_verdict_is_a_failure_all_the_same() -> None:
    assert issubclass(TextRefused, NoVerdict)
    assert issubclass(NoVerdict, CheckFailed)
