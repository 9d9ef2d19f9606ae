"""``POST /v1/check``: one text, one verdict, one audit record.

Exists for clients that have a finished text; plugins of earlier systems speak this form. Protects the rule that the
one-shot check is the very gate that streams pass, and that it leaves the same records: a session, its findings, outbox
rows for guardrails that answer later, and in a conversation that it names what may be shown of the text. What a
guardrail in MONITOR finds at sentence ends is one of those outbox rows: there is one answer, and it does not wait for
what does not decide.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, Self
from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Router, Schema
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic.config import JsonDict

from guardrails.cohorts import Subject
from guardrails.findings import Action, AppliesTo, Finding, FindingDict, Mode, Outcome
from streaming import metrics, sessions, tasks, totals
from streaming.access import Access
from streaming.answer import block_reason
from streaming.api.auth import Key
from streaming.api.errors import ApiError, refusals
from streaming.aside import set_aside
from streaming.bookends import policy_ref
from streaming.chat import StartRefused, load_running
from streaming.checks import CheckedText, check_text, looked_at
from streaming.conf import conf
from streaming.core.text import unusable
from streaming.given import Given, as_text
from streaming.limits import Spends
from streaming.models import Message
from streaming.selectors import named_turns
from streaming.sessions import DeferredText, Ending
from streaming.shadow.record import acted
from streaming.shadow.running import Compared, Shadow
from streaming.together import together

router = Router(tags=["check"])
MAX_DEPTH = 20
"""Of what a client says beside the fields that we know."""
LIFTED = ("kind", "context", "mode", "accepts")
"""Fields of ``config`` that count as if they stood beside it; the policy's name does too (``CheckIn.wished``)."""


def _usable(text: str) -> str:
    if why := unusable(text):
        raise ValueError(why)
    return text


Text = Annotated[str, AfterValidator(_usable)]
Short = Annotated[str, Field(max_length=200), AfterValidator(_usable)]


Id = Annotated[Short, BeforeValidator(as_text, json_schema_input_type=Short | int)]
"""A name that a client gives; a whole number is one too."""


class Open(Given):
    """Fields that we do not know are kept as they are; what stands in them is usable text all the same."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _usable_throughout(self) -> Self:
        # A list, no recursion: how deep it is nested is up to the client.
        left: list[tuple[object, int]] = [(self.model_extra or {}, 0)]
        while left:
            value, depth = left.pop()
            if depth > MAX_DEPTH:
                raise ValueError(f"is nested over {MAX_DEPTH} deep")
            match value:
                case str(text):
                    _usable(text)
                case dict(fields):
                    left += [(part, depth + 1) for pair in fields.items() for part in pair]
                case list(items):
                    left += [(part, depth + 1) for part in items]
        return self


class Context(Open):
    """What the client says about the call; ``conversation_id`` makes calls with the same one a conversation.

    Earlier plugins say ``sessionId`` in its place.
    """

    conversation_id: Id = ""
    userId: Id = ""
    sessionId: Id = ""

    @property
    def conversation(self) -> str:
        """The conversation's name, empty for none."""
        return self.conversation_id or self.sessionId


class Named(Given):
    """Which policy shall run; the key's own where neither name says one."""

    policy: Short = ""
    preset: Annotated[Short, Field(description="The same as `policy`.")] = ""

    @property
    def wished(self) -> tuple[str, str]:
        """The policy's name, empty for the key's own, and the field that says it."""
        return (self.preset, "preset") if self.preset and not self.policy else (self.policy, "policy")


class ConfigIn(Named):
    """Where plugins of earlier systems say how to look at the text; what stands outside of it wins."""

    kind: Literal["prompt", "response"] | None = None
    context: Context = Field(default_factory=Context)
    mode: Literal["default", "monitor"] = "default"
    accepts: list[Literal["redact"]] = Field(default_factory=list)


def _kind_stands_in_one_of_two(schema: JsonDict) -> None:
    schema["required"] = ["text"]


class CheckIn(Named):
    """The text and how to look at it; `kind` is needed, here or in `config`."""

    model_config = ConfigDict(json_schema_extra=_kind_stands_in_one_of_two)

    config: ConfigIn | None = None  # first, so that what is wrong in it is named there
    text: Text
    kind: Literal["prompt", "response"]
    context: Context = Field(default_factory=Context)
    mode: Literal["default", "monitor"] = "default"
    accepts: list[Literal["redact"]] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _lifted(cls, given: object) -> object:
        if isinstance(given, dict) and isinstance(config := given.get("config"), dict):
            outside = {name: value for name, value in given.items() if value is not None}
            return {name: config[name] for name in LIFTED if config.get(name) is not None} | outside
        return given

    @property
    def wished(self) -> tuple[str, str]:
        """The same, of what `config` says where nothing outside of it does."""
        name, said_in = super().wished
        if name or self.config is None or not (inside := self.config.wished)[0]:
            return name, said_in
        return inside[0], f"config.{inside[1]}"


class CheckMetadata(Schema):
    """What ran. ``guardrails_triggered`` lists real hits only; the time is measured, in milliseconds."""

    guardrails_triggered: list[str]
    guardrails_failed: list[str]
    processing_time_ms: float
    policy: str
    version: int


class CheckOut(Schema):
    """The verdict. ``text`` is what may be shown."""

    action: Literal["allow", "warn", "redact", "block"]
    text: str
    reasons: list[str]
    warnings: list[str]
    findings: list[FindingDict]
    session_id: str
    metadata: CheckMetadata


@router.post(
    "/check", response={200: CheckOut, **refusals(429)}, auth=Key("check", Spends.START), summary="Check one text"
)
async def check(request: HttpRequest, response: HttpResponse, payload: CheckIn) -> CheckOut:
    """Check a prompt or a response as a whole.

    A client that does not say `"accepts": ["redact"]` gets `block` where a redaction happened.
    """
    came, started = timezone.now(), time.perf_counter()
    access = _access(request)
    if len(payload.text) > conf().max_own_text_chars:
        raise ApiError(422, f"The text has more than {conf().max_own_text_chars:,} characters.", field="text")
    named = payload.context.conversation
    wished, said_in = payload.wished
    try:
        running = await load_running(wished or access.policy, Subject(named, access.visitor.user_id))
    except StartRefused as error:
        raise no_policy(error, said_in if wished else "") from None
    policy = running.policy
    applies_to, monitor = AppliesTo(payload.kind), payload.mode == "monitor"
    channel = "prompt" if applies_to is AppliesTo.PROMPT else "text"
    asked, aside = set_aside(policy, applies_to)
    beside_it = () if running.shadow is None or running.shadow.policy is None else (running.shadow.policy,)
    turns = await named_turns(access.visitor, named, conf().history_messages, applies_to, asked, *beside_it)
    result = await check_text(
        asked, payload.text, applies_to=applies_to, monitor=monitor, channel=channel, conversation=turns
    )
    result.findings = [_numbered(finding, n) for n, finding in enumerate(result.findings, start=1)]
    deferred = [
        DeferredText(guardrail.name, applies_to.value, payload.text, guardrail.name in aside)
        for guardrail in asked.deferred(applies_to)
        if payload.text and (monitor or not guardrail.decides)
    ]
    session_id, beside = str(uuid4()), None
    if running.shadow is not None:
        shadow = Shadow(running.shadow, session_id=session_id)
        shadow.look(looked_at(result, payload.text, applies_to, channel, turns))
        whole = tuple(
            DeferredText(guardrail.name, applies_to.value, payload.text, turns=turns)
            for guardrail in (beside_it[0].deferred(applies_to) if beside_it and payload.text else ())
        )
        did = acted(policy, result.findings, monitor=monitor)
        compared = Compared(policy, did, whole, tuple(deferred), result.counters.released)
        beside = await shadow.record(None, compared)
        metrics.shadowed(policy.name, beside)
    record = partial(
        sessions.record_check,
        session_id=session_id,
        started_at=came,
        visitor=access.visitor,
        policy=policy_ref(policy),
        ending=replace(_ending(result, deferred), shadow=beside),
        monitor=monitor,
        conversation_key=named,
        role=Message.Role.USER if applies_to is AppliesTo.PROMPT else Message.Role.ASSISTANT,
        correlation_id=str(request.META.get("sluicegate.correlation_id", "")),
    )
    await together(record)
    if deferred or (beside is not None and beside.late):
        await tasks.queue_session(session_id)
    action = _action(result, payload)
    took = round((time.perf_counter() - started) * 1000, 3)
    response["X-Response-Time"] = f"{took}ms"
    return CheckOut(
        action=action,
        text=result.visible,
        reasons=[_words(finding, payload.kind) for finding in result.findings if _decided(finding)],
        warnings=[_words(finding, payload.kind) for finding in result.findings if not _decided(finding)]
        + [f"The guardrail “{name}” could not be asked." for name in result.failed],
        findings=[finding.as_dict() for finding in result.findings],
        session_id=session_id,
        metadata=CheckMetadata(
            guardrails_triggered=list(dict.fromkeys(_hits(result))),
            guardrails_failed=list(dict.fromkeys(result.failed)),
            processing_time_ms=took,
            policy=policy.name,
            version=policy.version,
        ),
    )


def no_policy(error: StartRefused, said_in: str) -> ApiError:
    """The refusal where the policy does not run, which the client's call says in this field.

    Where none does it is the key's own, and nothing is wrong with the call: the same one is answered when that runs.
    """
    status = 422 if said_in else 503
    return ApiError(status, str(error), code=error.code, field=said_in)


def _action(result: CheckedText, payload: CheckIn) -> Literal["allow", "warn", "redact", "block"]:
    if result.action == "redact":
        return "redact" if "redact" in payload.accepts else "block"
    return "block" if result.action == "block" else "warn" if result.action == "warn" else "allow"


def _access(request: HttpRequest) -> Access:
    access = getattr(request, "auth", None)
    if not isinstance(access, Access):
        raise ApiError(401, "An API key is needed.")
    return access


def _numbered(finding: Finding, n: int) -> Finding:
    return replace(finding, n=n)


def _hits(result: CheckedText) -> list[str]:
    """Who has found something; that a guardrail failed is a finding too, but no hit."""
    return [one.guardrail for one in result.findings if one.rule != "error" or one.guardrail not in result.failed]


def _decided(finding: Finding) -> bool:
    return finding.mode is Mode.BLOCK and finding.action is not Action.WARN


def _words(finding: Finding, kind: str) -> str:
    if finding.action is Action.BLOCK and finding.mode is Mode.BLOCK:
        return block_reason(finding, kind)
    what = (finding.category or finding.rule or finding.kind).replace("_", " ")
    did = "redacted" if _decided(finding) else "noted"
    return f"{what} {did} by the guardrail “{finding.guardrail}”."


def _ending(result: CheckedText, deferred: list[DeferredText]) -> Ending:
    outcome = {
        "allow": Outcome.ALLOWED,
        "warn": Outcome.WARNED,
        "redact": Outcome.REDACTED,
        "block": Outcome.BLOCKED,
    }[result.action]
    counters = result.counters
    guardrails: totals.AllTotals = {}
    checks = totals.add(guardrails, findings=result.findings, statuses=result.statuses)
    counted = {"calls": 1, "chunks": 1, "checks": checks, "naive_calls": 1, "audit_rows": 3 + len(result.findings)}
    status = Message.Status.BLOCKED if outcome is Outcome.BLOCKED else Message.Status.COMPLETE
    return Ending(
        outcome=outcome,
        status=status,
        content=result.visible,
        metadata={"status": status.value, "redactions": [list(pair) for pair in result.redactions]},
        findings=result.findings,
        deferred=deferred,
        chars_in=counters.chars_in,
        released=counters.released,
        withheld=counters.withheld,
        exposed=counters.exposed,
        timing={**counted, "guardrails": {**guardrails}},
    )
