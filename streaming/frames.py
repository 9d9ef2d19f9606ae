"""What a client may say on a socket, and how a wrong frame is answered.

Exists so that both sockets and the later REST start share one reading of the same fields. Protects the rule for bad
input: whatever arrives, the answer is a clear error that names the field, never a traceback.

    FrameError     code, message and field of a frame that cannot be accepted
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from streaming.conf import Conf
from streaming.core.text import unusable
from streaming.given import Given, as_text
from streaming.messages import BadMessages, MessageIn, check_messages


class FrameError(ValueError):
    """A frame that is refused. ``field`` is empty when the frame as a whole is wrong."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.field = field


def _whole_number(value: object) -> object:
    """Form fields arrive as text; a number in text is a number."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16 else value


def _yes_or_no(value: object) -> object:
    """Form fields arrive as text: a box that is checked says ``on``, one left alone says nothing."""
    words = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False, "": None}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


YesOrNo = Annotated[bool | None, BeforeValidator(_yes_or_no)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]
ConversationName = Annotated[Name, BeforeValidator(as_text, json_schema_input_type=Name | int)]
SHOWN = 200
"""Characters of a name of the client's own that an answer repeats."""
MAX_TOKENS = 1_000_000
"""More than any model writes."""
MAX_SEQ = 999_999_999_999_999
"""More than any session has, and few enough for every store."""
Seq = Annotated[int, BeforeValidator(_whole_number), Field(ge=0, le=MAX_SEQ)]


def _number_or_nothing(value: object) -> object:
    """A field of a form that is left empty says nothing."""
    return None if isinstance(value, str) and not value.strip() else _whole_number(value)


Tokens = Annotated[Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None, BeforeValidator(_number_or_nothing)]


class _Frame(Given):
    # Unknown fields are passed over: htmx adds HEADERS, and a newer client may know more than this server.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class StartFrame(_Frame):
    """Begin a session with a ``prompt``, or with ``messages`` that a client keeps itself.

    ``tools`` offers the tools that are registered here. ``use_streaming`` false asks for an answer in one piece; null
    and true leave it to the rollout flag. ``max_tokens`` bounds the answer; null leaves that to the provider. ``text``
    is what the scenario ``own_text`` streams.
    """

    type: Literal["start"]
    prompt: str = ""
    messages: list[MessageIn] | None = None
    tools: YesOrNo = False
    use_streaming: YesOrNo = None
    max_tokens: Tokens = None
    provider: Name = "scripted"
    model: Name = ""
    policy: Name = ""
    conversation_id: ConversationName = ""
    scenario: Name = ""
    text: str = ""


class InterruptFrame(_Frame):
    """Stop a session; without an id the one that this socket started last, or else the one that it resumed."""

    type: Literal["interrupt"]
    session_id: Name = ""


class ResumeFrame(_Frame):
    """Read a session's events from ``last_seq`` on."""

    type: Literal["resume"]
    session_id: Name
    last_seq: Seq = 0


class AckFrame(_Frame):
    """Everything up to ``seq`` has been applied; without a session id, of the session read last."""

    type: Literal["ack"]
    seq: Seq
    session_id: Name = ""


Frame = StartFrame | InterruptFrame | ResumeFrame | AckFrame
_adapter: TypeAdapter[Frame] = TypeAdapter(Annotated[Frame, Field(discriminator="type")])
_TYPES = "start, interrupt, resume, ack"


def parse_frame(text: str, limits: Conf) -> Frame:
    """The frame that ``text`` is. Raises ``FrameError``."""
    if len(text) > limits.max_frame_bytes or len(text.encode(errors="surrogatepass")) > limits.max_frame_bytes:
        raise FrameError("too_large", f"A frame may have at most {limits.max_frame_bytes:,} bytes.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise FrameError("not_json", "The frame is not JSON.") from None
    if not isinstance(value, dict):
        raise FrameError("not_an_object", "The frame is not a JSON object.")
    return frame_of(value, limits)


def frame_of(value: Mapping[str, object], limits: Conf) -> Frame:
    """The frame with these fields, however they came. Raises ``FrameError``."""
    if value.get("type") not in ("start", "interrupt", "resume", "ack"):
        raise FrameError("unknown_type", f"The frame's type must be one of: {_TYPES}.", "type")
    for name, part in value.items():
        if why := unusable(name):  # nor could an answer that names it be sent
            raise FrameError("invalid_text", f"A field's name {why}.")
        if isinstance(part, str) and (why := unusable(part)):
            shown = name if len(name) <= SHOWN else f"{name[:SHOWN]}…"
            raise FrameError("invalid_text", f"“{shown}” {why}.", shown)
    try:
        frame = _adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = place_of(first["loc"][1:])
        raise FrameError("invalid_field", f"“{name}”: {words_of(first)}.", name) from None
    if isinstance(frame, StartFrame):
        check_lengths(frame.prompt, frame.text, limits)
        _check_conversation(frame, limits)
    return frame


def words_of(error: Mapping[str, object]) -> str:
    """What is wrong with a value, as ``errors()`` of a ``ValidationError`` has it, without the names of our classes."""
    return "Input should be an object" if error.get("type") == "model_type" else str(error.get("msg", "is not valid"))


def place_of(path: Sequence[int | str]) -> str:
    """A place in nested fields as clients write it: ``messages[2].content``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _check_conversation(frame: StartFrame, limits: Conf) -> None:
    if frame.messages is None:
        return
    if frame.prompt.strip() or frame.scenario:
        other = "prompt" if frame.prompt.strip() else "scenario"
        raise FrameError("invalid_field", f"A start has either “messages” or “{other}”, not both.", "messages")
    try:
        check_messages(frame.messages, limits)
    except BadMessages as error:
        raise FrameError(error.code, f"“{error.field}”: {error}", error.field) from None


def check_lengths(prompt: str, text: str, limits: Conf) -> None:
    """Refuse a prompt or an own text over its limit. Raises ``FrameError``."""
    for name, value, most in (("prompt", prompt, limits.max_prompt_chars), ("text", text, limits.max_own_text_chars)):
        if len(value) > most:
            words = "The prompt" if name == "prompt" else "The text"
            raise FrameError("too_long", f"{words} has {len(value):,} characters; at most {most:,} are allowed.", name)
