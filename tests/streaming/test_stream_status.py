"""What is said of a stream that its client owns, while it is open and afterwards: the same whoever tells it."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any, cast

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import Group
from django.db import transaction
from django.utils import timezone

from guardrails.kinds.toxicity import ToxicityKind
from guardrails.services import install
from streaming import deferred
from streaming.conf import conf
from streaming.database import in_database
from streaming.log import MemoryLog
from streaming.log_redis import shared_log
from streaming.models import AuditSession, DeferredCheck, GuardedStream
from streaming.reader import follow
from streaming.sweep import sweep
from tests.streaming.test_stream_api import SSN, Client, Json, closing, forget_store, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["closing"]
POLICY: Json = {
    "policy": "all-lanes",
    "guardrails": [
        {"name": "pii", "kind": "pii", "action": "redact"},
        {"name": "secrets", "kind": "secrets", "action": "redact"},
        {"name": "watch", "kind": "keywords", "mode": "MONITOR", "action": "block", "config": {"keywords": ["number"]}},
        {"name": "off", "kind": "keywords", "mode": "DISABLED", "action": "block", "config": {"keywords": ["zebra"]}},
        {"name": "asked", "kind": "keywords", "action": "block", "applies_to": ["prompt"],
         "config": {"keywords": ["lion"]}},
        {"name": "sentences", "kind": "toxicity", "action": "block"},
        {"name": "later", "kind": "toxicity", "mode": "MONITOR", "action": "block"},
    ],
}  # fmt: skip
FIELDS = {"checkpoint", "mode", "state", "checks", "hits", "errors", "ms", "last_ms", "p95_ms"}


@pytest.fixture
async def client() -> Client:
    await database_sync_to_async(install)(document=POLICY)
    return Client(await new_key(policy="all-lanes"))


async def guardrails(client: Client, session_id: object) -> dict[str, dict[str, Any]]:
    status, said = await client.status(session_id)
    assert status == 200, said
    found = cast("dict[str, dict[str, Any]]", said["guardrails"])
    assert list(found) == ["pii", "secrets", "watch", "off", "asked", "sentences", "later"], "all, in their order"
    assert all(set(one) == FIELDS for one in found.values())
    return found


def states(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["state"] for name, one in found.items()}


async def test_it_works(client: Client) -> None:
    """Every guardrail of the policy has its line, from the first call until a worker has made the last check."""
    began = await client.start()
    found = await guardrails(client, began["session_id"])
    assert set(states(found).values()) == {"idle"}
    assert (found["pii"]["checkpoint"], found["pii"]["mode"]) == ("IMMEDIATE", "BLOCK")
    assert (found["sentences"]["checkpoint"], found["off"]["mode"]) == ("BATCHED", "DISABLED")
    await client.update(began["session_id"], 1, f"The number is {SSN}. And ")
    found = await guardrails(client, began["session_id"])
    wanted = {
        "pii": "hit", "secrets": "passed", "watch": "would_block", "off": "idle", "asked": "idle",
        "sentences": "passed", "later": "idle",
    }  # fmt: skip
    assert states(found) == wanted
    assert [found[name]["hits"] for name in ("pii", "watch", "secrets")] == [1, 1, 0]
    assert found["sentences"]["checks"] == 1
    assert 0 <= found["sentences"]["last_ms"] <= found["sentences"]["ms"]
    assert found["sentences"]["p95_ms"] >= 0, "of what this process has measured"
    assert (found["pii"]["last_ms"], found["pii"]["p95_ms"]) == (None, None), "its rules have no time of their own"
    await client.finish(began["session_id"])
    found = await guardrails(client, began["session_id"])
    assert states(found) == wanted | {"later": "waiting"}
    check = await DeferredCheck.objects.aget()
    assert await deferred.run_deferred(check.pk, MemoryLog())
    found = await guardrails(client, began["session_id"])
    assert states(found) == wanted | {"later": "passed"}
    assert (found["later"]["checkpoint"], found["later"]["checks"]) == ("DEFERRED", 2)
    assert found["later"]["last_ms"] >= 0
    assert found["sentences"]["checks"] == 2, "of the audit record, as of the open stream"


async def test_a_guardrail_that_failed_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, request: object) -> None:
        raise ValueError("broken")

    began = await client.start()
    with monkeypatch.context() as failing:
        failing.setattr(ToxicityKind, "judge", broken)
        await client.update(began["session_id"], 1, "This is a sentence of its own. And ")
    one = (await guardrails(client, began["session_id"]))["sentences"]
    assert (one["state"], one["errors"]) == ("error", 1)


async def events(session_id: object) -> list[dict[str, object]]:
    batches = follow(shared_log(), str(session_id), 0, conf(), correlation_id="", resumed=True)
    return [event async for batch in batches for event in batch]


@pytest.mark.parametrize(("end", "status"), [("blocked", "blocked"), ("expired", "interrupted"), ("whole", "complete")])
async def test_a_message_is_called_the_same_by_the_log_and_by_the_database(end: str, status: str) -> None:
    stops = {"policy": "stops", "guardrails": [{"name": "w", "kind": "keywords", "config": {"keywords": ["heron"]}}]}
    await database_sync_to_async(install)(document=stops)
    owner = Client(await new_key(policy="stops" if end == "blocked" else "basic"))
    began = await owner.start(delta="They call it project blue heron. ")
    name = began["session_id"]
    if end == "expired":
        await shared_log().evaluate("redis.call('HSET', KEYS[1], 'at', 1) return 1", [f"sg:guarded:{{{name}}}"], [])
        late = timezone.now() + timedelta(seconds=conf().stream_expiry_s + 1)
        assert (await sweep(late, shared_log(), lambda pk: None)).expired == [name]
    else:
        await owner.finish(name)

    async def told() -> object:
        (update,) = [event for event in await events(name) if event["type"] == "message_update"]
        return cast("Json", update["metadata"])["status"]

    assert (await told(), end) == (status, end)
    await forget_store()
    assert await told() == status


async def test_a_stream_whose_state_is_lost_keeps_its_counters(client: Client) -> None:
    began = await client.start(delta=f"The number is {SSN}. ")
    await client.update(began["session_id"], 2, f"And {SSN} again. And ")
    await forget_store()
    await GuardedStream.objects.aupdate(sealed_state=None)
    assert (await client.update(began["session_id"], 3, "x"))[0] == 410
    session = await AuditSession.objects.aget()
    assert (session.error_code, session.would_have) == ("state_lost", "blocked")
    timing = session.timing
    assert (timing["calls"], timing["chunks"], timing["checks"]) == (2, 2, 2)
    assert (timing["findings"], timing["audit_rows"]) == (3, 6)
    assert timing["guardrails"]["pii"]["hits"] == 2
    assert sum(chars for _, chars in timing["arrivals"]) == session.chars_in > 0


async def test_status_does_not_wait_for_what_others_store(client: Client) -> None:
    """One check of a text with thousands of findings is stored for a second or two."""
    _, began = await client.post("start", {"delta": "Hello. "})
    begun, free = threading.Event(), threading.Event()

    def stores() -> None:
        with transaction.atomic():
            Group.objects.create(name="being stored")
            begun.set()
            assert free.wait(20)

    storing = asyncio.create_task(in_database(stores)())
    try:
        assert await asyncio.to_thread(begun.wait, 20)
        async with asyncio.timeout(5):
            found = await guardrails(client, began["session_id"])
    finally:
        free.set()
        await storing
    assert states(found)["pii"] == "passed"
