"""A thousand scripted failures between the Python client and real servers: every stream comes out as without them.

Meanwhile web processes are killed; what a call that is cut off leaves behind is the next one's matter.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.stack.failing_network import ANSWERED, CALLS, EVENTS, failing_network, script
from tests.stack.recovery import AT_ONCE, CHUNKS, KILLS, TEXTS, names, run
from tests.stack.recovery_chats import CALL_FAILURES, EVENT_FAILURES, run_chats
from tests.stack.servers import Stack, until

FAILURES = 1_000


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("servers", ["sqlite"], indirect=True)
async def test_it_works(servers: Stack) -> None:
    await survives(servers, FAILURES)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("servers", ["sqlite", "postgresql"], indirect=True)
async def test_five_times_as_many(servers: Stack) -> None:
    await survives(servers, 5 * FAILURES)


async def survives(servers: Stack, failures: int, at_once: int = AT_ONCE) -> None:
    before = servers.rows("SELECT count(*) FROM streaming_auditsession WHERE origin = 'stream'")
    done = await run(servers, failures, at_once=at_once)
    assert done.wrong == []
    assert (done.failures, done.resumed) == (failures, done.streams)
    assert done.met.keys() == names(), "every way to fail was met"
    many = failures >= FAILURES
    assert min(done.met.values()) > (failures // 25 if many else failures // 30)
    assert done.kills == KILLS
    assert done.cut >= done.kills or not many, "each kill cut off somebody; of a few it may find nobody there"
    assert done.again > done.streams // 2, "events were asked for behind the last one that had come"
    every = servers.rows("SELECT session_id, n FROM streaming_finding")
    assert len(every) == len(set(every)) > done.streams // 2, "in the table as a whole, too: none is there twice"
    sealed = servers.rows("SELECT session FROM streaming_auditentry WHERE kind = 'sealed'")
    assert len(sealed) == len(set(sealed))
    after = servers.rows("SELECT count(*) FROM streaming_auditsession WHERE origin = 'stream'")
    begun = int(str(after[0][0])) - int(str(before[0][0])) - TEXTS  # so many were not disturbed
    assert begun == done.streams, "one session each, however often it started"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("servers", ["sqlite"], indirect=True)
async def test_chats_are_read_to_their_end_through_the_same_network(servers: Stack) -> None:
    """Their events are cut and fall silent again and again, their begins come twice, late or to nobody."""
    done = await run_chats(servers)
    assert done.wrong == []
    assert done.resumed == done.streams
    assert done.failures == done.streams * (CALL_FAILURES + EVENT_FAILURES)
    assert min(done.met[what] for what in EVENTS) >= done.streams, "each reader met both"
    assert done.again >= done.streams
    open_ones = "SELECT count(*) FROM streaming_auditsession WHERE origin = 'chat' AND state <> 'COMPLETE'"
    await asyncio.to_thread(until, "what nobody was told of is over", lambda: servers.rows(open_ones) == [(0,)])
    every = servers.rows("SELECT session_id, n FROM streaming_finding")
    assert len(every) == len(set(every))


@pytest.mark.parametrize("servers", ["sqlite"], indirect=True)
def test_nothing_of_it_is_a_traceback_and_the_log_is_whole(servers: Stack) -> None:
    for web in servers.webs:
        assert web.alive
        assert "Traceback" not in web.log.read_text(errors="replace")
    done = servers.manage("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(20))
def test_a_client_that_is_answered_meets_the_whole_script(seed: int) -> None:
    made = script(Random(seed), CHUNKS, 4)
    answered = [n for n, what in enumerate(made) if what in ANSWERED]
    assert len(answered) == CHUNKS
    assert answered[-1] == len(made) - 1, "no failure stands behind the last answer"
    assert sum(what in CALLS for what in made) == 4


ASKS = b"GET /one/v1/stream/events HTTP/1.1\r\nHost: here\r\n\r\n"
HEAD, FIRST, LONG = b"HTTP/1.1 200 OK\r\n\r\n", b"1", b"x" * 1_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", sorted(EVENTS))
async def test_a_failure_of_the_events_is_owed_until_it_is_met(what: str) -> None:
    more = asyncio.Event()

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + FIRST)
        await more.wait()
        writer.write(LONG)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(events, "127.0.0.1", 0)
    async with server, failing_network("127.0.0.1", server.sockets[0].getsockname()[1]) as network:
        network.line("one", Random(1), [], [what])  # this draw: not at the first character
        port = int(network.url.rpartition(":")[2])
        readers = []
        for _ in range(2):  # a reader that has given up, not noticed yet, and the next one
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ASKS)
            assert await reader.readexactly(len(HEAD) + len(FIRST)) == HEAD + FIRST
            readers.append((reader, writer))
            assert network.spared("one"), "nobody has met it"
        more.set()
        assert await network.reached(1)
        for _, writer in readers:
            writer.close()
        assert network.met == {what: 1}, "by one of them, once"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("answer", "ended", "cut"),
    [(WHOLE, 1, 0), (WHOLE[:-5], 0, 1), (CHUNKED, 0, 1), (b"HTTP/1.1 200", 0, 1), (b"", 0, 1)],
    ids=["whole", "no last chunk", "no chunk", "half a head", "nothing"],
)
async def test_a_stream_that_ends_by_itself_is_not_taken_for_a_kill(answer: bytes, ended: int, cut: int) -> None:
    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(events, "127.0.0.1", 0)
    async with server, failing_network("127.0.0.1", server.sockets[0].getsockname()[1]) as network:
        network.line("one", Random(1), [], [])
        reader, writer = await asyncio.open_connection("127.0.0.1", int(network.url.rpartition(":")[2]))
        writer.write(ASKS)
        assert await reader.read() == (answer if b"\r\n\r\n" in answer else b"")
        writer.close()
    assert (network.ended, network.cut) == (ended, cut)
