"""A web process is killed (SIGKILL) in the middle of a session: the client sends its call again, another one answers.

The moment is named by what the process does to the store, seen from outside, so that each of them is met: before
anything is stored, between store and database, after both and before the answer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.stack.clients import Client, Json, Shown
from tests.stack.recovery import record, undisturbed
from tests.stack.servers import Stack, Web, until
from tests.stack.test_recovery import survives
from tests.stack.test_two_processes import GUARDED, TEXT, found_in_database
from tests.stack.test_valkey_lost import Valkey, goes_on, lost_in_both


@dataclass(frozen=True)
class Moment:
    """The ``nth`` command of this name that a call gives to the store, and so many milliseconds more."""

    command: str
    nth: int
    later_ms: int = 0

    def met(self, command: str) -> bool:
        """Whether this is such a command; workers give theirs all the time."""
        return "sg:worker" not in command and command.split(" ")[0] == self.command


SENT = Moment("", 0)
"""The call is on its way."""
COUNTED = Moment("INCR", 1)
READ = Moment("HMGET", 1)
TOUCHED = Moment("EXISTS", 1)
"""Of a start: it takes its place, and the database comes next. Of an update: the database has been written."""
STORED = Moment("HSET", 1)
TOMBSTONE = Moment("HMGET", 3)
TOLD = Moment("XADD", 1)
EVERY = {
    "start": [SENT, COUNTED, READ, TOUCHED, STORED, TOLD],
    "update": [SENT, COUNTED, READ, STORED, TOUCHED, TOLD],
    "finish": [SENT, READ, STORED, TOMBSTONE, TOLD],
}
USUAL = [(TOUCHED, STORED, STORED), (STORED, TOUCHED, TOMBSTONE)]
ROUNDS = max(map(len, EVERY.values()))
MANY = [
    tuple(Moment(one.command, one.nth, later_ms) for one in (moments[n % len(moments)] for moments in EVERY.values()))
    for later_ms in (0, 1, 3, 6, 12, 25)
    for n in range(ROUNDS)
]


@contextlib.contextmanager
def killed_at(servers: Stack, moment: Moment) -> Iterator[Web]:
    """A web process that dies at this moment of what is done inside, or at the end of it if that moment never comes."""
    servers.start_web()
    servers.wait_for_webs()
    victim, seen, over = servers.webs[0], 0, "the-call-is-over"
    watching = threading.Event()

    def watch() -> None:
        nonlocal seen
        with servers.store() as store, store.monitor() as commands:
            watching.set()
            while over not in (command := str(commands.next_command()["command"])):
                if moment.met(command):
                    seen += 1
                    if seen == moment.nth:
                        threading.Event().wait(moment.later_ms / 1000)
                        victim.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert watching.wait(30)
        if moment.command:
            yield victim
        else:
            timer = threading.Timer(moment.later_ms / 1000, victim.kill)
            timer.start()
            yield victim
            timer.join()
    finally:
        with servers.store() as store:
            store.echo(over)
        watcher.join(30)
        if victim.alive:
            victim.kill()
    assert seen >= moment.nth, f"{moment} never came: the call does something else now"


@pytest.fixture
def client(servers: Stack) -> Client:
    return Client(servers.url, servers.keys["owner"])


def survive(servers: Stack, client: Client, moments: tuple[Moment, ...]) -> None:
    """A session of three calls, each to a process that is killed; then everything is as if nobody had died."""
    name = f"{servers.folder.name} {moments} {servers.rows('SELECT count(*) FROM streaming_auditsession')}"
    third = len(TEXT) // 3
    shown, findings = "", []
    bodies: list[tuple[str, Json]] = [
        ("start", {"delta": TEXT[:third]}),
        ("update", {"seq": 2, "delta": TEXT[third : 2 * third]}),
        ("finish", {"seq": 3, "delta": TEXT[2 * third :]}),
    ]
    session: Json = {}
    for moment, (call, body) in zip(moments, bodies, strict=True):
        headers = {"Idempotency-Key": name} if call == "start" else {}
        with killed_at(servers, moment) as victim:
            said = client.post_until_answered(f"/v1/stream/{call}", {**session, **body}, victim.url, **headers)
        assert not victim.alive
        session = {"session_id": said["session_id"]}
        shown += str(said["released"])
        new = said["findings"]
        assert isinstance(new, list)
        findings += [(one["n"], one["rule"]) for one in new]
    assert shown == GUARDED
    assert [n for n, _ in findings] == list(range(1, len(findings) + 1)), "none lost, none twice"
    session_id = session["session_id"]
    seen = Shown()
    for event in client.events(f"/v1/stream/events?session_id={session_id}"):
        seen.take(event)
    assert seen.complete
    numbers = [event["n"] for event in seen.of("finding")]
    assert len(numbers) == len(set(numbers))
    rows = found_in_database(servers, session_id)
    assert [str(rule) for name, rule, *_ in rows if name != "harm"] == [rule for _, rule in findings]
    assert [row[0] for row in rows].count("harm") == 1, "the deferred check was made, once"
    stored, calm = record(servers, str(session_id)), undisturbed(servers, client, TEXT, len(bodies))
    assert stored["sessions"] == [["COMPLETE", len(TEXT), len(bodies)]]
    assert stored["figures"] == calm, "characters, calls and what each guardrail did"
    sealed = f"SELECT count(*) FROM streaming_auditentry WHERE session = '{session_id}' AND kind = 'sealed'"
    assert servers.rows(sealed) == [(1,)]
    status = client.get(f"/v1/stream/status?session_id={session_id}")
    assert (status["state"], status["outcome"]) == ("COMPLETE", "redacted")


def named(moments: tuple[Moment, ...]) -> str:
    return "-".join(f"{one.command or 'sent'}{one.nth}+{one.later_ms}" for one in moments)


@pytest.mark.parametrize("servers", ["postgresql"], indirect=True)
@pytest.mark.parametrize("moments", USUAL, ids=named)
def test_it_works(servers: Stack, client: Client, moments: tuple[Moment, ...]) -> None:
    survive(servers, client, moments)


@pytest.mark.long
@pytest.mark.parametrize("moments", MANY, ids=named)
def test_every_moment(servers: Stack, client: Client, moments: tuple[Moment, ...]) -> None:
    survive(servers, client, moments)


@pytest.mark.parametrize("servers", ["postgresql"], indirect=True)
def test_a_chat_whose_process_dies_ends_and_what_was_shown_is_kept(servers: Stack, client: Client) -> None:
    """It dies when a reader has just been told of a redaction, and the answer would go on."""
    servers.start_web()
    servers.wait_for_webs()
    seen, victim = Shown(), servers.webs[0]
    began = client.post("/v1/chat", {"prompt": "What is on file?", "scenario": "pii"}, victim.url)
    path = str(began["events_url"])
    with contextlib.suppress(httpx.TransportError):
        for event in client.events(path, victim.url):
            seen.take(event)
            if event["type"] == "redaction":
                victim.kill()
    assert not victim.alive
    assert not seen.of("done")
    for event in client.events(path, last=seen.last):
        seen.take(event)
    (done,) = seen.of("done")
    assert (done["outcome"], seen.complete) == ("error", True)
    assert str(done["final"]) == seen.text
    assert "[SSN]" in seen.text
    told = [(one["guardrail"], one["rule"], one["start"], one["end"]) for one in seen.of("finding")]
    assert told
    assert found_in_database(servers, began["session_id"]) == told, "none lost, none twice"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("servers", ["postgresql"], indirect=True)
async def test_streams_recover_on_this_database_too(servers: Stack) -> None:
    """A part of what ``test_recovery`` does on SQLite, where web processes write one after the other."""
    await survives(servers, 100, at_once=8)


@pytest.mark.parametrize("servers", ["postgresql"], indirect=True)
def test_a_store_that_is_killed_costs_no_stream_on_this_database_either(servers: Stack, client: Client) -> None:
    """Two of the cases of ``test_valkey_lost``."""
    with contextlib.closing(Valkey(servers)) as valkey:
        goes_on(servers, client, valkey)
        lost_in_both(servers, client, valkey)
        all_over(servers)  # while there is a store: workers need it


def all_over(servers: Stack) -> None:
    open_ones = "SELECT count(*) FROM streaming_auditsession WHERE state <> 'COMPLETE'"
    until("all sessions are over", lambda: servers.rows(open_ones) == [(0,)])


@pytest.mark.parametrize("servers", ["postgresql"], indirect=True)
def test_the_log_is_whole_after_all_that(servers: Stack) -> None:
    all_over(servers)
    done = servers.manage("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
