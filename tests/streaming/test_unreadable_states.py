"""A state that cannot be read: the other copy goes on, what is for other processes is left to them, and only what
nothing is left of is lost, on record.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from base64 import b85encode
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.test import override_settings
from django.utils import timezone

from streaming.audit.verify import log_faults
from streaming.conf import conf
from streaming.core.snapshot import FORMAT
from streaming.guarded import record as records
from streaming.guarded.record import FORM, ForeignRecord, Record, RecordBroken, unsealed
from streaming.log_redis import shared_log
from streaming.models import AuditEntry, AuditSession, GuardedStream
from streaming.sealed import seal
from streaming.sweep import sweep
from tests.streaming.test_stream_api import SSN, Client, Json, client, closing, error, forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["client", "closing"]
SEVERAL = override_settings(SLUICEGATE_WRITE_THROUGH_S=600.0)
"""What nothing was found in stays in the store alone."""


def key_of(session_id: object) -> str:
    return f"sg:guarded:{{{session_id}}}"


async def in_store(session_id: object) -> bytes:
    blob = await shared_log().evaluate("return redis.call('HGET', KEYS[1], 'blob')", [key_of(session_id)], [])
    assert isinstance(blob, bytes)
    return blob


async def put(session_id: object, blob: bytes) -> None:
    await shared_log().evaluate("redis.call('HSET', KEYS[1], 'blob', ARGV[1]) return 1", [key_of(session_id)], [blob])


async def last_call(session_id: object, ago_s: float) -> None:
    """Put a stream's last call back to so long ago."""
    await shared_log().evaluate(
        "local t = redis.call('TIME') redis.call('HSET', KEYS[1], 'at', t[1] * 1000 - ARGV[1]) return 1",
        [key_of(session_id)], [round(ago_s * 1000)],
    )  # fmt: skip
    await not_heard_of(session_id, ago_s)


async def not_heard_of(session_id: object, ago_s: float) -> None:
    """The same for the database."""
    ago = timedelta(seconds=ago_s)
    await AuditSession.objects.filter(pk=str(session_id)).aupdate(heartbeat_at=timezone.now() - ago)


async def swept() -> list[str]:
    return (await sweep(timezone.now(), shared_log(), lambda pk: None)).expired


@database_sync_to_async
def faults() -> list[object]:
    return list(log_faults())


def damaged(blob: bytes, session_id: str) -> bytes:
    """One bit is not what it was."""
    return blob[:-1] + bytes([blob[-1] ^ 1])


def without_gate(blob: bytes, session_id: str) -> bytes:
    record = unsealed(blob, session_id)
    record.gate = None
    return record.seal()


def nothing(blob: bytes, session_id: str) -> bytes:
    return b""


def of_another_form(blob: bytes, session_id: str) -> bytes:
    """As a newer version of this program writes it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(records, "FORM", FORM + 1)
        return Record(**asdict(unsealed_now(blob, session_id))).seal()


def of_the_first_form(blob: bytes, session_id: str) -> bytes:
    """As the first version wrote it: sealed as a whole, with nothing in clear before it."""
    plain = json.dumps({"form": 1, **asdict(unsealed(blob, session_id))})
    return seal(b85encode(zlib.compress(plain.encode())).decode(), context=f"guarded/{session_id}")


def of_another_key(blob: bytes, session_id: str) -> bytes:
    record = unsealed(blob, session_id)
    with override_settings(SECRET_KEY="another key, long enough to be taken for one of these"):
        return record.seal()


def of_another_engine(blob: bytes, session_id: str) -> bytes:
    record = unsealed(blob, session_id)
    assert record.gate is not None
    record.gate["format"] = FORMAT + 1
    return record.seal()


def unsealed_now(blob: bytes, session_id: str) -> Record:
    """The record, also where ``FORM`` is another one by now."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(records, "FORM", FORM)
        return unsealed(blob, session_id)


Change = Callable[[bytes, str], bytes]
BROKEN = {"damaged": damaged, "no gate": without_gate, "empty": nothing}
FOREIGN = {
    "newer form": of_another_form,
    "first form": of_the_first_form,
    "another key": of_another_key,
    "another engine": of_another_engine,
}


async def spoil(session_id: object, change: Change, *, database: bool = False) -> None:
    name = str(session_id)
    await put(name, change(await in_store(name), name))
    if database:
        row = await GuardedStream.objects.aget(pk=name)
        row.sealed_state = change(bytes(row.sealed_state or b""), name)
        await row.asave(update_fields=["sealed_state"])


async def shown(client: Client, session_id: object, parts: dict[int, str], seq: int, deltas: dict[int, str]) -> str:
    """Send from ``seq`` on what the client has, and end the stream."""
    for number in range(seq, max(deltas) + 1):
        status, said = await client.update(session_id, number, deltas[number])
        assert status == 200, said
        parts[number] = str(said["released"])
    status, done = await client.finish(session_id)
    assert status == 200, done
    return "".join(parts[number] for number in sorted(parts)) + str(done["released"])


@pytest.mark.parametrize("how", BROKEN)
async def test_it_works(client: Client, how: str) -> None:
    """The database's copy is whole: the stream goes on from it, and nobody is told of a loss."""
    began = await client.start(delta="Hello. ")
    await spoil(began["session_id"], BROKEN[how])
    deltas = {2: f"{SSN}. ", 3: "Bye."}
    assert await shown(client, began["session_id"], {1: str(began["released"])}, 2, deltas) == "Hello. [SSN]. Bye."
    session = await AuditSession.objects.aget()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "redacted", "")
    assert await faults() == []


@SEVERAL
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("call", ["update", "finish"])
async def test_what_the_database_has_not_is_asked_for_again(client: Client, call: str, how: str) -> None:
    began = await client.start(delta="One. ")
    deltas = {2: "Two. ", 3: "Three. ", 4: "Four."}
    parts = {1: str(began["released"])}
    for seq in (2, 3):
        parts[seq] = str((await client.update(began["session_id"], seq, deltas[seq]))[1]["released"])
    await spoil(began["session_id"], BROKEN[how])
    body: Json = {"session_id": began["session_id"], "seq": 4, "delta": deltas[4]}
    for _ in range(2):
        status, said = await client.post(call, body)
        assert (status, error(said)["code"], error(said)["expected_seq"]) == (409, "seq_conflict", 2)
    assert await shown(client, began["session_id"], parts, 2, deltas) == "One. Two. Three. Four."
    assert await faults() == []


@pytest.mark.parametrize("how", BROKEN)
async def test_a_sweep_ends_no_stream_as_lost_that_the_database_has(client: Client, how: str) -> None:
    began = await client.start(delta="Hello. ")
    await spoil(began["session_id"], BROKEN[how])
    await AuditSession.objects.aupdate(heartbeat_at=timezone.now() - timedelta(seconds=conf().stream_expiry_s + 1))
    assert await swept() == [], "the store has heard of it just now"
    assert (await client.update(began["session_id"], 2, "More. "))[0] == 200
    await spoil(began["session_id"], BROKEN[how])
    await last_call(began["session_id"], conf().stream_expiry_s + 1)
    assert await swept() == [began["session_id"]]
    session = await AuditSession.objects.select_related("answer").aget()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "expired", "")
    status, said = await client.update(began["session_id"], 3, "x")
    assert (status, error(said)["code"]) == (409, "stream_ended")
    assert await faults() == []


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("call", ["update", "finish"])
async def test_what_can_be_read_nowhere_is_lost_once_and_on_record(client: Client, call: str, how: str) -> None:
    began = await client.start(delta="Hello. ")
    await spoil(began["session_id"], BROKEN[how], database=True)
    body: Json = {"session_id": began["session_id"], "seq": 2, "delta": "more"}
    for _ in range(2):
        status, said = await client.post(call, body)
        assert (status, error(said)["code"]) == (410, "state_lost")
    session = await AuditSession.objects.select_related("answer").aget()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "error", "state_lost")
    assert session.answer is not None
    assert session.answer.content == began["released"], "what had been shown is kept"
    assert await AuditEntry.objects.filter(kind="sealed").acount() == 1
    assert (await client.status(began["session_id"]))[0] == 410
    assert await faults() == []


@pytest.mark.parametrize("where", ["store", "database", "both"])
@pytest.mark.parametrize("how", FOREIGN)
async def test_what_is_for_other_processes_is_left_to_them(client: Client, how: str, where: str) -> None:
    """While versions or keys change: nothing is wiped, and who can read it goes on with the stream."""
    began = await client.start(delta="Hello. ")
    name = str(began["session_id"])
    whole, whole_row = await in_store(name), await GuardedStream.objects.aget()
    if where == "database":
        await GuardedStream.objects.aupdate(sealed_state=FOREIGN[how](bytes(whole_row.sealed_state or b""), name))
        await forget_store()
    else:
        await spoil(name, FOREIGN[how], database=where == "both")
    stored = None if where == "database" else await in_store(name)
    row = await GuardedStream.objects.aget()
    for call in ("update", "finish"):
        status, said = await client.post(call, {"session_id": name, "seq": 2, "delta": "more"})
        assert (status, error(said)["code"]) == (503, "state_foreign")
    await AuditSession.objects.aupdate(heartbeat_at=timezone.now() - timedelta(seconds=conf().stream_expiry_s + 1))
    if how != "another engine":  # the record's gate is nothing that a sweep asks for
        assert await swept() == []
    assert (await AuditSession.objects.aget()).state == "ACTIVE"
    assert (stored is None) or (await in_store(name) == stored)
    assert (await GuardedStream.objects.aget()).sealed_state == row.sealed_state
    await GuardedStream.objects.aupdate(sealed_state=whole_row.sealed_state)
    if where != "database":
        await put(name, whole)
    assert (await client.update(name, 2, "more"))[0] == 200
    assert await faults() == []


@pytest.mark.parametrize("how", [name for name in FOREIGN if name != "another engine"])
async def test_another_key_learns_nothing_of_a_foreign_state(client: Client, how: str) -> None:
    began = await client.start(delta="Hello. ")
    await spoil(began["session_id"], FOREIGN[how])
    other = Client(await new_key("two"))
    assert (await other.update(began["session_id"], 2, "x"))[0] == 404


@pytest.mark.parametrize("where", ["store", "database"])
async def test_a_stream_that_nobody_can_read_any_more_is_lost_in_the_end(client: Client, where: str) -> None:
    began = await client.start(delta="Hello. ")
    name = str(began["session_id"])
    await spoil(name, of_another_key, database=True)
    if where == "database":
        await forget_store()
    put_back = last_call if where == "store" else not_heard_of
    await put_back(name, conf().stream_expiry_s + 10)
    assert await swept() == []
    await put_back(name, 2 * conf().stream_expiry_s + 10)
    assert await swept() == [name]
    session = await AuditSession.objects.aget()
    assert (session.state, session.error_code) == ("COMPLETE", "state_lost")


def test_a_damaged_state_of_the_first_form_is_damaged() -> None:
    """That it has no mark is no sign of anything: it has to open."""
    name = "7d9f3f0e-0000-4000-8000-000000000000"
    first = seal("what it was", context=f"guarded/{name}")
    with pytest.raises(ForeignRecord):
        unsealed(first, name)
    for blob, whose in ((damaged(first, name), name), (first[:20], name), (first, name.replace("7", "8"))):
        with pytest.raises(RecordBroken) as raised:
            unsealed(blob, whose)
        assert type(raised.value) is RecordBroken


OVER = {"damaged": damaged, "empty": nothing, "newer form": of_another_form, "first form": of_the_first_form}


@pytest.mark.parametrize("how", OVER)
async def test_a_stream_that_is_over_is_never_lost(client: Client, how: str) -> None:
    """Of its answers nothing may be readable; that it has ended, and how, stands in its row."""
    began = await client.start(delta=f"{SSN}. ")
    name = str(began["session_id"])
    assert (await client.finish(name))[0] == 200
    await spoil(name, OVER[how], database=True)
    before = await GuardedStream.objects.aget()
    for store_is_there in (True, False):
        if not store_is_there:
            await forget_store()
        for call in ("update", "finish"):
            status, said = await client.post(call, {"session_id": name, "seq": 2, "delta": "more"})
            assert (status, error(said)["code"], error(said)["expected_seq"]) == (409, "stream_ended", 2)
    session = await AuditSession.objects.aget()
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "redacted", "")
    assert (await GuardedStream.objects.aget()).sealed_state == before.sealed_state, "nothing is wiped before its time"
    assert await faults() == []


def test_other_fields_are_another_form() -> None:
    """A process that does not know a field cannot read the record: it has to see that before it tries."""
    names = " ".join(sorted(field.name for field in fields(Record)))
    assert (FORM, hashlib.sha256(names.encode()).hexdigest()[:8]) == (3, "8db93f93"), "give the form another number"
