"""A store that has lost everything, or was put back to an older state: nothing that was acknowledged goes missing in
silence, and a stream that is asked about stays open.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone

from streaming.conf import conf
from streaming.log_redis import shared_log
from streaming.models import AuditSession
from streaming.sweep import sweep
from tests.streaming.test_stream_api import Client, Json, client, closing, error, forget_store
from tests.streaming.test_unreadable_states import last_call, not_heard_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["client", "closing"]
SEVERAL = override_settings(SLUICEGATE_WRITE_THROUGH_S=600.0)
"""What nothing was found in stays in the store alone."""


async def begun(client: Client) -> tuple[str, str]:
    """A stream of three deltas, the first of which alone is in the database; with what was shown."""
    said = await client.start(delta="One. ")
    shown, session_id = str(said["released"]), str(said["session_id"])
    for seq, delta in ((2, "Two. "), (3, "Three. ")):
        status, said = await client.update(session_id, seq, delta)
        assert status == 200
        shown += str(said["released"])
    return session_id, shown


@SEVERAL
@pytest.mark.parametrize("between", ["nothing", "status", "another finish", "a delta out of turn"])
async def test_it_works(client: Client, between: str) -> None:
    """A finish that names no seq ends nothing that is older than what its client was answered."""
    session_id, shown = await begun(client)
    assert shown == "One. Two. Three. "
    await forget_store()
    match between:
        case "status":
            assert (await client.status(session_id))[1]["expected_seq"] == 2
        case "another finish":
            assert (await client.finish(session_id))[0] == 409
        case "a delta out of turn":
            assert (await client.update(session_id, 4, "Four."))[0] == 409
    status, said = await client.finish(session_id)
    assert (status, error(said)["code"], error(said)["expected_seq"]) == (409, "seq_conflict", 2)
    assert (await AuditSession.objects.aget()).state == "ACTIVE"
    again = ""
    for seq, delta in ((2, "Two. "), (3, "Three. ")):
        status, said = await client.update(session_id, seq, delta)
        assert status == 200
        again += str(said["released"])
    assert again == "Two. Three. "
    assert (await client.finish(session_id))[0] == 200, "the two know the same again"
    session = await AuditSession.objects.select_related("answer").aget()
    assert session.answer is not None
    assert session.answer.content == "One. Two. Three. "


@SEVERAL
async def test_a_client_that_says_its_seq_is_believed(client: Client) -> None:
    """What it had been answered is in the database: nothing has to be sent again."""
    said = await client.start(delta="One. ")
    await forget_store()
    assert (await client.finish(said["session_id"], seq=2))[0] == 200


@SEVERAL
async def test_a_store_put_back_to_an_older_state_is_found_out_by_a_finish_without_seq(client: Client) -> None:
    """It names nothing that could be compared, so the database is asked."""
    said = await client.start(delta="One. ")
    session_id = str(said["session_id"])
    key = f"sg:guarded:{{{session_id}}}"
    copy = await shared_log().evaluate("return redis.call('DUMP', KEYS[1])", [key], [])
    assert isinstance(copy, bytes)
    await client.update(session_id, 2, "My number is 536-22-8145. ")  # a finding: it is in the database at once
    await client.update(session_id, 3, "Three. ")
    await shared_log().evaluate("return redis.call('RESTORE', KEYS[1], 60000, ARGV[1], 'REPLACE')", [key], [copy])
    status, said = await client.finish(session_id)
    assert (status, error(said)["code"], error(said)["expected_seq"]) == (409, "seq_conflict", 3)
    assert (await client.update(session_id, 3, "Three. "))[0] == 200
    assert (await client.finish(session_id))[0] == 200
    session = await AuditSession.objects.select_related("answer").aget()
    assert session.answer is not None
    assert session.answer.content == "One. My number is [SSN]. Three. "


@pytest.mark.parametrize("call", ["status", "stored answer", "repeated start"])
async def test_a_call_that_changes_nothing_keeps_the_stream_open(client: Client, call: str) -> None:
    """Also where the store has lost the stream, and with it when the last call came."""
    body: Json = {"delta": "One. "}
    _, said = await client.post("start", body, **{"Idempotency-Key": "k1"})
    session_id = str(said["session_id"])
    _, answer = await client.update(session_id, 2, "My number is 536-22-8145. ")
    for lost in (True, False):
        if lost:
            await forget_store()
        await not_heard_of(session_id, conf().stream_expiry_s - 1)
        if not lost:
            await last_call(session_id, conf().stream_expiry_s - 1)
        if call == "status":
            assert (await client.status(session_id))[0] == 200
        elif call == "stored answer":
            assert await client.update(session_id, 2, "My number is 536-22-8145. ") == (200, answer)
        else:
            assert (await client.post("start", body, **{"Idempotency-Key": "k1"}))[0] == 201
        done = await sweep(timezone.now() + timedelta(seconds=2), shared_log(), lambda pk: None)
        assert done.expired == []
        session = await AuditSession.objects.aget()
        assert session.state == "ACTIVE"
        assert session.heartbeat_at is not None
        assert session.heartbeat_at > timezone.now() - timedelta(seconds=60), "the sweep has heard of it"
    left_ms = await shared_log().evaluate("return redis.call('PTTL', KEYS[1])", [f"sg:guarded:{{{session_id}}}"], [])
    assert int(str(left_ms)) > 1_000 * (conf().log_ttl_s - 60)
    assert (await client.update(session_id, 3, "Three."))[0] == 200


async def test_what_is_kept_open_stays_in_the_store_for_as_long(client: Client) -> None:
    """A stream that is only asked about for hours is not lost by the store's own expiry."""
    said = await client.start(delta="One. ")
    key = f"sg:guarded:{{{said['session_id']}}}"
    await shared_log().evaluate("return redis.call('PEXPIRE', KEYS[1], 60000)", [key], [])
    assert (await client.status(said["session_id"]))[0] == 200
    left_ms = await shared_log().evaluate("return redis.call('PTTL', KEYS[1])", [key], [])
    assert int(str(left_ms)) > 1_000 * (conf().log_ttl_s - 60)
