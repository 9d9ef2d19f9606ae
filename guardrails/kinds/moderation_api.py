"""A moderation endpoint in the form that OpenAI published: text in, flagged categories with scores out.

Exists because several vendors and servers speak this form. Protects the rule that a verdict is what the endpoint said
about this one text: any other answer is a failure, and the guardrail's ``on_error`` decides, visibly.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guardrails.findings import Verdict
from guardrails.kinds.base import CheckRequest, Config, Example, Kind, NoVerdict, Services, Texts, refusal
from guardrails.kinds.said import category_of, fault_of
from guardrails.kinds.webhook import http_url, keys_once, secret_name
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

MAX_ANSWER_BYTES = 262_144


class ModerationConfig(Config):
    """Parameters of the `moderation_api` kind."""

    url: str = Field(
        default="https://api.openai.com/v1/moderations", max_length=2_000, description="The endpoint's address."
    )
    key: str = Field(
        default="SLUICEGATE_HOOK_MODERATION_KEY",
        description="Name of the environment variable with the API key, `SLUICEGATE_HOOK_…`; empty: none is sent.",
    )
    model: str = Field(
        default="omni-moderation-latest", max_length=200, description="The model that is asked; empty: none is named."
    )
    categories: Texts = Field(default=(), description="Only these categories count; empty: all that are flagged.")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Score from which a category counts; left out: the endpoint's own flags."
    )

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        return http_url(value)

    @field_validator("key")
    @classmethod
    def _named(cls, value: str) -> str:
        return secret_name(value)


class _Result(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    results: list[_Result] = Field(min_length=1, max_length=1)


class ModerationApiKind(Kind[ModerationConfig]):
    """A vendor's moderation endpoint."""

    name = "moderation_api"
    family = Family.EXTERNAL
    description = "A moderation endpoint judges the whole text, after the answer has ended."
    performance = PerformanceCharacteristics(
        PerformanceClass.VERY_SLOW, 400.0, 6_000.0, 20_000.0, deterministic=False, cpu=False, network=True
    )
    Config = ModerationConfig
    examples: ClassVar[tuple[Example, ...]] = (Example({}, hits=(), passes=()),)

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        """Ask the endpoint. Raises ``CheckFailed``, ``TimeoutError`` or what the call raises."""
        if services.post is None or services.secret is None:
            raise RuntimeError("moderation_api needs an HTTP call, and the caller lent none")
        question = {"input": request.text, **({"model": self.config.model} if self.config.model else {})}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.config.key:
            headers["Authorization"] = f"Bearer {services.secret(self.config.key)}"
        reply = await services.post(self.config.url, json.dumps(question).encode(), headers, request.time_limit_s)
        if reply.status != 200:
            why = {401: ": the key is missing or not accepted", 429: ": too many calls"}.get(reply.status, "")
            raise refusal("the moderation endpoint", reply.status, why)
        verdict = self._verdict(_result(reply.body))
        return replace(verdict, category=category_of(verdict.category, self.config.categories))

    def _verdict(self, result: _Result) -> Verdict:
        scores = {name: score or 0.0 for name, score in result.category_scores.items()}
        if self.config.threshold is None:
            hits = [name for name, flagged in result.categories.items() if flagged]
            if result.flagged and not hits:  # a hit all the same, and nobody knows of what
                if self.config.categories:
                    raise NoVerdict("the moderation endpoint flags the text and names no category")
                return Verdict(hit=True, score=max(scores.values(), default=1.0))
        else:
            hits = [name for name, score in scores.items() if score >= self.config.threshold]
        if self.config.categories:
            hits = [name for name in hits if name in self.config.categories]
        if not hits:
            return Verdict(hit=False, score=max(scores.values(), default=0.0))
        worst = max(hits, key=lambda name: scores.get(name, 1.0))
        return Verdict(hit=True, score=scores.get(worst, 1.0), category=worst)


def _result(body: bytes) -> _Result:
    if len(body) > MAX_ANSWER_BYTES:
        raise NoVerdict("the moderation endpoint's answer is too long")
    try:
        return _Answer.model_validate(json.loads(body, object_pairs_hook=keys_once)).results[0]
    except ValidationError as error:
        fault = fault_of(error, *_Answer.model_fields, *_Result.model_fields)
        raise NoVerdict(f"the moderation endpoint's answer is not of its form: {fault}") from None
    except (ValueError, RecursionError):
        raise NoVerdict("the moderation endpoint's answer is not JSON") from None
