"""A conversation as a client hands it over: ``messages`` in place of a ``prompt``.

Exists for clients that keep their conversations themselves. Protects two rules: what cannot be sent on (images, an
answer to a call that nobody made) is refused with its place named, ``messages[3].content``; and nothing of it reaches
a model unchecked, because every message is taken apart here into text that guardrails read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from streaming.conf import Conf
from streaming.core.text import unusable
from streaming.given import Given

MAX_CALLS = 64
"""Tool calls of one message."""

NOT_TEXT = "only text can be sent on; a list of parts (images, audio, files) is not accepted"


class BadMessages(ValueError):
    """``field`` says where, ``code`` what kind: ``invalid_field``, ``invalid_text``, ``too_long``."""

    def __init__(self, field: str, message: str, code: str = "invalid_field") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def _text(value: object) -> object:
    if isinstance(value, list | dict):
        raise PydanticCustomError("not_text", NOT_TEXT)
    return "" if value is None else value


def _none(value: object) -> None:
    if value:
        raise PydanticCustomError("not_text", NOT_TEXT)


Text = Annotated[str, BeforeValidator(_text)]
Nothing = Annotated[None, BeforeValidator(_none)]
CallId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,200}$")]
"""Ids and names are sent on as they are, so there is no room for prose in them."""


class _Part(Given):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class ToolCallIn(_Part):
    """A call that the model made earlier. ``arguments``: the JSON text of an object."""

    id: CallId
    name: CallId
    arguments: str = "{}"


class MessageIn(_Part):
    """One message. ``tool_calls`` belong to an assistant's, ``tool_call_id`` to a tool's."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    tool_call_id: str = ""
    tool_calls: list[ToolCallIn] = Field(default=[], max_length=MAX_CALLS)
    # Where one vendor's clients put pictures; passed over like other fields, an answer would be about something unseen.
    images: Nothing = None


def check_messages(messages: Sequence[MessageIn], limits: Conf) -> None:
    """Refuse what no model could make sense of, and what is too much. Raises ``BadMessages``."""
    if not messages:
        raise BadMessages("messages", "The list is empty.", "empty_prompt")
    if len(messages) > limits.max_messages:
        raise BadMessages(
            "messages",
            f"There are {len(messages):,} messages; at most {limits.max_messages:,} are allowed.",
            "too_long",
        )
    chars = sum(len(text) for message in messages for _, text in texts(message))
    if chars > limits.max_messages_chars:
        raise BadMessages(
            "messages",
            f"The messages have {chars:,} characters; at most {limits.max_messages_chars:,} are allowed.",
            "too_long",
        )
    calls: set[str] = set()
    for number, message in enumerate(messages):
        _check(message, f"messages[{number}]", calls)
        for position, call in enumerate(message.tool_calls):
            if call.id in calls:
                raise BadMessages(f"messages[{number}].tool_calls[{position}].id", "An earlier call has this id.")
            calls.add(call.id)
    if messages[-1].role not in ("user", "tool"):
        raise BadMessages(
            f"messages[{len(messages) - 1}].role", "The last message is to be answered: its role is user or tool."
        )
    if prompt_at(messages) < 0:
        raise BadMessages("messages", "None of the messages is a user's.")


def _check(message: MessageIn, at: str, calls: set[str]) -> None:
    for name, text in texts(message):
        if why := unusable(text):
            raise BadMessages(f"{at}.{name}", f"The text {why}.", "invalid_text")
        if name != "content" and not is_json_object(text):
            raise BadMessages(f"{at}.{name}", "Arguments are the JSON text of an object.")
    if message.tool_calls and message.role != "assistant":
        raise BadMessages(f"{at}.tool_calls", "Only an assistant's message has tool calls.")
    if message.role == "tool":
        if message.tool_call_id not in calls:
            raise BadMessages(f"{at}.tool_call_id", "No earlier message makes a call with this id.")
    elif message.tool_call_id:
        raise BadMessages(f"{at}.tool_call_id", "Only a tool's message answers a call.")
    elif not message.content.strip() and not message.tool_calls:
        raise BadMessages(f"{at}.content", "The message is empty.")


def is_json_object(text: str) -> bool:
    """Whether ``text`` is JSON whose value is an object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def texts(message: MessageIn) -> list[tuple[str, str]]:
    """Every free text of a message with its place in it."""
    calls = enumerate(message.tool_calls)
    return [("content", message.content), *((f"tool_calls[{n}].arguments", call.arguments) for n, call in calls)]


def prompt_at(messages: Sequence[MessageIn]) -> int:
    """Where the prompt stands: the last message of the user's. -1 when there is none."""
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
