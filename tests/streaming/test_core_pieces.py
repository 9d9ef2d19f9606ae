"""Wire forms, coalescing, SSE parsing and text mending: the small pure parts under every stream."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.findings import Action, Finding, Mode
from streaming.core import events
from streaming.core.buffer import MAX_CHUNK, coalesce, coalesce_stamped
from streaming.core.events import (
    FindingEvent,
    GuardrailStatus,
    MessageStream,
    Redaction,
    ServerEvent,
    StateChange,
    stamp,
)
from streaming.core.sse import SseEvent, SseParser, SseTooLarge
from streaming.core.text import Mender, unusable
from streaming.core.wire import from_json, to_json, to_sse


def test_it_works() -> None:
    event = stamp(MessageStream("m", "text", 0, "hi\n\u2028", False).payload(), seq=3, session_id="s", ms=12)
    frame = to_sse(event).decode()
    assert frame.startswith("event: message_stream\nid: 3\ndata: {")
    assert len(frame.rstrip("\n").split("\n")) == 3
    assert from_json(to_json(event)) == event


def test_field_names_are_the_public_contract() -> None:
    wanted = {
        "message_new": "message_id conversation_id role provider model policy",
        "message_stream": "message_id channel choice chunk is_final",
        "hold": "message_id channel chars guardrail rule",
        "redaction": "message_id channel at label",
        "tool_call": "id name arguments",
        "tool_progress": "id message progress",
        "tool_result": "id result error",
        "guardrail_status": "guardrail checkpoint state last_ms p95_ms error",
        "blocked": "message_id reason guardrail withheld_chars",
        "message_update": "message_id content metadata",
        "timing": "arrivals releases calls audit_rows naive_calls",
        "error": "code message recoverable field",
        "done": "final outcome",
        "state": "state outcome",
    }
    found = {
        cls.type: " ".join(item.name for item in fields(cls))  # type: ignore[arg-type]
        for cls in events.ServerEvent.__subclasses__()
        if cls.type != "finding" and cls.__dict__.get("__dataclass_fields__")
    }
    assert found == wanted


def test_absent_optional_fields_are_left_out_and_findings_are_flat() -> None:
    assert StateChange("ACTIVE").payload() == {"type": "state", "state": "ACTIVE"}
    assert "error" not in GuardrailStatus("g", "IMMEDIATE", "idle").payload()
    finding = Finding("g", "regex", "r", "c", 1, 2, Mode.BLOCK, Action.REDACT, n=4)
    payload = FindingEvent(finding).payload()
    assert payload["type"] == "finding"
    assert payload["n"] == 4
    assert payload["guardrail"] == "g"


def test_joined_chunks_never_cross_a_redaction_or_a_channel() -> None:
    def chunk(text: str, channel: str = "text") -> MessageStream:
        return MessageStream("m", channel, 0, text)

    chip = Redaction("m", "text", 2, "[SSN]")
    final = MessageStream("m", "text", 0, "", is_final=True)
    got = coalesce([chunk("a"), chunk("b"), chip, chunk("c"), chunk("d", "thinking"), chunk("e"), final])
    assert got == [chunk("ab"), chip, chunk("c"), chunk("d", "thinking"), chunk("e"), final]


def test_a_joined_event_carries_the_last_seq_so_that_a_resume_misses_nothing() -> None:
    sent = [
        stamp(MessageStream("m", "text", 0, text).payload(), seq=seq, session_id="s", ms=seq)
        for seq, text in enumerate("abc", start=5)
    ]
    (joined,) = coalesce_stamped(sent)
    assert (joined["seq"], joined["chunk"]) == (7, "abc")


def test_joined_chunks_stay_small_enough_to_paint() -> None:
    half = "x" * (MAX_CHUNK - 1)
    assert len(coalesce([MessageStream("m", "text", 0, half), MessageStream("m", "text", 0, "yy")])) == 2


@given(st.lists(st.text(alphabet="a\n\r:d data", max_size=8), max_size=6), st.data())
def test_sse_events_do_not_depend_on_how_bytes_are_cut(lines: list[str], data: st.DataObject) -> None:
    raw = b"".join(f"data: {json.dumps(line)}\r\n\r\n".encode() for line in lines)
    at = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    parser, got = SseParser(), []
    for start, end in zip([0, *at], [*at, len(raw)], strict=True):
        got += parser.feed(raw[start:end])
    got += parser.finish()
    assert [json.loads(event.data) for event in got] == lines


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_every_line_end_one_byte_at_a_time(end: str) -> None:
    raw = f"\ufeff: note{end}event: error{end}data: a{end}data:b{end}id: 4{end}{end}data: c{end}{end}".encode()
    parser, got = SseParser(), []
    for byte in raw:
        got += parser.feed(bytes([byte]))
    got += parser.finish()
    assert got == [SseEvent("error", "a\nb"), SseEvent("", "c")]
    assert parser.stray == 0


def test_an_endless_line_is_refused_instead_of_kept() -> None:
    parser = SseParser()
    for _ in range(3):
        parser.feed(b"x" * 1_048_576)
    with pytest.raises(SseTooLarge):
        parser.feed(b"x" * 1_048_577)


def test_unusable_text_names_what_is_wrong() -> None:
    assert unusable("fine 🌍") is None
    assert "NUL" in str(unusable("a\x00"))
    assert "U+D800" in str(unusable("ab\ud800"))


@given(st.text(st.characters(exclude_categories=[]), max_size=30), st.integers(1, 5))
def test_mended_text_is_usable_and_the_same_for_every_cut(text: str, size: int) -> None:
    def mend(pieces: list[str]) -> str:
        mender = Mender()
        return "".join([mender.feed(piece) for piece in pieces] + [mender.finish()])

    cut = mend([text[at : at + size] for at in range(0, len(text), size)])
    assert unusable(cut) is None
    assert cut == mend(list(text))


def test_the_event_guide_names_the_very_types_that_there_are() -> None:
    """In backticks, where it tells the order of an answer's events; a name that no event has is wrong there."""
    guide = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    order = guide.partition("## An answer, in order")[2].partition("\n## ")[0]
    types = {kind.type for kind in ServerEvent.__subclasses__()}
    named = set(re.findall(r"`([a-z_]+)`", order))
    fields_of_metadata = {"provider", "model", "usage", "in_reply_to", "status", "redactions", "streaming", "fallback"}
    assert named - fields_of_metadata - {"is_final"} == types
