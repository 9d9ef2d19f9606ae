"""Upstreams and clients that misbehave, in the two dialects that OpenAI's tests do not cover."""

from __future__ import annotations

import json

import httpx
import pytest

from streaming.gateway.walker import Json
from tests.streaming.gateway.fake import JSON, NDJSON, SSE, Answer
from tests.streaming.gateway.served import Gateway
from tests.streaming.gateway.test_planted import PATHS

DIALECTS = ("anthropic", "ollama")
MESSAGES = [{"role": "user", "content": "Hi"}]
CHUNK = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "hi"}}]}
OTHERS = {
    "anthropic": [
        Answer([b'{"message": {"role": "assistant", "content": "hi"}, "done": true}\n'], NDJSON),
        Answer([f"data: {json.dumps(CHUNK)}\n\n".encode()], SSE),
    ],
    "ollama": [
        Answer([b'event: message_start\ndata: {"type": "message_start", "message": {}}\n\n'], SSE),
        Answer([json.dumps(CHUNK).encode() + b"\n"], NDJSON),
    ],
}


def ask(served: Gateway, dialect: str, key: str = "", **more: object) -> httpx.Response:
    body: Json = {"model": "bad", "messages": MESSAGES, "max_tokens": 9, **more}
    bearer = {"Authorization": f"Bearer {key or served.keys['open']}"}
    return httpx.post(served.url + PATHS[dialect], headers=bearer, json=body, timeout=60, follow_redirects=False)


def said_wrong(dialect: str, response: httpx.Response) -> str:
    """What the error says, in the dialect's own shape."""
    found = response.json()
    if dialect == "anthropic":
        assert (found["type"], set(found["error"])) >= ("error", {"type", "message"})
        return str(found["error"]["message"])
    assert isinstance(found["error"], str)
    return str(found["error"])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_works(served: Gateway, dialect: str, stream: bool) -> None:
    """An answer of another dialect, a page, and one that leads elsewhere are errors; nothing of them is passed on."""
    before = len(served.fake.asked)
    wrong = [
        *OTHERS[dialect],
        Answer([b"<h1>Welcome</h1>"], "text/html"),
        Answer([b"{}"], JSON, 302, {"Location": f"{served.fake.url}/elsewhere"}),
    ]
    for answer in wrong:
        served.fake.answers["bad"] = answer
        response = ask(served, dialect, stream=stream)
        assert response.status_code == 502, response.text
        assert said_wrong(dialect, response)
        assert "Location" not in response.headers
        assert "Welcome" not in response.text
    assert {path for path, _, _ in served.fake.asked[before:]} == {PATHS[dialect]}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_no_request_is_refused_in_the_dialect(served: Gateway, dialect: str) -> None:
    before = len(served.fake.asked)
    bearer = {"Authorization": f"Bearer {served.keys['open']}", "Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": "m"}', b'{"model": "m", "messages": []}',
                 b'{"messages": [{"role": "user", "content": "Hi"}]}', b"[" * 10_000):  # fmt: skip
        response = httpx.post(served.url + PATHS[dialect], headers=bearer, content=body, timeout=60)
        assert response.status_code == 400, body[:40]
        assert said_wrong(dialect, response)
    response = ask(served, dialect, messages=[{"role": "user", "content": "x" * 1_100_000}])
    assert response.status_code == 413
    assert said_wrong(dialect, response)
    response = ask(served, dialect, "sg_wrong")
    assert response.status_code == 401
    assert said_wrong(dialect, response)
    assert len(served.fake.asked) == before


BYTES = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" * 8
SOURCE = {"type": "base64", "media_type": "image/png", "data": BYTES}
MEDIA: list[tuple[str, str, Json]] = [
    ("openai", "audio", {"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": BYTES, "format": "wav"}}]}),
    ("openai", "file", {"role": "user", "content": [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{BYTES}"}}]}),
    ("anthropic", "image", {"role": "user", "content": [{"type": "image", "source": SOURCE}]}),
    ("anthropic", "document", {"role": "user", "content": [
        {"type": "document", "source": SOURCE | {"media_type": "application/pdf"}}]}),
    ("ollama", "image", {"role": "user", "content": "What is it?", "images": [BYTES]}),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "kind", "message"), MEDIA, ids=[f"{d}-{k}" for d, k, _ in MEDIA])
def test_pictures_sound_and_files_pass_only_where_nothing_decides(
    served: Gateway, dialect: str, kind: str, message: Json
) -> None:
    served.fake.answers["bad"] = Answer([b'{"error": "told so"}'], JSON, 418)
    before = len(served.fake.asked)
    response = ask(served, dialect, served.keys["strict"], messages=[message], stream=False)
    assert response.status_code == 400
    if dialect != "openai":
        assert kind in said_wrong(dialect, response)
    assert response.headers["X-Sluicegate-Code"] == "media_refused" or "media_refused" in response.text
    assert len(served.fake.asked) == before
    ask(served, dialect, messages=[message], stream=False)
    assert served.fake.last()["messages"] == [message]


def test_an_answer_in_sound_is_refused_as_well(served: Gateway) -> None:
    response = ask(served, "openai", served.keys["strict"], modalities=["text", "audio"])
    assert response.status_code == 400
    assert "audio" in response.json()["error"]["message"]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_the_key_that_an_upstream_quotes_is_not_told_to_a_client(served: Gateway, dialect: str) -> None:
    """It is the installation's, and no client of the gateway ever sees it; what else the upstream says stays."""
    said = json.dumps(
        {"error": {"message": "unsupported: upstream-key", "headers": {"upstream-key": ["upstream-key!"]}}}
    )
    answers = [Answer([said.encode()], JSON, status) for status in (400, 404, 429, 500, 200)]
    for answer in (*answers, Answer([b"event: error\ndata: %s\n\n" % said.encode()], SSE)):
        served.fake.answers["bad"] = answer
        for stream in (True, False):
            response = ask(served, dialect, stream=stream)
            assert "upstream-key" not in response.text, answer
            if answer.status in (400, 404, 429):
                assert "unsupported: [key]" in response.text


@pytest.mark.parametrize(
    ("said", "told"),
    [("7", {"7"}), (" 12 ", {"12"}), ("4111111111111111", {"86400"}), ("9" * 400, {"86400", None}),
     ("\u0663", {None, "3"}), ("123-45-6789", {None}), ("Sat, 21 Mar 2999 10:00:00 GMT", {"86400"}),
     ("1e300", {"86400"}), ("1.5", {"2"}), ("0.2", {"1"}), ("", {None})],
)  # fmt: skip
@pytest.mark.parametrize("dialect", ["openai", *DIALECTS])
def test_how_long_to_wait_says_nothing_else(served: Gateway, dialect: str, said: str, told: set[str | None]) -> None:
    for body in (b'{"error": {"message": "slow down"}}', b"slow down"):
        headers = {"Retry-After": said.encode().decode("latin-1")}
        served.fake.answers["bad"] = Answer([body], JSON, 429, headers)
        response = ask(served, dialect)
        assert response.status_code == 429, response.text
        found = response.headers.get("Retry-After")
        assert found in told, (body, found)
        assert found is None or (found.isascii() and found.isdecimal() and int(found) <= 86_400)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_that_cannot_be_unpacked_keeps_its_status(served: Gateway, dialect: str) -> None:
    for coding in ("br", "gzip, deflate"):
        served.fake.answers["bad"] = Answer([b"\x8b\x02\x80no JSON\x03"], JSON, 429, {"Content-Encoding": coding})
        response = ask(served, dialect, stream=False)
        assert response.status_code == 429, response.text
        assert "compressed" not in said_wrong(dialect, response)
