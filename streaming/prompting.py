"""What a model is going to be asked: the prompt and what goes before it, after the guardrails.

Exists because a conversation comes from our database or from the client, and both end in one list of messages.
Protects the rule that nothing reaches a model that has not passed a guardrail: what our database holds passed when it
was new; what a client hands over passes now, message by message, each text on the channel that it belongs to.
A guardrail that decides is waited for, and no other: the rest is asked while the provider already answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace

from guardrails.findings import AppliesTo
from guardrails.kinds.base import Turn
from guardrails.policy import Policy
from streaming.checks import CheckedText, Looked, check_text, immediate_statuses, looked_at
from streaming.core.gate import strongest
from streaming.core.json_text import JsonChannel
from streaming.messages import BadMessages, MessageIn, is_json_object, prompt_at
from streaming.providers.base import ChatMessage, ToolCallMade
from streaming.slices import read


@dataclass(frozen=True, slots=True)
class Prompted:
    """``raw`` is for guardrails only; ``checked`` is what they made of the prompt, with all that they found.

    ``messages``: what a provider is shown, the prompt included. ``looked``: every text that was looked at.
    """

    raw: str
    checked: CheckedText
    messages: tuple[ChatMessage, ...]
    looked: tuple[Looked, ...] = ()
    earlier: tuple[Turn, ...] = ()


async def with_history(
    policy: Policy, prompt: str, history: tuple[ChatMessage, ...], *, earlier: tuple[Turn, ...] = (), monitor: bool
) -> Prompted:
    """A prompt that goes on a conversation of ours. ``earlier``: what was said before the history that a model is
    shown, for guardrails that want to know."""
    turns = (*earlier, *(Turn(message.role, message.text) for message in history))
    checked = await check_text(
        policy, prompt, applies_to=AppliesTo.PROMPT, monitor=monitor, channel="prompt", conversation=turns, later=True
    )
    checked.statuses += immediate_statuses(policy, AppliesTo.PROMPT, checked.findings)
    looked = looked_at(checked, prompt, AppliesTo.PROMPT, "prompt", turns)
    return Prompted(prompt, checked, (*history, ChatMessage("user", checked.visible)), (looked,), earlier)


async def handed_over(policy: Policy, given: Sequence[MessageIn], *, monitor: bool) -> Prompted:
    """A conversation that the client keeps; its last user's message is the prompt.

    A block anywhere in it blocks the prompt. Raises ``BadMessages`` where a redaction leaves arguments that are no
    longer JSON.
    """
    asked = prompt_at(given)
    turns = tuple(Turn(message.role, message.content) for message in given)
    calls: list[tuple[int, str, JsonChannel, str]] = []
    for number, message in enumerate(given):
        for call in message.tool_calls:
            written = JsonChannel()  # looked at as it reads: a value that is spelled in escapes is the same value
            calls.append((number, call.id, written, await read(written, call.arguments)))
    jobs: list[tuple[int, str, Coroutine[None, None, CheckedText]]] = []
    texts: list[tuple[str, AppliesTo, str, tuple[Turn, ...]]] = []

    def check(number: int, name: str, text: str, applies_to: AppliesTo, written: JsonChannel | None = None) -> None:
        channel = "prompt" if number == asked else f"messages[{number}]"
        job = check_text(
            policy,
            text,
            applies_to=applies_to,
            monitor=monitor,
            channel=channel,
            conversation=turns[:number],
            later=True,
            written=written,
        )
        jobs.append((number, name, job))
        texts.append((text, applies_to, channel, turns[:number]))

    for number, message in enumerate(given):
        if message.content:
            applies_to = AppliesTo.TOOL_RESULT if message.role == "tool" else AppliesTo.PROMPT
            check(number, "content", message.content, applies_to)
        for _, id_, written, arguments in (one for one in calls if one[0] == number):
            check(number, id_, arguments, AppliesTo.TOOL_ARGUMENTS, written)
    # Verdicts about texts that were judged before are remembered, so a long conversation is not judged anew each time.
    done = await asyncio.gather(*(job for _, _, job in jobs))
    parts = {(number, name): checked for (number, name, _), checked in zip(jobs, done, strict=True)}
    whole = _together(parts[asked, "content"], done)
    whole.statuses += immediate_statuses(policy, AppliesTo.PROMPT, whole.findings)
    visible = {place: checked.visible for place, checked in parts.items()}
    messages = tuple(_message(number, message, visible) for number, message in enumerate(given))
    if whole.blocked is None:
        _check_arguments(messages)
    looked = tuple(looked_at(checked, *about) for checked, about in zip(done, texts, strict=True))
    return Prompted(given[asked].content, whole, messages, looked)


def _together(prompt: CheckedText, all_of_it: Sequence[CheckedText]) -> CheckedText:
    """The prompt's own text with what was found anywhere."""
    findings = [finding for checked in all_of_it for finding in checked.findings]
    return replace(
        prompt,
        action=strongest(findings),
        findings=findings,
        blocked=next((checked.blocked for checked in all_of_it if checked.blocked is not None), None),
        statuses=[status for checked in all_of_it for status in checked.statuses],
        failed=[name for checked in all_of_it for name in checked.failed],
        later=[question for checked in all_of_it for question in checked.later],
    )


def _message(number: int, message: MessageIn, visible: dict[tuple[int, str], str]) -> ChatMessage:
    calls = tuple(ToolCallMade(call.id, call.name, visible[number, call.id]) for call in message.tool_calls)
    text = visible.get((number, "content"), "")
    return ChatMessage(message.role, text, tool_calls=calls, tool_call_id=message.tool_call_id)


def _check_arguments(messages: Sequence[ChatMessage]) -> None:
    for number, message in enumerate(messages):
        for position, call in enumerate(message.tool_calls):
            if not is_json_object(call.arguments):
                place = f"messages[{number}].tool_calls[{position}].arguments"
                raise BadMessages(place, "With what had to be redacted in them, the arguments are no longer JSON.")
