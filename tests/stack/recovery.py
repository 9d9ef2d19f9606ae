"""Streams through a network that fails by script, judged one by one: what a test asserts and a benchmark counts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import httpx

from examples.python import sluicegate_client as sg
from tests.stack.clients import Client, Json
from tests.stack.failing_network import CALLS, EVENTS, HAS, FailingNetwork, failing_network, script
from tests.stack.servers import Stack
from tests.stack.test_two_processes import TEXT

CHUNKS = 5
"""So many calls has a stream, start and finish included."""
PER_STREAM = 5
"""So many failures: four of calls and one of the events."""
AT_ONCE = 32
KILLS = 2
"""So often a web process is killed (SIGKILL) meanwhile; the others on its socket go on, and a new one comes."""
LIMIT_S = 900.0
TIMEOUT_S = 3.0
"""The client's limit for a call. A server that is slower is asked twice, which changes nothing."""
WORDS = ("The plan", "is ready", "and", "nobody", "has to wait", "for it", "until", "the evening", "comes", "again")
PLANTED = ("536-22-8145", "4111 1111 1111 1111", "desk@example.com", "219-09-9999", "anna.b@example.org")
TEXTS = 8
EVENTS_PATH = "/v1/stream/events"
Place = tuple[object, object, object, object]


@dataclass(frozen=True)
class Expected:
    """What one check of the whole text says of it, and ``figures``: what a stream that nothing disturbs leaves."""

    text: str
    visible: str
    places: list[Place]
    figures: Json


@dataclass
class Recovered:
    """``wrong``: what is not as it would be without failures, by stream. ``cut``: connections that kills ended.
    ``again``: so often events were asked for behind those that had come.
    """

    streams: int
    met: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    kills: int = 0
    cut: int = 0
    again: int = 0
    wrong: list[str] = field(default_factory=list)
    tries: int = 0
    calls: int = 0

    @property
    def failures(self) -> int:
        """All that were met, but for the kills."""
        return sum(self.met.values())


def texts() -> list[str]:
    """Prose with values in it that may not be shown, different and always the same ones."""
    found = [TEXT]
    for n in range(1, TEXTS):
        draw = Random(n)
        parts = [
            draw.choice(PLANTED) + draw.choice((" ", ". ")) if draw.random() < 0.12 else draw.choice(WORDS) + " "
            for _ in range(40)
        ]
        found.append("".join(parts))
    return found


def expected(servers: Stack) -> list[Expected]:
    """By one check and one stream of each text."""
    client = Client(servers.url, servers.keys["owner"])
    found = []
    for text in texts():
        said = client.post("/v1/check", {"text": text, "kind": "response", "accepts": ["redact"]})
        found.append(
            Expected(text, str(said["text"]), _places(said["findings"]), undisturbed(servers, client, text, CHUNKS))
        )
    return found


def undisturbed(servers: Stack, client: Client, text: str, calls: int) -> Json:
    """The figures of a stream of so many calls, straight to the server."""
    size = -(-len(text) // calls)
    first, *middle, last = (text[at : at + size] for at in range(0, len(text), size))
    session_id = client.post("/v1/stream/start", {"delta": first})["session_id"]
    for seq, delta in enumerate(middle, start=2):
        client.post("/v1/stream/update", {"session_id": session_id, "seq": seq, "delta": delta})
    client.post("/v1/stream/finish", {"session_id": session_id, "seq": calls, "delta": last})
    assert any(event.get("state") == "COMPLETE" for event in client.events(f"{EVENTS_PATH}?session_id={session_id}"))
    figures: Json = record(servers, str(session_id))["figures"]  # type: ignore[assignment]
    return figures


def _places(findings: Any) -> list[Place]:
    return sorted((one["guardrail"], one["rule"], one["start"], one["end"]) for one in findings)


async def run(
    servers: Stack, failures: int, told: Callable[[Recovered], None] = lambda _: None, *, at_once: int = AT_ONCE
) -> Recovered:
    """Streams until ``failures`` (a multiple of five) have been met; ``told`` hears of each stream that is over."""
    wanted = await asyncio.to_thread(expected, servers)
    done = Recovered(failures // PER_STREAM)
    free = asyncio.Semaphore(at_once)
    host, port = servers.shared.getsockname()[:2]
    async with failing_network(host, port) as network:
        killing = asyncio.create_task(_kill(servers, network, failures, done))

        async def one(n: int) -> None:
            async with free:
                try:
                    async with asyncio.timeout(LIMIT_S):
                        wrong = await stream(servers, network, n, wanted[n % TEXTS], done)
                except (sg.Refused, sg.Unreachable, TimeoutError) as error:
                    wrong = [repr(error)]
            done.resumed += not wrong
            done.wrong += [f"stream {n}: {what}" for what in wrong]
            told(done)

        try:
            async with asyncio.TaskGroup() as group:
                for n in range(done.streams):
                    group.create_task(one(n))
        finally:
            network.over()
            await killing
        done.met, done.cut = network.met, network.cut
    return done


async def _kill(servers: Stack, network: FailingNetwork, failures: int, done: Recovered) -> None:
    """Kill one of the web processes again and again, amid all that is under way, and start another."""
    for n in range(1, KILLS + 1):
        if await network.reached(failures * n // (KILLS + 1)):
            servers.webs[0].kill()
            done.kills += 1
            servers.start_web()
            await asyncio.to_thread(servers.wait_for_webs)


async def stream(servers: Stack, network: FailingNetwork, n: int, want: Expected, done: Recovered) -> list[str]:
    """One stream and its events; what is wrong with it afterwards."""
    draw = Random(f"recovery {n}")
    calls = script(draw, CHUNKS, PER_STREAM - 1)
    url = network.line(str(n), draw, calls, [draw.choice(list(EVENTS))])
    cuts = [0, *sorted(draw.sample(range(1, len(want.text)), CHUNKS - 1)), len(want.text)]
    first, *middle, last = (want.text[a:b] for a, b in pairwise(cuts))
    seen, read = Seen(), Seen()

    async def says(request: httpx.Request) -> None:
        request.headers[HAS] = read.has

    async with httpx.AsyncClient(trust_env=False, event_hooks={"request": [says]}) as http:
        gate = sg.Sluicegate(url, servers.keys["owner"], http, timeout_s=TIMEOUT_S, silence_s=TIMEOUT_S)
        owned = gate.stream()
        seen.take(await owned.start(first))
        reader = asyncio.create_task(read.read(gate, owned.session_id))
        try:
            for delta in middle:
                seen.take(await owned.update(delta))
            seen.take(await owned.finish(last))
            await network.deliver_all(str(n))
            await reader
            while network.spared(str(n)):
                read = Seen()
                await read.read(gate, owned.session_id)
        finally:
            reader.cancel()
        done.tries, done.calls = done.tries + gate.tries, done.calls + gate.calls
    stored = await asyncio.to_thread(record, servers, owned.session_id)
    own = [one for one in read.findings if one["guardrail"] != "harm"]
    deferred = [one for one in read.findings if one["guardrail"] == "harm"]
    rows = _places(stored["findings"])
    shall_be: list[tuple[str, object, object]] = [
        ("visible text", seen.text, want.visible),
        ("findings of the answers", _places(seen.findings), want.places),
        ("their numbers", [one["n"] for one in seen.findings], list(range(1, len(seen.findings) + 1))),
        ("text of the events", read.text, want.visible),
        ("findings of the events", _places(own), want.places),
        ("findings in the database", rows, sorted(want.places + _places(deferred))),
        ("deferred findings", len(deferred), int("poison" in want.text)),
        ("rows of the session", stored["sessions"], [["COMPLETE", len(want.text), CHUNKS]]),
        ("entries of its begin and end", stored["entries"], ["opened", "sealed"]),
        ("findings that its seal commits to", stored["committed"], len(rows)),
        ("audit rows that its row counts", stored["counted"], 1 + len(stored["entries"]) + len(rows)),
        ("calls that were answered", gate.calls, CHUNKS),
        ("figures of the session", stored["figures"], want.figures),
        *asked_again(network, str(n), done),
    ]
    return [f"{what}: {is_now!r}, not {should!r}" for what, is_now, should in shall_be if is_now != should]


def asked_again(network: FailingNetwork, name: str, done: Recovered) -> list[tuple[str, object, object]]:
    """Whoever asks for events again names the last one that it has."""
    asked = network.asked(name)
    done.again += sum(last != "" for last, _ in asked)
    return [
        ("Last-Event-ID", [last for last, _ in asked], [has for _, has in asked]),
        ("asked for its events again", len(asked) > 1, True),
    ]


@dataclass
class Seen:
    """What a reader has."""

    text: str = ""
    findings: list[Json] = field(default_factory=list)
    has: str = ""
    """Seq of the last event."""

    def take(self, events: list[Any]) -> None:
        """Apply what a call led to."""
        for event in events:
            if isinstance(event, sg.Text):
                self.text = self.text[: event.at] + event.text
            elif isinstance(event, sg.Found):
                self.findings.append(dict(event.finding))

    async def read(self, gate: Any, session_id: str) -> None:
        """Read the session's events to their end."""
        async for event in gate.events(session_id):
            self.has = str(event["seq"])
            if event["type"] == "finding":
                self.findings.append(event)
            elif event["type"] == "done":
                self.text = event["final"]


def record(servers: Stack, session_id: str) -> Json:
    """What the database has of a session: its rows, its findings, and the kinds of its entries in the audit log.

    ``committed``: so many different findings the log commits to. ``counted``: so many audit rows the session's own row
    says that there are. ``figures``: what its row says of characters, calls and each guardrail, but for times.
    """
    pk = session_id if "DATABASE_URL" in servers.env else session_id.replace("-", "")
    columns = "state, chars_in, timing, released, withheld, exposed"
    rows = servers.rows(f"SELECT {columns} FROM streaming_auditsession WHERE id = '{pk}'")
    sessions = [row[:3] for row in rows]
    query = f"SELECT guardrail, rule, start, \"end\" FROM streaming_finding WHERE session_id = '{pk}'"
    names = ("guardrail", "rule", "start", "end")
    entries = servers.rows(f"SELECT kind, body FROM streaming_auditentry WHERE session = '{session_id}' ORDER BY seq")
    committed: set[object] = set()
    for kind, body in entries:
        committed |= set(_read(body)["findings"]) if kind == "sealed" else set()  # type: ignore[call-overload]
    return {
        "figures": [_figures(_read(timing), *characters) for _, _, timing, *characters in rows],
        "sessions": [[state, chars, _read(timing)["chunks"]] for state, chars, timing in sessions],
        "findings": [dict(zip(names, row, strict=True)) for row in servers.rows(query)],
        "entries": [str(kind) for kind, _ in entries],
        "committed": len(committed),
        "counted": sum(int(str(_read(timing).get("audit_rows", 0))) for *_, timing in sessions),
    }


def _figures(told: dict[str, object], released: object, withheld: object, exposed: object) -> Json:
    guardrails: Any = told.get("guardrails", {})
    counted = {name: {key: one[key] for key in ("checks", "hits", "errors")} for name, one in guardrails.items()}
    characters = {"released": released, "withheld": withheld, "exposed": exposed}
    return {**characters, "calls": told.get("calls"), "checks": told.get("checks"), "guardrails": counted}


def _read(timing: object) -> dict[str, object]:
    """A JSON column, which one database gives as text and the other as what it says."""
    found: dict[str, object] = json.loads(timing) if isinstance(timing, str) else timing  # type: ignore[assignment]
    return found


def names() -> set[str]:
    """Every way to fail."""
    return {*CALLS, *EVENTS}
