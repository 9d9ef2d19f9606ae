"""Tool calls written as text: read out of it wherever it is cut, never shown, and nothing else is touched."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import endless
from streaming.core.events import ProviderEvent, ProviderNotice, Stopped, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.markup import (
    FORMS,
    MAX_CHARS,
    MAX_SPACE,
    NOT_OFFERED,
    THOUGHT,
    MarkupReader,
)
from streaming.core.markup_calls import CALL_BEGINS, CALL_ENDS, MAX_NAME, PREFIXES, SEPARATES, Types, barred_calls
from streaming.gateway.speak import spoken
from streaming.gateway.speak_anthropic import AnthropicSpeaker
from streaming.models import Message
from streaming.providers.base import ChatMessage, ProviderRequest, StreamCutOff, ToolSpec
from streaming.resilience import Upstreams
from streaming.written_calls import without_markup
from tests.streaming.pumping import Controlled, Step, policy_of, trial

CALL = '{"name": "calculator", "arguments": {"formula": "2 * 3"}}'
ARGUMENTS = {"formula": "2 * 3"}


def read(
    chunks: list[str], instead: str = "", types: Types | None = None
) -> tuple[str, list[tuple[str, object]], list[ProviderNotice]]:
    reader = MarkupReader(0, itertools.count(7), instead=instead, types=types)
    events = [event for chunk in chunks for event in reader.feed(chunk)] + list(reader.finish())
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [call.index for call in calls] == list(range(7, 7 + len(calls)))
    told = [event for event in events if isinstance(event, ProviderNotice)]
    return text, [(call.name, json.loads(call.arguments)) for call in calls], told


TOOL = ToolSpec("calculator", "computes", {"type": "object"})
NAMED = '[TOOL_CALLS]calculator[ARGS]{"formula": "2 * 3"}'
PARAMETERS = '<parameter name="formula">2 * 3</parameter>'
INVOKED = f'<invoke name="calculator">\n{PARAMETERS}\n</invoke>'
PREFIX = PREFIXES[1]
PREFIXED = re.sub("<(/?)(?=[ip])", rf"<\1{PREFIX}", INVOKED)
MADE = '{"formula": "2 * 3"}'
FENCED = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>calculator\n```json\n{MADE}\n```<｜tool▁call▁end｜>"
BARRED = f"<｜tool▁call▁begin｜>calculator<｜tool▁sep｜>{MADE}<｜tool▁call▁end｜>"
CHANNEL = f"<|channel|>commentary to=functions.calculator <|constrain|>json<|message|>{MADE}"
WRITTEN = [
    (f"Sure.\n<function_calls>\n{INVOKED}\n</function_calls>\nWell.", "Sure.\n\nWell.", 1),
    (f"<function_calls>{INVOKED}{INVOKED}</function_calls>", "", 2),
    (f"<{PREFIX}function_calls>\n{PREFIXED}\n</{PREFIX}function_calls>", "", 1),
    (f"<minimax:tool_call>\n{INVOKED}\n</minimax:tool_call>", "", 1),
    (f"{INVOKED} {PREFIXED}", " ", 2),
    (f"Let me see. <｜tool▁calls▁begin｜>{FENCED}\n{FENCED}<｜tool▁calls▁end｜>", "Let me see. ", 2),
    (f"<｜tool▁calls▁begin｜>{BARRED}{BARRED}<｜tool▁calls▁end｜>", "", 2),
    (f"<｜tool▁calls▁begin｜>{BARRED}", "", 1),
    (f"{BARRED} Well.", " Well.", 1),
    (f"{CHANNEL}<|call|>", "", 1),
    (f"I ask. <|start|>assistant{CHANNEL}", "I ask. ", 1),
    (f"<|start|>assistant to=functions.calculator<|channel|>commentary json<|message|>{MADE}<|call|>", "", 1),
    (f"<|channel|>analysis to=calculator code<|message|>{MADE}<|call|> Well.", " Well.", 1),
    (f"Let me see. <tool_call>\n{CALL}\n</tool_call> One moment.", "Let me see.  One moment.", 1),
    (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", "", 2),
    (f"Sure. [TOOL_CALLS][{CALL}, {CALL}]", "Sure. ", 2),
    (f"Sure. {NAMED}", "Sure. ", 1),
    ('[TOOL_CALLS] calculator [ARGS] {"formula": "2 * 3"}\n', "", 1),
    ('[TOOL_CALLS]calculator[CALL_ID]a1B2c3D4e[ARGS]{"formula": "2 * 3"}', "", 1),
    (f"One. {NAMED}\n{NAMED}", "One. ", 2),
    ('<|python_tag|>{"name": "calculator", "parameters": {"formula": "2 * 3"}}', "", 1),
    ('<function=calculator>{"formula": "2 * 3"}</function> Done.', " Done.", 1),
    ("<function=calculator>\n<parameter=formula>\n2 * 3\n</parameter>\n</function>", "", 1),
    ("<tool_call>\n<function=calculator>\n<parameter=formula>\n2 * 3\n</parameter>\n</function>\n</tool_call>", "", 1),
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
    if not any(form in text for form in FORMS):
        assert read(pieces) == (text, [], [])


SPOKEN_OF = [
    "The tag <tool_call> opens a call and </tool_call> closes it.",
    "Mistral writes [TOOL_CALLS] and [ARGS], Llama writes <|python_tag|> or <function=name> with the arguments behind.",
    "<tool_call>\n{ the object }\n</tool_call>",
    f"Write `<tool_call>{CALL}</tool_call>` for that.",
    f"So:\n```\n<tool_call>{CALL}</tool_call>\n```\nand\n```xml\n[TOOL_CALLS]a[ARGS]{{}}\n```\nthat is all.",
    "A [TOOL_CALLS]name[CALL_ID]id[ARGS] and the object, or [TOOL_CALLS]name[CALL_ID]" + "x" * 300,
    "<function=" + "x" * 300 + ">",
    "<tool_call>" + " " * 100 + CALL,
    "[TOOL_CALLS]",
    'Between <function_calls> and </function_calls> stands <invoke name=…>, or <invoke name="x"> and its end.',
    '<invoke name="' + "x" * 300 + '">',
    "DeepSeek opens with <｜tool▁calls▁begin｜><｜tool▁call▁begin｜> and then says the tool, <｜tool▁sep｜>, {}.",
    "A call of gpt-oss is <|channel|>commentary to=functions.name and so on; <|start|>assistant begins messages.",
    "<|start|>assistant<|channel|>final<|message|>Well.",
    f"Write `{CHANNEL}<|call|>`, or so:\n```\n<function_calls>{INVOKED}</function_calls>\n{BARRED}\n```\nthat is all.",
    "```tool_code\nprint(calculator(formula='2 * 3'))\n```",
]


@pytest.mark.parametrize("written", WRITTEN, ids=range(len(WRITTEN)))
def test_where_no_call_can_be_made_markup_is_dropped_and_told_however_it_is_cut(written: tuple[str, str, int]) -> None:
    text, shown, _ = written
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        left, calls, told = read(pieces, NOT_OFFERED)
        assert (left, calls) == (shown, [])
        assert {(notice.code, notice.message) for notice in told} == {("tool_markup", NOT_OFFERED)}


@pytest.mark.parametrize("text", SPOKEN_OF, ids=range(len(SPOKEN_OF)))
def test_where_no_call_can_be_made_a_text_may_speak_of_markup_however_it_is_cut(text: str) -> None:
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        assert read(pieces, NOT_OFFERED) == (text, [], [])


def test_what_is_written_behind_quoted_code_is_markup_again() -> None:
    text = f"```\n<tool_call>{CALL}</tool_call>\n```\n"
    assert read(list(f"{text}<tool_call>{CALL}</tool_call>"), NOT_OFFERED)[:2] == (text, [])


def test_no_text_waits_for_long_to_be_known_as_no_markup() -> None:
    for form in FORMS:
        for behind in (
            "x" * 1_000,
            " " * 1_000,
            '{"' + "x" * 1_000,
            "[{" * 500,
            "x" * 150 + " " * 1_000,
            "x[ARGS]" + " " * 99,
        ):
            reader, shown = MarkupReader(0, itertools.count(), instead=NOT_OFFERED), 0
            for number, char in enumerate(form + behind, 1):
                shown += sum(len(event.text) for event in reader.feed(char) if isinstance(event, TextDelta))
                assert number - shown <= len(form) + 2 * MAX_SPACE + MAX_NAME, (form, behind[:3])


def test_a_parameter_is_what_the_tools_schema_says() -> None:
    written = "<function=note>" + "".join(
        f"<parameter={key}>\n{value}\n</parameter>"
        for key, value in (("text", "2026"), ("count", "7"), ("more", '{"a": [1]}'), ("odd", "NaN"), ("lines", "a\nb"))
    )
    _, calls, told = read([written + "</function>"], types={"note": frozenset({"text"})})
    assert calls == [("note", {"text": "2026", "count": 7, "more": {"a": [1]}, "odd": "NaN", "lines": "a\nb"})]
    assert told == []


def test_a_parameter_of_an_invoked_tool_is_what_its_schema_says() -> None:
    values = (("text", "2026"), ("count", "7"), ("more", '{"a": [1]}'), ("lines", "\na\nb\n"), ("tag", "<b>x</b>"))
    written = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in values)
    _, calls, told = read([f'<invoke name="note">{written}</invoke>'], types={"note": frozenset({"text"})})
    assert calls == [("note", {"text": "2026", "count": 7, "more": {"a": [1]}, "lines": "a\nb", "tag": "<b>x</b>"})]
    assert told == []


@pytest.mark.parametrize(
    "written",
    [
        "<function_calls></function_calls>",
        "<function_calls>words</function_calls>",
        f"<function_calls>{INVOKED} and so on</function_calls>",
        '<invoke name="no te"></invoke>',
        '<invoke name="note">words</invoke>',
        '<invoke name="note"><parameter name="a">1</invoke>',
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
        f"<｜tool▁calls▁begin｜>{BARRED} words<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>note<｜tool▁sep｜>[1]<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>note<｜tool▁sep｜>{}{}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>note<｜tool▁sep｜>" + '{"a":' * 100_000 + "<｜tool▁call▁end｜>",
        "<|channel|>commentary to=functions.note<|message|>words<|call|>",
        "<|channel|>commentary to=functions.note and some words that are no form<|message|>{}<|call|>"
        + "<|channel|>commentary to=<|message|>{}<|call|>",
        "<|channel|>analysis to=note<|message|>" + "[" * 100_000 + "<|call|>",
    ],
    ids=range(14),
)
def test_newer_markup_that_cannot_be_read_is_told_and_not_shown(written: str) -> None:
    text, calls, told = read(["a", written, "b"])
    assert (text, calls, {notice.code for notice in told}) == ("ab", [], {"tool_markup"})


@pytest.mark.parametrize("close", ["<|call|>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"])
def test_an_argument_that_speaks_of_newer_markup_does_not_end_its_call(close: str) -> None:
    said = {"text": f'End it with {close}, or "{close}" alone.'}
    made = json.dumps(said, ensure_ascii=False)
    for written in (
        f"<|channel|>commentary to=functions.note <|constrain|>json<|message|>{made}<|call|>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>note<｜tool▁sep｜>{made}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ):
        want = "a b", [("note", said)], []
        assert read([f"a{written} b"]) == read(list(f"a{written} b")) == want


@pytest.mark.parametrize(
    "inside", ["note", "note>[1]", "note>words", ">{}", "no te>{}", "note><parameter=a>1", "note>" + "[" * 100_000]
)
def test_a_function_that_cannot_be_read_is_told_and_not_shown(inside: str) -> None:
    text, calls, told = read([f"a<function={inside}</function>b"])
    assert (text, calls, [notice.code for notice in told]) == ("ab", [], ["tool_markup"])


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
    got = [event async for event in without_markup(events(*said), (TOOL,))]
    stopped = got.index(Stopped("stop", 0))
    assert TextDelta("<", 0) in got[:stopped]
    assert [event for event in got[stopped:] if getattr(event, "choice", 0) == 0] == [Stopped("stop", 0)]
    assert [event.choice for event in got if isinstance(event, ToolCallDelta)] == [1]
    assert ThinkingDelta("<tool_call>") in got[:stopped]
    assert "".join(e.text for e in got if isinstance(e, TextDelta) and e.choice == 0) == "a<tool_x<"


async def test_text_that_came_before_a_failure_stays_and_a_call_that_was_cut_off_is_not_made() -> None:
    assert await until_cut_off(TextDelta("a <tool_")) == [TextDelta("a "), TextDelta("<tool_")]
    assert await until_cut_off(TextDelta(f"<tool_call>{CALL}")) == []


async def until_cut_off(said: ProviderEvent) -> list[ProviderEvent]:
    got: list[ProviderEvent] = []

    async def read_all() -> None:
        async for event in without_markup(events(said, StreamCutOff("gone")), (TOOL,)):
            got.append(event)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(StreamCutOff):
        await read_all()
    return got


@pytest.mark.parametrize("offered", [True, False])
async def test_only_who_was_offered_tools_can_write_calls(offered: bool) -> None:
    class Server(Controlled):
        calls_in_text = True

    request = ProviderRequest((ChatMessage("user", "six?"),), tools=(TOOL,) if offered else ())
    asked = Upstreams((Server(script=[f"<tool_call>{CALL}</tool_call>"]),)).ask(request)
    got = [event async for event in asked]
    assert any(isinstance(event, ToolCallDelta) for event in got) is offered
    assert not any(isinstance(event, TextDelta) for event in got), "and nobody is shown one"
    assert [event.code for event in got if isinstance(event, ProviderNotice)] == ([] if offered else ["tool_markup"])


@pytest.mark.parametrize("offered", [True, False])
@pytest.mark.parametrize(("written", "shown"), [(text, shown) for text, shown, _ in WRITTEN], ids=range(len(WRITTEN)))
async def test_a_call_written_into_the_thinking_is_neither_shown_nor_made(
    offered: bool, written: str, shown: str
) -> None:
    pieces = [ThinkingDelta(written[at : at + 5]) for at in range(0, len(written), 5)]
    said = [*pieces, ThinkingDelta("", signature="proof"), TextDelta("So."), Stopped("stop")]
    got = [event async for event in without_markup(events(*said), (TOOL,) if offered else ())]
    thought = [event for event in got if isinstance(event, ThinkingDelta)]
    assert ("".join(event.text for event in thought), "".join(event.signature for event in thought)) == (shown, "proof")
    assert not any(isinstance(event, ToolCallDelta) for event in got)
    assert {event.message for event in got if isinstance(event, ProviderNotice)} == {THOUGHT}
    assert "".join(event.text for event in got if isinstance(event, TextDelta)) == "So."


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("where", ["text", "thinking"])
@pytest.mark.parametrize(
    "markup",
    [NAMED, f"<function_calls>{INVOKED}</function_calls>", BARRED, CHANNEL],
    ids=["named", "invoke", "bars", "channel"],
)
async def test_of_a_call_that_nobody_may_make_nothing_reaches_page_or_storage(
    where: str, markup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Controlled, "calls_in_text", True)
    written = [*"Let me see. ", *markup.replace("calculator", "zebra")]
    script = [ThinkingDelta(char) for char in written] if where == "thinking" else list[Step](written)
    case = await trial([*script, "" if where == "text" else "Well.", Stopped("stop")], policy=policy_of(without="harm"))
    await case.pump.run()
    stored = await Message.objects.aget(pk=case.answer_id)
    for part in ("zebra", "TOOL_CALLS", "ARGS", "formula", "invoke", "tool▁call", "commentary"):
        assert part not in str(await case.events())
        assert part not in stored.content + str(stored.metadata)
    assert [(e["code"], e["recoverable"]) for e in await case.of("error")] == [("tool_markup", True)]
    assert await case.of("tool_call") == []
    seen = stored.content if where == "text" else stored.metadata["thinking"]
    assert (seen, (await case.of("done"))[0]["outcome"]) == ("Let me see. ", "allowed")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("times", [20, 200], ids=["a few", "without end"])
async def test_calls_that_nobody_may_make_are_told_once_and_not_listened_to_without_end(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no text and no call, so that nothing of them counted."""
    monkeypatch.setattr(Controlled, "calls_in_text", True)
    monkeypatch.setattr(endless, "MAX_ANSWER_CHARS", 10_000)
    case = await trial(["Well. ", *[f"<tool_call>{CALL}</tool_call>"] * times], policy=policy_of(without="harm"))
    await case.pump.run()
    ends = [("provider_garbage", False)] if times == 200 else []
    assert [(e["code"], e["recoverable"]) for e in await case.of("error")] == [("tool_markup", True), *ends]
    stored = await Message.objects.aget(pk=case.answer_id)
    ((_, code, counted),) = stored.metadata["notices"]
    assert (stored.content, code) == ("Well. ", "tool_markup")
    assert counted == 20 if times == 20 else 20 < counted < 200


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_of_another_dialect_that_offered_no_tools_is_not_shown_one(streaming: bool) -> None:
    class Server(Controlled):
        calls_in_text = True

        async def standard(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
            async for event in self.stream(request):
                yield event

    server = Server(script=["Sure. ", ThinkingDelta(f"<tool_call>{CALL}</tool_call>"), NAMED, Stopped("stop")])
    request, speaker = ProviderRequest((ChatMessage("user", "six?"),)), AnthropicSpeaker("m-1", "1", 0)
    said = json.dumps([piece async for piece in spoken(server, request, speaker, streaming=streaming)])
    assert "Sure. " in said
    assert "calculator" not in said
    assert "formula" not in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", ["{begins}look~x", "{begins}look{separates}~x", "{begins}look{{}}~x", "{begins}~x"])
def test_a_long_run_of_blanks_in_a_call_with_bars_costs_what_it_is_long(call: str) -> None:
    written = call.format(begins=CALL_BEGINS, separates=SEPARATES).replace("~", " " * 500_000)
    assert barred_calls(written) is None
    blanks = " \n" * 3
    for fence in ("", "```json"):
        begun = blanks.join(("", CALL_BEGINS, "look", SEPARATES, fence))
        said = blanks.join((begun, '{"a": 1}', "```" if fence else "", ""))
        assert barred_calls(f"{said}{CALL_ENDS}{blanks}") == [("look", '{"a": 1}')]
        assert barred_calls(said) == [("look", '{"a": 1}')]
