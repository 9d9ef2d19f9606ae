"""The API keeps what its OpenAPI document says, whatever is sent: Schemathesis makes the calls.

Exists beside the tests of single calls because those send what somebody thought of. The calls are the same in every
run; ``make test-long`` makes many more. Made-up calls carry a key that may do everything; what is answered without one,
without the scope and over the limit is asked for by name.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
import redis
import requests
import schemathesis
from django.conf import settings as django_settings
from django.test import override_settings
from django.urls import get_resolver
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from guardrails.models import Scope
from guardrails.services import create_api_key
from streaming import tasks
from streaming.api.auth import Key
from streaming.api.root import api
from streaming.models import GuardedStream
from tests.streaming.calling import BASE, Caller, calling
from tests.streaming.test_tenancy import KEYED, http_routes

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def contract(examples: int) -> schemathesis.BaseSchema:
    """The calls of the document, so many made-up ones each beside those at the edges of every field."""
    generation = GenerationConfig(max_examples=examples, deterministic=True, with_security_parameters=False)
    project = ProjectConfig(generation=generation)
    config = SchemathesisConfig(seed=1, projects=ProjectsConfig(default=project))
    return schemathesis.openapi.from_dict(dict(api.get_openapi_schema()), config=config)


usual, many = contract(15), contract(2_000)


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


@pytest.fixture
def streams(caller: Caller) -> Streams:
    return Streams(caller)


class Streams:
    """Streams for calls that are right: made-up ids alone would only ever be answered with 404."""

    def __init__(self, caller: Caller) -> None:
        self._caller, self.session_id, self.seq, self._over = caller, "", 0, ""

    def lend(self, case: schemathesis.Case) -> None:
        """Put names that exist into many of the calls that are right so far: a stream, its next seq, a policy."""
        if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
            return
        if isinstance(case.body, dict):
            for name, real in (("policy", "basic"), ("preset", "basic"), ("provider", "scripted"), ("scenario", "")):
                if len(str(case.body.get(name, "."))) % 2 == 0:
                    case.body[name] = real
            if case.path == "/v1/chat" and len(str(case.body)) % 2:
                case.body |= {
                    "messages": None,
                    "conversation_id": "",
                    "prompt": "Hello " + str(case.body.get("prompt")),
                }
        if case.path.endswith("events"):  # of a stream that is over, or the answer would have no end
            if "session_id" in case.query:
                case.query["session_id"] = self._ended()
        elif isinstance(case.body, dict) and "session_id" in case.body:
            case.body["session_id"] = self._open()
            if isinstance(seq := case.body.get("seq"), int) and seq % 2:
                case.body["seq"] = self.seq + 1
        elif "session_id" in case.query:
            case.query["session_id"] = self._open()

    def _open(self) -> str:
        if not self.session_id:
            began = self._caller.post("/v1/stream/start", {"delta": "My number is "})
            self.session_id, self.seq = str(began["session_id"]), 1
        return self.session_id

    def _ended(self) -> str:
        if not self._over:
            self._over = str(
                self._caller.post("/v1/stream/start", {"delta": "My number is 536-22-8145."})["session_id"]
            )
            self._caller.post("/v1/stream/finish", {"session_id": self._over})
        return self._over

    def learn(self, answer: httpx.Response) -> None:
        """How the stream stands after a call."""
        if answer.request.url.path.endswith("finish") and answer.is_success:
            self.session_id = ""
        elif answer.request.url.path.endswith("update") and answer.is_success:
            self.seq = answer.json()["seq"]


def keep(case: schemathesis.Case, caller: Caller, streams: Streams) -> None:
    streams.lend(case)
    asked = requests.Request(**case.as_transport_kwargs(base_url=BASE)).prepare()
    content = asked.body.encode() if isinstance(asked.body, str) else asked.body
    headers = {name: value for name, value in asked.headers.items() if name.lower() != "content-length"}
    answer = caller.send(str(asked.method), str(asked.url), content=content, headers=headers)
    streams.learn(answer)
    assert "Traceback" not in answer.text
    assert caller.tracebacks() == []
    case.validate_response(Response.from_httpx(answer, verify=False), checks=CHECKS)


# One item for every call of the document, made when the tests are collected: a new call is in it by itself.
@settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@usual.parametrize()
def test_it_works(case: schemathesis.Case, caller: Caller, streams: Streams) -> None:
    keep(case, caller, streams)


OPERATIONS = {operation.label: operation for operation in (found.ok() for found in usual.get_all_operations())}
CALLABLE = {name: [one for one in callbacks if isinstance(one, Key)] for name, callbacks in http_routes(get_resolver())}
LIMITED = [name for name in OPERATIONS if any(key.spends for key in CALLABLE[name])]
STRICT = [check for check in CHECKS if check is not negative_data_rejection]  # that one asks how the call was made up
ANSWERED = [check for check in STRICT if check is not schemathesis.checks.not_a_server_error]
MANY_CALLS = 100


def answered(caller: Caller, name: str, key: str) -> httpx.Response:
    """The answer to a call with this key and little sense in it, which is as the document says."""
    operation = OPERATIONS[name]
    headers = {"Authorization": f"Bearer {key}" if key else "", "Content-Type": "application/json"}
    content = None if operation.method == "get" else b'{"nonsense": true}'
    answer = caller.send(operation.method.upper(), BASE + operation.path, content=content, headers=headers)
    assert str(answer.status_code) in {str(status) for status in operation.definition.raw["responses"]}
    operation.Case().validate_response(Response.from_httpx(answer, verify=False), checks=STRICT)
    return answer


def test_every_call_that_wants_a_key_is_in_the_document() -> None:
    assert set(OPERATIONS) == {name for name, keys in CALLABLE.items() if keys}
    assert set(OPERATIONS) == set(KEYED), "and has its row in the table of who may call what"
    gateway = {name for name, one in OPERATIONS.items() if "gateway" in one.definition.raw["tags"]}
    assert {"POST /v1/chat/completions", "POST /v1/messages", "POST /api/chat", "GET /api/tags"} <= gateway


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_key_and_a_wrong_one_are_answered_as_documented(caller: Caller, name: str) -> None:
    for key in ("", "sg_nonsense", caller.key[:-1]):
        answer = answered(caller, name, key)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "error" in answer.json()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_scope_is_answered_as_documented(caller: Caller, name: str) -> None:
    (needed,) = (key.scope for key in CALLABLE[name])
    _, narrow = create_api_key(name="narrow", scopes=[scope for scope in Scope if scope != needed])
    assert answered(caller, name, narrow).status_code == 403


@pytest.mark.parametrize("name", LIMITED)
def test_a_call_too_many_is_answered_as_documented(caller: Caller, name: str) -> None:
    """A window of updates lasts a second, in which a slow machine may not make two calls: one of many is refused."""
    _, slow = create_api_key(name="slow", scopes=list(Scope), calls_per_minute=1, updates_per_second=1)
    assert answered(caller, name, slow).status_code != 429, "the first one is taken"
    answer = next(said for _ in range(MANY_CALLS) if (said := answered(caller, name, slow)).status_code == 429)
    assert int(answer.headers["Retry-After"]) >= 1
    assert (answer.headers["X-RateLimit-Limit"], answer.headers["X-RateLimit-Remaining"]) == ("1", "0")


STREAM_CALLS: dict[str, dict[str, object]] = {
    "POST /v1/stream/update": {"seq": 2, "delta": "more"},
    "POST /v1/stream/finish": {},
    "GET /v1/stream/status": {},
}


def kept_to(caller: Caller, name: str, session_id: object, status: int) -> None:
    """This call of a stream is answered with this status, as the document says it is."""
    operation, body = OPERATIONS[name], {**STREAM_CALLS[name], "session_id": session_id}
    url, headers = BASE + operation.path, {"Content-Type": "application/json"}
    if operation.method == "get":
        answer = caller.send("GET", f"{url}?session_id={session_id}")
    else:
        answer = caller.send("POST", url, content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code == status, answer.text
    assert str(status) in {str(one) for one in operation.definition.raw["responses"]}
    operation.Case().validate_response(Response.from_httpx(answer, verify=False), checks=ANSWERED)


@pytest.mark.parametrize("name", STREAM_CALLS)
def test_a_state_that_is_lost_is_answered_as_documented(caller: Caller, name: str) -> None:
    session_id = caller.post("/v1/stream/start", {"delta": "Hello"})["session_id"]
    with redis.Redis.from_url(django_settings.REDIS_URL) as store:
        store.flushall()
    GuardedStream.objects.update(sealed_state=None)
    kept_to(caller, name, session_id, 410)


@pytest.mark.parametrize("name", STREAM_CALLS)
def test_a_store_that_is_away_is_answered_as_documented(caller: Caller, name: str) -> None:
    session_id = caller.post("/v1/stream/start", {"delta": "Hello"})["session_id"]
    caller.forget_connections()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
    with override_settings(REDIS_URL=away):
        kept_to(caller, name, session_id, 503)
        caller.forget_connections()
    assert caller.post("/v1/stream/finish", {"session_id": session_id})["action"] == "allow", "nothing has changed"


def test_whatever_may_be_refused_by_a_limit_says_so() -> None:
    assert len(LIMITED) >= 6
    for name, operation in OPERATIONS.items():
        said = {str(status): answer for status, answer in operation.definition.raw["responses"].items()}
        assert {"401", "403"} <= said.keys()
        ours = "gateway" not in operation.definition.raw["tags"]  # which passes on what upstreams say, too
        assert said["401"]["headers"]["WWW-Authenticate"]["required"] is ours
        if name in LIMITED:
            assert said["429"]["headers"]["Retry-After"]["required"] is ours, name


@pytest.mark.long
@settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@many.parametrize()
def test_many_more(case: schemathesis.Case, caller: Caller, streams: Streams) -> None:
    keep(case, caller, streams)
