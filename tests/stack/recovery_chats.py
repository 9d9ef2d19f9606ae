"""Answers that the server streams, read through a network that fails by script; each is judged against its own record.

A call that begins an answer and is not answered is sent again, which begins another one: what the client was told of is
judged here, and that the others come to an end is for the test to see.
"""

from __future__ import annotations

import asyncio
from random import Random

import httpx

from examples.python import sluicegate_client as sg
from tests.stack.clients import Json, Shown
from tests.stack.failing_network import EVENTS, HAS, FailingNetwork, failing_network, script
from tests.stack.recovery import LIMIT_S, TIMEOUT_S, Place, Recovered, asked_again, record
from tests.stack.servers import Stack

CHATS = 10
CALL_FAILURES = 3
"""Of the one call that begins an answer."""
EVENT_FAILURES = 4
"""Of the connections over which its events are read: both kinds twice."""
ASKED = {"prompt": "What is on file?", "provider": "scripted", "scenario": "pii", "policy": "demo"}


async def run_chats(servers: Stack) -> Recovered:
    """All of them at once; what each shall come to is what one comes to that nothing disturbs."""
    done = Recovered(CHATS)
    want = await _undisturbed(servers)
    host, port = servers.shared.getsockname()[:2]
    async with failing_network(host, port) as network:

        async def one(n: int) -> None:
            try:
                async with asyncio.timeout(LIMIT_S):
                    wrong = await _chat(servers, network, n, want, done)
            except (sg.Refused, sg.Unreachable, TimeoutError) as error:
                wrong = [repr(error)]
            done.resumed += not wrong
            done.wrong += [f"chat {n}: {what}" for what in wrong]

        async with asyncio.TaskGroup() as group:
            for n in range(CHATS):
                group.create_task(one(n))
        network.over()
        done.met = network.met
    return done


async def _undisturbed(servers: Stack) -> Shown:
    async with httpx.AsyncClient(trust_env=False) as http:
        plain = sg.Sluicegate(servers.url, servers.keys["owner"], http)
        began = await plain.call("POST", "/v1/chat", ASKED)
        return await _read(plain, str(began["session_id"]), Shown())


async def _chat(servers: Stack, network: FailingNetwork, n: int, want: Shown, done: Recovered) -> list[str]:
    draw, name = Random(f"chat {n}"), f"chat-{n}"
    failures = list(EVENTS) * (EVENT_FAILURES // len(EVENTS))
    draw.shuffle(failures)
    url = network.line(name, draw, script(draw, 1, CALL_FAILURES), failures)
    seen = Shown()

    async def says(request: httpx.Request) -> None:
        request.headers[HAS] = str(seen.last)

    async with httpx.AsyncClient(trust_env=False, event_hooks={"request": [says]}) as http:
        gate = sg.Sluicegate(url, servers.keys["owner"], http, timeout_s=TIMEOUT_S, silence_s=TIMEOUT_S)
        began = await gate.call("POST", "/v1/chat", ASKED)
        session_id = str(began["session_id"])
        await network.deliver_all(name)
        await _read(gate, session_id, seen)
        while network.spared(name):  # it had all before the network had done its worst: once more from the beginning
            await _read(gate, session_id, seen := Shown())
        plain = sg.Sluicegate(servers.url, servers.keys["owner"], http)
        half = len(seen.events) // 2
        both = Shown()  # what one reader had when it went, and what another one reads on from there
        for event in seen.events[:half]:
            both.take(event)
        for event in (await _read(plain, session_id, Shown(), after=int(str(both.last)))).events:
            both.take(event)
    (end,) = seen.of("done")
    seqs = [event["seq"] for event in seen.events]
    found = _places(seen.of("finding"))
    stored = await asyncio.to_thread(record, servers, session_id)
    rows = _places(stored["findings"])  # type: ignore[arg-type]
    shall_be: list[tuple[str, object, object]] = [
        ("visible text", seen.text, want.text),
        ("what its end says", end["final"], want.of("done")[0]["final"]),
        ("outcome", end["outcome"], want.of("done")[0]["outcome"]),
        ("findings", found, _places(want.of("finding"))),
        *asked_again(network, name, done),
        ("a number is hidden in it", "[SSN]" in seen.text and "536-22-8145" not in seen.text, True),
        ("seqs", seqs, sorted(set(seqs))),  # type: ignore[type-var]
        ("the last event", seen.complete, True),
        ("text of two readers, one behind the other", both.text, seen.text),
        ("their events", _single(both), _single(seen)),
        ("findings in the database", rows, found),
        ("that there are some", len(found) > 0, True),
        ("state of the row", [row[0] for row in stored["sessions"]], ["COMPLETE"]),  # type: ignore[attr-defined]
        ("entries of its begin and end", stored["entries"], ["opened", "sealed"]),
        ("findings that its seal commits to", stored["committed"], len(rows)),
    ]
    return [f"{what}: {is_now!r}, not {should!r}" for what, is_now, should in shall_be if is_now != should]


async def _read(gate: sg.Sluicegate, session_id: str, seen: Shown, *, after: int = 0) -> Shown:
    """All events above ``after``, over as many connections as it takes, into ``seen``, which is returned."""
    async for event in gate.events(session_id, after=after):
        seen.take(dict(event))
    return seen


def _single(seen: Shown) -> list[Json]:
    """What is never joined with its neighbours, as released text is for a reader who comes late."""
    return [event for event in seen.events if event["type"] != "message_stream"]


def _places(findings: list[Json]) -> list[Place]:
    return sorted((one["guardrail"], one["rule"], one["start"], one["end"]) for one in findings)
