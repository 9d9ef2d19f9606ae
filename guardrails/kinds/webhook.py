"""Somebody else's check, asked over HTTP.

Exists for rules that live in other systems. Protects three rules: the endpoint can prove that a request came from
here (HMAC-SHA256 over time and body, so that a recorded one cannot be sent again later); it must say exactly what it
found about exactly this text (the answer repeats the text's digest); and anything else is a failure, not a pass.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds.base import HOOK_SECRET, CheckRequest, Config, Example, Kind, NoVerdict, Services, Texts, refusal
from guardrails.kinds.said import category_of, fault_of
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

SIGNATURE_HEADER = "X-Sluicegate-Signature"
MAX_ANSWER_BYTES = 65_536


class WebhookConfig(Config):
    """Parameters of the `webhook` kind."""

    url: str = Field(max_length=2_000, description="Where the text is sent, `https://…`.")
    secret: str = Field(
        default="",
        description="Name of the environment variable with the HMAC key, `SLUICEGATE_HOOK_…`; "
        "empty: the request is not signed, and publication says so.",
    )
    threshold: float = Field(default=0.5, ge=0, le=1, description="Score from which a verdict is a hit.")
    categories: Texts = Field(
        default=(), description="Categories that its verdicts may name, beside those that everybody knows."
    )

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        return http_url(value)

    @field_validator("secret")
    @classmethod
    def _named(cls, value: str) -> str:
        return secret_name(value)


UNSIGNED = (
    "UNSIGNED: no `secret` is named, so the endpoint cannot tell our requests from anybody's; name a variable "
    "SLUICEGATE_HOOK_… that holds the HMAC key"
)


class WebhookAnswer(BaseModel):
    """What the endpoint must answer: a score, and the digest of the text that it judged."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    score: float = Field(ge=0, le=1)
    text_sha256: str
    category: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=2_000)


class WebhookKind(Kind[WebhookConfig]):
    """An HTTP endpoint of yours that judges."""

    name = "webhook"
    family = Family.EXTERNAL
    description = "Your own HTTP endpoint judges the whole text, after the answer has ended."
    performance = PerformanceCharacteristics(
        PerformanceClass.VERY_SLOW, 500.0, 6_000.0, 20_000.0, deterministic=False, cpu=False, network=True
    )
    applies_to = (AppliesTo.PROMPT, AppliesTo.RESPONSE, AppliesTo.TOOL_RESULT, AppliesTo.DOCUMENT)
    Config = WebhookConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"url": "https://checks.example/judge", "secret": "SLUICEGATE_HOOK_JUDGE"}, hits=(), passes=()),
    )

    def remarks(self) -> tuple[str, ...]:
        """That nobody can check who asks, if so."""
        return () if self.config.secret else (UNSIGNED,)

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        """Ask the endpoint. Raises ``CheckFailed``, ``TimeoutError`` or what the call raises."""
        if services.post is None or services.secret is None:
            raise RuntimeError("webhook needs an HTTP call, and the caller lent none")
        digest = hashlib.sha256(request.text.encode()).hexdigest()
        body = json.dumps(
            {"text": request.text, "text_sha256": digest, "applies_to": request.applies_to.value}
        ).encode()  # fmt: skip
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.config.secret:
            headers[SIGNATURE_HEADER] = signature(services.secret(self.config.secret), body, int(time.time()))
        reply = await services.post(self.config.url, body, headers, request.time_limit_s)
        if reply.status != 200:
            raise refusal("the web hook", reply.status)
        found = _answer(reply.body)
        if not hmac.compare_digest(found.text_sha256.encode("utf-8", "surrogatepass"), digest.encode()):
            raise NoVerdict("the web hook's verdict is about another text")
        category = category_of(found.category, self.config.categories)
        return Verdict(found.score >= self.config.threshold, found.score, category, found.reason)


def signature(secret: str, body: bytes, at: int) -> str:
    """``t=<unix seconds>,v1=<hex>``: HMAC-SHA256 over the seconds, a dot and the body."""
    proof = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={proof}"


def http_url(value: str) -> str:
    """The address as it is written. Raises ``ValueError`` for what is no http(s) address or carries a password."""
    scheme, separator, rest = value.partition("://")
    host = rest.split("/", 1)[0].split("?", 1)[0]
    if scheme.lower() not in ("http", "https") or not separator or not host or any(c.isspace() for c in value):
        raise ValueError("must be an http(s) address")
    if "@" in host:
        raise ValueError("must not carry a user or password; name a secret instead")
    return value


def keys_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object of an answer. Raises ``ValueError`` when it names a key twice: then it says two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is named twice")
    return found


def secret_name(value: str) -> str:
    """The name as it is written. Raises ``ValueError`` when policies may not use it."""
    if value and not HOOK_SECRET.fullmatch(value):
        raise ValueError("must be the name of a variable that begins with SLUICEGATE_HOOK_")
    return value


def _answer(body: bytes) -> WebhookAnswer:
    if len(body) > MAX_ANSWER_BYTES:
        raise NoVerdict("the web hook's answer is too long")
    try:
        return WebhookAnswer.model_validate(json.loads(body, object_pairs_hook=keys_once))
    except ValidationError as error:
        fault = fault_of(error, *WebhookAnswer.model_fields)
        raise NoVerdict(f"the web hook's answer is not of the form asked for: {fault}") from None
    except (ValueError, RecursionError):
        raise NoVerdict("the web hook's answer is not JSON") from None
