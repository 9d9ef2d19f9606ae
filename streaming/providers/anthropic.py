"""The Messages API of Anthropic, and whatever else speaks it.

Configured by the names that the vendor's own tools read: ``ANTHROPIC_BASE_URL``, ``ANTHROPIC_API_KEY``,
``ANTHROPIC_MODEL``; offered only when one of them is set. ``ANTHROPIC_THINKING_TOKENS`` asks for thinking, which this
vendor's models do only when asked, with that many tokens beside those of the answer; ``ANTHROPIC_MAX_TOKENS`` is the
limit of answers whose request names none. Protects the form of the request, which this dialect is strict about: system
prompts stand apart, neighbours of one role are one message, a user begins, every tool call is an object, no text is
empty, and thinking goes back only with its signature and before the calls that it led to.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from streaming.core.events import ProviderEvent
from streaming.providers import base
from streaming.providers.anthropic_events import MessageReader, whole
from streaming.providers.http import Call, HttpProvider
from streaming.providers.sampling import written

DEFAULT_BASE_URL = "https://api.anthropic.com"
DEFAULT_MODEL = "claude-sonnet-4-5"
VERSION = "2023-06-01"
MAX_TOKENS = 4096
"""The dialect wants a limit with every request; this one is used where neither request nor setting names one."""

BEFORE = "(The conversation began earlier.)"
"""Stands before a conversation that an assistant's message begins: the vendor takes only such that a user begins."""

ANSWER_TOKENS = range(1, 1_000_001)

THINKING_TOKENS = range(1024, 1_000_001)
"""From the vendor's least to more than any model has."""

Block = dict[str, object]


class AnthropicProvider(HttpProvider):
    """``POST {base_url}/v1/messages``."""

    name = "anthropic"
    label = "Anthropic"
    answers_at = "/v1/messages"
    lists_at = "/v1/models"

    def __init__(
        self,
        base_url: str,
        api_key: str = "",
        model: str = "",
        limits: base.TimeLimits | None = None,
        *,
        thinking_tokens: int = 0,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        # The vendor's own clients are given the address without the version; people write both.
        super().__init__(base_url.rstrip("/").removesuffix("/v1"), api_key, model or DEFAULT_MODEL, limits)
        self._thinking_tokens = thinking_tokens
        self._max_tokens = max_tokens

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> AnthropicProvider | None:
        """None when neither base URL, key nor model is set. Raises ``ValueError`` naming an ill-formed variable."""
        url, key, model = (env.get(f"ANTHROPIC_{part}", "").strip() for part in ("BASE_URL", "API_KEY", "MODEL"))
        if not (url or key or model):
            return None
        limits = base.TimeLimits.from_environment(env, cls.name)
        thinking = _tokens(env, "THINKING_TOKENS", THINKING_TOKENS, 0)
        most = _tokens(env, "MAX_TOKENS", ANSWER_TOKENS, MAX_TOKENS)
        return cls(url or DEFAULT_BASE_URL, key, model, limits, thinking_tokens=thinking, max_tokens=most)

    def _call(self, request: base.ProviderRequest, *, streaming: bool) -> Call:
        if request.choices != 1:
            raise base.ProviderRefused("this provider gives one answer at a time; ask with one choice")
        sampling = written(request.sampling, self.name)
        # The vendor refuses thinking together with wishes for how words are picked; it is the client who made those.
        thinking = 0 if sampling.keys() - {"stop_sequences"} else self._thinking_tokens
        thinking = thinking if _may_think(request.messages) else 0
        body: dict[str, object] = {
            "model": request.model or self._model,
            # What is thought counts as output here; what was asked for is the length of the answer.
            "max_tokens": (self._max_tokens if request.max_tokens is None else request.max_tokens) + thinking,
            "messages": conversation(request.messages),
            "stream": streaming,
        }
        if system := "\n\n".join(m.text for m in request.messages if m.role == "system" and m.text.strip()):
            body["system"] = system
        if thinking:
            body["thinking"] = {"type": "enabled", "budget_tokens": thinking}
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
                for tool in request.tools
            ]
        return Call(self.answers_at, self.headers(streaming=streaming), body | sampling)

    def headers(self, *, streaming: bool) -> dict[str, str]:
        """What goes with every request."""
        headers = {
            "Accept": "text/event-stream" if streaming else "application/json",
            "anthropic-version": VERSION,
        }
        if self._key:
            headers["x-api-key"] = self._key
        return headers

    def _reader(self, request: base.ProviderRequest) -> MessageReader:
        return MessageReader()

    def _whole(self, document: dict[str, object], request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        return whole(document)


def _tokens(env: Mapping[str, str], name: str, sizes: range, unset: int) -> int:
    text = env.get(f"ANTHROPIC_{name}", "").strip()
    if not text:
        return unset
    tokens = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if tokens not in sizes:
        raise ValueError(f"ANTHROPIC_{name} is a whole number from {sizes.start} to {sizes.stop - 1}, or not set")
    return tokens


def _may_think(messages: Sequence[base.ChatMessage]) -> bool:
    """Whether thinking may be asked for: not when the last answer made calls and its signed thinking is not at hand.

    The vendor refuses to go on thinking after such calls, and those of another provider never have any.
    """
    last = next((message for message in reversed(messages) if message.role == "assistant"), None)
    return last is None or not last.tool_calls or bool(last.thinking and last.signature)


def conversation(messages: Sequence[base.ChatMessage]) -> list[dict[str, object]]:
    """The messages as the dialect has them. Raises ``ProviderRefused`` where nothing is asked."""
    turns: list[tuple[str, list[Block]]] = []
    ids = _Ids()
    for message in messages:
        if message.role == "system" or not (blocks := list(_blocks(message, ids))):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if not turns:
        raise base.ProviderRefused("the conversation has no message with text in it")
    if turns[0][0] == "assistant":
        turns.insert(0, ("user", [{"type": "text", "text": BEFORE}]))
    return [{"role": role, "content": blocks} for role, blocks in turns]


class _Ids:
    """Ids of calls as the dialect takes them: of few characters, and never twice in a conversation.

    Calls that another provider made may have any id, and some begin to count anew with every answer.
    """

    def __init__(self) -> None:
        self._sent: dict[str, str] = {}
        self._used: set[str] = set()

    def made(self, id_: str) -> str:
        """The id to send for a call."""
        plain = id_ if re.fullmatch(r"[a-zA-Z0-9_-]+", id_) else "call_" + id_.encode(errors="replace").hex()
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        self._sent[id_] = sent = next(name for name in itertools.chain((plain,), numbered) if name not in self._used)
        self._used.add(sent)
        return sent

    def answered(self, id_: str) -> str:
        """The id that was sent for the latest call of this id."""
        return self._sent.get(id_, id_)


def _blocks(message: base.ChatMessage, ids: _Ids) -> Iterator[Block]:
    if message.role == "tool":
        call_id = ids.answered(message.tool_call_id)
        result: Block = {"type": "tool_result", "tool_use_id": call_id, "content": message.text}
        yield {**result, "is_error": True} if message.failed else result
        return
    if message.thinking and message.signature:
        yield {"type": "thinking", "thinking": message.thinking, "signature": message.signature}
    if message.text.strip():
        yield {"type": "text", "text": message.text}
    for call in message.tool_calls:
        yield {"type": "tool_use", "id": ids.made(call.id), "name": call.name, "input": _object(call.arguments)}


def _object(arguments: str) -> dict[str, object]:
    """The arguments as the object that the dialect wants; what a model got wrong is told to it as it was."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"not_an_object": arguments}
