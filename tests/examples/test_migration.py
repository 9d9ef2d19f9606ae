"""The figures of docs/migration.md are measured: the same answer, checked in four ways."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.examples.test_python_client import read, said, sg
from tests.stack.servers import ROOT, Stack
from tests.stack.test_two_processes import pieces

PAGE = ROOT / "docs" / "migration.md"
SIZE, PACE_S = 30, 0.15
"""20 chunks of 600 characters, at about 50 tokens a second."""
SSN = "536-22-8145"
ANSWER = ("The lock chamber fills slowly from above, and the boat rises with it. " * 9)[:600]
CUT = 295
"""Where the number goes: over the edge between the tenth chunk and the next."""
ANSWER = ANSWER[:CUT] + SSN + ANSWER[CUT + len(SSN) :]


@dataclass
class Way:
    """What a way to check has cost, and what a reader saw of it."""

    calls: int = 0
    characters: int = 0
    """Of the model's answer, sent in all calls."""
    sessions: list[str] = field(default_factory=list)
    shown: str = ""
    taken_back: bool = False

    def row(self, servers: Stack) -> list[int]:
        """Calls, characters, rows of sessions, entries of the audit log."""
        return [self.calls, self.characters, *rows(servers, self.sessions)]


def rows(servers: Stack, sessions: list[str]) -> list[int]:
    with_dashes = ", ".join(f"'{one}'" for one in sessions)
    queries = (
        f"SELECT count(*) FROM streaming_auditsession WHERE id IN ({with_dashes.replace('-', '')})",
        f"SELECT count(*) FROM streaming_auditentry WHERE session IN ({with_dashes})",
    )
    return [int(str(servers.rows(query)[0][0])) for query in queries]


@pytest.fixture
def http(servers: Stack) -> Any:
    headers = {"Authorization": f"Bearer {servers.keys['owner']}"}
    with httpx.Client(base_url=servers.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


def checked(http: httpx.Client, way: Way, text: str) -> str:
    asked = {"text": text, "kind": "response", "policy": "basic", "accepts": ["redact"]}
    answer = http.post("/v1/check", json={**asked, "context": {"conversation_id": "migration"}})
    assert answer.status_code == 200, answer.text
    way.calls += 1
    way.characters += len(text)
    way.sessions.append(answer.json()["session_id"])
    return str(answer.json()["text"])


def each_chunk(http: httpx.Client) -> Way:
    way = Way()
    for chunk in pieces(ANSWER, SIZE):
        way.shown += checked(http, way, chunk)
    return way


def all_so_far(http: httpx.Client) -> Way:
    way = Way()
    for end in range(SIZE, len(ANSWER) + 1, SIZE):
        before, way.shown = way.shown, checked(http, way, ANSWER[:end])
        way.taken_back = way.taken_back or not way.shown.startswith(before)
    return way


async def session(servers: Stack, pace_s: float) -> Way:
    """The Python client; the model says a chunk every ``pace_s`` seconds of the client's clock."""
    now = [0.0]

    async def wait(_: int) -> None:
        now[0] += pace_s

    sent: list[int] = []

    async def noted(request: httpx.Request) -> None:
        sent.append(len(json.loads(request.content).get("delta", "")))

    async with httpx.AsyncClient(event_hooks={"request": [noted]}, trust_env=False) as http:
        gate = sg.Sluicegate(servers.url, servers.keys["owner"], http, clock=lambda: now[0])
        seen = await read(gate, said(ANSWER, SIZE, wait), policy="basic")
    assert gate.tries == gate.calls == seen.ended.summary["calls"]
    return Way(gate.calls, sum(sent), [seen.ended.session_id], seen.text)


async def test_it_works(servers: Stack, http: httpx.Client) -> None:
    """Each row of the page's table, in its order, is what is measured here."""
    assert len(ANSWER) == 600
    assert len(pieces(ANSWER, SIZE)) == 20
    ways = [each_chunk(http), all_so_far(http), await session(servers, PACE_S), await session(servers, 0.0)]
    written = [[int(cell.replace(",", "")) for cell in re.findall(r"\| ([\d,]+) (?=\|)", line)]
               for line in PAGE.read_text().splitlines() if re.match(r"\| (?:check|session)", line)]  # fmt: skip
    measured = [way.row(servers) for way in ways]
    assert written == measured, measured
    chunkwise, whole, paced, quick = ways
    assert SSN in chunkwise.shown, "the reason to leave: a value over the edge of two chunks is seen by no check"
    assert whole.taken_back, "half of the number was shown"
    assert whole.shown == paced.shown == quick.shown == ANSWER.replace(SSN, "[SSN]")
    assert paced.calls <= 0.3 * chunkwise.calls
