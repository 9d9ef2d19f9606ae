"""Streams that their clients own: nothing twice, nothing lost, nothing shown too early, whoever dies in between."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from django.test import AsyncClient
from django.utils import timezone

from guardrails.services import create_api_key, install
from streaming import tasks
from streaming.audit.verify import log_faults
from streaming.conf import conf
from streaming.guarded.service import Streams
from streaming.guarded.store import Behind, Store, Swapped
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, GuardedStream, Message
from streaming.sweep import sweep

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SSN = "536-22-8145"
TEXT = f"Here is what we have. The number is {SSN}, and the address is desk@example.com. " * 2
Json = dict[str, object]


@pytest.fixture(autouse=True)
async def closing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    yield
    await close_shared_log()


class Client:
    """A client that owns a stream."""

    def __init__(self, key: str) -> None:
        self.http = AsyncClient()
        self.headers = {"Authorization": f"Bearer {key}"}
        self.calls = 0

    async def post(self, call: str, body: Json, **headers: str) -> tuple[int, Json]:
        self.calls += 1
        response = await self.http.post(
            f"/v1/stream/{call}", json.dumps(body), content_type="application/json", headers={**self.headers, **headers}
        )
        return response.status_code, json.loads(response.content)

    async def start(self, **body: object) -> Json:
        status, said = await self.post("start", body)
        assert status == 201, said
        return said

    async def update(self, session_id: object, seq: int, delta: str) -> tuple[int, Json]:
        return await self.post("update", {"session_id": session_id, "seq": seq, "delta": delta})

    async def finish(self, session_id: object, **body: object) -> tuple[int, Json]:
        return await self.post("finish", {"session_id": session_id, **body})

    async def status(self, session_id: object) -> tuple[int, Json]:
        response = await self.http.get(f"/v1/stream/status?session_id={session_id}", headers=self.headers)
        return response.status_code, json.loads(response.content)


@database_sync_to_async
def new_key(name: str = "one", policy: str = "basic", **limits: int) -> str:
    limits = {"calls_per_minute": 10_000, "updates_per_second": 10_000} | limits
    return create_api_key(name=name, scopes=["stream", "check"], policy=policy, **limits)[1]


@pytest.fixture
async def client() -> Client:
    return Client(await new_key())


def error(said: Json) -> Json:
    found = said["error"]
    assert isinstance(found, dict)
    return found


async def forget_store() -> None:
    """As when the store has lost everything."""
    await shared_log().evaluate("redis.call('FLUSHALL') return 1", [], [])


async def test_it_works(client: Client) -> None:
    began = await client.start(delta=TEXT[:40])
    assert (began["state"], began["seq"], began["action"]) == ("ACTIVE", 1, "allow")
    shown = str(began["released"])
    for seq, at in enumerate(range(40, len(TEXT), 40), start=2):
        status, said = await client.update(began["session_id"], seq, TEXT[at : at + 40])
        assert status == 200, said
        shown += str(said["released"])
        assert said["released_chars"] == len(shown)
        assert SSN[:4] not in shown
    status, said = await client.finish(began["session_id"])
    shown += str(said["released"])
    assert (status, said["state"], said["action"]) == (200, "COMPLETE", "redact")
    assert shown == TEXT.replace(SSN, "[SSN]").replace("desk@example.com", "[EMAIL]")
    session = await AuditSession.objects.aget(pk=str(began["session_id"]))
    assert (session.origin, session.state, session.outcome) == ("stream", "COMPLETE", "redacted")
    assert await Finding.objects.filter(session=session).acount() == 4
    message = await Message.objects.aget(sessions_answered=session)
    assert message.content == shown
    assert await sync_to_async(lambda: list(log_faults()))() == []


async def test_answers_to_calls_are_not_buffered(client: Client) -> None:
    """However fast the calls come: what may be shown is in the answer to the call that made it so."""
    began = await client.start()
    for seq, delta in enumerate(["One.", "Two.", "3", "4", "5", ""][:-1], start=1):
        _, said = await client.update(began["session_id"], seq, f"{delta} ")
        assert said["released"] == f"{delta} "


async def test_every_cutting_gives_the_text_of_one_check(client: Client) -> None:
    whole = await client.http.post(
        "/v1/check", json.dumps({"text": TEXT, "kind": "response", "accepts": ["redact"]}),
        content_type="application/json", headers=client.headers,
    )  # fmt: skip
    wanted = json.loads(whole.content)["text"]
    for seed in range(6):
        draw, at, seq = random.Random(seed), 0, 0
        began = await client.start()
        shown = ""
        while at < len(TEXT):
            size, seq = draw.randint(1, 60), seq + 1
            shown += str((await client.update(began["session_id"], seq, TEXT[at : at + size]))[1]["released"])
            at += size
        shown += str((await client.finish(began["session_id"]))[1]["released"])
        assert shown == wanted


async def test_a_repeated_call_gets_the_stored_answer_and_changes_nothing(client: Client) -> None:
    began = await client.start(delta="My number is 536-")
    first = await client.update(began["session_id"], 2, "22-8145 and then some more.")
    again = await client.update(began["session_id"], 2, "22-8145 and then some more.")
    assert first == again
    assert await Finding.objects.acount() == 1
    ended = await client.finish(began["session_id"], delta=" Bye", seq=3)
    assert await client.finish(began["session_id"], delta=" Bye", seq=3) == ended
    assert await AuditEntry.objects.filter(kind="sealed").acount() == 1


async def test_a_repeated_start_begins_one_stream(client: Client) -> None:
    body: Json = {"delta": "Hello"}
    made = [(await client.post("start", body, **{"Idempotency-Key": "k1"}))[1] for _ in range(3)]
    assert len({str(said["session_id"]) for said in made}) == 1
    assert await AuditSession.objects.acount() == 1
    status, said = await client.post("start", {"delta": "Other"}, **{"Idempotency-Key": "k1"})
    assert (status, error(said)["code"]) == (409, "idempotency_conflict")
    other = Client(await new_key("two"))
    assert (await other.post("start", body, **{"Idempotency-Key": "k1"}))[1]["session_id"] != made[0]["session_id"]


async def test_a_policy_has_one_name_in_a_start_however_it_is_said(client: Client) -> None:
    ways: list[Json] = [{"policy": "demo"}, {"preset": "demo"}, {"policy": "", "preset": "demo"}]
    made = [(await client.post("start", body, **{"Idempotency-Key": "k1"}))[1] for body in ways]
    assert len({str(said["session_id"]) for said in made}) == 1
    assert (await AuditSession.objects.aget()).policy_name == "demo"


async def test_null_and_numbers_in_a_start_are_taken_as_a_check_takes_them(client: Client) -> None:
    nothing: Json = dict.fromkeys(("policy", "preset", "kind", "delta", "channels"))
    about: Json = {"context": {"sessionId": 42, "userId": None}, "client": {"name": None, "version": None}}
    status, said = await client.post("start", {**nothing, **about}, **{"Idempotency-Key": "k1"})
    assert (status, said["seq"]) == (201, 0)
    session = await AuditSession.objects.select_related("conversation").aget()
    assert session.conversation is not None
    assert session.conversation.external_id == "42"
    again = {"context": {"sessionId": "42"}}
    assert (await client.post("start", again, **{"Idempotency-Key": "k1"}))[1]["session_id"] == said["session_id"]
    assert (await client.post("start", {"context": None, "client": None}))[0] == 201
    status, said = await client.post("start", {"context": {"sessionId": True}})
    assert (status, error(said)["field"]) == (422, "context.sessionId")


async def test_who_sends_the_delta_of_the_start_once_more_is_told_that_it_came_with_the_start(client: Client) -> None:
    began = await client.start(delta="Hello. ")
    for expected in (2, 3):
        status, said = await client.update(began["session_id"], 1, "Hello. ")
        assert (status, error(said)["expected_seq"]) == (409, expected)
        assert "seq 1 came with the start" in str(error(said)["message"])
        await client.update(began["session_id"], 2, "More. ")
    empty = await client.start()
    await client.update(empty["session_id"], 1, "Hello. ")
    _, said = await client.update(empty["session_id"], 1, "Other. ")
    assert "with another body" in str(error(said)["message"]), "that start had none"


@pytest.mark.parametrize(("seq", "delta"), [(1, "other"), (3, "gap"), (99, "far")])
async def test_what_is_out_of_turn_is_refused_and_nothing_applied(client: Client, seq: int, delta: str) -> None:
    began = await client.start(delta="Hello. ")
    status, said = await client.update(began["session_id"], seq, delta)
    assert (status, error(said)["code"], error(said)["expected_seq"]) == (409, "seq_conflict", 2)
    _, done = await client.finish(began["session_id"])
    assert str(began["released"]) + str(done["released"]) == "Hello. "


async def test_after_the_end_nothing_is_taken(client: Client) -> None:
    began = await client.start(delta="Hello.")
    await client.finish(began["session_id"])
    status, said = await client.update(began["session_id"], 2, "more")
    assert (status, error(said)["code"]) == (409, "stream_ended")
    await forget_store()
    status, said = await client.update(began["session_id"], 2, "more")
    assert (status, error(said)["code"]) == (409, "stream_ended"), "the database knows it as well"


async def test_of_two_writers_one_wins(client: Client) -> None:
    began = await client.start()
    said = await asyncio.gather(*(client.update(began["session_id"], 1, f"writer {n}. ") for n in range(6)))
    assert sorted(status for status, _ in said) == [200] + [409] * 5
    assert {error(body)["expected_seq"] for status, body in said if status == 409} == {2}
    (won,) = [body for status, body in said if status == 200]
    _, done = await client.finish(began["session_id"])
    assert (str(won["released"]) + str(done["released"])).count("writer") == 1


async def test_another_key_sees_no_stream(client: Client) -> None:
    began = await client.start(delta="Hello")
    other = Client(await new_key("two"))
    assert (await other.update(began["session_id"], 2, "x"))[0] == 404
    assert (await other.finish(began["session_id"]))[0] == 404
    assert (await other.status(began["session_id"]))[0] == 404
    assert (await client.update("nonsense", 1, "x"))[0] == 404


async def test_a_lost_store_costs_at_most_a_few_deltas_that_are_sent_again(client: Client) -> None:
    began = await client.start(delta="One. ")
    released = {1: str(began["released"])}
    deltas = {1: "One. ", 2: f"{SSN}. ", 3: "Three. ", 4: "Four. "}
    for seq in (2, 3):
        released[seq] = str((await client.update(began["session_id"], seq, deltas[seq]))[1]["released"])
    await forget_store()
    status, said = await client.update(began["session_id"], 4, deltas[4])
    assert status == 409
    seq = error(said)["expected_seq"]
    assert isinstance(seq, int)
    assert 2 <= seq <= 4
    for number in range(seq, 5):
        status, said = await client.update(began["session_id"], number, deltas[number])
        assert status == 200
        released[number] = str(said["released"])
    _, done = await client.finish(began["session_id"])
    shown = "".join(released[number] for number in sorted(released)) + str(done["released"])
    assert shown == "One. [SSN]. Three. Four. "
    assert await Finding.objects.acount() == 1, "a finding is stored once however often it is sent"


@pytest.mark.parametrize("ago_ms", [2_001, 1_000])
async def test_the_database_is_two_seconds_behind_at_most(
    client: Client, monkeypatch: pytest.MonkeyPatch, ago_ms: int
) -> None:
    began = await client.start(delta="One. ")
    before = await GuardedStream.objects.aget()
    behind_s: list[float] = []
    plain = Store.swap

    async def swap(self: Store, *args: Any, **more: Any) -> Swapped | Behind | None:
        swapped = await plain(self, *args, **more)
        assert isinstance(swapped, Swapped)
        behind_s.append(swapped.unkept_s)
        return swapped

    monkeypatch.setattr(Store, "swap", swap)
    await shared_log().evaluate(
        "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
        "redis.call('HSET', KEYS[1], 'kept_at', now - ARGV[1]) return 1",
        [f"sg:guarded:{{{began['session_id']}}}"], [ago_ms],
    )  # fmt: skip
    status, said = await client.update(began["session_id"], 2, "Two. ")
    assert (status, said["findings"]) == (200, [])
    (measured_s,) = behind_s
    assert measured_s >= ago_ms / 1000
    written = measured_s >= 2  # of the second case only where this machine has stood still for a second
    after = await GuardedStream.objects.aget()
    assert (after.seq, after.rev - before.rev) == ((2, 1) if written else (1, 0))
    assert (after.sealed_state != before.sealed_state) is written


async def test_a_state_that_no_store_has_is_said_to_be_lost_and_is_on_record(client: Client) -> None:
    began = await client.start(policy="demo", delta="Hello")
    await forget_store()
    await GuardedStream.objects.aupdate(sealed_state=None)
    for _ in range(2):
        status, said = await client.update(began["session_id"], 2, "x")
        assert (status, error(said)["code"]) == (410, "state_lost")
    session = await AuditSession.objects.aget()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "error", "state_lost")
    assert await AuditEntry.objects.filter(kind="sealed").acount() == 1
    kept = DeferredCheck.objects.values_list("guardrail", "applies_to", "state")
    unjudged = {one async for one in kept}
    assert unjudged == {("harm", "response", "error"), ("tone", "response", "error")}, "nobody judged it"


async def test_a_crash_between_state_and_answer_makes_the_retry_return_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = await client.start(delta="Hello. ")
    plain = Streams._conclude

    async def dies(self: Streams, *args: object) -> None:
        raise RuntimeError("the process is gone")

    monkeypatch.setattr(Streams, "_conclude", dies)
    assert (await client.finish(began["session_id"], delta="Bye."))[0] == 500
    monkeypatch.setattr(Streams, "_conclude", plain)
    status, said = await client.finish(began["session_id"], delta="Bye.")
    assert (status, said["state"]) == (200, "COMPLETE")
    assert str(began["released"]) + str(said["released"]) == "Hello. Bye."
    assert (await AuditSession.objects.aget()).state == "COMPLETE"


async def test_a_block_ends_what_is_released(client: Client) -> None:
    demo = Client(await new_key("demo", "demo"))
    began = await demo.start(delta="They call it project blue ")
    _, said = await demo.update(began["session_id"], 2, "heron, and more.")
    assert said["action"] == "block"
    _, later = await demo.update(began["session_id"], 3, "and more")
    assert (later["action"], later["released"]) == ("block", "")
    _, done = await demo.finish(began["session_id"])
    shown = "".join(str(part["released"]) for part in (began, said, later, done))
    assert "blue" not in shown
    assert (await AuditSession.objects.aget()).outcome == "blocked"


async def test_deferred_checks_follow_the_end(client: Client) -> None:
    demo = Client(await new_key("demo", "demo"))
    began = await demo.start(delta="First you mix the poison, then you wait.")
    _, done = await demo.finish(began["session_id"])
    assert done["state"] == "MONITORING"
    checks = [(check.guardrail, check.state) async for check in DeferredCheck.objects.order_by("guardrail")]
    assert checks == [("harm", "waiting"), ("tone", "waiting")]
    _, status = await demo.status(began["session_id"])
    waiting = [{"guardrail": name, "applies_to": "response", "state": "waiting"} for name in ("harm", "tone")]
    assert (status["state"], sorted(status["deferred"], key=str)) == ("MONITORING", waiting)


async def test_a_silent_stream_expires_and_its_held_text_is_never_released(client: Client) -> None:
    began = await client.start(delta=f"The number is {SSN[:8]}")
    later = timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1)
    done = await sweep(later, shared_log(), lambda pk: None)
    assert done.expired == [], "the store's clock decides, and it has only just been called"
    await shared_log().evaluate(
        "redis.call('HSET', KEYS[1], 'at', 1) return 1", [f"sg:guarded:{{{began['session_id']}}}"], []
    )
    done = await sweep(later, shared_log(), lambda pk: None)
    assert done.expired == [began["session_id"]]
    session = await AuditSession.objects.select_related("answer").aget()
    assert (session.state, session.outcome) == ("COMPLETE", "expired")
    assert session.answer is not None
    assert session.answer.content == began["released"]
    status, said = await client.update(began["session_id"], 2, "x")
    assert (status, error(said)["code"]) == (409, "stream_ended")


async def test_the_state_is_stored_in_clear_nowhere(client: Client) -> None:
    began = await client.start(delta=f"The secret number is {SSN[:8]}")
    (blob,) = [row.sealed_state async for row in GuardedStream.objects.all()]
    assert SSN[:8].encode() not in bytes(blob or b"")
    stored = await shared_log().evaluate(
        "return redis.call('HGET', KEYS[1], 'blob')", [f"sg:guarded:{{{began['session_id']}}}"], []
    )
    assert isinstance(stored, bytes)
    assert b"secret" not in stored


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("start", {"policy": "nothing"}, "policy"),
        ("start", {"preset": "nothing"}, "preset"),
        ("start", {"policy": "", "preset": "nothing"}, "preset"),
        ("start", {"kind": "song"}, "kind"),
        ("start", {"channels": ["text", "text"]}, "channels"),
        ("start", {"delta": "a\0b"}, "delta"),
        ("start", {"delta": "x" * 300_000}, "delta"),
        ("update", {"session_id": "s", "seq": 0, "delta": ""}, "seq"),
        ("update", {"session_id": "s", "seq": "1", "delta": ""}, "seq"),
        ("update", {"session_id": "s", "seq": 1}, "delta"),
        ("update", {"session_id": "s", "seq": 1, "delta": "x", "channel": "thinking"}, "channel"),
        ("finish", {}, "session_id"),
    ],
)
async def test_what_is_wrong_is_named(client: Client, call: str, body: Json, field: str) -> None:
    status, said = await client.post(call, body)
    assert (status, error(said)["field"]) == (422, field)
    assert not await AuditSession.objects.aexists()


async def test_limits_are_those_of_the_key() -> None:
    client = Client(await new_key("slow", calls_per_minute=1, updates_per_second=1))
    began = await client.start()
    assert (await client.post("start", {}))[0] == 429
    assert (await client.update(began["session_id"], 1, "a"))[0] == 200
    status, said = await client.update(began["session_id"], 2, "b")
    assert (status, error(said)["code"]) == (429, "too_many_calls")


async def test_an_answer_of_six_hundred_characters_takes_six_calls_at_most(client: Client) -> None:
    """20 chunks at 50 tokens a second, collected as the hints say."""
    text = ("The lock chamber fills slowly from above. " * 15)[:600]
    chunks = [text[at : at + 30] for at in range(0, 600, 30)]
    began = await client.start(delta=chunks[0])
    hints = began["hints"]
    assert isinstance(hints, dict)
    assert hints["flush_ms"] <= 800
    shown, pending, seq, since_ms = str(began["released"]), "", 1, 0
    for number, chunk in enumerate(chunks[1:], start=1):
        pending += chunk
        now_ms = number * 8 * 20  # about 8 tokens a chunk
        if now_ms - since_ms >= hints["flush_ms"] or len(pending) >= hints["max_delta_chars"]:
            seq += 1
            shown += str((await client.update(began["session_id"], seq, pending))[1]["released"])
            pending, since_ms = "", now_ms
    _, done = await client.finish(began["session_id"], delta=pending)
    assert shown + str(done["released"]) == text
    assert client.calls <= 6
    summary = done["summary"]
    assert isinstance(summary, dict)
    assert summary["calls"] == client.calls
    assert 1 + await AuditEntry.objects.acount() <= 0.2 * 20, "session and two entries, of twenty chunks"


async def test_calls_of_one_conversation_share_it(client: Client) -> None:
    for _ in range(2):
        began = await client.start(delta="Hello.", context={"conversation_id": "c-1"})
        await client.finish(began["session_id"])
    assert await AuditSession.objects.values("conversation").distinct().acount() == 1


async def test_a_stream_keeps_the_version_that_it_began_with(client: Client) -> None:
    document: Json = {"policy": "mine", "guardrails": [
        {"name": "w", "kind": "keywords", "action": "block", "config": {"keywords": ["alpha"]}}]}  # fmt: skip
    await database_sync_to_async(install)(document=document)
    began = await client.start(policy="mine", delta="One ")
    document["guardrails"][0]["config"] = {"keywords": ["omega"]}  # type: ignore[index]
    await database_sync_to_async(install)(document=document)
    _, said = await client.update(began["session_id"], 2, "omega alpha end")
    _, done = await client.finish(began["session_id"])
    assert str(began["released"]) + str(said["released"]) + str(done["released"]) == "One omega "
