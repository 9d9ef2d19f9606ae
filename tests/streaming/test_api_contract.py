"""The API keeps what its OpenAPI document says, whatever is sent: Schemathesis makes the calls.

Exists beside the tests of single calls because those send what somebody thought of. The calls are the same in every
run; ``make test-long`` makes many more.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import requests
import schemathesis
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
from streaming.api.root import api
from tests.streaming.calling import BASE, Caller, calling

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


usual, many = contract(40), contract(2_000)


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
            if case.path.endswith("chat") and len(str(case.body)) % 2:
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
    case.validate_response(Response.from_httpx(answer, verify=False), checks=CHECKS)


# One item for every call of the document, made when the tests are collected: a new call is in it by itself.
@settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@usual.parametrize()
def test_it_works(case: schemathesis.Case, caller: Caller, streams: Streams) -> None:
    keep(case, caller, streams)


@pytest.mark.long
@settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@many.parametrize()
def test_many_more(case: schemathesis.Case, caller: Caller, streams: Streams) -> None:
    keep(case, caller, streams)
