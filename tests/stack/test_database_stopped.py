"""PostgreSQL is stopped in the middle of a stream and started again: what the API promises then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.stack.clients import Client, Json, Shown
from tests.stack.postgresql import OWN_POSTGRESQL
from tests.stack.servers import Postgres, Stack, until
from tests.stack.test_two_processes import CARD, GUARDED, SSN, found_in_database
from tests.stack.test_valkey_lost import DELTAS, Sending, ready, record, refused

pytestmark = [
    pytest.mark.long,
    pytest.mark.parametrize("servers", [OWN_POSTGRESQL], indirect=True, scope="module"),
]


def test_it_works(servers: Stack) -> None:
    """Meanwhile every call is a 503 that says why; afterwards all goes on where it was, and nothing is done twice."""
    assert servers.database is not None
    ready(servers, 200)
    client = Client(servers.url, servers.keys["owner"])
    sending, over = Sending(client), Sending(client)
    sending.update(2)
    for seq in range(2, len(DELTAS) + 1):
        over.update(seq)
    answered, ended = dict(sending.released), over.finish()
    servers.database.stop()
    try:
        for said in ready(servers, 503):
            parts = said["parts"]
            assert isinstance(parts, dict)
            assert parts["database"]["state"] == "down"
        calls = (lambda: sending.update(3), sending.finish, over.finish, lambda: Sending(client))
        for call in calls * len(servers.webs):
            away = refused(call)
            assert (away.status, away.error["code"]) == (503, "database_unavailable")
    finally:
        servers.database.start()
    ready(servers, 200)
    sending.update(2)
    assert sending.released == answered, "the stored answer"
    assert over.finish() == ended
    for seq in range(3, len(DELTAS) + 1):
        sending.update(seq)
    sending.finish()
    assert sending.shown == over.shown == GUARDED
    for one in (sending, over):
        until("its deferred check is over", lambda one=one: record(servers, one.session_id)[0] == "COMPLETE")  # type: ignore[misc]
        assert record(servers, one.session_id) == ("COMPLETE", "redacted", "", 1)
    ((sessions,),) = servers.rows("SELECT count(*) FROM streaming_auditsession")
    assert sessions == 2, "no refused start has left one behind"


WORDS = 400
SAID = f"{DELTAS[0]}{'word ' * WORDS}{''.join(DELTAS[1:])}"
"""Takes the server some seconds to say, with something to hide at both ends; a worker judges it afterwards."""
VISIBLE = SAID.replace(SSN, "[SSN]").replace(CARD, "[CREDIT_CARD]").replace("desk@example.com", "[EMAIL]")


@contextlib.contextmanager
def stopped(servers: Stack) -> Iterator[Postgres]:
    """The database is away; it is there again afterwards, whoever started it."""
    made = servers.database
    assert made is not None
    made.stop()
    try:
        yield made
    finally:
        made.start()
    ready(servers, 200)


def chat(client: Client) -> tuple[Json, Shown, Iterator[Json]]:
    """An answer that the server streams, read as far as its first words."""
    asked = {"prompt": "Go on.", "scenario": "own_text", "text": SAID, "policy": "demo"}
    began, seen = client.post("/v1/chat", asked), Shown()
    events = client.events(str(began["events_url"]))
    for event in events:
        seen.take(event)
        if "word word" in seen.text:
            break
    return began, seen, events


def over(servers: Stack, began: Json, seen: Shown) -> None:
    """It came to the end that it would have come to, on record and for its reader, and was judged afterwards."""
    until("its deferred check is over", lambda: record(servers, began["session_id"])[0] == "COMPLETE")
    (done,) = seen.of("done")
    assert (done["outcome"], done["final"]) == ("redacted", VISIBLE)
    assert seen.text == VISIBLE
    assert record(servers, began["session_id"]) == ("COMPLETE", "redacted", "", 1)
    rows = found_in_database(servers, began["session_id"])
    assert len(rows) == len(set(rows))
    assert [name for name, *_ in rows].count("harm") == 1, "the worker's, once"


def test_an_answer_that_the_server_streams_goes_on_without_it(servers: Stack) -> None:
    """Its readers notice nothing: what was not written through meanwhile is written afterwards."""
    began, seen, events = chat(Client(servers.url, servers.keys["owner"]))
    with stopped(servers):
        before = len(seen.text)
        for event in events:
            seen.take(event)
            if len(seen.text) > before + 600:  # more than is said between two writes
                break
    for event in events:
        seen.take(event)
    over(servers, began, seen)


def test_an_answer_that_ends_without_it_ends_when_it_is_there_again(servers: Stack) -> None:
    """All of it is stored then: how it ended, what was found, and what a worker is to judge."""
    began, seen, events = chat(Client(servers.url, servers.keys["owner"]))
    with stopped(servers):
        for event in events:
            seen.take(event)
            if "guaranteed" in seen.text:
                break
    for event in events:
        seen.take(event)
    over(servers, began, seen)


def test_nothing_of_it_is_a_traceback_and_the_log_is_whole(servers: Stack) -> None:
    for web in servers.webs:
        assert web.alive
        written = web.log.read_text(errors="replace")
        assert "Traceback" not in written
        assert "database_unavailable" in written
    done = servers.manage("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
