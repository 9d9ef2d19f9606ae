"""What a stream's client says is written row by row: in one order by everybody, and each finding by one call."""

from __future__ import annotations

import re

import pytest
from channels.db import database_sync_to_async
from django.db import connection, transaction

from guardrails.findings import Finding as FoundHit
from streaming.guarded import rows
from streaming.guarded.record import Record, unsealed
from streaming.guarded.store import Store
from streaming.log_redis import shared_log
from streaming.models import AuditSession, Finding
from tests.streaming.statements import asked
from tests.streaming.test_stream_api import SSN, Client, client, closing

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["client", "closing"]
OF_A_STREAM = ("guardedstream", "auditsession")
WRITTEN = re.compile(r'^\s*(?:UPDATE|SELECT[^"]+"streaming_\w+"\.[^;]*? FROM|INSERT[A-Z ]*INTO) "streaming_(\w+)"')


async def stored(session_id: object) -> tuple[Record, bytes]:
    found = await Store(shared_log()).read(str(session_id))
    assert found is not None
    return unsealed(found.blob, str(session_id)), found.blob


@database_sync_to_async
def taken(how: str, record: Record, blob: bytes) -> list[str]:
    """Whose rows it takes, in its order; the transaction comes to nothing."""
    session_id = record.session_id
    with transaction.atomic():
        with asked() as told:
            match how:
                case "write":
                    rows.write_through(record=record, blob=blob)
                case "end":
                    record.ended = "allowed"
                    rows.end(record=record, tombstone=b"", last_seq=9)
                case "lose":
                    rows.lose(session_id=session_id)
                case "withdraw":
                    rows.withdraw(session_id=session_id)
        transaction.set_rollback(True)
    taking = connection.features.has_select_for_update
    names = [
        found[1]
        for one in told
        if (found := WRITTEN.match(one)) and not (taking and one.startswith("SELECT") and "FOR UPDATE" not in one)
    ]
    return [name for name in dict.fromkeys(names) if name in OF_A_STREAM]


@pytest.mark.parametrize("how", ["end", "lose", "withdraw"])
async def test_it_works(client: Client, how: str) -> None:
    """Two that took the rows crosswise would wait for each other, and a finish would be refused for it."""
    began = await client.start(delta="Hello. ")
    record, blob = await stored(began["session_id"])
    record.rev += 1
    in_order = await taken("write", record, blob)
    assert in_order == list(OF_A_STREAM)
    assert await taken(how, record, blob) == in_order
    assert (await AuditSession.objects.aget()).state == "ACTIVE", connection.vendor


async def test_a_finding_is_written_by_the_call_that_led_to_it_alone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text with thousands of them would keep everybody waiting at each call."""
    written: list[int] = []
    row_of = rows.finding_row

    def counted(session_id: str, hit: FoundHit) -> Finding:
        written.append(hit.n)
        return row_of(session_id, hit)

    monkeypatch.setattr(rows, "finding_row", counted)
    began = await client.start(delta=f"{SSN}, ")
    for seq in range(2, 6):
        assert (await client.update(began["session_id"], seq, f"{SSN}, "))[0] == 200
    assert written == [1, 2, 3, 4, 5]
    assert [n async for n in Finding.objects.order_by("n").values_list("n", flat=True)] == written
