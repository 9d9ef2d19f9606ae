"""No text of a session stands in clear in any table or in the store: all columns and all keys are looked through."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping

import pytest
import redis
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection

from guardrails.findings import Verdict
from guardrails.kinds.ai_judge import AiJudgeKind
from guardrails.kinds.base import CheckRequest, Services
from streaming import registry, tasks
from streaming.audit.people import record_review
from streaming.audit.retention import purge
from streaming.chat import Asked, Own, start_chat
from streaming.core.events import ProviderEvent, TextDelta, ThinkingDelta
from streaming.frames import StartFrame
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, DeferredCheck, Finding, Message, Review
from streaming.providers.base import Provider, ProviderRequest
from streaming.sessions import Visitor

from .gateway.test_records import ask, ended
from .gateway.test_records import new_key as gateway_key
from .test_stream_api import Client, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
PROMPT, ANSWER, THOUGHT, NOTE = "quetzalprompt", "quetzalanswer", "quetzalthought", "quetzalnote"
HIDDEN, MAIL = "536-22-8145", "quetzal.hidden@example.com"
SECRETS = (PROMPT, ANSWER, THOUGHT, NOTE, HIDDEN, MAIL)
SAID = f"The {ANSWER} is here. My number is {HIDDEN}. First you mix the poison, then you pour it. Write to {MAIL}."


@pytest.fixture(autouse=True)
async def alone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        """Whoever is to make the checks is called below."""

    monkeypatch.setattr(tasks, "queue_session", queue)
    with redis.Redis.from_url(settings.REDIS_URL) as store:
        store.flushall()
    yield
    await registry.shutdown()
    await close_shared_log()


class Speaks(Provider):
    """Thinks and says what nobody may find again."""

    label = "Speaks"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> None:
        """Never offered."""

    @property
    def default_model(self) -> str:
        return "speaks-1"

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield ThinkingDelta(f"I have a {THOUGHT}. ")
        for at in range(0, len(SAID), 9):
            yield TextDelta(SAID[at : at + 9])


def tables() -> Iterator[tuple[str, str]]:
    """Every value of every column of every table, whatever it is for, as text."""
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            columns = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                yield from ((f"{table}.{name}", text_of(value)) for name, value in zip(columns, row, strict=True))


def keys() -> Iterator[tuple[str, str]]:
    """Every key of the store with all that it holds, as text."""
    with redis.Redis.from_url(settings.REDIS_URL) as store:
        for key in store.scan_iter(count=1_000):
            read = {
                b"string": lambda key: store.get(key), b"hash": lambda key: store.hgetall(key),
                b"list": lambda key: store.lrange(key, 0, -1), b"set": lambda key: store.smembers(key),
                b"zset": lambda key: store.zrange(key, 0, -1), b"stream": lambda key: store.xrange(key),
            }[store.type(key)]  # fmt: skip
            yield key.decode(), f"{key.decode('latin-1')} {text_of(read(key))}"


def text_of(value: object) -> str:
    """As whoever looks for words would read it: bytes, escapes and all."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("latin-1")
    if isinstance(value, dict):
        return " ".join(f"{text_of(name)} {text_of(one)}" for name, one in value.items())
    if isinstance(value, list | tuple | set):
        return " ".join(map(text_of, value))
    return str(value)


def found(where: Iterator[tuple[str, str]], secrets: Collection[str] = SECRETS) -> set[tuple[str, str]]:
    return {(name, secret) for name, text in where for secret in secrets if secret.lower() in text.lower()}


def digests(*texts: str) -> set[str]:
    """By which whoever guesses a text would know that the guess is right, however they are written."""
    made = [hashlib.sha256(text.encode()).digest() for text in texts if text]
    written = (bytes.hex, lambda one: b64encode(one).decode(), lambda one: urlsafe_b64encode(one).decode().rstrip("="))
    return {write(one) for one in made for write in (*written, text_of)}


async def quoting(self: AiJudgeKind, request: CheckRequest, services: Services) -> Verdict:
    """A judge that gives away what it was shown."""
    return Verdict(hit=True, score=0.9, category="violence", reason=f"It says: {request.text}")


async def streamed() -> str:
    """A chat over the store, with a thought; its id."""
    asked = Asked(Visitor(session_key="browser"), "demo", own=Own(Speaks(), flagged=False))
    frame = StartFrame(type="start", prompt=f"What of the {PROMPT}? I am {MAIL}.")
    started = await start_chat(frame, asked, shared_log())
    await ended(started.session_id)
    return started.session_id


async def made_all() -> None:
    async for pk in DeferredCheck.objects.values_list("pk", flat=True):
        await sync_to_async(tasks.check)(pk)
    assert not await AuditSession.objects.exclude(state="COMPLETE").aexists()


@database_sync_to_async
def nothing_is_found() -> None:
    assert found(tables()) == set()
    assert found(keys()) == set()


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AiJudgeKind, "check", quoting)
    session_id = await streamed()
    await nothing_is_found()  # while the raw text waits for a worker too
    assert await DeferredCheck.objects.filter(session_id=session_id).acount() > 0
    await made_all()
    finding = await Finding.objects.filter(session_id=session_id, kind="ai_judge").afirst()
    assert finding is not None

    @database_sync_to_async
    def reviewed() -> None:
        reviewer = get_user_model().objects.create_user("Reviewer")
        record_review(
            finding=finding, label=Review.Label.UNCLEAR, note=f"{NOTE}: it says {ANSWER}", by=reviewer, seen=0
        )

    await reviewed()
    events = await shared_log().read(session_id, 0)
    told = json.dumps(events)
    assert all(secret in told for secret in (PROMPT, ANSWER, THOUGHT)), "whoever may read it does read it"
    await nothing_is_found()


async def test_streams_checks_and_the_gateway_leave_nothing_in_clear_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AiJudgeKind, "check", quoting)
    client = Client(await new_key(policy="demo"))
    began = await client.start(delta=SAID[:40], kind="response", context={"conversation_id": "c-1"})
    await nothing_is_found()
    await client.update(began["session_id"], 2, SAID[40:])
    await nothing_is_found()
    status, _ = await client.finish(began["session_id"])
    assert status == 200
    for context in ({}, {"conversation_id": "c-1"}):  # the latter keeps what may be shown, for those that come later
        body = json.dumps({"text": f"{PROMPT} {SAID}", "kind": "prompt", "context": context})
        answer = await client.http.post("/v1/check", body, content_type="application/json", headers=client.headers)
        assert answer.status_code == 200
    assert PROMPT in (await Message.objects.aget(role="user")).content
    status, _, headers = await ask(await gateway_key("demo"), "scripted/clean", f"{PROMPT} {SAID}", stream=True)
    assert status == 200
    await ended(headers["X-Sluicegate-Session"])
    await made_all()
    await nothing_is_found()


async def test_no_column_has_a_digest_of_a_text_before_and_after_it_is_purged() -> None:
    """A digest without a salt is the text for whoever can guess it: a number, a name, yes or no."""
    session_id = await streamed()
    status, _, headers = await ask(await gateway_key("demo"), "scripted/clean", f"{PROMPT} {SAID}", stream=True)
    assert status == 200
    through = headers["X-Sluicegate-Session"]
    await ended(through)
    shown = [content async for content in Message.objects.values_list("content", flat=True)]
    assert len(shown) == 4
    known = digests(f"What of the {PROMPT}? I am {MAIL}.", SAID, f"{PROMPT} {SAID}", *shown)

    @database_sync_to_async
    def none_is_there() -> None:
        assert found(tables(), known) == set()
        assert found(keys(), known) == set()

    assert await DeferredCheck.objects.filter(session_id=session_id).acount() > 0
    await none_is_there()
    await made_all()
    await none_is_there()
    assert await database_sync_to_async(purge)([session_id, through]) == 2
    await none_is_there()
    await DeferredCheck.objects.aupdate(error=hashlib.sha256(SAID.encode()).hexdigest())
    with pytest.raises(AssertionError):  # or the above would say nothing
        await none_is_there()


async def test_what_stands_in_clear_is_found() -> None:
    """Or the tests above would say nothing."""
    session_id = await streamed()
    await AuditSession.objects.filter(pk=session_id).aupdate(error=f"the provider said {ANSWER}")
    await DeferredCheck.objects.aupdate(result={"reason": HIDDEN}, sealed_text=THOUGHT.encode())
    with redis.Redis.from_url(settings.REDIS_URL) as store:
        store.hset("a", "b", PROMPT)
        store.xadd("c", {"d": MAIL.upper()})
    assert await database_sync_to_async(lambda: found(tables()))() == {
        ("streaming_auditsession.error", ANSWER),
        ("streaming_deferredcheck.result", HIDDEN),
        ("streaming_deferredcheck.sealed_text", THOUGHT),
    }
    assert found(keys()) == {("a", PROMPT), ("c", MAIL)}
