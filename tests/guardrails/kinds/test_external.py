"""Kinds that ask somebody else over HTTP: what they send, and that nothing but a clean answer is a verdict."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping

import pytest

from guardrails.document import PolicyError, parse_document
from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds.base import CheckFailed, CheckRequest, Reply, Services
from guardrails.lint import lint_document

from .conftest import build

TEXT = "the judged text"
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()
HOOK: dict[str, object] = {"url": "https://checks.example/judge", "secret": "SLUICEGATE_HOOK_JUDGE"}


class Endpoint:
    """An endpoint that gives one answer and remembers what it was sent."""

    def __init__(self, body: object, status: int = 200) -> None:
        self.reply = Reply(status, body if isinstance(body, bytes) else json.dumps(body).encode())
        self.sent: list[tuple[str, bytes, Mapping[str, str], float]] = []

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], time_limit_s: float) -> Reply:
        self.sent.append((url, body, headers, time_limit_s))
        return self.reply


def ask(kind: str, config: Mapping[str, object], endpoint: Endpoint) -> Verdict:
    services = Services(post=endpoint.post, secret=lambda name: f"value of {name}")
    return asyncio.run(build(kind, config).check(CheckRequest(TEXT, AppliesTo.RESPONSE, (), 7.0), services))


def test_it_works() -> None:
    endpoint = Endpoint({"score": 0.8, "category": "legal", "reason": "names a case", "text_sha256": DIGEST})
    assert ask("webhook", HOOK, endpoint) == Verdict(True, 0.8, "legal", "names a case")
    ((url, body, headers, limit),) = endpoint.sent
    assert (url, limit) == (HOOK["url"], 7.0)
    assert json.loads(body) == {"text": TEXT, "text_sha256": DIGEST, "applies_to": "response"}
    at, proof = (part.partition("=")[2] for part in headers["X-Sluicegate-Signature"].split(","))
    wanted = hmac.new(b"value of SLUICEGATE_HOOK_JUDGE", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert proof == wanted


def test_without_a_secret_nothing_is_signed() -> None:
    endpoint = Endpoint({"score": 0.2, "text_sha256": DIGEST})
    assert ask("webhook", {"url": HOOK["url"]}, endpoint) == Verdict(False, 0.2)
    assert "X-Sluicegate-Signature" not in endpoint.sent[0][2]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"I think it is fine.", 200),
        (b'{"score": 0.1', 200),
        ({"score": 0.1}, 200),
        ({"score": "0.1", "text_sha256": DIGEST}, 200),
        ({"score": 1.5, "text_sha256": DIGEST}, 200),
        (b'{"score": NaN, "text_sha256": "' + DIGEST.encode() + b'"}', 200),
        ({"score": 0.1, "text_sha256": hashlib.sha256(b"another").hexdigest()}, 200),
        (b'{"score": 1, "score": 0, "text_sha256": "' + DIGEST.encode() + b'"}', 200),
        (b'{"score": 0, "text_sha256": "\\ud800"}', 200),
        (b"x" * 1_000_000, 200),
        (b"[" * 100_000, 200),
        ({"score": 0.1, "text_sha256": DIGEST}, 500),
        (b"", 307),
    ],
)
def test_whatever_else_a_web_hook_says_is_a_failure_that_quotes_nothing(body: object, status: int) -> None:
    with pytest.raises(CheckFailed) as failed:
        ask("webhook", HOOK, Endpoint(body, status))
    assert TEXT not in str(failed.value)


def moderation(flagged: bool = True, **scores: float) -> dict[str, object]:
    categories = {name: flagged and score >= 0.5 for name, score in scores.items()}
    return {"id": "m", "results": [{"flagged": flagged, "categories": categories, "category_scores": scores}]}


def test_moderation_names_its_worst_flagged_category() -> None:
    endpoint = Endpoint(moderation(hate=0.6, violence=0.9, sexual=0.1))
    assert ask("moderation_api", {}, endpoint) == Verdict(True, 0.9, "violence")
    ((url, body, headers, _),) = endpoint.sent
    assert url == "https://api.openai.com/v1/moderations"
    assert json.loads(body) == {"input": TEXT, "model": "omni-moderation-latest"}
    assert headers["Authorization"] == "Bearer value of SLUICEGATE_HOOK_MODERATION_KEY"


@pytest.mark.parametrize(
    ("config", "hit"),
    [
        ({"categories": ["hate"]}, ("hate", 0.6)),
        ({"categories": ["sexual"]}, None),
        ({"threshold": 0.95}, None),
        ({"threshold": 0.05, "categories": ["sexual"]}, ("sexual", 0.1)),
    ],
)
def test_moderation_counts_what_the_policy_counts(config: dict[str, object], hit: tuple[str, float] | None) -> None:
    verdict = ask("moderation_api", config, Endpoint(moderation(hate=0.6, violence=0.9, sexual=0.1)))
    assert (verdict.category, verdict.score) == hit if hit else not verdict.hit


def test_a_flagged_text_is_a_hit_though_no_category_is() -> None:
    said = {"results": [{"flagged": True, "categories": {"hate": False}, "category_scores": {"hate": 0.4}}]}
    verdict = ask("moderation_api", {}, Endpoint(said))
    assert (verdict.hit, verdict.category, verdict.score) == (True, "", 0.4)
    with pytest.raises(CheckFailed, match="no category"):
        ask("moderation_api", {"categories": ["hate"]}, Endpoint(said))
    assert not ask("moderation_api", {"threshold": 0.5}, Endpoint(said)).hit, "then scores alone count"


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_moderation_endpoint_that_refuses_is_a_failure(status: int) -> None:
    with pytest.raises(CheckFailed, match=str(status)):
        ask("moderation_api", {}, Endpoint(moderation(), status))


@pytest.mark.parametrize(
    "body", [b"", b"no", {"results": []}, {"results": [{}]}, {"results": [{}, {}]}, [1], b"x" * 500_000]
)
def test_whatever_else_a_moderation_endpoint_says_is_a_failure(body: object) -> None:
    with pytest.raises(CheckFailed):
        ask("moderation_api", {}, Endpoint(body))


@pytest.mark.parametrize(
    ("kind", "config", "field"),
    [
        ("webhook", {"url": "ftp://x.example"}, "url"),
        ("webhook", {"url": "https://"}, "url"),
        ("webhook", {"url": "https://user:word@x.example/"}, "url"),
        ("webhook", {"url": "https://x.example/", "secret": "SLUICEGATE_SECRET_KEY"}, "secret"),
        ("webhook", {"url": "https://x.example/", "secret": "PATH"}, "secret"),
        ("moderation_api", {"key": "OPENAI_API_KEY"}, "key"),
        ("moderation_api", {"url": "not an address"}, "url"),
    ],
)
def test_addresses_and_secrets_that_policies_may_not_name(kind: str, config: dict[str, object], field: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse_document({"policy": "p", "guardrails": [{"kind": kind, "config": config}]})
    assert refused.value.path == f"guardrails[0].config.{field}"


def test_an_external_check_can_not_decide() -> None:
    with pytest.raises(PolicyError, match="MONITOR"):
        parse_document({"policy": "p", "guardrails": [{"kind": "webhook", "mode": "BLOCK", "config": HOOK}]})


def test_a_web_hook_whose_requests_nobody_can_check_is_said_at_publication() -> None:
    def remarks(config: dict[str, object]) -> tuple[str, ...]:
        document = {"policy": "p", "guardrails": [{"name": "hook", "kind": "webhook", "config": config}]}
        return lint_document(document).guardrails[0].remarks

    (said,) = remarks({"url": HOOK["url"]})
    assert said.startswith("UNSIGNED")
    assert remarks(dict(HOOK)) == ()
