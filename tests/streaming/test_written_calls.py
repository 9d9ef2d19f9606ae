"""Tool calls written as text: read out of it wherever it is cut, never shown, and nothing else is touched."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.core.events import ProviderEvent, ProviderNotice, Stopped, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.markup import MAX_CHARS, MarkupReader
from streaming.providers.base import ChatMessage, ProviderRequest, StreamCutOff, ToolSpec
from streaming.resilience import Upstreams
from streaming.written_calls import without_markup
from tests.streaming.pumping import Controlled

CALL = '{"name": "calculator", "arguments": {"formula": "2 * 3"}}'
ARGUMENTS = {"formula": "2 * 3"}


def read(chunks: list[str]) -> tuple[str, list[tuple[str, object]], list[ProviderNotice]]:
    reader = MarkupReader(0, itertools.count(7))
    events = [event for chunk in chunks for event in reader.feed(chunk)] + list(reader.finish())
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [call.index for call in calls] == list(range(7, 7 + len(calls)))
    told = [event for event in events if isinstance(event, ProviderNotice)]
    return text, [(call.name, json.loads(call.arguments)) for call in calls], told


NAMED = '[TOOL_CALLS]calculator[ARGS]{"formula": "2 * 3"}'
WRITTEN = [
    (f"Let me see. <tool_call>\n{CALL}\n</tool_call> One moment.", "Let me see.  One moment.", 1),
    (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", "", 2),
    (f"Sure. [TOOL_CALLS][{CALL}, {CALL}]", "Sure. ", 2),
    (f"Sure. {NAMED}", "Sure. ", 1),
    ('[TOOL_CALLS] calculator [ARGS] {"formula": "2 * 3"}\n', "", 1),
    ('[TOOL_CALLS]calculator[CALL_ID]a1B2c3D4e[ARGS]{"formula": "2 * 3"}', "", 1),
    (f"One. {NAMED}\n{NAMED}", "One. ", 2),
    ('<|python_tag|>{"name": "calculator", "parameters": {"formula": "2 * 3"}}', "", 1),
    (f"<tool_call>{CALL}", "", 1),
    (f"a <tool <tool_call>{CALL}</tool_call>", "a <tool ", 1),
]


def test_it_works() -> None:
    assert read(["x ", WRITTEN[0][0]]) == ("x " + WRITTEN[0][1], [("calculator", ARGUMENTS)], [])


@pytest.mark.parametrize(("written", "text", "count"), WRITTEN)
def test_a_call_is_found_however_its_text_is_cut(written: str, text: str, count: int) -> None:
    want = (text, [("calculator", ARGUMENTS)] * count, [])
    assert read(list(written)) == want
    for at in range(len(written)):
        assert read([written[:at], written[at:]]) == want, at


@given(st.lists(st.sampled_from(["<", "tool", "_call>", "[TOOL", "_CALLS", "<|python", "a<b", "</tool_call>", " "])))
def test_text_that_only_begins_like_markup_stays_as_it_is(pieces: list[str]) -> None:
    text = "".join(pieces)
    if not any(form in text for form in ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")):
        assert read(pieces) == (text, [], [])


def test_no_more_is_held_back_than_may_be_markup() -> None:
    reader = MarkupReader(0, itertools.count())
    assert list(reader.feed("Look: a < b and <tool_cal")) == [TextDelta("Look: a < b and ")]
    assert list(reader.feed("m ")) == [TextDelta("<tool_calm ")]


@pytest.mark.parametrize(
    "inside",
    ["not json", '{"name": 3}', '{"arguments": {}}', "[]", "3", '{"name": ""}', "[" * 100_000, '"x"'],
    ids=["prose", "number", "nameless", "none", "three", "empty", "deep", "string"],
)
def test_markup_that_cannot_be_read_is_told_and_not_shown(inside: str) -> None:
    text, calls, told = read([f"a<tool_call>{inside}</tool_call>b"])
    assert (text, calls, [notice.code for notice in told]) == ("ab", [], ["tool_markup"])


@pytest.mark.parametrize(
    "inside",
    ["calculator", "calculator[ARGS]", "[ARGS]{}", "[CALL_ID]x[ARGS]{}", "calculator[ARGS]{} and so on",
     "calculator[ARGS]{}[TOOL_CALLS]", "calculator[ARGS]{}[TOOL_CALLS]note", "a[b][ARGS]{}",
     "calculator[ARGS]" + "[" * 100_000],
    ids=["name", "bare", "nameless", "id", "prose", "open", "half", "brackets", "deep"],
)  # fmt: skip
def test_a_named_call_that_cannot_be_read_is_told_and_none_of_it_is_made(inside: str) -> None:
    text, calls, told = read(["a[TOOL_CALLS]", inside])
    assert (text, calls, [notice.code for notice in told]) == ("a", [], ["tool_markup"])


def test_a_named_calls_argument_that_speaks_of_markup_is_an_argument_wherever_it_is_cut() -> None:
    said = {"text": 'Write [TOOL_CALLS]name[ARGS]{"x": 1}, or <tool_call>.'}
    written = f"[TOOL_CALLS]note[ARGS]{json.dumps(said)}[TOOL_CALLS]note[ARGS]{{}}"
    want = ("", [("note", said), ("note", {})], [])
    assert read([written]) == read(list(written)) == want
    for at in range(len(written)):
        assert read([written[:at], written[at:]]) == want, at


ABOUT_MARKUP = '{"name": "note", "arguments": {"text": "Close \\\\ with </tool_call>, say \\"</tool_call>\\"."}}'


def test_an_argument_that_speaks_of_markup_does_not_end_its_call_and_is_not_shown() -> None:
    written = f"a <tool_call> {ABOUT_MARKUP}</tool_call> b <tool_call>{CALL}</tool_call> c"
    want = "a  b  c", [("note", json.loads(ABOUT_MARKUP)["arguments"]), ("calculator", ARGUMENTS)], []
    assert read([written]) == read(list(written)) == want
    for at in range(len(written)):
        assert read([written[:at], written[at:]]) == want, at


@pytest.mark.parametrize("turns", [1, 20_000])
def test_text_behind_a_broken_call_with_a_quote_too_many_is_not_lost(turns: int) -> None:
    written = '<tool_call>{"\\"</tool_call>.' * turns + f" so <tool_call>{CALL}</tool_call> it is"
    text, calls, told = read([written[at : at + 50_000] for at in range(0, len(written), 50_000)])
    assert (text, calls, len(told)) == ("." * turns + " so  it is", [("calculator", ARGUMENTS)], turns)


@pytest.mark.parametrize("arguments", [r'{"x": "\udc00"}', r'"{\"x\": \"\udc00\"}"'], ids=["object", "text"])
def test_a_call_spelled_with_what_no_store_takes_can_be_stored(arguments: str) -> None:
    inside = rf'"name": "a\ud800\u0000", "arguments": {arguments}'
    _, calls, _ = read([f"<tool_call>{{{inside}}}</tool_call>"])
    assert calls == [("a\ufffd\ufffd", {"x": "\ufffd"})]


def test_markup_without_end_is_not_kept_in_memory() -> None:
    reader = MarkupReader(0, itertools.count())
    assert list(reader.feed("<tool_call>")) == []
    for _ in range(30):
        assert list(reader.feed("x" * 100_000)) == []
    assert sum(map(len, reader._inside)) <= MAX_CHARS
    assert [type(event) for event in reader.finish()] == [ProviderNotice]


async def events(*said: ProviderEvent | Exception) -> AsyncGenerator[ProviderEvent, None]:
    for event in said:
        if isinstance(event, Exception):
            raise event
        yield event


async def test_choices_are_read_apart_and_end_before_they_stop() -> None:
    said = [TextDelta("a<tool_", 0), TextDelta("b<tool_call>", 1), TextDelta("x", 0), TextDelta(CALL, 1),
            ThinkingDelta("<tool_call>"), TextDelta("<", 0), Stopped("stop", 0)]  # fmt: skip
    got = [event async for event in without_markup(events(*said))]
    assert got[-3:-1] == [TextDelta("<", 0), Stopped("stop", 0)]
    assert [event.choice for event in got if isinstance(event, ToolCallDelta)] == [1]
    assert ThinkingDelta("<tool_call>") in got
    assert "".join(e.text for e in got if isinstance(e, TextDelta) and e.choice == 0) == "a<tool_x<"


async def test_text_that_came_before_a_failure_stays_and_a_call_that_was_cut_off_is_not_made() -> None:
    assert await until_cut_off(TextDelta("a <tool_")) == [TextDelta("a "), TextDelta("<tool_")]
    assert await until_cut_off(TextDelta(f"<tool_call>{CALL}")) == []


async def until_cut_off(said: ProviderEvent) -> list[ProviderEvent]:
    got: list[ProviderEvent] = []

    async def read_all() -> None:
        async for event in without_markup(events(said, StreamCutOff("gone"))):
            got.append(event)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(StreamCutOff):
        await read_all()
    return got


@pytest.mark.parametrize("offered", [True, False])
async def test_only_who_was_offered_tools_can_write_calls(offered: bool) -> None:
    class Server(Controlled):
        calls_in_text = True

    tool = ToolSpec("calculator", "computes", {"type": "object"})
    request = ProviderRequest((ChatMessage("user", "six?"),), tools=(tool,) if offered else ())
    asked = Upstreams((Server(script=[f"<tool_call>{CALL}</tool_call>"]),)).ask(request)
    got = [event async for event in asked]
    assert any(isinstance(event, ToolCallDelta) for event in got) is offered
    assert any(isinstance(event, TextDelta) for event in got) is not offered
