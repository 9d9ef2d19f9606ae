"""Beginning a session: everything that is checked before the first row is written, and then the pump.

Exists so that sockets, REST and the terminal begin a session in the same way. Protects two rules: what can be refused
is refused before a session exists, with the field named; and the provider is called only with a prompt that has
passed the prompt guardrails, in the form that they left.

    StartRefused     code, message and field; nothing was stored
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from uuid import uuid4

import structlog
from django.core.exceptions import ObjectDoesNotExist

from guardrails.cohorts import Subject as Whose
from guardrails.findings import AppliesTo
from guardrails.policy import Policy
from guardrails.selectors import NOBODY, PolicyUnavailable, Running, running_policy
from streaming import conversing, demotion, prompting, rollout, selectors, sessions, tasks
from streaming.bookends import Run, policy_ref, prompt_metadata
from streaming.conf import Conf, conf
from streaming.core.text import unusable
from streaming.correlation import correlation_of
from streaming.database import in_database
from streaming.frames import FrameError, StartFrame, check_lengths
from streaming.log import SessionLog
from streaming.messages import BadMessages
from streaming.open_sessions import TooManyOpen, place
from streaming.prompting import Prompted
from streaming.providers.base import (
    Provider,
    ProviderRequest,
    UnknownProvider,
    UnknownScenario,
    get_provider,
)
from streaming.providers.scripted import ALL_SCENARIOS, OWN_TEXT
from streaming.providers.scripted_tools import TOOL_SCENARIOS
from streaming.pump import Pump, Surroundings
from streaming.registry import spawn
from streaming.resilience import Upstreams
from streaming.rollout import Decision, Marks, RolledOut, Subject
from streaming.sessions import NewSession, Started, Visitor
from streaming.together import together
from streaming.tools.base import specs
from streaming.workers import workers_alive

OWN_TEXT_PROMPT = "Guard my own text."
"""Stands in the conversation where the visitor pasted a text instead of asking something."""


class StartRefused(FrameError):
    """A session that did not begin."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a caller brings instead of what is set up here: a provider, a policy, somebody who makes deferred checks.

    ``flagged`` False: the rollout flag is none of its business; it streams unless it says ``use_streaming`` false.
    """

    provider: Provider | None = None
    policy: Policy | None = None
    queue_checks: Callable[[str], Awaitable[None]] | None = None
    flagged: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, under which policy if none is named, and whether the whole policy runs in MONITOR.

    ``marks``: what the call or socket says that a rollout flag under test looks at. ``correlation_id``: who has none is
    given one.
    """

    visitor: Visitor
    default_policy: str
    monitor: bool = False
    correlation_id: str = ""
    own: Own = Own()
    marks: Marks = field(default_factory=Marks)


async def start_chat(frame: StartFrame, asked: Asked, log: SessionLog, settings: Conf | None = None) -> Started:
    """Check, store, and start the pump; returns as soon as the rows exist. Raises ``StartRefused``."""
    settings = settings or conf()
    own = asked.own
    prompt = "" if frame.messages is not None else _prompt(frame, settings)
    fresh_id = "" if frame.conversation_id else str(uuid4())
    whose = Whose(frame.conversation_id or fresh_id, asked.visitor.user_id)
    running = Running(own.policy) if own.policy else await load_running(frame.policy or asked.default_policy, whose)
    policy = running.policy
    provider, request = _provider(frame, own)
    session_id = str(uuid4())
    try:
        async with place(log, asked.visitor.client, session_id, settings):
            prompted = await _prompted(frame, asked, running, prompt, settings)
    except TooManyOpen as error:
        raise StartRefused(error.code, str(error)) from None
    request = replace(request, messages=prompted.messages)
    new = NewSession(
        visitor=asked.visitor,
        prompt=prompted.checked.visible,
        policy=policy_ref(policy),
        provider=provider.name,
        model=frame.model or provider.default_model,
        conversation_id=frame.conversation_id,
        prompt_metadata=prompt_metadata(prompted.checked),
        blocked=prompted.checked.blocked is not None,
        monitor=asked.monitor,
        correlation_id=asked.correlation_id or correlation_of(""),
        fresh_id=fresh_id,
        shadow=running.shadow.version if running.shadow else 0,
        session_id=session_id,
    )
    subject = Subject(
        frame.conversation_id or fresh_id, asked.visitor.user_id, frame.use_streaming, asked.marks, own.flagged
    )
    started, decision = await together(partial(_begin, new, subject, request, settings))
    run = Run(
        started=started,
        policy=policy,
        monitor=asked.monitor,
        prompt_raw=prompted.raw,
        prompt=prompted.checked,
        upstreams=RolledOut(_upstreams(provider, own, request), decision, subject, settings),
        request=request,
        fallback=decision.fallback,
        shadow=running.shadow,
        looked=prompted.looked,
        earlier=prompted.earlier,
        handed_over=frame.messages is not None,
    )
    alive = _always if own.queue_checks else workers_alive
    around = Surroundings(log, settings, own.queue_checks or tasks.queue_session, alive)
    with structlog.contextvars.bound_contextvars(correlation_id=started.correlation_id):
        spawn(started.session_id, Pump(run, around).run())
    return started


def _upstreams(provider: Provider, own: Own, request: ProviderRequest) -> Upstreams:
    """A provider that the caller brings is the only one that is asked."""
    return Upstreams((provider,)) if own.provider is not None else Upstreams.configured(provider, request)


async def _always() -> bool:
    return True


def _begin(new: NewSession, subject: Subject, request: ProviderRequest, settings: Conf) -> tuple[Started, Decision]:
    """Decide and store in one visit to the database's thread."""
    decision = rollout.decide(subject, request, settings)
    return sessions.start_session(replace(new, streaming=decision.streaming, fallback=decision.fallback)), decision


def _provider(frame: StartFrame, own: Own) -> tuple[Provider, ProviderRequest]:
    """Who is asked, and the request as far as the frame alone says it."""
    try:
        provider = own.provider or get_provider(frame.provider)
        offered = specs() if frame.tools or frame.scenario in TOOL_SCENARIOS else ()
        request = ProviderRequest((), frame.model, frame.scenario, frame.text, offered, max_tokens=frame.max_tokens)
        provider.validate(request)
    except UnknownProvider as error:
        raise StartRefused("unknown_provider", f"{str(error).capitalize()}.", "provider") from None
    except UnknownScenario as error:
        raise StartRefused("unknown_scenario", f"{str(error).capitalize()}.", "scenario") from None
    return provider, request


async def _prompted(frame: StartFrame, asked: Asked, running: Running, prompt: str, settings: Conf) -> Prompted:
    """Prompt and history after the guardrails; messages that a client hands over are the whole history."""
    policy = running.policy
    beside = () if running.shadow is None or running.shadow.policy is None else (running.shadow.policy,)
    wanted = max(conversing.turns_wanted(kind, policy, *beside) for kind in AppliesTo)
    earlier, history = await _history(asked.visitor, frame.conversation_id, settings, wanted)
    if frame.messages is None:
        return await prompting.with_history(policy, prompt, history, earlier=earlier, monitor=asked.monitor)
    try:
        return await prompting.handed_over(policy, frame.messages, monitor=asked.monitor)
    except BadMessages as error:
        raise StartRefused(error.code, f"“{error.field}”: {error}", error.field) from None


def _prompt(frame: StartFrame, settings: Conf) -> str:
    """The prompt to use. A scenario brings its own; pasted text needs none."""
    prompt = frame.prompt
    if frame.scenario == OWN_TEXT:
        if not frame.text.strip():
            raise StartRefused("empty_text", "Paste a text to guard first.", "text")
        prompt = prompt if prompt.strip() else OWN_TEXT_PROMPT
    elif not prompt.strip() and (scenario := ALL_SCENARIOS.get(frame.scenario)):
        prompt = scenario.prompt
    if not prompt.strip():
        raise StartRefused("empty_prompt", "The prompt is empty.", "prompt")
    for name, value in (("prompt", prompt), ("text", frame.text)):
        if why := unusable(value):
            raise StartRefused("invalid_text", f"“{name}” {why}.", name)
    try:
        check_lengths(prompt, frame.text, settings)
    except FrameError as error:
        raise StartRefused(error.code, str(error), error.field) from None
    return prompt


async def load_running(name: str, whose: Whose = NOBODY) -> Running:
    """The version of that policy that this conversation runs, and its shadow. Raises ``StartRefused``."""
    return await in_database(running_now)(name, whose)


def running_now(name: str, whose: Whose = NOBODY) -> Running:
    """The same, in a thread of the database's, with guardrails that are slower than they declare where they are to run
    now."""
    try:
        running = running_policy(name, whose)
    except PolicyUnavailable as error:
        raise StartRefused("policy_unavailable", str(error), "policy") from None
    return replace(running, policy=demotion.scheduled(running.policy))


async def _history(visitor: Visitor, conversation_id: str, settings: Conf, wanted: int) -> selectors.History:
    if not conversation_id:
        return (), ()
    try:
        return await in_database(selectors.history_and_earlier)(
            visitor, conversation_id, settings.history_messages, wanted
        )
    except ObjectDoesNotExist:
        raise StartRefused("unknown_conversation", "There is no such conversation.", "conversation_id") from None
