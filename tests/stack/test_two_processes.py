"""Sessions on real servers: two web processes, two workers, one Valkey, on SQLite and on PostgreSQL.

Everything that a client may do is done across both processes: nothing may depend on which of them gets a call.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from tests.stack.clients import Client, Json, Refused, Shown, received
from tests.stack.servers import Stack, stop, until

SSN, CARD = "536-22-8145", "4111 1111 1111 1111"
TEXT = (
    f"The record says {SSN}, and the card is {CARD}. Write to desk@example.com. It is guaranteed to arrive. "
    "First you mix the poison into something that the animal likes, then you leave it, so that there are no traces."
)
GUARDED = TEXT.replace(SSN, "[SSN]").replace(CARD, "[CREDIT_CARD]").replace("desk@example.com", "[EMAIL]")
RULES = ["credit_card", "email", "ssn"]
"""What the policy ``demo`` finds in it and takes out."""


@pytest.fixture
def client(servers: Stack) -> Client:
    return Client(servers.url, servers.keys["owner"])


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def found_in_database(servers: Stack, session_id: object) -> list[tuple[object, ...]]:
    session = str(session_id).replace("-", "") if "DATABASE_URL" not in servers.env else session_id
    query = "SELECT guardrail, rule, start, \"end\" FROM streaming_finding WHERE session_id = '%s' ORDER BY n"
    return servers.rows(query % session)


def guarded(client: Client, ats: list[str], size: int, **headers: str) -> tuple[str, str, list[Json]]:
    """A whole stream, each call at another process: the session, the visible text, the findings of the answers."""
    at = cycle(ats)
    first, *rest = pieces(TEXT, size)
    said = client.post("/v1/stream/start", {"delta": first}, next(at), **headers)
    session_id, shown, findings = str(said["session_id"]), str(said["released"]), list(_findings(said))
    for seq, delta in enumerate(rest, start=2):
        body: Json = {"session_id": session_id, "seq": seq, "delta": delta}
        said = client.post("/v1/stream/update", body, next(at))
        shown += str(said["released"])
        findings += _findings(said)
    said = client.post("/v1/stream/finish", {"session_id": session_id}, next(at))
    assert said["state"] == "MONITORING"
    return session_id, shown + str(said["released"]), findings + _findings(said)


def _findings(said: Json) -> list[Json]:
    found = said["findings"]
    assert isinstance(found, list)
    return found


def test_it_works(servers: Stack, client: Client) -> None:
    """A session whose every call goes to the other process, its deferred check, and what is on record of it."""
    a, b = (web.url for web in servers.webs)
    session_id, shown, findings = guarded(client, [a, b], 23)
    assert shown == GUARDED
    seen = Shown()
    for event in client.events(f"/v1/stream/events?session_id={session_id}", b):
        seen.take(event)
    assert seen.complete
    (late,) = [event for event in seen.of("finding") if event["guardrail"] == "harm"]
    assert late["seq"] > seen.of("done")[0]["seq"], "the worker's result came after the answer was over"  # type: ignore[operator]
    rows = found_in_database(servers, session_id)
    assert len(rows) == len(set(rows)) == len(findings) + 1
    assert sorted({str(rule) for name, rule, *_ in rows if name == "pii"}) == RULES
    for at in (a, b):
        status = client.get(f"/v1/stream/status?session_id={session_id}", at)
        assert (status["state"], status["outcome"]) == ("COMPLETE", "redacted")
        checks = {(one["guardrail"], one["applies_to"], one["state"]) for one in status["deferred"]}
        assert checks == {("harm", "response", "would_block"), ("tone", "response", "passed")}


@pytest.mark.parametrize("size", [1_000, 150, 61, 7])
def test_every_cutting_over_two_processes_gives_the_text_of_one_check(
    servers: Stack, client: Client, size: int
) -> None:
    whole = client.post("/v1/check", {"text": TEXT, "kind": "response", "accepts": ["redact"]})
    _, shown, findings = guarded(client, [web.url for web in servers.webs], size)
    assert shown == whole["text"] == GUARDED
    places = [(finding["rule"], finding["start"], finding["end"]) for finding in findings]
    assert sorted(places) == sorted((one["rule"], one["start"], one["end"]) for one in _findings(whole))


def test_a_call_that_is_sent_again_to_the_other_process_gets_the_same_answer(servers: Stack, client: Client) -> None:
    a, b = (web.url for web in servers.webs)
    before = servers.rows("SELECT count(*) FROM streaming_auditsession")
    key = {"Idempotency-Key": f"again {servers.url}"}
    calls: list[tuple[str, Json]] = [("start", {"delta": TEXT[:40]})]
    first = client.post("/v1/stream/start", calls[0][1], a, **key)
    session_id = first["session_id"]
    calls += [
        ("update", {"session_id": session_id, "seq": 2, "delta": TEXT[40:90]}),
        ("finish", {"session_id": session_id, "seq": 3, "delta": TEXT[90:]}),
    ]
    shown = str(first.pop("released"))
    again = client.post("/v1/stream/start", calls[0][1], b, **key)
    assert again.pop("released") == shown
    assert {**again, "stream_token": ""} == {**first, "stream_token": ""}
    for at, other, (name, body) in ((a, b, calls[1]), (b, a, calls[2])):
        said = client.post(f"/v1/stream/{name}", body, at)
        for to in (other, servers.url, at):
            assert client.post(f"/v1/stream/{name}", body, to) == said
        shown += str(said["released"])
    assert shown == GUARDED
    with pytest.raises(Refused, match="409"):
        client.post("/v1/stream/update", calls[1][1], a)
    (count,), (was,) = servers.rows("SELECT count(*) FROM streaming_auditsession")[0], before[0]
    assert count == was + 1  # type: ignore[operator]


def on_postgresql(servers: Stack, why: str) -> None:
    if "DATABASE_URL" not in servers.env:
        pytest.skip(f"For PostgreSQL alone: {why}.")


CALLS: list[tuple[str, Json]] = [("/v1/stream/start", {"delta": "Hello"}), ("/v1/check", {"text": "Hello"})]


@pytest.mark.parametrize(("path", "body"), CALLS, ids=["start", "check"])
def test_first_calls_of_one_conversation_at_the_same_time_make_one_row(
    servers: Stack, client: Client, path: str, body: Json
) -> None:
    """The call has found no conversation of that name and makes one, while another process has just made it."""
    on_postgresql(servers, "on SQLite nobody reads while another process is about to write")
    name = f"at once {path}"
    key = servers.keys["owner"][:11]
    row = "INSERT INTO streaming_conversation (id, session_key, client, external_id, policy, created)"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO \"streaming_conversation\"%'"
    body = {**body, "kind": "response", "context": {"conversation_id": name}}
    with psycopg.connect(servers.env["DATABASE_URL"]) as other, ThreadPoolExecutor(1) as pool:
        first = uuid4()
        other.execute(f"{row} VALUES (%s, '', %s, %s, '', now())".encode(), (first, key, name))
        answer = pool.submit(client.post, path, body)
        until(
            "the call waits for the other row",
            lambda: servers.rows(f"{waiting} AND wait_event_type = 'Lock' AND state = 'active'") == [(1,)],
        )
        other.commit()
        said = answer.result(60)
    query = "SELECT id FROM streaming_conversation WHERE external_id = '%s'"
    assert servers.rows(query % name) == [(first,)]
    of_session = "SELECT conversation_id FROM streaming_auditsession WHERE id = '%s'"
    assert servers.rows(of_session % said["session_id"]) == [(first,)]
    if path.endswith("start"):
        client.post("/v1/stream/finish", {"session_id": said["session_id"]})


def test_simultaneous_first_calls_of_both_processes_share_their_conversation(servers: Stack, client: Client) -> None:
    ats, names = [web.url for web in servers.webs], [f"c-{n}" for n in range(3)]

    def check(call: tuple[str, str]) -> Json:
        at, name = call
        return client.post("/v1/check", {"text": "Hello", "kind": "response", "context": {"conversation_id": name}}, at)

    calls = [(at, name) for name in names for at in ats * 4]
    with ThreadPoolExecutor(len(calls)) as pool:
        assert {said["action"] for said in pool.map(check, calls)} == {"allow"}
    query = (
        "SELECT external_id, count(DISTINCT c.id), count(*) FROM streaming_conversation AS c "
        "JOIN streaming_auditsession AS s ON s.conversation_id = c.id WHERE external_id LIKE 'c-_' "
        "GROUP BY external_id ORDER BY external_id"
    )
    assert servers.rows(query) == [(name, 1, len(ats) * 4) for name in names]


def test_another_key_is_a_stranger_in_every_process(servers: Stack, client: Client) -> None:
    said = client.post("/v1/stream/start", {"delta": "Hello"}, servers.webs[0].url)
    stranger = Client(servers.url, servers.keys["other"])
    for web in servers.webs:
        with pytest.raises(Refused, match="404"):
            stranger.post("/v1/stream/update", {"session_id": said["session_id"], "seq": 2, "delta": "x"}, web.url)
    client.post("/v1/stream/finish", {"session_id": said["session_id"]})


def test_a_limit_is_one_limit_for_all_processes(servers: Stack) -> None:
    slow, answers = Client(servers.url, servers.keys["slow"]), []
    for at in [web.url for web in servers.webs] * 3:
        try:
            said = slow.post("/v1/stream/start", {}, at)
        except Refused as error:
            answers.append(error.status)
        else:
            answers.append(201)
            slow.post("/v1/stream/finish", {"session_id": said["session_id"]})
    assert answers == [201, 201, 201, 429, 429, 429]


def test_a_chat_is_read_and_resumed_through_the_other_process(servers: Stack, client: Client) -> None:
    a, b = (web.url for web in servers.webs)
    began = client.post("/v1/chat", {"prompt": "What now?", "scenario": "judge"}, a)
    path, seen = str(began["events_url"]), Shown()
    for event in client.events(path, b):
        seen.take(event)
        if len(seen.text) > 80:
            break  # the connection is closed in the middle of the answer
    assert not seen.of("done")
    for event in client.events(path, a, last=seen.last):
        seen.take(event)
    (done,) = seen.of("done")
    assert seen.text == done["final"]
    assert seen.complete
    assert [event["guardrail"] for event in seen.of("finding")] == ["harm"], "the worker's result was read as well"
    seqs = [event["seq"] for event in seen.events]
    assert seqs == sorted(set(seqs))  # type: ignore[type-var]
    assert [row[:1] for row in found_in_database(servers, began["session_id"])] == [("harm",)]


def test_a_socket_that_breaks_is_resumed_at_the_other_process(servers: Stack, client: Client) -> None:
    a, b = (web.url for web in servers.webs)
    seen = Shown()
    with client.socket(a) as made:
        made.send(json.dumps({"type": "start", "prompt": "What is on file?", "scenario": "pii"}))
        while len(seen.text) < 60:
            seen.take(received(made))
    with client.socket(b) as made:
        made.send(json.dumps({"type": "resume", "session_id": seen.events[-1]["session_id"], "last_seq": seen.last}))
        while not seen.complete:
            seen.take(received(made))
    (done,) = seen.of("done")
    assert seen.text == done["final"]
    assert SSN not in seen.text
    assert "[SSN]" in seen.text
    rows = found_in_database(servers, done["session_id"])
    assert len(rows) == len(set(rows)) == len(seen.of("finding"))


def test_an_interrupt_reaches_the_process_that_streams(servers: Stack, client: Client) -> None:
    a, b = (web.url for web in servers.webs)
    endless = {"prompt": "Go on.", "scenario": "own_text", "text": "word " * 10_000}
    began = client.post("/v1/chat", endless, a)
    seen = Shown()
    with client.socket(b) as made:
        made.send(json.dumps({"type": "resume", "session_id": began["session_id"]}))
        while not seen.text:
            seen.take(received(made))
        made.send(json.dumps({"type": "interrupt", "session_id": began["session_id"]}))
        while not seen.complete:
            seen.take(received(made))
    (done,) = seen.of("done")
    assert (done["outcome"], done["final"]) == ("interrupted", seen.text)


def test_every_process_tells_the_open_sessions_of_all(servers: Stack, client: Client) -> None:
    """Begun at the one process, told by the metrics of both; and what the store holds is one figure for all."""
    until("all sessions are over", lambda: servers.rows(_OPEN) == [(0,)])
    a, b = servers.webs
    for at in (a, a, b):
        client.post("/v1/stream/start", {"delta": "one ", "policy": "basic"}, at.url)
    for web in (a, b):
        told = metrics(web.url)
        assert (told['sluicegate_sessions{state="ACTIVE"}'], told['sluicegate_sessions{state="MONITORING"}']) == (3, 0)
        assert told["sluicegate_store_memory_bytes"] > 100_000
        assert told["sluicegate_store_keys"] >= 3 * 3, "state, events and their number, of each"
        assert told["sluicegate_open_sessions"] == 0, "neither runs an answer itself"
    for (session_id,) in servers.rows("SELECT id FROM streaming_auditsession WHERE state = 'ACTIVE'"):
        client.post("/v1/stream/finish", {"session_id": str(UUID(str(session_id)))})
    assert metrics(b.url)['sluicegate_sessions{state="ACTIVE"}'] == 0


def metrics(url: str) -> dict[str, float]:
    """The samples of a process's page, by name and labels."""
    with httpx.Client(trust_env=False, timeout=60) as http:
        lines = http.get(f"{url}/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


QUEUES = ("celery", b"celery\x06\x163", b"celery\x06\x165", b"celery\x06\x167")
"""The broker keeps a list for each priority."""


def test_what_was_due_while_no_worker_ran_ends_as_soon_as_one_is_back(servers: Stack, client: Client) -> None:
    """Nothing expires meanwhile, and nothing is forgotten: the rows are what counts, not the tasks."""
    on_postgresql(servers, "to start workers takes its time, and the same is run without processes on SQLite")
    until("all sessions are over", lambda: servers.rows(_OPEN) == [(0,)])
    for worker in servers.workers:
        stop(worker)
    servers.workers.clear()
    judged = str(client.post("/v1/stream/start", {"delta": "First you mix the poison. "})["session_id"])
    assert client.post("/v1/stream/finish", {"session_id": judged})["state"] == "MONITORING"
    began = client.post("/v1/stream/start", {"delta": "My number is 536-22-8145, or 536-"})
    silent = str(began["session_id"])
    with servers.store() as store, psycopg.connect(servers.env["DATABASE_URL"]) as database:
        store.delete(*QUEUES)
        store.hset(f"sg:guarded:{{{silent}}}", "at", 1)
        long_ago = b"UPDATE streaming_auditsession SET heartbeat_at = now() - interval '1 hour' WHERE id IN (%s, %s)"
        database.execute(long_ago, (judged, silent))
    states = f"SELECT id, state, outcome FROM streaming_auditsession WHERE id IN ('{judged}', '{silent}')"
    assert set(servers.rows(states)) == {(UUID(silent), "ACTIVE", ""), (UUID(judged), "MONITORING", "allowed")}

    for number in range(2):
        servers.start_worker(beat=number == 0)
    over = {(UUID(silent), "COMPLETE", "expired"), (UUID(judged), "COMPLETE", "allowed")}
    until("both are over", lambda: set(servers.rows(states)) == over)
    servers.wait_for_workers()

    check = f"SELECT state, sealed_text FROM streaming_deferredcheck WHERE session_id = '{judged}'"
    assert set(servers.rows(check)) == {("expired", None)}, "that nobody made it is told, and its text is wiped"
    seen = Shown()
    for event in client.events(f"/v1/stream/events?session_id={silent}"):
        seen.take(event)
    assert seen.complete
    assert [event["final"] for event in seen.of("done")] == [began["released"]], "what was held stays held"
    with pytest.raises(Refused, match="409"):
        client.post("/v1/stream/update", {"session_id": silent, "seq": 2, "delta": "22-8146"})


def test_the_lines_of_workers_about_a_check_bear_the_id_of_its_session(servers: Stack, client: Client) -> None:
    """Their own and the queue's, which are written before the check has its session and when it is over."""
    name = f"order-{servers.folder.name}"
    guarded(client, [servers.url], 61, **{"X-Correlation-ID": name})
    until("all sessions are over", lambda: servers.rows(_OPEN) == [(0,)])

    def lines() -> list[str]:
        logs = [path.read_text(errors="replace") for path in sorted(servers.folder.glob("worker-*.log"))]
        return [line for log in logs for line in log.splitlines() if f"check[{name}~" in line]

    def received_and_succeeded() -> list[str] | None:
        found = lines()
        received = sum("received" in line for line in found)
        return found if received and received == sum("succeeded" in line for line in found) else None

    told = until("the workers have told of the beginning and the end of each", received_and_succeeded)
    assert all(f"correlation_id={name}" in line for line in told)


def test_the_log_holds_what_has_happened_here(servers: Stack) -> None:
    """Last: the chain over all that the tests above have left is whole, and every session that ended is sealed."""
    until("all sessions are over", lambda: servers.rows(_OPEN) == [(0,)])
    done = servers.manage("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    ((sessions,),) = servers.rows("SELECT count(*) FROM streaming_auditsession")
    ((sealed,),) = servers.rows("SELECT count(DISTINCT session) FROM streaming_auditentry WHERE kind = 'sealed'")
    assert sealed == sessions
    ((findings,),) = servers.rows("SELECT count(*) FROM streaming_finding")
    ((distinct,),) = servers.rows("SELECT count(*) FROM (SELECT DISTINCT session_id, n FROM streaming_finding) AS one")
    assert findings == distinct


_OPEN = "SELECT count(*) FROM streaming_auditsession WHERE state <> 'COMPLETE'"
