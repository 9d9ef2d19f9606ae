"""The official OpenAI library against the gateway: what it parses is what it parses at the upstream itself."""

from __future__ import annotations

import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.streaming.gateway.fake import JSON, Answer, sse
from tests.streaming.gateway.recorded import recordings
from tests.streaming.gateway.served import OPENED, Gateway

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
CARD = "4111 1111 1111 1111"
SAID = [
    {"role": "assistant", "content": ""},
    {"content": "Good "},
    {"content": "morning, Ada."},
    {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather",
                                                                                 "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Bath"}'}}]},
]  # fmt: skip


def chunk(delta: object, reason: str | None = None, index: int = 0, **more: object) -> dict[str, object]:
    choices = [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
    } | more


def stream() -> list[bytes]:
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    last = chunk({}, "tool_calls") | {"choices": [], "usage": usage}
    return sse(*map(chunk, SAID), chunk({}, "tool_calls", brand_new={"kept": ["x"]}), last)  # type: ignore[arg-type]


def whole(text: str, **more: object) -> list[bytes]:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text} | more, "finish_reason": "stop"}]
    return [
        json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}).encode()
    ]


def client(served: Gateway, policy: str) -> OpenAI:
    return opened(served.url, served.keys[policy])


def direct(served: Gateway) -> OpenAI:
    return opened(served.fake.url, "any")


def opened(url: str, key: str) -> OpenAI:
    made = OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)
    OPENED.append(made.close)
    return made


def streamed(of: OpenAI, model: str, **more: object) -> list[dict[str, object]]:
    with of.chat.completions.create(model=model, messages=HELLO, stream=True, **more) as found:  # type: ignore[call-overload]
        return [one.model_dump() for one in found]


def final(of: OpenAI, model: str) -> dict[str, object]:
    """The answer as the library puts it together from a stream."""
    with of.chat.completions.stream(model=model, messages=HELLO) as events:  # type: ignore[arg-type]
        for _ in events:
            pass
        return events.get_final_completion().model_dump()


def test_it_works(served: Gateway) -> None:
    """The same chunks as from the upstream itself, fields that nobody here knows included."""
    served.fake.answers["said"] = Answer(stream())
    more = {"stream_options": {"include_usage": True}, "user": "u-1", "tools": TOOLS}
    assert streamed(client(served, "open"), "said", **more) == streamed(direct(served), "said", **more)
    path, headers, body = served.fake.asked[-2]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer upstream-key"
    assert json.loads(body)["user"] == "u-1"


@pytest.mark.parametrize("policy", ["open", "strict"])
def test_the_library_puts_the_same_answer_together(served: Gateway, policy: str) -> None:
    served.fake.answers["said"] = Answer(stream())
    assert final(client(served, policy), "said") == final(direct(served), "said")


async def test_the_asynchronous_library_streams_and_does_not(served: Gateway) -> None:
    served.fake.answers["said"] = Answer(stream())
    served.fake.answers["whole"] = Answer(whole("Good morning.", brand_new="kept"), JSON)
    async with AsyncOpenAI(api_key=served.keys["strict"], base_url=f"{served.url}/v1", max_retries=0) as ours:
        got = await ours.chat.completions.create(model="whole", messages=HELLO)  # type: ignore[arg-type]
        assert got == direct(served).chat.completions.create(model="whole", messages=HELLO)  # type: ignore[arg-type]
        found = await ours.chat.completions.create(model="said", messages=HELLO, stream=True)  # type: ignore[call-overload]
        texts = [one.choices[0].delta.content or "" async for one in found if one.choices]
    assert "".join(texts) == "Good morning, Ada."


@pytest.mark.parametrize("file", recordings("openai_chat", "openai_chat_compat"), ids=lambda file: file.stem)
def test_recordings_parse_as_they_do_at_the_upstream(served: Gateway, file: object) -> None:
    served.fake.answers["replay"] = Answer([file.read_bytes()])  # type: ignore[attr-defined]

    def outcome(of: OpenAI) -> object:
        try:
            return streamed(of, "replay")
        except openai.APIError as error:
            return str(error.body or type(error).__name__)

    assert outcome(client(served, "open")) == outcome(direct(served))


def test_a_planted_card_reaches_nobody(served: Gateway) -> None:
    text = f"Your card is {CARD}, they say."
    for at in range(len("Your card is ") + 1, text.index(","), 6):
        served.fake.answers["plant"] = Answer(sse(chunk({"content": text[:at]}), chunk({"content": text[at:]}, "stop")))
        got = streamed(client(served, "strict"), "plant")
        said = "".join(str(one["choices"][0]["delta"]["content"] or "") for one in got)  # type: ignore[index]
        assert said == "Your card is [CREDIT_CARD], they say."


def test_a_block_is_a_content_filter(served: Gateway) -> None:
    pieces = sse(chunk({"content": "It is Project Blue"}), chunk({"content": " Heron, really."}), chunk({}, "stop"))
    served.fake.answers["heron"] = Answer(pieces)
    got = streamed(client(served, "stopping"), "heron")
    assert "".join(str(one["choices"][0]["delta"]["content"] or "") for one in got) == "It is "  # type: ignore[index]
    assert got[-1]["choices"][0]["finish_reason"] == "content_filter"  # type: ignore[index]
    served.fake.answers["heron"] = Answer(whole("It is Project Blue Heron."), JSON)
    answer = client(served, "stopping").chat.completions.create(model="heron", messages=HELLO)  # type: ignore[arg-type]
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("content_filter", "It is ")


def test_a_blocked_prompt_is_answered_and_nothing_goes_upstream(served: Gateway) -> None:
    ours, before = client(served, "stopping"), len(served.fake.asked)
    messages = [{"role": "user", "content": [{"type": "text", "text": "Tell me of project blue heron"}]}]
    answer = ours.chat.completions.create(model="said", messages=messages)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason == "content_filter"
    assert "words" in str(answer.choices[0].message.refusal)
    with ours.chat.completions.create(model="said", messages=messages, stream=True) as found:  # type: ignore[call-overload]
        assert [one.choices[0].finish_reason for one in found] == ["content_filter"]
    assert len(served.fake.asked) == before


def test_every_string_of_a_request_is_checked(served: Gateway) -> None:
    served.fake.answers["whole"] = Answer(whole("Fine."), JSON)
    nested = json.dumps({"deep": [{"card": CARD, "n": 1}]})
    messages = [
        {"role": "system", "content": f"card {CARD}"},
        {"role": "user", "content": [{"type": "text", "text": f"card {CARD}"}]},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": nested}}]},
        {"role": "tool", "tool_call_id": "c", "content": nested.replace("4", "\\u0034", 1)},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "description": CARD, "parameters": {"type": "object"}}}]
    client(served, "strict").chat.completions.create(
        model="whole", messages=messages, tools=tools, user=CARD, extra_body={"brand_new": {f"{CARD}": [CARD]}}
    )  # type: ignore[call-overload]
    path, headers, body = served.fake.asked[-1]
    assert b"1111" not in body
    assert "1111" not in json.dumps([path, headers])
    assert body.count(b"[CREDIT_CARD]") == 8


def test_errors_are_those_that_the_library_knows(served: Gateway) -> None:
    ours = client(served, "open")
    with pytest.raises(openai.AuthenticationError):
        streamed(opened(served.url, "sg_wrong"), "said")
    with pytest.raises(openai.NotFoundError, match="no such model"):
        streamed(ours, "unknown")
    for status, wanted in (
        (429, openai.RateLimitError),
        (400, openai.BadRequestError),
        (500, openai.InternalServerError),
    ):
        served.fake.answers["bad"] = Answer([b'{"error": {"message": "told so"}}'], JSON, status, {"Retry-After": "7"})
        with pytest.raises(wanted, match="told so") as raised:
            streamed(ours, "bad")
        assert status != 429 or raised.value.response.headers["Retry-After"] == "7"
    with pytest.raises(openai.BadRequestError, match="messages"):
        ours.chat.completions.create(model="said", messages=[])
    with pytest.raises(openai.APIStatusError) as raised:
        ours.chat.completions.create(model="said", messages=[{"role": "user", "content": "x" * 1_100_000}])
    assert raised.value.status_code == 413


def test_what_answers_another_dialect_or_somewhere_else_is_not_passed_on(served: Gateway) -> None:
    ours = client(served, "open")
    wrong = {
        "lines": Answer([b'{"message": {"content": "hi"}, "done": true}\n'], "application/x-ndjson"),
        "page": Answer([b"<h1>Welcome</h1>"], "text/html"),
        "messages": Answer([b'event: message_start\ndata: {"type": "message_start", "message": {}}\n\n']),
        "elsewhere": Answer([b"{}"], JSON, 302, {"Location": f"{served.fake.url}/v1/other"}),
    }
    served.fake.answers |= wrong
    for model in wrong:
        with pytest.raises(openai.InternalServerError) as raised:
            streamed(ours, model)
        assert raised.value.status_code == 502
    assert all(path != "/v1/other" for path, _, _ in served.fake.asked)


def test_an_answer_that_breaks_off_is_an_error_and_what_was_held_stays(served: Gateway) -> None:
    served.fake.answers["cut"] = Answer([sse(chunk({"content": "card 4111 1111"}))[0]])
    found = client(served, "strict").chat.completions.create(model="cut", messages=HELLO, stream=True)  # type: ignore[call-overload]
    got: list[str] = []
    with pytest.raises(openai.APIError, match="ended before"):
        got.extend(one.choices[0].delta.content for one in found)
    assert "".join(got) == "card "


def test_pictures_pass_only_where_nothing_decides(served: Gateway) -> None:
    served.fake.answers["whole"] = Answer(whole("A cat."), JSON)
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 40}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]
    with pytest.raises(openai.BadRequestError, match="image"):
        client(served, "strict").chat.completions.create(model="whole", messages=messages)  # type: ignore[arg-type]
    client(served, "open").chat.completions.create(model="whole", messages=messages)  # type: ignore[arg-type]
    assert served.fake.last()["messages"] == messages


@pytest.mark.parametrize("model", ["scripted-1", "scripted/pii", "anthropic/said", "ollama/said"])
def test_any_provider_may_stand_behind(served: Gateway, model: str) -> None:
    lines = [{"model": "m", "message": {"role": "assistant", "content": "Good day."}, "done": True}]
    message = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [],
                                              "model": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Good day."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]  # fmt: skip
    events = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in message]
    served.fake.answers["said"] = (
        Answer(events)
        if model.startswith("anthropic")
        else Answer([json.dumps(lines[0]).encode()], "application/x-ndjson")
    )
    got = final(client(served, "strict"), model)
    choice = got["choices"][0]  # type: ignore[index]
    assert choice["finish_reason"] == "stop"
    text = choice["message"]["content"]
    assert text == "Good day." if "/said" in model else "scripted model" in text or "[SSN]" in text
    assert "536" not in text


def test_what_the_provider_behind_has_no_words_for_is_refused(served: Gateway) -> None:
    ours = client(served, "open")
    for more in ({"n": 2}, {"response_format": {"type": "json_object"}}, {"logprobs": True}):
        with pytest.raises(openai.BadRequestError, match=next(iter(more))):
            ours.chat.completions.create(model="anthropic/said", messages=HELLO, **more)  # type: ignore[call-overload]


def test_models_are_listed(served: Gateway) -> None:
    assert "scripted-1" in [model.id for model in client(served, "open").models.list()]


def test_headers_say_which_session_and_policy(served: Gateway) -> None:
    served.fake.answers["whole"] = Answer(whole("Fine."), JSON)
    raw = client(served, "strict").chat.completions.with_raw_response.create(model="whole", messages=HELLO)  # type: ignore[arg-type]
    assert raw.headers["X-Sluicegate-Policy"] == "strict"
    assert len(raw.headers["X-Sluicegate-Session"]) == 36
