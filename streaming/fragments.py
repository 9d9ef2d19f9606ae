"""Server event -> HTML for the page's socket.

Exists so that the page is driven by exactly the events that every other reader gets: one event in, one piece of HTML
out, each piece addressed to the element that it changes (``hx-swap-oob``). Protects two rules: only released text and
placeholders ever become markup (a held character has no way in, because no event carries it), and nothing that a
model or a visitor wrote can become markup (every value is escaped here or by the template).

Every piece begins with a cursor: the seq and session it belongs to. The page reads it *before* it applies the rest,
so that after a lost connection it can resume from there and drop what it has already shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.template.loader import render_to_string
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from streaming.listing import listed
from streaming.presentation import (
    FindingView,
    MessageView,
    PromptView,
    StatusView,
    ToolView,
    dom_id,
    hold_note,
    outcome_words,
    state_words,
)
from streaming.timeline import TimelineView

Event = Mapping[str, object]
SHIMMER_CHARS = 600
"""Characters that a shimmer is long at most: it is drawn anew twenty times a second, and its note has the number."""


@dataclass(frozen=True, slots=True)
class FragmentContext:
    """What a fragment must know beyond its event: whose page it is sent to."""

    conversation_id: str = ""


def render(event: Event, *, context: FragmentContext) -> str:
    """The HTML of one event (JSON-ready dict, names and fields of ``streaming.core.events``).

    Envelope fields (``seq``, ``session_id``) may be missing on errors that belong to no session. An event of an
    unknown type renders as its cursor alone, so that a newer worker never breaks an older page.
    """
    kind = str(event.get("type", ""))
    renderer = _RENDERERS.get(kind)
    if kind == "message_new" and event.get("role") == "user":
        renderer = _prompt_new
    body = renderer(event, context) if renderer is not None else ""
    return _cursor(event, kind) + body


def visible(text: str) -> SafeString:
    """``text`` as HTML that reads back as exactly the same characters.

    Escaping alone is not enough: an HTML parser turns a bare carriage return into a line feed.
    """
    return mark_safe(escape(text).replace("\r", "&#13;"))  # noqa: S308 - escaped in the same expression


def _cursor(event: Event, kind: str) -> str:
    return (
        f'<i id="cursor" hx-swap-oob="true" hidden data-type="{escape(kind)}" data-seq="{_int(event, "seq")}"'
        f' data-session="{escape(_text(event, "session_id"))}" data-target="{escape(_target(event, kind))}"></i>'
    )


def _target(event: Event, kind: str) -> str:
    """Id of the element that must exist for this piece to make sense; empty when it always does."""
    if kind == "guardrail_status":
        return dom_id("g", _text(event, "guardrail"))
    if kind in ("finding", "state", "done", "timing"):
        return dom_id("s", _text(event, "session_id"))
    if kind in ("tool_progress", "tool_result"):
        return _tool(event).dom
    if kind in ("message_stream", "hold", "redaction", "blocked", "message_update"):
        return dom_id("m", _text(event, "message_id"))
    return ""


def _text(event: Event, key: str) -> str:
    value = event.get(key)
    return "" if value is None else str(value)


def _int(event: Event, key: str) -> int:
    value = event.get(key)
    return value if isinstance(value, int) else 0


def _ms(event: Event, key: str) -> float | None:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else None


# --- text: the hot path, so without a template (a template costs ten times what the gate does) ----------------------


def _message_stream(event: Event, context: FragmentContext) -> str:
    chunk = _text(event, "chunk")
    if not chunk or _int(event, "choice"):  # the page never asks for more than one answer
        return ""
    part = "thinking" if event.get("channel") == "thinking" else "text"
    return f'<div hx-swap-oob="beforeend:#{dom_id("m", _text(event, "message_id"))}-{part}">{visible(chunk)}</div>'


def _hold(event: Event, context: FragmentContext) -> str:
    if event.get("channel") != "text":
        return ""
    target = dom_id("m", _text(event, "message_id"))
    chars = _int(event, "chars")
    note = hold_note(chars, _text(event, "guardrail"), _text(event, "rule"))
    return (
        # The shimmer is as long as what is held, and made of no-break spaces: nothing in it to read.
        f'<span id="{target}-hold" hx-swap-oob="true" class="shimmer" aria-hidden="true">'
        f"{'&nbsp;' * min(chars, SHIMMER_CHARS)}</span>"
        f'<span id="{target}-note" hx-swap-oob="true" class="note" data-chars="{chars}">{escape(note)}</span>'
    )


def _redaction(event: Event, context: FragmentContext) -> str:
    if event.get("channel") == "thinking":  # as plain text there: what is stored of thinking knows no chips either
        target = dom_id("m", _text(event, "message_id"))
        return f'<div hx-swap-oob="beforeend:#{target}-thinking">{visible(_text(event, "label"))}</div>'
    if event.get("channel") != "text":
        return ""
    chip = render_to_string("streaming/message.html#chip", {"label": _text(event, "label")})
    return f'<div hx-swap-oob="beforeend:#{dom_id("m", _text(event, "message_id"))}-text">{chip}</div>'


# --- everything that happens a few times per answer -----------------------------------------------------------------


def _message_new(event: Event, context: FragmentContext) -> str:
    policy = event.get("policy")
    message = MessageView.pending(
        message_id=_text(event, "message_id"),
        session_id=_text(event, "session_id"),
        provider=_text(event, "provider"),
        model=_text(event, "model"),
        policy=policy if isinstance(policy, Mapping) else {},
    )
    return render_to_string(
        "streaming/events.html#answer_new",
        {"message": message, "conversation_id": _text(event, "conversation_id") or context.conversation_id},
    )


def _prompt_new(event: Event, context: FragmentContext) -> str:
    prompt = PromptView(id=_text(event, "message_id"), session_id=_text(event, "session_id"))
    return render_to_string(
        "streaming/events.html#prompt_new",
        {"message": prompt, "conversation_id": _text(event, "conversation_id") or context.conversation_id},
    )


def _message_update(event: Event, context: FragmentContext) -> str:
    metadata = event.get("metadata")
    return render_to_string(
        "streaming/events.html#message_update",
        {
            "message": MessageView.ended(
                message_id=_text(event, "message_id"),
                session_id=_text(event, "session_id"),
                content=_text(event, "content"),
                metadata=metadata if isinstance(metadata, Mapping) else {},
            )
        },
    )


def _guardrail_status(event: Event, context: FragmentContext) -> str:
    return render_to_string("streaming/panel.html#status", {"status": StatusView.of(event), "oob": True})


def _finding(event: Event, context: FragmentContext) -> str:
    """An item of the list, or one more that is counted: the page adds it to the number of its guardrail."""
    target = dom_id("s", _text(event, "session_id"))
    if listed(event):
        return render_to_string("streaming/events.html#finding", {"finding": FindingView.of(event), "target": target})
    return render_to_string(
        "streaming/events.html#finding_counted", {"name": _text(event, "guardrail"), "number": 1, "target": target}
    )


def _blocked(event: Event, context: FragmentContext) -> str:
    return render_to_string(
        "streaming/events.html#blocked",
        {
            "target": dom_id("m", _text(event, "message_id")),
            "reason": _text(event, "reason"),
            "guardrail": _text(event, "guardrail"),
            "withheld": _int(event, "withheld_chars"),
        },
    )


def _tool(event: Event) -> ToolView:
    return ToolView(
        _text(event, "session_id"),
        _text(event, "id"),
        _text(event, "name"),
        _text(event, "arguments"),
        _text(event, "result"),
        _text(event, "error"),
    )


def _tool_call(event: Event, context: FragmentContext) -> str:
    return render_to_string(
        "streaming/events.html#tool_call", {"tool": _tool(event), "session": dom_id("s", _text(event, "session_id"))}
    )


def _tool_progress(event: Event, context: FragmentContext) -> str:
    progress = _ms(event, "progress") or 0.0
    return render_to_string(
        "streaming/events.html#tool_progress",
        {
            "id": _tool(event).dom,
            "message": _text(event, "message"),
            "percent": round(100 * min(max(progress, 0.0), 1.0)),
        },
    )


def _tool_result(event: Event, context: FragmentContext) -> str:
    tool = _tool(event)
    return render_to_string(
        "streaming/events.html#tool_result", {"id": tool.dom, "result": tool.result, "error": tool.error}
    )


def _timing(event: Event, context: FragmentContext) -> str:
    return render_to_string("streaming/timeline.html#timeline", {"timeline": TimelineView.of(event), "oob": True})


def _error(event: Event, context: FragmentContext) -> str:
    return render_to_string(
        "streaming/events.html#error",
        {
            "code": _text(event, "code"),
            "message": _text(event, "message"),
            "field": _text(event, "field"),
            "recoverable": event.get("recoverable") is True,
        },
    )


def _done(event: Event, context: FragmentContext) -> str:
    outcome = _text(event, "outcome")
    return render_to_string(
        "streaming/events.html#done",
        {
            "session": dom_id("s", _text(event, "session_id")),
            "session_id": _text(event, "session_id"),
            "outcome": outcome,
            "words": outcome_words(outcome),
        },
    )


def _state(event: Event, context: FragmentContext) -> str:
    state, outcome = _text(event, "state"), _text(event, "outcome")
    return render_to_string(
        "streaming/events.html#state",
        {
            "session": dom_id("s", _text(event, "session_id")),
            "session_id": _text(event, "session_id"),
            "state": state,
            "outcome": outcome,
            "words": state_words(state, outcome),
        },
    )


_RENDERERS: dict[str, Callable[[Event, FragmentContext], str]] = {
    "message_new": _message_new,
    "message_stream": _message_stream,
    "message_update": _message_update,
    "hold": _hold,
    "redaction": _redaction,
    "guardrail_status": _guardrail_status,
    "finding": _finding,
    "blocked": _blocked,
    "tool_call": _tool_call,
    "tool_progress": _tool_progress,
    "tool_result": _tool_result,
    "timing": _timing,
    "error": _error,
    "done": _done,
    "state": _state,
}
