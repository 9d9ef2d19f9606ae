"""The Python client against real servers and a network that fails."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import httpx
import pytest

from streaming.core.wire import HEARTBEAT, to_sse
from tests.examples.bad_network import WAYS, BadNetwork
from tests.stack.servers import ROOT, Stack
from tests.stack.test_two_processes import GUARDED, RULES, TEXT, pieces

FOLDER = ROOT / "examples" / "python"
LIMIT_S = 120.0


def _imported(name: str) -> ModuleType:
    """By its path, as it stands in nobody's way: a reader copies the file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sg = _imported("sluicegate_client")


@dataclass
class Seen:
    """What a reader has of a stream."""

    text: str = ""
    findings: list[dict[str, object]] = field(default_factory=list)
    ended: Any = None

    def take(self, event: object) -> None:
        if isinstance(event, sg.Text):
            assert event.at <= len(self.text)
            self.text = self.text[: event.at] + event.text
        elif isinstance(event, sg.Found):
            self.findings.append(event.finding)
        else:
            assert self.ended is None
            self.ended = event

    @property
    def places(self) -> list[tuple[object, ...]]:
        return [(one["guardrail"], one["rule"], one["start"], one["end"]) for one in self.findings]


async def said(text: str, size: int, wait: Callable[[int], Any] | None = None) -> AsyncIterator[str]:
    """A model that says ``text`` in pieces."""
    for n, piece in enumerate(pieces(text, size)):
        if wait is not None:
            await wait(n)
        yield piece


async def at_once(_: float) -> None:
    """For a client that need not wait before it tries again."""
    await asyncio.sleep(0)


async def read(gate: Any, chunks: AsyncIterator[str], **more: str) -> Seen:
    seen = Seen()
    async for event in gate.guard(chunks, **more):
        assert seen.ended is None, "nothing comes after the end"
        seen.take(event)
    assert seen.ended is not None
    return seen


def rows_of(servers: Stack, session_id: str) -> list[tuple[object, ...]]:
    """The session's findings in the database but the deferred one."""
    query = "SELECT guardrail, rule, start, \"end\" FROM streaming_finding WHERE session_id = '%s' ORDER BY n"
    return [row for row in servers.rows(query % session_id.replace("-", "")) if row[0] != "harm"]


def sessions(servers: Stack) -> int:
    ((number,),) = servers.rows("SELECT count(*) FROM streaming_auditsession")
    return int(str(number))


async def test_it_works(servers: Stack) -> None:
    before = sessions(servers)
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        seen = await read(gate, said(TEXT, 12))
    assert seen.text == GUARDED
    assert sorted(str(one["rule"]) for one in seen.findings if one["guardrail"] == "pii") == RULES
    assert seen.places == rows_of(servers, seen.ended.session_id)
    assert (seen.ended.state, seen.ended.outcome) == ("MONITORING", "redacted")
    assert seen.ended.summary["calls"] == gate.calls == gate.tries
    assert seen.ended.summary["naive_calls"] == len(pieces(TEXT, 12)), "it says how many chunks there were"
    assert sessions(servers) == before + 1


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_to_fail_is_survived(servers: Stack, way: str) -> None:
    """Two of three requests fail in this way; nothing of it can be seen. All ways mixed: ``stack/test_recovery``."""
    before, network = sessions(servers), BadNetwork(7, 0.66, (way,))
    async with httpx.AsyncClient(transport=network) as http:
        gate = sg.Sluicegate(servers.url, servers.keys["owner"], http, sleep=at_once)
        seen = await read(gate, said(TEXT, 40, _flushed(gate)))
    assert network.failures[way] >= 3
    assert seen.text == GUARDED
    assert seen.places == rows_of(servers, seen.ended.session_id)
    assert len(set(seen.places)) == len(seen.places) >= len(RULES)
    assert sessions(servers) == before + 1


def _flushed(gate: Any) -> Callable[[int], Any]:
    """Chunks come so slowly that each goes alone: for the client's clock, a second passes between any two."""
    now = [gate.clock()]
    gate.clock = lambda: now[0]
    gate.patience_s = 1e6

    async def wait(_: int) -> None:
        now[0] += 1.5

    return wait


async def test_a_pause_of_the_model_keeps_no_text_waiting(servers: Stack) -> None:
    """The model waits until what it said is shown; a client that collects for longer than its hints would never end."""
    shown = asyncio.Event()

    async def waits(n: int) -> None:
        if n == 2:
            await asyncio.wait_for(shown.wait(), LIMIT_S)

    seen = Seen()
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        async for event in gate.guard(said("The sun is out. And so are we. It is warm.", 15, waits)):
            seen.take(event)
            if len(seen.text) >= 20:
                shown.set()
    assert seen.text == "The sun is out. And so are we. It is warm."


async def test_a_lost_state_is_sent_again_and_shown_once(servers: Stack) -> None:
    """The store forgets the stream in the middle; the database has an older state, and the client what follows."""
    seen, store = Seen(), servers.store()
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        stream = gate.stream()
        for event in await stream.start(TEXT[:5]):
            seen.take(event)
        for n, delta in enumerate(pieces(TEXT[5:], 11)):
            if n % 4 == 3:
                assert store.delete(f"sg:guarded:{{{stream.session_id}}}") == 1
            for event in await stream.update(delta):
                seen.take(event)
        status = await stream.status()
        assert (status["state"], status["counts"]["chars_in"]) == ("ACTIVE", len(TEXT))
        for event in await stream.finish():
            seen.take(event)
    store.close()
    assert seen.text == GUARDED
    assert seen.places == rows_of(servers, stream.session_id)


async def test_what_is_refused_is_not_tried_again(servers: Stack) -> None:
    async with sg.Sluicegate(servers.url, "sg_wrong") as gate:
        with pytest.raises(sg.Refused, match="401 unauthenticated"):
            await gate.stream().start("Hello")
        assert gate.tries == 1
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        with pytest.raises(sg.Refused, match="422") as refused:
            await gate.stream(policy="there_is_none").start("Hello")
        assert (gate.tries, refused.value.field) == (1, "policy")


async def test_another_writer_is_told_not_fought(servers: Stack) -> None:
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        stream = gate.stream()
        await stream.start("Hello ")
        body = {"session_id": stream.session_id, "seq": 2, "delta": "from elsewhere"}
        await gate.call("POST", "/v1/stream/update", body)
        with pytest.raises(sg.OutOfTurn) as refused:
            await stream.update("from here")
        assert refused.value.expected_seq == 3
        await gate.call("POST", "/v1/stream/finish", {"session_id": stream.session_id})
        with pytest.raises(sg.OutOfTurn, match="stream_ended"):
            await stream.finish()


async def test_the_time_of_a_limit_is_waited(servers: Stack) -> None:
    """A key that may start three streams a minute: who is over it waits as long as the server says."""

    class Waited(Exception):
        """Instead of a minute."""

    async def sleep(seconds: float) -> None:
        raise Waited(seconds)

    async def starts(gate: Any) -> None:
        for _ in range(8):  # more than two of the server's minutes allow
            await gate.stream().start()

    async with sg.Sluicegate(servers.url, servers.keys["slow"], sleep=sleep) as gate:
        with pytest.raises(Waited) as waited:
            await starts(gate)
        assert 1 <= waited.value.args[0] <= 60
        gate.patience_s = 0.5
        with pytest.raises(sg.Unreachable, match="429"):
            await starts(gate)


async def test_text_that_is_judged_anew_replaces_what_was_shown() -> None:
    """A server that lost two calls finds, the second time, something in the first: the reader's text is put right."""
    asked: list[tuple[str, object]] = []

    def server(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        name = request.url.path.rpartition("/")[2]
        asked.append((name, body.get("seq")))
        usual = {"session_id": "s", "state": "ACTIVE", "seq": body.get("seq", 1), "action": "allow", "findings": []}
        finding = {"n": 1, "guardrail": "g", "rule": "r", "start": 4, "end": 7}
        match name, body.get("seq"), len(asked):
            case "start", _, _:
                said = {"released": "one ", "released_chars": 4}
            case "update", 2, 2:
                said = {"released": "two ", "released_chars": 8}
            case "update", 3, 3:
                said = {"released": "three ", "released_chars": 14}
            case "finish", 4, 4:
                refused = {"error": {"code": "seq_conflict", "message": "2 is next", "expected_seq": 2}}
                return httpx.Response(409, json=refused)
            case "update", 2, 5:
                said = {"released": "[2] ", "released_chars": 8, "findings": [finding]}
            case "update", 3, 6:
                said = {"released": "three ", "released_chars": 14, "findings": [finding]}
            case _:
                said = {"released": "end", "released_chars": 17, "summary": {"outcome": "redacted"}}
        return httpx.Response(200, json={**usual, **said})

    events: list[object] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as http:
        stream = sg.Sluicegate("http://server", "key", http).stream()
        for more in (stream.start("one "), stream.update("two "), stream.update("three "), stream.finish("end")):
            events += await more
    assert [one for one in events if isinstance(one, sg.Text)] == [
        sg.Text(0, "one "), sg.Text(4, "two "), sg.Text(8, "three "), sg.Text(4, "[2] three end"),
    ]  # fmt: skip
    assert sum(isinstance(one, sg.Found) for one in events) == 1, "told once"
    assert asked[3:] == [("finish", 4), ("update", 2), ("update", 3), ("finish", 4)]


@pytest.mark.parametrize("call", ["start", "events"])
async def test_an_address_that_leads_elsewhere_is_said_at_once_and_not_followed(call: str) -> None:
    asked: list[httpx.URL] = []

    def proxy(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(301, headers={"Location": "https://gate.example/v1/x"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(proxy)) as http:
        gate = sg.Sluicegate("http://gate.example", "key", http, patience_s=0)
        with pytest.raises(sg.Refused, match=r"301 redirected: .*https://gate\.example/v1/x"):
            await (gate.stream().start("one ") if call == "start" else anext(gate.events("s")))
    assert len(asked) == 1


async def test_a_server_that_only_says_that_its_store_is_away_is_given_up_like_a_silent_one() -> None:
    asked, now = 0, 0.0
    away = {"type": "error", "code": "log_unavailable", "seq": 0, "session_id": "s"}

    def server(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        assert asked < 100
        return httpx.Response(200, text=f"data: {json.dumps(away)}\n\n", headers={"Content-Type": "text/event-stream"})

    async def slept(seconds: float) -> None:
        nonlocal now
        now += seconds

    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as http:
        gate = sg.Sluicegate("http://server", "key", http, sleep=slept, clock=lambda: now)
        with pytest.raises(sg.Unreachable):
            assert {event["code"] async for event in gate.events("s")} == {"log_unavailable"}
    assert now > gate.patience_s / 2


Parts = list[bytes | Exception]


@dataclass
class Events:
    """A server of events: what each connection brings, and the time that passes before each part."""

    connections: list[Parts]
    pause_s: float = 0.0
    now: float = 0.0
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        assert self.connections, "nobody had to come back"
        self.asked.append(request.headers.get("Last-Event-ID", ""))
        return httpx.Response(200, content=self._parts(self.connections.pop(0)))

    async def _parts(self, parts: Parts) -> AsyncIterator[bytes]:
        for part in parts:
            self.now += self.pause_s
            if isinstance(part, Exception):
                raise part
            yield part

    async def slept(self, seconds: float) -> None:
        self.now += seconds

    async def read(self) -> list[dict[str, object]]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as http:
            gate = sg.Sluicegate("http://server", "key", http, sleep=self.slept, clock=lambda: self.now)
            return [event async for event in gate.events("s")]


FIRST: dict[str, object] = {"type": "state", "state": "ACTIVE", "seq": 1}
LAST: dict[str, object] = {"type": "state", "state": "COMPLETE", "seq": 9}


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
async def test_every_line_end_that_unicode_knows_may_stand_in_an_event(size: int) -> None:
    """The server writes them as they are; only LF ends a line."""
    text = "one\u2028two\u2029three\u0085four\x0bfive\x1csix"
    said = [{"type": "message_stream", "chunk": text, "seq": 5}, LAST]
    raw = b"".join(to_sse(event) for event in said)
    assert "\u2028".encode() in raw
    server = Events([[raw[at : at + size] for at in range(0, len(raw), size)]])
    assert await server.read() == said


async def test_a_quiet_stream_whose_server_lives_is_read_on_when_it_is_cut() -> None:
    """Ten minutes of comments are more than this client's patience with a server that says nothing."""
    quiet: Parts = [to_sse(FIRST), *[HEARTBEAT] * 40, httpx.ReadError("cut")]
    server = Events([quiet, [httpx.ReadError("cut")], [to_sse(LAST)]], pause_s=15.0)
    assert await server.read() == [FIRST, LAST]
    assert server.asked == ["", "1", "1"]


async def test_a_place_of_an_end_that_the_database_told_is_passed_over() -> None:
    """It is an event's id, and no seq; and a block without an event is none."""
    end = {**LAST, "seq": 0}
    place = b"id: 999999999999999\n"
    assert await Events([[place + to_sse(end)]]).read() == [end]
    cut: Parts = [to_sse(FIRST), place + b"\n", httpx.ReadError("cut")]
    server = Events([cut, [to_sse(LAST)]])
    assert await server.read() == [FIRST, LAST]
    assert server.asked == ["", "1"]


async def test_two_halves_of_a_character_are_one(servers: Stack) -> None:
    """As some tokenizers cut it: between deltas, within one, alone in one, at the very beginning."""
    text = "\U0001f600 and \U0001f600\U0001f601, so it is."
    units = text.encode("utf-16-le")
    halves = [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2)]
    shown = Seen()
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        stream = gate.stream()
        calls = [stream.start(halves[0], 1), *(stream.update(half, 1) for half in halves[1:]), stream.finish()]
        for events in calls:
            for event in await events:
                shown.take(event)
        assert gate.tries == gate.calls
        collected = await read(gate, said_in(halves))
    assert shown.text == collected.text == text
    assert shown.ended.summary["naive_calls"] == collected.ended.summary["naive_calls"] == len(halves)


async def said_in(chunks: list[str]) -> AsyncIterator[str]:
    for chunk in chunks:
        yield chunk


async def test_half_a_character_that_stays_alone_is_refused_at_once(servers: Stack) -> None:
    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        for chunks in (["Hello \ud83d"], ["\ud83d"], ["Hello ", "\ude00 there"], ["\ud83d", "no"]):
            with pytest.raises(sg.Refused, match="surrogate") as refused:
                await read(gate, said_in(chunks))
            assert (refused.value.status, refused.value.field) == (422, "delta")


async def test_a_block_stops_the_reading(servers: Stack) -> None:
    """The model is not asked for more, what was shown stays, and the session says how it ended."""
    read_on: list[int] = []

    async def noted(n: int) -> None:
        read_on.append(n)

    async with sg.Sluicegate(servers.url, servers.keys["owner"]) as gate:
        clock = _flushed(gate)

        async def wait(n: int) -> None:
            await noted(n)
            await clock(n)

        text = "They call it project blue heron, and there is more to say. " + "And more. " * 60
        seen = await read(gate, said(text, 25, wait), policy="demo")
    assert seen.ended.outcome == "blocked"
    assert "blue" not in seen.text
    assert len(read_on) < len(pieces(text, 25))


def test_the_example_runs(servers: Stack) -> None:
    env = {"SLUICEGATE_URL": servers.url, "SLUICEGATE_KEY": servers.keys["owner"], "PATH": os.environ["PATH"]}
    for arguments, given in (([], ""), (["-"], TEXT)):
        argv = [sys.executable, str(FOLDER / "stream.py"), *arguments]
        done = subprocess.run(argv, env=env, input=given, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr
        shown = GUARDED if arguments else "Our records say [SSN] for you, and we write to [EMAIL]. Is there anything"
        assert done.stdout.startswith(shown)
        assert "pii/ssn: redact" in done.stderr
