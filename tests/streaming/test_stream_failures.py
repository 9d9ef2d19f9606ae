"""Streams that their clients own, where something fails at the worst place: what is said is true, and on record."""

from __future__ import annotations

import json

import pytest
from channels.db import database_sync_to_async
from django.db import OperationalError
from django.test import AsyncClient, override_settings

from guardrails import selectors
from guardrails.models import Policy, PolicyVersion
from guardrails.selectors import PolicyUnavailable, forget
from guardrails.services import create_api_key
from streaming.api import chat as chat_calls
from streaming.audit.verify import log_faults
from streaming.guarded import rows
from streaming.guarded.store import Store
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog, shared_log
from streaming.models import AuditEntry, AuditSession, DeferredCheck, GuardedStream
from tests.streaming.test_stream_api import SSN, Client, Json, client, closing, error, forget_store

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["client", "closing"]


@database_sync_to_async
def faults() -> list[object]:
    return list(log_faults())


async def test_it_works(client: Client) -> None:
    """A repeated start is answered whatever holds by now: another one under the same policy is refused."""
    key = {"Idempotency-Key": "k1"}
    body: Json = {"policy": "demo", "delta": "Hello. "}
    _, first = await client.post("start", body, **key)

    await Policy.objects.filter(name="demo").aupdate(active_version=None)
    assert (await client.post("start", body))[0] == 422
    status, again = await client.post("start", body, **key)
    assert (status, {**again, "stream_token": ""}) == (201, {**first, "stream_token": ""})
    assert await AuditSession.objects.acount() == 1
    status, said = await client.post("start", {**body, "delta": "Other"}, **key)
    assert (status, error(said)["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize("repeatable", [False, True], ids=["no key", "idempotency key"])
async def test_a_start_whose_store_goes_away_leaves_no_open_stream_behind(
    client: Client, monkeypatch: pytest.MonkeyPatch, repeatable: bool
) -> None:
    key = {"Idempotency-Key": "k1"} if repeatable else {}

    async def gone(self: Store, *args: object, **more: object) -> None:
        raise LogUnavailable("gone")

    with monkeypatch.context() as away:
        away.setattr(Store, "swap", gone)
        status, said = await client.post("start", {"delta": "Hello. ", "policy": "demo"}, **key)
    assert (status, error(said)["code"]) == (503, "log_unavailable")
    assert not await DeferredCheck.objects.aexists(), "what did not begin leaves nothing to judge"
    status, said = await client.post("start", {"delta": "Hello. ", "policy": "demo"}, **key)
    assert status == 201
    states = [row async for row in AuditSession.objects.order_by("started_at").values_list("state", "error_code")]
    assert states == ([("ACTIVE", "")] if repeatable else [("COMPLETE", "log_unavailable"), ("ACTIVE", "")])
    assert (await client.finish(said["session_id"], delta="Bye.", seq=2))[0] == 200
    assert await faults() == []


async def test_every_call_says_in_one_word_that_the_store_is_away(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, over = await client.post("start", {"delta": "Hello. "})
    assert (await client.finish(over["session_id"]))[0] == 200
    _, began = await client.post("start", {"delta": "Hello. "})

    async def gone(self: RedisLog, *args: object, **more: object) -> None:
        raise LogUnavailable("gone")

    def nowhere() -> RedisLog:
        raise LogUnavailable("no store is named")

    with monkeypatch.context() as away:
        away.setattr(chat_calls, "shared_log", nowhere)
        chat = await client.http.post(
            "/v1/chat", {"prompt": "Hello"}, content_type="application/json", headers=client.headers
        )
    with monkeypatch.context() as away:
        for name in ("evaluate", "commit", "read"):
            away.setattr(RedisLog, name, gone)
        events = await client.http.get(
            f"/v1/stream/events?session_id={over['session_id']}", headers={**client.headers, "Last-Event-ID": "1"}
        )
        answers = [(call.status_code, json.loads(call.content)) for call in (chat, events)]
        answers += [await client.update(began["session_id"], 2, "More."), await client.status(began["session_id"])]
    assert [(status, error(said)["code"]) for status, said in answers] == 4 * [(503, "log_unavailable")]


async def test_a_start_that_was_sent_again_has_lost_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer says where the stream stands, so a finish need not name a seq."""
    key, body = {"Idempotency-Key": "k1"}, Json(delta="Hello. ")

    async def gone(self: Store, *args: object, **more: object) -> None:
        raise LogUnavailable("gone")

    with monkeypatch.context() as away:
        away.setattr(Store, "swap", gone)
        assert (await client.post("start", body, **key))[0] == 503
    status, began = await client.post("start", body, **key)
    assert (status, began["seq"]) == (201, 1)
    status, said = await client.finish(began["session_id"])
    assert (status, str(began["released"]) + str(said.get("released"))) == (200, "Hello. ")
    assert await faults() == []


@override_settings(SLUICEGATE_WRITE_THROUGH_S=600.0)
async def test_a_start_sent_again_says_nothing_of_deltas_that_came_later(client: Client) -> None:
    """The store is lost when it had more than the database: a finish without seq is still refused."""
    key, body = {"Idempotency-Key": "k1"}, Json(delta="Hello. ")
    _, began = await client.post("start", body, **key)
    assert (await client.update(began["session_id"], 2, f"{SSN}. "))[0] == 200  # a finding: in the database at once
    assert (await client.update(began["session_id"], 3, "More. "))[0] == 200
    await forget_store()
    assert (await client.post("start", body, **key))[0] == 201
    status, said = await client.finish(began["session_id"])
    assert (status, error(said)["code"], error(said)["expected_seq"]) == (409, "seq_conflict", 3)


@pytest.mark.parametrize("part", ["store", "database"])
async def test_a_call_that_was_applied_is_not_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What is left to do after the commit can be done by a later call."""
    began = await client.start(delta="My number is ")

    async def no_store(self: Store, session_id: str) -> None:
        raise LogUnavailable("gone")

    def no_database(**given: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as away:
        if part == "store":
            away.setattr(Store, "kept", no_store)
        else:
            away.setattr(rows, "write_through", no_database)
        status, said = await client.update(began["session_id"], 2, f"{SSN}, and ")
    assert status == 200
    assert said["findings"]
    assert (await GuardedStream.objects.aget()).seq == (2 if part == "store" else 1)
    assert (await client.update(began["session_id"], 3, f"{SSN}, and more."))[0] == 200
    assert (await GuardedStream.objects.aget()).seq == 3
    _, done = await client.finish(began["session_id"])
    assert json.loads(json.dumps(done["summary"]))["findings"] == 2


async def test_a_finish_that_could_not_be_written_gets_its_stored_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is in the store, the database goes away before it has it: the same call brings it to its end, once."""
    began = await client.start(delta="Hello. ")

    def no_database(**given: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as away:
        away.setattr(rows, "end", no_database)
        status, said = await client.finish(began["session_id"], delta="Bye.", seq=2)
    assert (status, error(said)["code"]) == (503, "database_unavailable")
    assert (await AuditSession.objects.aget()).state == "ACTIVE"
    status, done = await client.finish(began["session_id"], delta="Bye.", seq=2)
    assert (status, done["state"], str(began["released"]) + str(done["released"])) == (200, "COMPLETE", "Hello. Bye.")
    assert await client.finish(began["session_id"], delta="Bye.", seq=2) == (200, done)
    assert (await AuditSession.objects.aget()).state == "COMPLETE"
    assert await AuditEntry.objects.filter(kind="sealed").acount() == 1


async def test_a_finish_that_was_cut_off_is_told_as_an_end(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client asks instead of finishing again: an open stream with an older seq would be no answer to it."""
    began = await client.start(delta="Hello. ")

    def no_database(**given: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as away:
        away.setattr(rows, "end", no_database)
        assert (await client.finish(began["session_id"], delta="Bye.", seq=2))[0] == 503
    status, said = await client.status(began["session_id"])
    assert (status, said["state"], said["outcome"], said["expected_seq"]) == (200, "COMPLETE", "allowed", 3)
    session = await AuditSession.objects.select_related("answer").aget()
    assert (session.state, session.answer and session.answer.content) == ("COMPLETE", "Hello. Bye.")
    status, done = await client.finish(began["session_id"], delta="Bye.", seq=2)
    assert (status, str(began["released"]) + str(done["released"])) == (200, "Hello. Bye.")
    told = await shared_log().read(str(began["session_id"]), 0)
    assert [event["type"] for event in told].count("done") == 1
    assert await AuditEntry.objects.filter(kind="sealed").acount() == 1
    assert await faults() == []


@pytest.mark.parametrize(
    ("path", "body"), [("check", {"text": "x", "kind": "prompt"}), ("stream/start", {}), ("chat", {"prompt": "x"})]
)
@pytest.mark.parametrize("reason", ["inactive", "altered"])
async def test_the_fault_of_a_policy_that_the_call_did_not_name_is_not_the_calls(
    path: str, body: Json, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call is answered when the policy runs again; where the call names it, it can name another one."""

    def altered(version: PolicyVersion) -> None:
        raise PolicyUnavailable("altered", f"the signature of {version} does not verify")

    _, key = await database_sync_to_async(create_api_key)(name="own", scopes=["check", "stream"], policy="demo")
    headers = {"Authorization": f"Bearer {key}"}
    if reason == "inactive":
        await Policy.objects.filter(name="demo").aupdate(active_version=None)
    else:
        forget()
        monkeypatch.setattr(selectors, "load", altered)
    refused = []
    for named in ({}, {"policy": "demo"}):
        response = await AsyncClient().post(f"/v1/{path}", {**body, **named}, "application/json", headers=headers)
        refused.append((response.status_code, json.loads(response.content)["error"]))
    assert [(status, said["code"], said.get("field")) for status, said in refused] == [
        (503, "policy_unavailable", None), (422, "policy_unavailable", "policy")
    ]  # fmt: skip
    assert not await AuditSession.objects.aexists()
