"""The official Ollama library against the gateway: what it parses is what it parses at the upstream itself."""

from __future__ import annotations

import json

import ollama
import pytest
from httpx._decoders import LineDecoder
from ollama import AsyncClient, Client

from streaming.api.gateway.ollama import line as framed
from tests.streaming.gateway.fake import JSON, NDJSON, Answer
from tests.streaming.gateway.recorded import recordings
from tests.streaming.gateway.served import OPENED, Gateway

HELLO = [{"role": "user", "content": "Hello"}]
CARD = "4111 1111 1111 1111"


def line(message: dict[str, object], **more: object) -> bytes:
    said = {"model": "m", "created_at": "2026-01-02T03:04:05Z", "message": {"role": "assistant", **message}}
    return json.dumps({**said, "done": False, **more}).encode() + b"\n"


LAST = line({"content": ""}, done=True, done_reason="stop", total_duration=9, prompt_eval_count=3, eval_count=4)
CALL = {"function": {"name": "weather", "arguments": {"city": "Bath", "days": 3}}}
EVERYTHING = [
    line({"content": "", "thinking": "First, "}), line({"content": "", "thinking": "the weather."}),
    line({"content": "Good "}), line({"content": "morning."}), line({"content": "", "tool_calls": [CALL]}), LAST,
]  # fmt: skip


def client(served: Gateway, policy: str) -> Client:
    return opened(served.url, served.keys[policy])


def direct(served: Gateway) -> Client:
    return opened(served.fake.url, "any")


def opened(url: str, key: str) -> Client:
    made = Client(host=url, headers={"Authorization": f"Bearer {key}"})
    OPENED.append(made._client.close)
    return made


def streamed(of: Client, model: str) -> list[dict[str, object]]:
    return [one.model_dump() for one in of.chat(model=model, messages=HELLO, stream=True)]


def test_it_works(served: Gateway) -> None:
    served.fake.answers["all"] = Answer(EVERYTHING, NDJSON)
    assert streamed(client(served, "open"), "all") == streamed(direct(served), "all")
    assert served.fake.asked[-2][0] == "/api/chat"


def test_under_a_policy_the_same_is_said(served: Gateway) -> None:
    served.fake.answers["all"] = Answer(EVERYTHING, NDJSON)
    got = [one["message"] for one in streamed(client(served, "strict"), "all")]
    assert "".join(str(one["content"] or "") for one in got) == "Good morning."  # type: ignore[index]
    assert "".join(str(one["thinking"] or "") for one in got) == "First, the weather."  # type: ignore[index]
    (calls,) = [one["tool_calls"] for one in got if one["tool_calls"]]  # type: ignore[index]
    assert calls[0]["function"]["arguments"] == {"city": "Bath", "days": 3}


async def test_the_asynchronous_library_streams_and_does_not(served: Gateway) -> None:
    served.fake.answers["all"] = Answer(EVERYTHING, NDJSON)
    served.fake.answers["whole"] = Answer([line({"content": f"card {CARD}"}, done=True)], JSON)
    ours = AsyncClient(host=served.url, headers={"Authorization": f"Bearer {served.keys['strict']}"})
    got = await ours.chat(model="whole", messages=HELLO)
    assert got.message.content == "card [CREDIT_CARD]"
    texts = [one.message.content or "" async for one in await ours.chat(model="all", messages=HELLO, stream=True)]
    assert "".join(texts) == "Good morning."
    await ours._client.aclose()


@pytest.mark.parametrize("file", recordings("ollama_chat"), ids=lambda file: file.stem)
def test_recordings_parse_as_they_do_at_the_upstream(served: Gateway, file: object) -> None:
    served.fake.answers["replay"] = Answer([file.read_bytes()], NDJSON)  # type: ignore[attr-defined]

    def outcome(of: Client) -> object:
        try:
            return streamed(of, "replay")
        except ollama.ResponseError as error:
            return str(error)

    assert outcome(client(served, "open")) == outcome(direct(served))


def test_a_planted_card_reaches_nobody(served: Gateway) -> None:
    said = f"Your card is {CARD}, they say."
    for at in range(len("Your card is ") + 1, said.index(","), 6):
        call = {"function": {"name": "pay", "arguments": {"note": said, "card": int(CARD.replace(" ", ""))}}}
        lines = [
            line({"content": said[:at]}),
            line({"content": said[at:]}),
            line({"content": "", "tool_calls": [call]}),
        ]
        served.fake.answers["plant"] = Answer([*lines, LAST], NDJSON)
        got = streamed(client(served, "strict"), "plant")
        assert "1111" not in json.dumps(got)
        text = "".join(str(one["message"]["content"] or "") for one in got)  # type: ignore[index]
        assert text == "Your card is [CREDIT_CARD], they say."


def test_a_block_ends_with_a_content_filter(served: Gateway) -> None:
    lines = [line({"content": "It is Project Blue"}), line({"content": " Heron, really."}), LAST]
    served.fake.answers["heron"] = Answer(lines, NDJSON)
    got = streamed(client(served, "stopping"), "heron")
    assert "".join(str(one["message"]["content"] or "") for one in got) == "It is "  # type: ignore[index]
    assert (got[-1]["done"], got[-1]["done_reason"]) == (True, "content_filter")
    before = len(served.fake.asked)
    asked = [{"role": "user", "content": "project blue heron"}]
    answer = client(served, "stopping").chat(model="heron", messages=asked)
    assert (answer.done_reason, answer.message.content) == ("content_filter", "")
    assert len(served.fake.asked) == before


def test_errors_are_those_that_the_library_knows(served: Gateway) -> None:
    with pytest.raises(ollama.ResponseError) as raised:
        opened(served.url, "sg_wrong").chat(model="all", messages=HELLO)
    assert raised.value.status_code == 401
    served.fake.answers["missing"] = Answer([b'{"error": "model missing"}'], JSON, 404)
    with pytest.raises(ollama.ResponseError, match="model missing"):
        client(served, "open").chat(model="missing", messages=HELLO)
    served.fake.answers["breaks"] = Answer([line({"content": "Good "}), b'{"error": "out of memory"}\n'], NDJSON)
    with pytest.raises(ollama.ResponseError, match="out of memory"):
        streamed(client(served, "open"), "breaks")


def test_pictures_pass_only_where_nothing_decides(served: Gateway) -> None:
    served.fake.answers["whole"] = Answer([line({"content": "A cat."}, done=True)], JSON)
    asked = [{"role": "user", "content": "What is it?", "images": ["iVBORw0KGgo="]}]
    with pytest.raises(ollama.ResponseError, match="image"):
        client(served, "strict").chat(model="whole", messages=asked)
    assert client(served, "open").chat(model="whole", messages=asked).message.content == "A cat."


def test_models_are_listed_and_any_provider_may_stand_behind(served: Gateway) -> None:
    ours = client(served, "strict")
    assert "scripted-1" in [model.model for model in ours.list().models]
    assert "scripted model" in str(ours.chat(model="scripted-1", messages=HELLO).message.content)
    assert "[SSN]" in "".join(str(one["message"]["content"]) for one in streamed(ours, "scripted/pii"))  # type: ignore[index]


ENDS = "a\x85b\u2028c\u2029d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj"
"""All that ends a line somewhere."""


@pytest.mark.parametrize("policy", ["open", "strict"])
def test_what_ends_a_line_in_unicode_ends_none_in_the_dialect(served: Gateway, policy: str) -> None:
    frame = framed({"message": {"content": ENDS, ENDS: 1}})
    decoder = LineDecoder()
    (only,) = decoder.decode(frame.decode()) + decoder.flush()
    assert json.loads(only) == {"message": {"content": ENDS, ENDS: 1}}
    served.fake.answers["ends"] = Answer([line({"content": ENDS}), LAST], NDJSON)
    got = streamed(client(served, policy), "ends")
    assert "".join(str(one["message"]["content"] or "") for one in got) == ENDS  # type: ignore[index]
