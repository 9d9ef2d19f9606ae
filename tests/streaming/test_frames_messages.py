"""A start with ``messages``: what is refused and where, and that nothing of it reaches a model unchecked."""

from __future__ import annotations

import json

import pytest

from guardrails.policy import Policy, compile_policy
from streaming.conf import Conf
from streaming.frames import FrameError, StartFrame, parse_frame
from streaming.messages import BadMessages
from streaming.prompting import Prompted, handed_over
from streaming.providers.base import ChatMessage, ToolCallMade
from tests.streaming.pumping import SSN, policy_of

Message = dict[str, object]
CALL: Message = {"id": "call_1", "name": "clock", "arguments": '{"zone": "UTC"}'}
ROUND: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
]


def start(limits: Conf | None = None, **fields: object) -> StartFrame:
    frame = parse_frame(json.dumps({"type": "start", **fields}), limits or Conf())
    assert isinstance(frame, StartFrame)
    return frame


def refused(limits: Conf | None = None, **fields: object) -> tuple[str, str, str]:
    with pytest.raises(FrameError) as caught:
        start(limits, **fields)
    return caught.value.code, caught.value.field, str(caught.value)


def test_it_works() -> None:
    frame = start(messages=ROUND, tools=True, use_streaming=False)
    assert frame.messages is not None
    assert [message.role for message in frame.messages] == ["system", "user", "assistant", "tool"]
    assert (frame.tools, frame.use_streaming) == (True, False)


@pytest.mark.parametrize(
    ("said", "meant"), [("on", True), ("true", True), ("1", True), ("off", False), ("false", False), ("", None)]
)
def test_a_box_of_a_form_arrives_as_text_and_is_a_yes_or_no(said: str, meant: bool | None) -> None:
    frame = start(prompt="hello", tools=said, use_streaming=said)
    assert frame.use_streaming is meant
    assert bool(frame.tools) is bool(meant)


@pytest.mark.parametrize("name", ["tools", "use_streaming"])
@pytest.mark.parametrize("value", ["maybe", 1, [], {}])
def test_what_is_neither_yes_nor_no_is_refused(name: str, value: object) -> None:
    assert refused(prompt="hello", **{name: value})[:2] == ("invalid_field", name)


IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


@pytest.mark.parametrize(
    ("messages", "field", "words"),
    [
        ("hello", "messages", "list"),
        ([], "messages", "empty"),
        (["hello"], "messages[0]", ""),
        ([{"content": "hello"}], "messages[0].role", "required"),
        ([{"role": "king", "content": "hello"}], "messages[0].role", "assistant"),
        ([{"role": "user", "content": IMAGE}], "messages[0].content", "only text can be sent on"),
        ([*ROUND[:2], {"role": "user", "content": IMAGE}], "messages[2].content", "images"),
        ([{"role": "user", "content": {"text": "hello"}}], "messages[0].content", "only text"),
        ([{"role": "user", "content": 7}], "messages[0].content", "string"),
        ([{"role": "user", "content": " \n"}], "messages[0].content", "empty"),
        ([{"role": "user", "content": "a\x00b"}], "messages[0].content", "NUL"),
        ([{"role": "user", "content": "a\ud800b"}], "messages[0].content", "surrogate"),
        ([{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}], "messages[1].role", "last"),
        ([*ROUND[:2], {"role": "system", "content": "x"}], "messages[2].role", "last"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls", "assistant"),
        ([{"role": "user", "content": "x", "tool_call_id": "call_1"}], "messages[0].tool_call_id", "tool"),
        ([*ROUND[:2], ROUND[3]], "messages[2].tool_call_id", "No earlier message"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}], "messages[1].tool_call_id", "call"),
        (
            [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "y"}],
            "messages",
            "None of the messages is a user's",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_stands(messages: object, field: str, words: str) -> None:
    _, at, said = refused(messages=messages)
    assert at == field
    assert words in said
    assert "\x00" not in said
    assert "AAAA" not in said


@pytest.mark.parametrize("bad", ["nope", "[]", "7", "{", "", "[" * 50_000, '{"a": "\ud800"}'])
def test_arguments_that_are_no_json_object_are_refused(bad: str) -> None:
    call = {**CALL, "arguments": bad}
    _, at, _ = refused(messages=[*ROUND[:2], {"role": "assistant", "tool_calls": [CALL, call]}, ROUND[3]])
    assert at == "messages[2].tool_calls[1].arguments"


@pytest.mark.parametrize("name", ["id", "name"])
@pytest.mark.parametrize("bad", ["", "my card is 4111", "x" * 201, "a\nb", 7])
def test_prose_cannot_pass_as_the_name_of_a_call(name: str, bad: object) -> None:
    _, at, _ = refused(messages=[*ROUND[:2], {"role": "assistant", "tool_calls": [{**CALL, name: bad}]}, ROUND[3]])
    assert at == f"messages[2].tool_calls[0].{name}"


def test_prompt_and_messages_are_not_taken_together() -> None:
    assert refused(messages=ROUND, prompt="hello")[:2] == ("invalid_field", "messages")
    assert refused(messages=ROUND, scenario="pii")[:2] == ("invalid_field", "messages")


def test_too_many_and_too_long_are_refused_with_the_limit() -> None:
    many = [{"role": "user", "content": "x"}] * 4
    code, field, said = refused(Conf(max_messages=3), messages=many)
    assert (code, field) == ("too_long", "messages")
    assert "at most 3" in said
    assert start(Conf(max_messages=4, max_messages_chars=4), messages=many).messages
    code, field, said = refused(Conf(max_messages_chars=3), messages=many)
    assert (code, field) == ("too_long", "messages")
    calls = [*ROUND[:2], {"role": "assistant", "tool_calls": [CALL]}, ROUND[3]]
    whole = sum(len(str(m.get("content") or "")) for m in calls) + len(str(CALL["arguments"]))
    assert start(Conf(max_messages_chars=whole), messages=calls).messages
    assert refused(Conf(max_messages_chars=whole - 1), messages=calls)[0] == "too_long"


# -- through the guardrails --------------------------------------------------------------------------------------------


async def checked(messages: list[Message], policy: Policy | None = None) -> Prompted:
    frame = start(messages=messages)
    assert frame.messages is not None
    return await handed_over(policy or policy_of(), frame.messages, monitor=False)


def everywhere() -> Policy:
    """Looks for social security numbers and the heron in prompts, tools' arguments and their results."""
    guardrail = {"applies_to": ["prompt", "tool_arguments", "tool_result"]}
    return compile_policy(
        {"policy": "everywhere", "guardrails": [
            {"name": "pii", "kind": "pii", "action": "redact", "config": {"entities": {"ssn": True}}, **guardrail},
            {"name": "heron", "kind": "regex", "action": "block", **guardrail,
             "config": {"rules": [{"id": "h", "pattern": "blue heron"}]}},
        ]}, version=1, digest="sha256:e",
    )  # fmt: skip


async def test_a_clean_conversation_is_sent_on_as_it_is() -> None:
    prompted = await checked(ROUND)
    call = ToolCallMade("call_1", "clock", '{"zone": "UTC"}')
    assert prompted.messages == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "What time is it?"),
        ChatMessage("assistant", "", tool_calls=(call,)),
        ChatMessage("tool", "12:00", tool_call_id="call_1"),
    )
    assert (prompted.raw, prompted.checked.visible) == ("What time is it?", "What time is it?")
    assert prompted.checked.blocked is None


@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_a_number_in_any_message_is_redacted_before_a_model_sees_it(at: int) -> None:
    messages = [*ROUND, {"role": "user", "content": "And now?"}]
    messages[at] = {**messages[at], "content": f"my number is {SSN}"}
    prompted = await checked(messages, everywhere())
    assert [message.text for message in prompted.messages][at] == "my number is [SSN]"
    assert SSN not in str(prompted.messages)
    assert [finding.channel for finding in prompted.checked.findings] == [f"messages[{at}]"]
    assert (prompted.raw, prompted.checked.action) == ("And now?", "redact")


async def test_a_number_in_the_arguments_of_a_call_is_redacted_and_they_stay_json() -> None:
    call = {**CALL, "arguments": json.dumps({"ssn": SSN})}
    prompted = await checked([*ROUND[:2], {"role": "assistant", "tool_calls": [call]}, ROUND[3]], everywhere())
    assert prompted.messages[2].tool_calls[0].arguments == '{"ssn": "[SSN]"}'


@pytest.mark.parametrize("spelled", ["536\\u002d22\\u002D8145", "536-22-8145"])
async def test_however_a_number_is_spelled_in_arguments_it_is_redacted(spelled: str) -> None:
    call = {**CALL, "arguments": f'{{"ssn": "{spelled}", "{spelled}": 1}}'}
    prompted = await checked([*ROUND[:2], {"role": "assistant", "tool_calls": [call]}, ROUND[3]], everywhere())
    assert json.loads(prompted.messages[2].tool_calls[0].arguments) == {"ssn": "[SSN]", "[SSN]": 1}


async def test_a_number_of_which_digits_are_redacted_is_a_string() -> None:
    digits = {"name": "digits", "kind": "regex", "action": "redact", "applies_to": ["tool_arguments"],
              "config": {"rules": [{"id": "d", "pattern": "[0-9]{9}"}]}}  # fmt: skip
    call = {**CALL, "arguments": '{"n": 123456789}'}
    prompted = await checked([*ROUND[:2], {"role": "assistant", "tool_calls": [call]}, ROUND[3]], policy_of(digits))
    (value,) = json.loads(prompted.messages[2].tool_calls[0].arguments).values()
    assert isinstance(value, str)
    assert "123456789" not in value


async def test_arguments_that_a_redaction_breaks_are_refused() -> None:
    short = {"name": "short", "kind": "length", "action": "redact", "applies_to": ["tool_arguments"],
             "config": {"max_chars": 10}}  # fmt: skip
    call = {**CALL, "arguments": '{"n": 123456789}'}
    with pytest.raises(BadMessages) as caught:
        await checked([*ROUND[:2], {"role": "assistant", "tool_calls": [call]}, ROUND[3]], policy_of(short))
    assert caught.value.field == "messages[2].tool_calls[0].arguments"
    assert "123456789" not in str(caught.value)


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
async def test_a_blocked_phrase_in_any_message_blocks_the_prompt(at: int) -> None:
    messages = [*ROUND, {"role": "user", "content": "And now?"}]
    messages[at] = {**messages[at], "content": "about blue heron"}
    prompted = await checked(messages, everywhere())
    assert prompted.checked.blocked is not None
    assert prompted.checked.blocked.guardrail == "heron"
    assert prompted.checked.action == "block"


async def test_a_blocked_phrase_in_the_arguments_of_a_call_blocks_the_prompt() -> None:
    call = {**CALL, "arguments": '{"q": "blue heron"}'}
    prompted = await checked([*ROUND[:2], {"role": "assistant", "tool_calls": [call]}, ROUND[3]], everywhere())
    assert prompted.checked.blocked is not None


async def test_the_prompt_is_the_last_word_of_the_users_also_when_a_tool_spoke_after_it() -> None:
    asked = {"role": "user", "content": f"mine is {SSN}"}
    prompted = await checked([asked, *ROUND[2:]], everywhere())
    assert prompted.raw == f"mine is {SSN}"
    assert prompted.checked.visible == "mine is [SSN]"
    assert prompted.checked.redactions == [(8, "[SSN]")]
    assert [finding.channel for finding in prompted.checked.findings] == ["prompt"]


async def test_two_calls_of_one_id_are_refused_because_one_result_cannot_answer_both() -> None:
    twice = [*ROUND[:2], {"role": "assistant", "tool_calls": [CALL, CALL]}, ROUND[3]]
    assert refused(messages=twice)[1] == "messages[2].tool_calls[1].id"
