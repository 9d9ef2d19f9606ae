"""What a person at a terminal wants to know of an answer, gathered from its events.

Pure. Exists so that the screen and the plain output say the same. Protects the terminal itself: whatever a model, a
tool or an endpoint sent is shown as characters and never reaches the terminal as a command (``safe``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Event = Mapping[str, object]

_SHOWN = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t\r"}
_SHOWN |= {0x0D: "", 0x7F: "\u2421"} | {code: "\ufffd" for code in range(0x80, 0xA0)}
FAILED = frozenset({"blocked", "error", "abandoned", "expired"})
"""Outcomes of an answer that nobody got whole, and did not stop."""


def safe(text: object) -> str:
    """The text with control characters made visible: an answer must not move the cursor or rename the window."""
    return str(text).translate(_SHOWN)


@dataclass(slots=True)
class Tool:
    """A tool call under way; ``progress`` 0 to 1."""

    name: str
    message: str = ""
    progress: float = 0.0


@dataclass(slots=True)
class Telling:
    """One answer as far as it has been told. ``lanes``: checkpoint -> guardrail -> state, in the order they were told;
    times in milliseconds since its start."""

    answer_id: str = ""
    lanes: dict[str, dict[str, str]] = field(default_factory=dict)
    held: int = 0
    held_by: str = ""
    tools: dict[str, Tool] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outcome: str = ""
    state: str = ""
    policy: str = ""
    who: str = ""
    first_ms: int | None = None
    done_ms: int = 0

    def take(self, event: Event) -> None:
        """The next event of the session."""
        match event["type"]:
            case "message_new" if event["role"] == "assistant":
                self.answer_id = str(event["message_id"])
                self.who = safe(event["provider"])
                self.policy = _policy(event["policy"])
            case "message_stream" if self.first_ms is None and event["channel"] == "text" and event["chunk"]:
                self.first_ms = int(str(event["ms"]))
            case "guardrail_status":
                lane = self.lanes.setdefault(safe(event["checkpoint"]), {})
                lane[safe(event["guardrail"])] = safe(event["state"]).replace("_", " ")
                if why := event.get("error"):
                    self.notes.append(f"{safe(event['guardrail'])}: {safe(why)}")
            case "hold" if event["channel"] == "text":
                self.held = int(str(event["chars"]))
                self.held_by = ": ".join(safe(event[key]) for key in ("guardrail", "rule") if event[key])
            case "tool_call":
                self.tools[str(event["id"])] = Tool(safe(event["name"]))
            case "tool_progress" if tool := self.tools.get(str(event["id"])):
                tool.message, tool.progress = safe(event["message"]), float(str(event["progress"]))
            case "finding":
                self.findings.append(_finding(event))
            case "blocked":
                withheld = f" {event['withheld_chars']} characters were withheld." if event["withheld_chars"] else ""
                self.notes.append(safe(event["reason"]) + withheld)
            case "error":
                self.notes.append(f"{safe(event['code'])}: {safe(event['message'])}")
            case "message_update" if event["message_id"] == self.answer_id:
                self.who = _who(event["metadata"])
            case "done":
                self.outcome, self.done_ms = str(event["outcome"]), int(str(event["ms"]))
            case "state":
                self.state = str(event["state"])

    def tool_result(self, event: Event) -> str:
        """A finished tool call in one line; the call is not under way any more."""
        tool = self.tools.pop(str(event["id"]), Tool("tool"))
        if (error := event.get("error")) is not None:
            return f"{tool.name} failed: {_short(error)}"
        return f"{tool.name}: {_short(event.get('result'))}"

    def summary(self) -> str:
        """The last line: how the answer ended, and how long it took."""
        parts = [self.outcome or "no answer"]
        if count := len(self.findings):
            parts.append(f"{count} finding{'' if count == 1 else 's'}")
        if self.first_ms is not None:
            parts.append(f"first character after {self.first_ms / 1000:.2f} s")
        if self.outcome:
            parts.append(f"complete after {self.done_ms / 1000:.2f} s")
        return " · ".join([*parts, self.who, self.policy])


def _policy(ref: object) -> str:
    if not isinstance(ref, Mapping) or not ref["digest"]:
        return "NO GUARDRAILS"
    return f"policy {safe(ref['name'])} v{ref['version']}"


def _who(metadata: object) -> str:
    said = metadata if isinstance(metadata, Mapping) else {}
    return f"{safe(said.get('provider', ''))} {safe(said.get('model', ''))}".strip()


def _finding(event: Event) -> str:
    where = "" if event["channel"] == "text" else f" in the {safe(event['channel']).replace('_', ' ')}"
    what = f"{safe(event['guardrail'])}: {safe(event['category'] or event['rule'])}{where}"
    if said := event.get("would_have"):
        return f"{what}, would have been {safe(said)}"
    return f"{what}, {_DONE.get(str(event['action']), safe(event['action']))}"


_DONE = {"redact": "redacted", "mask": "redacted", "block": "blocked", "warn": "warned"}


def _short(value: object, most: int = 200) -> str:
    text = " ".join(safe(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"
