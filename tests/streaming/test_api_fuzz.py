"""Bodies that no client should send: whatever comes, the answer is a refusal in the one shape, and nothing happens.

Nor does the server's log show a traceback: what is wrong with a body is the client's business.

Exists beside the tests of the contract because those send well-formed requests; here the bytes themselves are wrong.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrails.models import Scope
from guardrails.services import create_api_key
from streaming import tasks
from streaming.models import AuditSession
from tests.streaming.calling import Caller, calling

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
ID = "00000000-0000-4000-8000-000000000000"
RIGHT: dict[str, dict[str, object]] = {
    "/v1/check": {"text": "Hello", "kind": "prompt", "context": {"conversation_id": "c"}, "accepts": ["redact"]},
    "/v1/chat": {"prompt": "Hello", "tools": False},
    "/v1/stream/start": {"delta": "Hello", "client": {"name": "n"}, "channels": ["text"]},
    "/v1/stream/update": {"session_id": ID, "seq": 1, "delta": "Hello"},
    "/v1/stream/finish": {"session_id": ID, "seq": 1, "delta": "Hello"},
}
LIVE = ["/v1/stream/update", "/v1/stream/finish"]
BIG = 10**400
ODD_VALUES = [
    None, True, False, 0, -1, 1.5, 1e308, BIG, -BIG, 2**63, float("nan"), float("inf"), "", "\0", "\ud800",
    "\udfff\ud800", "x" * 5_000, "\u202e", "\ufeff", "😀" * 300, [], {}, [[]], [None], [1], {"a": 1}, {"": ""},
    {"\ud800": "\ud800"}, {"__proto__": {}},
    {"conversation_id": {"conversation_id": []}}, {"more": float("nan")}, {"more": BIG}, {"more": "\0"},
]  # fmt: skip


NUMBERS = [b"9" * 4_000, b"9" * 5_000, b"1e99999", b"-0", b"1E+2", b"NaN", b"-Infinity", b"01"]
CHARSETS = ["utf-16", "utf-32", "utf-8-sig", "utf-16-be"]
BARE = [b"", b"null", b"true", b"1", b'"x"', b"[]", b"{}", b"[{}]", b"\x00", b"\xff\xfe", b"{" * 70_000]
NAMES = ["policy", "preset", "mode", "kind", "messages", "context", "client", "more"]
KINDS = ["list", "object", "open"]


def nested(depth: int, kind: str) -> bytes:
    """JSON so deep."""
    left, right = {"list": (b"[", b"]"), "object": (b'{"a":', b"}"), "open": (b"[", b"")}[kind]
    return left * depth + b"1" + right * depth


@st.composite
def nearly_right(draw: st.DrawFn, right: dict[str, object]) -> bytes:
    """A right body with one to three fields made odd, left out or added."""
    body = dict(right)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(
            st.sampled_from([*body, "policy", "preset", "mode", "kind", "messages", "context", "client", "more"])
        )
        if draw(st.integers(0, 9)) == 0:
            body.pop(name, None)
        else:
            body[name] = draw(st.sampled_from(ODD_VALUES))
    return json.dumps(body, ensure_ascii=True).encode()


@st.composite
def broken(draw: st.DrawFn, right: dict[str, object]) -> bytes:
    """Bytes that were JSON once, or never."""
    whole = json.dumps(right).encode()
    match draw(st.sampled_from(["cut", "flip", "noise", "deep", "inside", "number", "twice", "charset", "bare"])):
        case "cut":
            return whole[: draw(st.integers(0, len(whole) - 1))]
        case "flip":
            at = draw(st.integers(0, len(whole) - 1))
            return whole[:at] + bytes([draw(st.integers(0, 255))]) + whole[at + 1 :]
        case "noise":
            return draw(st.binary(max_size=300))
        case "deep":
            return nested(draw(st.sampled_from([50, 990, 5_000, 100_000])), draw(st.sampled_from(KINDS)))
        case "inside":
            deep = nested(draw(st.sampled_from([50, 200, 900, 5_000])), draw(st.sampled_from(["list", "object"])))
            name = draw(st.sampled_from([*right, "context", "client", "more"]))
            return whole[:-1] + b', "' + name.encode() + b'": ' + deep + b"}"
        case "number":
            digits = draw(st.sampled_from(NUMBERS))
            return whole[:-1] + b', "seq": ' + digits + b"}"
        case "twice":
            return whole + whole
        case "charset":
            return json.dumps(right).encode(draw(st.sampled_from(CHARSETS)))
    return draw(st.sampled_from(BARE))


@st.composite
def packed(draw: st.DrawFn, body: bytes) -> tuple[bytes, str]:
    """The body as it is sent, and its ``Content-Encoding``; now and then they do not belong together."""
    zipped = gzip.compress(body, 1, mtime=0)
    match draw(st.sampled_from(["plain", "plain", "plain", "gzip", "cut", "flip", "lie", "unknown", "bomb", "bombs"])):
        case "gzip":
            return zipped, "gzip"
        case "cut":
            return zipped[: draw(st.integers(0, len(zipped) - 1))], "gzip"
        case "flip":
            at = draw(st.integers(0, len(zipped) - 1))
            return zipped[:at] + bytes([zipped[at] ^ (1 << draw(st.integers(0, 7)))]) + zipped[at + 1 :], "gzip"
        case "lie":
            return body, draw(st.sampled_from(["gzip", " GZIP ", "gzip, gzip"]))
        case "unknown":
            return zlib.compress(body), draw(st.sampled_from(["deflate", "br", "zstd", "x", "identity;q=0", "é"]))
        case "bomb":
            return BOMB, "gzip"
        case "bombs":
            return BOMB * 3, "gzip"
    return body, ""


BOMB = gzip.compress(b"0" * 50_000_000, 9, mtime=0)
TYPES = ["application/json", "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
         "multipart/form-data", "application/json; charset=utf-16", "application/json; charset=nonsense", "é",
         "a" * 5_000]  # fmt: skip


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20000")
    limits = {"calls_per_minute": 1_000_000, "updates_per_second": 1_000_000}
    _, key = create_api_key(name="everything", scopes=list(Scope), **limits)
    with calling(key) as made:
        yield made


def try_one(caller: Caller, path: str, body: bytes, encoding: str, kind: str, method: str = "POST") -> int:
    """Send it; the answer keeps the rules of every answer. Returns its status."""
    return answer_to(caller, path, body, encoding, kind, method).status_code


def answer_to(caller: Caller, path: str, body: bytes, encoding: str, kind: str, method: str = "POST") -> httpx.Response:
    """Send it; the answer keeps the rules of every answer."""
    before = AuditSession.objects.count()
    headers = {"Content-Type": kind.encode("latin-1"), "Content-Encoding": encoding.encode("latin-1")}
    response = caller.send(method, path, content=body, headers=headers)  # type: ignore[arg-type]
    said = response.text
    assert response.status_code < 500, said
    assert "Traceback" not in said
    assert "/streaming/" not in said, "no path of ours either"
    assert caller.tracebacks() == [], "and none in the server's log"
    assert response.headers["Content-Type"].startswith("application/json")
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) <= {"code", "message", "field", "expected_seq"}
        assert error["code"]
        assert error["message"]
        assert AuditSession.objects.count() == before, "a refused call changes nothing"
    return response


def fuzz(examples: int) -> Any:
    """So many bodies, the same in every run."""
    quiet = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )

    def decorate(test: Any) -> Any:
        return quiet(given(data=st.data())(test))

    return decorate


def send_drawn(caller: Caller, path: str, data: st.DataObject) -> None:
    body = data.draw(st.one_of(nearly_right(RIGHT[path]), broken(RIGHT[path])), label="body")
    sent, encoding = data.draw(packed(body), label="sent")
    kind = data.draw(st.sampled_from([TYPES[0]] * 6 + TYPES[1:]), label="content type")
    try_one(caller, path, sent, encoding, kind)


@pytest.mark.parametrize("path", RIGHT)
def test_it_works(caller: Caller, path: str) -> None:
    """The bodies that everything else is made of are right, or the rest would prove little."""
    status = try_one(caller, path, json.dumps(RIGHT[path]).encode(), "", "application/json")
    assert status == (404 if "session_id" in RIGHT[path] else 201 if path != "/v1/check" else 200)


def test_a_traceback_in_the_log_would_be_seen(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this file relies on: a call that breaks is logged with its traceback, and read here."""

    async def breaks(*args: object, **kwargs: object) -> None:
        raise ValueError("it does not work")

    monkeypatch.setattr("streaming.api.check.load_running", breaks)
    body = json.dumps(RIGHT["/v1/check"]).encode()
    response = caller.send("POST", "/v1/check", content=body, headers={"Content-Type": "application/json"})
    (found,) = caller.tracebacks()
    assert (response.status_code, "it does not work" in found) == (500, True)


@pytest.mark.parametrize("path", RIGHT)
@fuzz(150)
def test_whatever_is_sent_is_answered_in_the_one_shape(caller: Caller, path: str, data: st.DataObject) -> None:
    send_drawn(caller, path, data)


def of_a_live_stream(caller: Caller, path: str, data: st.DataObject) -> None:
    """Whatever comes in between, what is released in the end is what was taken, and nothing else of it."""
    began = caller.post("/v1/stream/start", {"delta": "Hello "})
    session_id, sent, shown, seq = str(began["session_id"]), "Hello ", str(began["released"]), 1
    for _ in range(data.draw(st.integers(1, 3), label="bodies")):
        right: dict[str, object] = {"session_id": ID, "seq": seq + 1, "delta": f"and {seq} more, "}
        body = data.draw(st.one_of(nearly_right(right), broken(right)), label="body")
        # After the draw, which may not depend on it: it is another one each time.
        body = body.replace(ID.encode(), session_id.encode())
        answer = answer_to(caller, path, body, "", "application/json")
        if answer.status_code != 200:
            continue
        said = answer.json()
        shown += said["released"]
        sent += json.loads(body).get("delta") or ""
        if path.endswith("finish"):
            break
        seq = said["seq"]
    else:
        shown += str(caller.post("/v1/stream/finish", {"session_id": session_id})["released"])
    whole = caller.post("/v1/check", {"text": sent, "kind": "response", "accepts": ["redact"]})
    assert shown == whole["text"]


@pytest.mark.parametrize("path", LIVE)
@fuzz(30)
def test_what_is_sent_to_a_live_stream_leaves_it_as_it_was_or_is_taken_whole(
    caller: Caller, path: str, data: st.DataObject
) -> None:
    of_a_live_stream(caller, path, data)


@pytest.mark.long
@pytest.mark.parametrize("path", LIVE)
@fuzz(1_000)
def test_many_more_to_live_streams(caller: Caller, path: str, data: st.DataObject) -> None:
    of_a_live_stream(caller, path, data)


@pytest.mark.long
@pytest.mark.parametrize("path", RIGHT)
@fuzz(5_000)
def test_many_more(caller: Caller, path: str, data: st.DataObject) -> None:
    send_drawn(caller, path, data)


@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize("where", ["whole", "field", "more"])
@pytest.mark.parametrize("depth", [100, 1_000, 10_000, 150_000])
def test_deep_nesting_is_refused(caller: Caller, path: str, where: str, depth: int) -> None:
    for kind in KINDS:
        deep = nested(depth, kind)
        whole = json.dumps(RIGHT[path]).encode()
        first = json.dumps(next(iter(RIGHT[path]))).encode()
        body = {
            "whole": deep,
            "field": b"{" + first + b":" + deep + b"}",
            "more": whole[:-1] + b',"more":' + deep + b"}",
        }
        status = try_one(caller, path, body[where], "", "application/json")
        # An object with one more field than we know, however deep, may be right where no field has to be there.
        if where == "field" or (kind != "object" and (where == "whole" or kind == "open")):
            assert status in (400, 413, 422)


@pytest.mark.parametrize("path", RIGHT)
def test_what_cannot_be_text_is_refused_wherever_it_stands(caller: Caller, path: str) -> None:
    """NUL and lone surrogates reach neither a store nor a guardrail, by no name and at no depth."""
    for bad in ("a\0b", "\ud800", "x\udfff"):
        for place in [*(name for name, value in RIGHT[path].items() if isinstance(value, str)), "policy"]:
            body = json.dumps({**RIGHT[path], place: bad}).encode()
            if place == "policy" and "session_id" in RIGHT[path]:
                continue  # those calls name no policy, and pass over what they do not know
            assert try_one(caller, path, body, "", "application/json") == 422


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"], ids=["nul", "surrogate"])
@pytest.mark.parametrize(
    ("path", "field"), [("/v1/check", "context"), ("/v1/stream/start", "context"), ("/v1/stream/start", "client")]
)
def test_fields_that_we_only_pass_over_are_text_too(caller: Caller, path: str, field: str, bad: str) -> None:
    for given_value in ({"mine": bad}, {bad: "mine"}, {"mine": [{"deep": bad}]}):
        body = json.dumps({**RIGHT[path], field: given_value}).encode()
        assert try_one(caller, path, body, "", "application/json") == 422


@pytest.mark.parametrize(("depth", "status"), [(19, 201), (25, 422), (400, 422), (900, 422)])
def test_fields_that_we_only_pass_over_are_not_nested_for_ever(caller: Caller, depth: int, status: int) -> None:
    """They are written down again for the digest of the call, and writing has less room than reading."""
    for field in ("context", "client"):
        body = b'{"%s": {"mine": %s}}' % (field.encode(), nested(depth, "list"))
        assert try_one(caller, "/v1/stream/start", body, "", "application/json") == status


@pytest.mark.parametrize("path", RIGHT)
def test_a_bomb_is_refused_however_it_is_wrapped(caller: Caller, path: str) -> None:
    inside = gzip.compress(json.dumps({**RIGHT[path], "more": "0" * 40_000_000}).encode(), 9, mtime=0)
    assert len(inside) < 1_000_000
    for body in (BOMB, BOMB * 8, inside):
        assert try_one(caller, path, body, "gzip", "application/json") == 413
    assert try_one(caller, path, gzip.compress(inside), "gzip", "application/json") in (400, 422), "unpacked once only"


@pytest.mark.parametrize("path", [*RIGHT, "/v1/stream/status", "/v1/stream/events", "/v1/nothing"])
def test_queries_and_methods_are_answered_in_the_one_shape_too(caller: Caller, path: str) -> None:
    draw = random.Random(path)
    ids = ["", "x", ID, ID.upper(), "%00", "%ed%a0%80", "%ff", "🙂", "a" * 3_000, "..%2f", "%25s", "{}", "\u2028"]
    for _ in range(60):
        name = draw.choice(["session_id", "token", "session_id[]", "Last-Event-ID"])
        method = draw.choice(["GET", "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
        try_one(caller, f"{path}?{name}={draw.choice(ids)}", b"", "", draw.choice(TYPES), method)
