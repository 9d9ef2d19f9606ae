"""The Messages dialect as plain bytes: every kind of event, and every way in which it may come out wrong."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.core.events import (
    ModelNamed,
    ProviderToolResult,
    Stopped,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from streaming.providers import base
from streaming.providers.anthropic_events import MessageReader, whole

from .anthropic_stream import Event, calls, closes, delta, ends, opens, read, said, sse, start, text, thought

EVERYTHING = sse(
    start(cache_read_input_tokens=4, cache_creation_input_tokens=2),
    opens(0, type="thinking", thinking="", signature=""),
    {"type": "ping"},
    delta(0, type="thinking_delta", thinking="Erst grübeln … "),
    delta(0, type="signature_delta", signature="c2ln"),
    closes(0),
    *text("Straße, 世界 🌍\u2028weiter", 1),
    opens(2, type="tool_use", id="toolu_1", name="weather", input={}),
    delta(2, type="input_json_delta", partial_json=""),
    delta(2, type="input_json_delta", partial_json='{"city": "K'),
    delta(2, type="input_json_delta", partial_json='öln"}'),
    closes(2),
    *ends("tool_use"),
)


def test_it_works() -> None:
    assert read(EVERYTHING) == [
        ModelNamed("claude-x"),
        Usage(16, 1),
        ThinkingDelta("Erst grübeln … "),
        TextDelta("Straße, 世界 🌍\u2028weiter"),
        ToolCallDelta(2, "toolu_1", "weather"),
        ToolCallDelta(2, arguments='{"city": "K'),
        ToolCallDelta(2, arguments='öln"}'),
        Usage(16, 7),
        ThinkingDelta("", signature="c2ln"),
        Stopped("tool_calls"),
    ]


@given(at=st.lists(st.integers(0, len(EVERYTHING))))
def test_any_cutting_gives_the_same_events_as_none(at: list[int]) -> None:
    reader, places = MessageReader(), sorted({0, *at, len(EVERYTHING)})
    events = [e for a, b in pairwise(places) for e in reader.feed(EVERYTHING[a:b])]
    assert [*events, *reader.finish()] == read(EVERYTHING)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
     ("refusal", "refusal"), ("pause_turn", "pause_turn"), ("model_context_window_exceeded", "length"),
     ("of_tomorrow", "of_tomorrow")],
)  # fmt: skip
def test_stop_reasons_are_said_in_our_words_and_new_ones_in_theirs(theirs: str, ours: str) -> None:
    assert read(sse(start(), *text("x"), *ends(theirs)))[-1] == Stopped(ours)


def test_counts_are_cumulative_and_what_the_cache_gave_is_input() -> None:
    events = read(sse(start(input_tokens=5, cache_read_input_tokens=100, cache_creation_input_tokens=None), *ends()))
    assert [e for e in events if isinstance(e, Usage)] == [Usage(105, 1), Usage(105, 7)]
    grown = ends(input_tokens=9, output_tokens=70, output_tokens_details={"thinking_tokens": 30})
    events = read(sse(start(), *grown))
    assert [e for e in events if isinstance(e, Usage)] == [Usage(10, 1), Usage(9, 70, 30)]


def test_tool_without_parameters_has_an_empty_object_for_arguments() -> None:
    bare = opens(0, type="tool_use", id="toolu_1", name="now", input={})
    for between in ([], [delta(0, type="input_json_delta", partial_json="")]):
        events = read(sse(start(), bare, *between, closes(0), *ends("tool_use")))
        assert calls(events) == {0: ("toolu_1", "now", "{}", False)}


def test_tool_that_comes_whole_at_its_start_is_not_asked_for_twice() -> None:
    block = opens(0, type="tool_use", id="toolu_1", name="say", input={"words": "ö"})
    assert calls(read(sse(start(), block, closes(0), *ends())))[0][2] == '{"words": "ö"}'
    pieces = delta(0, type="input_json_delta", partial_json='{"words": "u"}')
    assert calls(read(sse(start(), block, pieces, closes(0), *ends())))[0][2] == '{"words": "u"}'


def test_two_calls_at_once_stay_apart() -> None:
    both = [opens(i, type="tool_use", id=f"toolu_{i}", name=f"tool_{i}", input={}) for i in (1, 2)]
    mixed = [delta(i, type="input_json_delta", partial_json=part) for part in ('{"a"', ": 1}") for i in (1, 2)]
    events = read(sse(start(), *both, *mixed, closes(1), closes(2), *ends("tool_use")))
    assert {index: call[1:3] for index, call in calls(events).items()} == {
        1: ("tool_1", '{"a": 1}'),
        2: ("tool_2", '{"a": 1}'),
    }


def test_a_line_that_is_lost_among_arguments_ends_the_answer() -> None:
    call = opens(0, type="tool_use", id="toolu_1", name="pay", input={})
    data = sse(start(), call, delta(0, type="input_json_delta", partial_json='{"sum": 1'))
    with pytest.raises(base.ProviderProtocolError, match="tool call"):
        read(data + b'data: {"type": "content_block_del\n\n' + sse(closes(0), *ends("tool_use")))


@pytest.mark.parametrize("kind", ["server_tool_use", "mcp_tool_use"])
def test_tool_that_the_vendor_runs_is_marked_and_its_result_told(kind: str) -> None:
    hits = [
        {"type": "web_search_result", "title": "Dams", "url": "https://example.com/dams", "encrypted_content": "Ev=="},
        {"type": "text", "text": "and a text"},
    ]
    events = read(
        sse(
            start(),
            opens(0, type=kind, id="srv_1", name="web_search", input={}),
            delta(0, type="input_json_delta", partial_json='{"query": "dams"}'),
            closes(0),
            opens(1, type=kind.replace("server_", "web_search_").replace("use", "result"), tool_use_id="srv_1",
                  content=hits),
            closes(1),
            *ends(),
        )
    )  # fmt: skip
    assert calls(events) == {0: ("srv_1", "web_search", '{"query": "dams"}', True)}
    assert ProviderToolResult("srv_1", "Dams <https://example.com/dams>\nand a text") in events
    assert "Ev==" not in str(events), "what is encrypted for the vendor is nobody's to read"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}},
         ProviderToolResult("srv_1", error="max_uses_exceeded")),
        ({"content": "no such page", "is_error": True}, ProviderToolResult("srv_1", error="no such page")),
        ({"content": [], "is_error": True}, ProviderToolResult("srv_1", error="the tool failed")),
        ({"content": {"type": "code_execution_result", "stdout": "4", "stderr": "warned", "return_code": 0}},
         ProviderToolResult("srv_1", "4\nwarned")),
        ({"content": {"type": "of_tomorrow", "answer": 42}}, ProviderToolResult("srv_1", '{"answer": 42}')),
        ({"content": "nul \x00 and half \ud83c"}, ProviderToolResult("srv_1", "nul \ufffd and half \ufffd")),
        ({}, ProviderToolResult("srv_1")),
    ],
)  # fmt: skip
def test_results_of_the_vendors_tools_have_many_shapes(block: Event, expected: ProviderToolResult) -> None:
    document = {"content": [{"type": "some_tool_result", "tool_use_id": "srv_1", **block}]}
    assert list(whole(document)) == [expected]


def test_redacted_thinking_breaks_nothing_and_several_thoughts_are_not_signed_as_one() -> None:
    thoughts = [
        opens(0, type="thinking", thinking="one", signature="s1"),
        closes(0),
        opens(1, type="redacted_thinking", data="Ev=="),
        closes(1),
    ]
    events = read(sse(start(), *thoughts, *text("x", 2), *ends()))
    assert (thought(events), said(events)) == ("one", "x")
    assert not [e for e in events if isinstance(e, ThinkingDelta) and e.signature]


def test_what_the_vendor_may_add_later_is_passed_over() -> None:
    new = [
        {"type": "weather_report", "index": 7},
        opens(3, type="hologram", data=1),
        delta(3, type="light_delta", light="x"),
        delta(0, type="citations_delta", citation={"cited_text": "c", "url": "https://example.com"}),
        closes(3),
        closes(99),
    ]
    events = read(sse(start(), *new, *text("still here"), *new, *ends()))
    assert said(events) == "still here"
    assert not calls(events)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_delta", "index": "x", "delta": {"type": "text_delta", "text": 5}},
        {"type": "content_block_delta", "delta": [1]},
        {"type": "content_block_start", "index": 1, "content_block": "text"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": 7}},
        {"type": "message_start", "message": None},
        {"type": "message_start", "message": {"model": 5, "usage": [1]}},
        {"type": "message_delta", "delta": 1, "usage": {"output_tokens": -3, "input_tokens": True}},
        {"type": None},
        {},
    ],
)
def test_fields_of_the_wrong_type_are_nothing_not_a_traceback(event: Event) -> None:
    data = sse(start(), *text("whole")) + b"data: %s\n\n" % json.dumps(event).encode() + sse(*ends())
    assert said(read(data)) == "whole"


def test_halves_of_a_surrogate_pair_in_two_deltas_become_one_character() -> None:
    halves = b"".join(
        b'data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "%s"}}\n\n' % half
        for half in (b"\\ud83c", b"\\udf0d", b"!\\ud83c")
    )
    assert said(read(sse(start()) + halves + sse(*ends()))) == "🌍!\ufffd"


@pytest.mark.parametrize("kind", ["tool_use", "server_tool_use"])
def test_a_malformed_line_that_begins_a_tool_call_is_never_skipped(kind: str) -> None:
    broken = sse(opens(1, type=kind, id="a", name="pay", input={})).rstrip(b"}\n") + b"\n\n"
    with pytest.raises(base.ProviderProtocolError, match="within a tool call"):
        read(sse(start(), *text("Let me see. ")) + broken + sse(closes(1), *ends("tool_use")))


def piece(index: int, escaped: bytes) -> bytes:
    """A delta of a call's arguments whose JSON is spelled in these escapes."""
    said = b'{"type": "input_json_delta", "partial_json": "%s"}' % escaped
    return b'data: {"type": "content_block_delta", "index": %d, "delta": %s}\n\n' % (index, said)


def test_halves_of_a_character_in_two_pieces_of_arguments_become_one_call_by_call() -> None:
    """The half that one call is left with is neither joined to the next call's nor told behind its end."""
    opened = sse(
        start(),
        opens(0, type="tool_use", id="a", name="say", input={}),
        opens(1, type="server_tool_use", id="b", name="search", input={}),
    )
    pieces = piece(0, rb"[\"\ud83c") + piece(1, rb"\ud83d") + piece(0, rb"\udf0d\"]") + piece(1, rb"\ude00!\ud83c")
    said = read(opened + pieces + sse(closes(0), closes(1), opens(2, type="tool_use", id="c", name="say", input={}))
                + piece(2, rb"\udf0d") + sse(closes(2), *ends("tool_use")))  # fmt: skip
    assert calls(said) == {
        0: ("a", "say", '["🌍"]', False), 1: ("b", "search", "😀!\ufffd", True), 2: ("c", "say", "\ufffd", False)
    }  # fmt: skip


def test_the_input_that_a_call_begins_with_is_mended() -> None:
    block = rb'{"type": "tool_use", "id": "a", "name": "say", "input": {"text": "\ud83c and \u0000"}}'
    opened = b'data: {"type": "content_block_start", "index": 0, "content_block": %s}\n\n' % block
    (_, _, arguments, _) = calls(read(sse(start()) + opened + sse(closes(0), *ends("tool_use"))))[0]
    assert arguments == '{"text": "\ufffd and \\u0000"}'


def test_nothing_after_the_end_is_told() -> None:
    data = sse(start(), *text("all"), *ends()) + sse(*text(" and more"), {"type": "error", "error": {}})
    assert said(read(data)) == "all"


@pytest.mark.parametrize("data", [b"", b"<html>It works!</html>\n", b": ping\n\n", sse({"type": "ping"}), b"{}\n"])
def test_no_message_at_all_is_a_protocol_error_not_silence(data: bytes) -> None:
    with pytest.raises(base.ProviderProtocolError):
        read(data)
