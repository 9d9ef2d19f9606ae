"""How a session begins and ends: the first events, the stored record, the last events.

Exists apart from the loop because nothing here waits for anything: it is the mapping from what happened to what is
told and kept. Protects the rule that readers and database are told the same: the last events are made from the very
``Ending`` that was stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardrails.findings import AppliesTo, Outcome
from guardrails.kinds.base import Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import ShadowPolicy
from streaming import conversing, totals
from streaming.answer import Answer, block_reason
from streaming.checks import CheckedText, Looked, immediate_state
from streaming.core.events import (
    Blocked,
    Done,
    ErrorEvent,
    FindingEvent,
    GuardrailStatus,
    MessageNew,
    MessageUpdate,
    PolicyRef,
    ProviderChosen,
    ServerEvent,
    StateChange,
    Timing,
)
from streaming.models import Message
from streaming.providers.base import Provider, ProviderRequest
from streaming.rollout import Asks
from streaming.sessions import DeferredText, Ending, Started, State


@dataclass(frozen=True, slots=True)
class Run:
    """What the pump works on. ``prompt_raw`` is for guardrails only; ``prompt`` is what they made of it.

    ``fallback``: why it was decided not to stream, before anybody was asked. ``shadow``: the version that runs beside;
    ``looked``: the texts that the prompt's guardrails have looked at. ``earlier``: what was said before the messages of
    the request, for guardrails that want to know. ``handed_over``: nobody but the client has the conversation.
    """

    started: Started
    policy: Policy
    monitor: bool
    prompt_raw: str
    prompt: CheckedText
    upstreams: Asks
    request: ProviderRequest
    fallback: str = ""
    shadow: ShadowPolicy | None = None
    looked: tuple[Looked, ...] = ()
    earlier: tuple[Turn, ...] = ()
    handed_over: bool = False

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation before the answer, as guardrails that want it are told it."""
        return (*self.earlier, *(Turn(message.role, message.text) for message in self.request.messages))

    @property
    def provider(self) -> Provider:
        """The provider that was asked for; another one may answer in the end."""
        return self.upstreams.providers[0]


@dataclass(slots=True)
class Result:
    """Why the loop ended."""

    outcome: Outcome | None = None
    error_code: str = ""
    error: str = ""
    recoverable: bool = True
    log_down: bool = False


def opening(run: Run, answer: Answer) -> list[ServerEvent]:
    """What readers are told before the provider is asked."""
    ids = run.started
    policy = policy_ref(run.policy)
    model = run.request.model or run.provider.default_model
    events: list[ServerEvent] = [
        StateChange("ACTIVE"),
        MessageNew(ids.prompt_id, ids.conversation_id, "user", run.provider.name, model, policy),
        MessageUpdate(ids.prompt_id, run.prompt.visible, prompt_metadata(run.prompt)),
        MessageNew(ids.answer_id, ids.conversation_id, "assistant", run.provider.name, model, policy),
        *(FindingEvent(answer.number(finding)) for finding in run.prompt.findings),
    ]
    lines = {status.guardrail: status for status in run.prompt.statuses}
    asked = [status for status in run.prompt.statuses if status.checkpoint == Checkpoint.BATCHED.value]
    totals.add(answer.totals, statuses=asked)
    if (block := run.prompt.blocked) is not None:
        answer.lines.update(lines)
        withheld = len(run.prompt_raw) - run.prompt.counters.released
        events += lines.values()
        events.append(Blocked(ids.answer_id, block_reason(block, "prompt"), block.guardrail, withheld))
        return events
    running = run.policy.running(AppliesTo.RESPONSE)
    asked_again = {guardrail.name for guardrail in running}
    answer.lines.update({name: line for name, line in lines.items() if name not in asked_again})
    for guardrail in running:
        state = "checking" if guardrail.checkpoint is Checkpoint.IMMEDIATE else "idle"
        lines[guardrail.name] = GuardrailStatus(guardrail.name, guardrail.checkpoint.value, state)
    return [*events, *lines.values()]


def ending(
    run: Run, answer: Answer, result: Result, last_seq: int, feeds_ms: Sequence[float],
    overtaken: tuple[Guardrail, ...] = (),
) -> Ending:  # fmt: skip
    """What is stored about the end of the answer. What was held at its end stays withheld.

    ``feeds_ms``: how long the gates took, by provider event, in milliseconds. ``overtaken``: guardrails that the answer
    was too fast for; workers ask them about its sentences.
    """
    answer.let_go()
    answer.lines.update({line.guardrail: line for line in _immediate(run, answer, feeds_ms)})
    prompt_blocked = run.prompt.blocked is not None
    outcome = result.outcome or answer.outcome()
    chars_in, released, withheld, exposed = answer.counts()
    status = {
        Outcome.BLOCKED: Message.Status.BLOCKED,
        Outcome.INTERRUPTED: Message.Status.INTERRUPTED,
        Outcome.ABANDONED: Message.Status.INTERRUPTED,
        Outcome.ERROR: Message.Status.ERROR,
    }.get(outcome, Message.Status.COMPLETE)
    return Ending(
        outcome=outcome,
        status=status,
        content=answer.content,
        metadata=_metadata(run, answer, status),
        findings=tuple(answer.findings),
        deferred=() if prompt_blocked else tuple(_deferred(run, answer, overtaken)),
        chars_in=chars_in,
        released=released,
        withheld=len(run.prompt_raw) - run.prompt.counters.released if prompt_blocked else withheld,
        exposed=exposed,
        # Where nobody answered, it was the first one whose failure is told.
        provider=chosen(run, answer).provider if answer.arrivals.count or not result.error_code else "",
        model=answer.model,
        timing={**_timing(answer).payload(), **_counts(answer), **_lines(answer)},
        last_seq=last_seq,
        error_code=result.error_code,
        error=result.error,
        streaming=chosen(run, answer).streaming,
        fallback=chosen(run, answer).fallback,
    )


def _counts(answer: Answer) -> dict[str, object]:
    """The audit row's counters that no event tells."""
    checks = sum(one["checks"] for one in answer.totals.values())
    tools = {"tools_ok": answer.tools_ok, "tools_failed": answer.tools_failed}
    counted = {name: number for name, number in tools.items() if number}
    return {"chunks": answer.arrivals.count, "checks": checks, "guardrails": {**answer.totals}, **counted}


def chosen(run: Run, answer: Answer) -> ProviderChosen:
    """Who answered and how; where nobody was asked, what had been decided."""
    decided = ProviderChosen(run.provider.name, run.upstreams.streaming, run.fallback)
    return answer.chosen or decided


def _metadata(run: Run, answer: Answer, status: Message.Status) -> dict[str, object]:
    who = chosen(run, answer)
    metadata: dict[str, object] = {
        "provider": who.provider,
        "model": answer.model or run.request.model or run.provider.default_model,
        "usage": answer.usage,
        "in_reply_to": run.started.prompt_id,
        "streaming": who.streaming,
        "stop_reason": answer.stop_reason,
        "status": status.value,
        "redactions": [list(pair) for pair in answer.redactions],
    }
    if who.fallback:
        metadata["fallback"] = who.fallback
    if answer.notices:
        metadata["notices"] = [[provider, code, times] for (provider, code), times in answer.notices.items()]
    if (stopped := answer.stopped) is not None:
        # A reload shows the same banner as the stream did.
        metadata["blocked"] = {"reason": stopped.reason, "withheld_chars": stopped.withheld_chars}
    if answer.tools.made:
        metadata["tools"] = [call.record() for call in answer.tools.made]
    if thinking := answer.visible("thinking"):
        metadata["thinking"] = thinking
    return metadata


def _deferred(run: Run, answer: Answer, overtaken: tuple[Guardrail, ...]) -> list[DeferredText]:
    """What workers shall judge: MONITOR guardrails only, those that decide have been asked by the gate."""
    texts = ((AppliesTo.PROMPT, run.prompt_raw), (AppliesTo.RESPONSE, answer.raw))
    whole = [
        DeferredText(guardrail.name, applies_to.value, text, turns=_handed_over(run, guardrail, applies_to))
        for applies_to, text in texts
        if text
        for guardrail in run.policy.deferred(applies_to)
        if not guardrail.decides or run.monitor
    ]
    said = AppliesTo.RESPONSE
    return whole + [
        DeferredText(one.name, said.value, answer.raw, sentences=True, turns=_handed_over(run, one, said))
        for one in overtaken
    ]


def for_shadow(run: Run, answer: Answer) -> tuple[DeferredText, ...]:
    """Prompt and answer for the shadow's DEFERRED guardrails, as far as the active version let the answer come."""
    if run.shadow is None or (policy := run.shadow.policy) is None:
        return ()
    texts = ((AppliesTo.PROMPT, run.prompt_raw), (AppliesTo.RESPONSE, answer.raw[: answer.stopped_at(("text", 0))]))
    return tuple(
        DeferredText(guardrail.name, applies_to.value, text, turns=_before(run, guardrail, applies_to))
        for applies_to, text in texts
        if text
        for guardrail in policy.deferred(applies_to)
    )


def _handed_over(run: Run, guardrail: Guardrail, applies_to: AppliesTo) -> tuple[Turn, ...] | None:
    """What was said before, where it is stored nowhere; None: a worker reads it in the conversation."""
    return _before(run, guardrail, applies_to) if run.handed_over else None


def _before(run: Run, guardrail: Guardrail, applies_to: AppliesTo) -> tuple[Turn, ...] | None:
    """What was said before, for who wants to know."""
    if not guardrail.impl.wants_conversation:
        return None
    turns = run.turns
    if applies_to is AppliesTo.PROMPT:
        turns = turns[: max((n for n, turn in enumerate(turns) if turn.role == "user"), default=0)]
    return conversing.told(guardrail, turns)


def closing(
    run: Run,
    answer: Answer,
    result: Result,
    stored: Ending,
    state: State | None,
    *,
    workers: bool,
) -> list[ServerEvent]:
    """What readers are told when the end has been stored. ``workers``: any of them lives."""
    events = answer.closings()
    if result.error_code:
        events.append(ErrorEvent(result.error_code, result.error, result.recoverable))
    events.append(MessageUpdate(run.started.answer_id, stored.content, stored.metadata))
    events.append(_timing(answer))
    if run.prompt.blocked is None:
        immediate = Checkpoint.IMMEDIATE.value
        running = {guardrail.name for guardrail in run.policy.running(AppliesTo.RESPONSE)}
        events += [line for name, line in answer.lines.items() if line.checkpoint == immediate and name in running]
    note = None if workers else "No worker is running: the check waits until one is back."
    held = {item.guardrail for item in stored.deferred if item.held}
    for name in dict.fromkeys(item.guardrail for item in stored.deferred if not item.held):
        events.append(GuardrailStatus(name, Checkpoint.DEFERRED.value, "waiting", error=note))
    events += [GuardrailStatus(name, Checkpoint.DEFERRED.value, "checking") for name in sorted(held)]
    events.append(Done(stored.content, stored.outcome.value))
    if state is not None:
        events.append(StateChange(state.value, stored.outcome.value))
    return events


def _immediate(run: Run, answer: Answer, feeds_ms: Sequence[float]) -> list[GuardrailStatus]:
    """How the IMMEDIATE guardrails' lines end. Their times are those of the gates, which ask all of them at once."""
    if run.prompt.blocked is not None:
        return []
    last, p95 = _last_and_p95(feeds_ms)
    return [
        GuardrailStatus(each.name, each.checkpoint.value, immediate_state(each, answer.findings), last, p95)
        for each in run.policy.running(AppliesTo.RESPONSE)
        if each.checkpoint is Checkpoint.IMMEDIATE
    ]


def _lines(answer: Answer) -> dict[str, object]:
    """The panel's lines as they stand at the end, for a page that is loaded later."""
    return {"lines": {name: line.payload() for name, line in answer.lines.items()}} if answer.lines else {}


def policy_ref(policy: Policy) -> PolicyRef:
    """The policy as events and records name it."""
    return PolicyRef(name=policy.name, version=policy.version, digest=policy.digest)


def prompt_metadata(prompt: CheckedText) -> dict[str, object]:
    """What is stored and told beside a prompt's visible text."""
    status = Message.Status.BLOCKED if prompt.blocked is not None else Message.Status.COMPLETE
    return {"status": status.value, "redactions": [list(pair) for pair in prompt.redactions]}


def _timing(answer: Answer) -> Timing:
    return Timing(
        arrivals=answer.arrivals.points,
        releases=answer.releases.points,
        calls=1,
        audit_rows=3 + len(answer.findings),  # the session, and that it was opened and sealed
        naive_calls=answer.arrivals.count,
    )


def _last_and_p95(samples: Sequence[float]) -> tuple[float | None, float | None]:
    if not samples:
        return None, None
    return round(samples[-1], 4), round(sorted(samples)[int(len(samples) * 0.95)], 4)
