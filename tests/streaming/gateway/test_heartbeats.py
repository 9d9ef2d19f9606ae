"""Signs of life: while a gate holds text, while a guardrail thinks, and before an upstream has said anything."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Services
from guardrails.policy import compile_policy
from guardrails.selectors import Running
from streaming.api.gateway import front
from streaming.gateway import places
from streaming.models import AuditSession
from tests.streaming.gateway import test_anthropic_sdk as anthropic
from tests.streaming.gateway import test_ollama_sdk as ollama
from tests.streaming.gateway.fake import NDJSON, SSE, Answer, Fake, sse, upstream
from tests.streaming.gateway.test_gateway_metrics import Since
from tests.streaming.gateway.test_openai_sdk import chunk
from tests.streaming.gateway.test_planted import DIALECTS, PATHS
from tests.streaming.gateway.test_records import ask, ended, new_key
from tests.streaming.gateway.test_upstreams import closing, row
from tests.streaming.test_conversation_context import Remembers

__all__ = ["closing"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SIGNS: dict[str, Callable[[str], bool]] = {
    "openai": lambda text: text.startswith(":"),
    "anthropic": lambda text: text == 'data: {"type": "ping"}',
    "ollama": lambda text: json.loads(text) == {"message": {"role": "assistant", "content": ""}, "done": False},
}
HOLDS = {"name": "words", "kind": "regex", "action": "redact",
         "config": {"rules": [{"id": "r", "pattern": "project blue heron"}]}}  # fmt: skip


class Thinks(Remembers):
    """Answers when it is told to."""

    done = asyncio.Event()

    hit = False
    gone = 0

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        try:
            await type(self).done.wait()
        except asyncio.CancelledError:
            type(self).gone += 1
            raise
        return Verdict(hit=type(self).hit)


@pytest.fixture
def fake(settings: Settings) -> Iterator[Fake]:
    settings.SLUICEGATE_GATEWAY_HEARTBEAT_S = 0.02
    with upstream() as found:
        yield found


def spoken(dialect: str, first: str, rest: str) -> list[bytes]:
    """An answer in two pieces, the first one with all of the first text."""
    if dialect == "openai":
        one, two, last = sse(chunk({"content": first}), chunk({"content": rest}, "stop"))
        return [one, two + last]
    if dialect == "ollama":
        return [ollama.line({"content": first}), ollama.line({"content": rest}) + ollama.LAST]
    pieces = anthropic.message(anthropic.text(first, rest))
    at = next(number for number, piece in enumerate(pieces) if rest.encode() in piece)
    return [b"".join(pieces[:at]), b"".join(pieces[at:])]


async def heard(
    fake: Fake, dialect: str, pieces: list[bytes], go_on: Callable[[], object], monkeypatch: pytest.MonkeyPatch,
    *guardrails: dict[str, object], gate: threading.Event | None = None, **more: object,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Lines before the third sign of life, when the test goes on, and those behind it."""
    running = Running(compile_policy({"policy": "p", "guardrails": list(guardrails)}, version=1, digest="sha256:p"))

    def load(found: object) -> Running:
        return running

    monkeypatch.setattr(front, "running_of", load)
    fake.answers["small"] = Answer(pieces, NDJSON if dialect == "ollama" else SSE, gate=gate)
    base_url = f"{fake.url}/v1" if dialect == "openai" else fake.url
    await row("house", base_url, dialect=dialect)
    body = {"model": "house/small", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 9}
    body |= more
    headers = {"Authorization": f"Bearer {await new_key()}"}
    early: list[str] = []
    late: list[str] = []
    signs = 0
    async with asyncio.timeout(60):
        response = await AsyncClient().post(
            PATHS[dialect], json.dumps(body), content_type="application/json", headers=headers
        )
        assert response.status_code == 200
        async for line in lines(response.streaming_content):
            (late if signs >= 3 else early).append(line)
            if SIGNS[dialect](line):
                signs += 1
                if signs == 3:
                    go_on()
    if not more:
        await ended(response["X-Sluicegate-Session"])
    return early, late


def thinking(monkeypatch: pytest.MonkeyPatch, applies_to: str, *, hit: bool = False) -> dict[str, object]:
    """A guardrail that decides, when it is told to."""
    base.all_kinds()
    monkeypatch.setattr(Thinks, "name", "trial_thinks", raising=False)
    monkeypatch.setattr(Thinks, "done", asyncio.Event())
    monkeypatch.setattr(Thinks, "hit", hit)
    monkeypatch.setattr(Thinks, "gone", 0)
    monkeypatch.setitem(base._REGISTRY, "trial_thinks", Thinks)  # type: ignore[arg-type]
    return {"name": "t", "kind": "trial_thinks", "action": "block", "applies_to": [applies_to]}


async def lines(parts: AsyncIterator[bytes]) -> AsyncIterator[str]:
    async for part in parts:
        for line in part.decode().splitlines():
            if line and not line.startswith("event:"):
                yield line


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_it_works(fake: Fake, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a gate holds what may become a hit, and the upstream takes its time."""
    gate = threading.Event()
    pieces = spoken(dialect, "project blue", " water is fine.")
    early, late = await heard(fake, dialect, pieces, gate.set, monkeypatch, HOLDS, gate=gate)
    assert "blue" not in str(early)
    assert "project blue" in str(late)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_before_the_upstream_has_said_anything(fake: Fake, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    whole = b"".join(spoken(dialect, "Good ", "day."))
    early, late = await heard(fake, dialect, [whole], gate.set, monkeypatch, gate=gate)
    assert all(map(SIGNS[dialect], early))
    assert "day." in str(late)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_while_a_guardrail_that_decides_thinks(fake: Fake, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    thinks = thinking(monkeypatch, "response")
    pieces = spoken(dialect, "The lock was dug in 1840. ", "It is open.")
    early, late = await heard(fake, dialect, pieces, lambda: Thinks.done.set(), monkeypatch, thinks)
    assert "1840" not in str(early)
    assert "1840" in str(late)


async def test_an_upstream_that_fails_later_is_an_error_within_the_stream(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    early, late = await heard(fake, "openai", [b"data: {nonsense\n\n"], gate.set, monkeypatch, gate=gate)
    assert all(map(SIGNS["openai"], early))
    assert any('"error"' in line for line in late)


ENDS = {"openai": '"finish_reason": "content_filter"', "anthropic": '"stop_reason": "refusal"',
        "ollama": '"done_reason": "content_filter"'}  # fmt: skip


@pytest.mark.parametrize("hit", [False, True], ids=["passed", "stopped"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_while_a_guardrail_thinks_about_the_prompt(
    fake: Fake, dialect: str, hit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing goes upstream before it has answered; what comes of it is told within the stream."""
    thinks = thinking(monkeypatch, "prompt", hit=hit)
    asked: list[int] = []

    def go_on() -> None:
        asked.append(len(fake.asked))
        Thinks.done.set()

    early, late = await heard(fake, dialect, spoken(dialect, "Good ", "day."), go_on, monkeypatch, thinks)
    assert all(map(SIGNS[dialect], early))
    assert asked == [0]
    assert len(fake.asked) == (0 if hit else 1)
    assert ("day." in str(late)) is not hit
    assert (ENDS[dialect] in str(late)) is hit


async def test_a_refusal_after_that_is_an_error_within_the_stream(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose name the policy hides is known by no name when all of the request has been judged; and that it was
    judged is in the log."""
    thinks, since = thinking(monkeypatch, "prompt"), Since()
    hides = {"name": "words", "kind": "keywords", "action": "redact", "config": {"keywords": ["pii"]}}
    _, late = await heard(fake, "openai", [], Thinks.done.set, monkeypatch, thinks, hides, model="scripted/pii")
    (said,) = [json.loads(line.removeprefix("data: ")) for line in late if line.startswith("data: {")]
    assert said["error"]["code"] == "model_not_found"
    assert since.grown()["requests", "openai", "none", "404"] == 1
    assert fake.asked == []
    session = await AuditSession.objects.aget()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "error", "model_not_found")
    assert (session.provider, session.chars_in) == ("", 0)
    assert [one.guardrail async for one in session.findings.all()] == ["words"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_an_upstream_has_no_words_for_is_refused_before_anybody_looks_at_it(
    fake: Fake, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guardrail that never answers is not even asked."""
    thinks = thinking(monkeypatch, "prompt")
    running = Running(compile_policy({"policy": "p", "guardrails": [thinks]}, version=1, digest="sha256:p"))
    monkeypatch.setattr(front, "running_of", lambda found: running)
    await row("other", fake.url, dialect="anthropic")
    async with asyncio.timeout(20):
        status, said, _ = await ask(await new_key(), "other/small", n=2, stream=stream)
    assert (status, json.loads(said)["error"]["param"]) == (400, "n")
    assert await AuditSession.objects.acount() == 0


async def test_a_client_that_goes_while_its_prompt_is_judged_leaves_nothing_behind(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardrail is let go, the upstream is never asked, and the key has its place again."""
    thinks = thinking(monkeypatch, "prompt")
    running = Running(compile_policy({"policy": "p", "guardrails": [thinks]}, version=1, digest="sha256:p"))

    def load(found: object) -> Running:
        return running

    monkeypatch.setattr(front, "running_of", load)
    freed = asyncio.Event()

    async def give_back(self: places.Place) -> None:
        freed.set()

    monkeypatch.setattr(places.Place, "give_back", give_back)
    await row("house", f"{fake.url}/v1")
    body = {"model": "house/small", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with asyncio.timeout(60):
        response = await AsyncClient().post(
            PATHS["openai"], json.dumps(body), content_type="application/json",
            headers={"Authorization": f"Bearer {await new_key()}"},
        )  # fmt: skip
        heard = asyncio.Event()

        async def read() -> None:
            async for part in response.streaming_content:
                assert SIGNS["openai"](part.decode())
                heard.set()

        reading = asyncio.create_task(read())
        await heard.wait()
        reading.cancel()  # what the server does when the client has gone
        await freed.wait()
    assert Thinks.gone == 1
    assert fake.asked == []
    assert await AuditSession.objects.acount() == 0
