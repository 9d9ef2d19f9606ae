"""What a session saves against a check of every chunk, and that it costs no reader time: calls, rows, waiting.

The Python client of the examples against real servers, as its users run it; the same chunks checked one by one in the
same run are the anchor.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import cast

import httpx

from examples.python import sluicegate_client as sg
from guardrails import services
from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from streaming.core.effects import REDACTED, RELEASE
from streaming.core.gate import Gate
from tests.bench.registry import Row, at_least, at_most, bench, context
from tests.stack import recovery as recovering
from tests.stack.clients import Client
from tests.stack.servers import Stack, stack

FAILURES = 1_000
POLICY = "basic"
CHARS, TOKENS_PER_S, CHARS_PER_TOKEN = 600, 50, 4
SECONDS = CHARS / CHARS_PER_TOKEN / TOKENS_PER_S
"""How long the model speaks."""
SSN = "536-22-8145"
TEXT = ("The lock chamber fills slowly from above, and the boat rises with it. " * 9)[: CHARS - len(SSN) - 2]
TEXT = f"{TEXT[:293]} {SSN} {TEXT[293:]}"
"""One finding, over the edge of two chunks, of 20 as of 40."""
ROWS_OF_ONE_CHECK = 1
"""What the systems before wrote for each check; ours write more for a check, as a context row says."""


@dataclass
class Watched:
    """When each character of the visible text came, and when it was painted; seconds."""

    came: list[float] = field(default_factory=list)
    shown: str = ""
    paints: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def paint(self, at: int, text: str, when: float | None = None) -> None:
        """Show text from ``at`` on, ``when`` that happened (now)."""
        now = time.perf_counter() if when is None else when
        self.waits += [now - self.came[_original(n)] for n in range(at, at + len(text))]
        self.shown = self.shown[:at] + text
        self.paints.append(now)

    @property
    def gap(self) -> float:
        """The longest time without a paint, from the first character on."""
        times = [self.came[0], *self.paints]
        return max(b - a for a, b in pairwise(times))


def _original(n: int) -> int:
    """The last character of the original text that stands behind a visible one."""
    start, label = TEXT.index(SSN), len("[SSN]")
    if n < start:
        return n
    return start + len(SSN) - 1 if n < start + label else n - label + len(SSN)


@dataclass
class Message:
    """One message through a session."""

    watched: Watched
    calls: int
    rows: int
    digest: str


@bench("recovery")
def recovery() -> Iterable[Row]:
    """1,000 scripted network failures between the Python client and real servers; each stream compared with a check."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder, stack(Path(folder), "sqlite") as servers:
        began = time.perf_counter()
        done = asyncio.run(recovering.run(servers, FAILURES))
        seconds = time.perf_counter() - began
    resumed = 100 * done.resumed / done.streams if done.failures == FAILURES else 0.0
    said = f"{done.streams} streams, {done.tries:,} requests for {done.calls:,} answers, {seconds:.0f} s"
    said += f"; {done.kills} web processes killed meanwhile"
    yield at_least("recovery", f"{FAILURES:,} scripted network failures: resumed, text and findings identical",
                   resumed, 100, "%", said)  # fmt: skip


@bench("calls")
def calls() -> Iterable[Row]:
    """A 600-character answer at 50 tokens/s through the Python client: calls, audit rows, time that text waits."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder, stack(Path(folder), "sqlite") as servers:
        asyncio.run(_message(servers, 20))  # what a server does once is not the message's
        without = asyncio.run(_message(servers, 20))
        more = asyncio.run(_message(servers, 40))
        covered = asyncio.run(_message(servers, 20, _own_rules(without.digest)))
        naive_calls, naive_rows = _chunk_by_chunk(servers, 20)
    what = f"{CHARS} characters in 20 chunks at {TOKENS_PER_S} tokens/s"
    anchor = f"a check of every chunk: {naive_calls} calls"
    yield at_most("calls_rules", f"{what}, client with rules: API calls", covered.calls, 3, "calls", anchor)
    yield at_most("calls", "… without rules: API calls", without.calls, 6, "calls", anchor)
    for name, one, limit_ms in (("rules", covered, 200), ("none", without, 1_000)):
        whose = "with rules" if name == "rules" else "without rules"
        yield at_most(f"calls_gap_{name}", f"… {whose}: longest time between paints", one.watched.gap, 1, "s",
                      f"the model's own: {SECONDS / 20:.2f} s")  # fmt: skip
        yield at_most(f"calls_wait_{name}", f"… {whose}: longest time that text waits",
                      1_000 * max(one.watched.waits), limit_ms, "ms")  # fmt: skip
    for chunks, one, limit in ((20, without, 20), (40, more, 10)):
        share = 100 * one.rows / (chunks * ROWS_OF_ONE_CHECK)
        said = f"{one.rows} rows for a message with one finding, {chunks} of one row per check"
        yield at_most(f"audit_rows_{chunks}", f"{chunks} chunks: audit rows per message", share, limit,
                      "% of one row per check", said)  # fmt: skip
    yield context("audit_rows_checks", "… 20 chunks, each checked by /v1/check here", naive_rows, "rows")


async def _message(servers: Stack, chunks: int, own: Policy | None = None) -> Message:
    """One message; with ``own`` the client paints by its own copy of the policy's rules."""
    watched = Watched()
    gate = Gate(own, AppliesTo.RESPONSE) if own else None

    async def model() -> AsyncIterator[str]:
        size, began = len(TEXT) // chunks, time.perf_counter()
        for n in range(chunks):
            await asyncio.sleep(max(0.0, began + n * SECONDS / chunks - time.perf_counter()))
            piece = TEXT[n * size : (n + 1) * size]
            watched.came += [time.perf_counter()] * len(piece)
            if gate is not None:
                _paint_by_rules(watched, gate, piece, last=n == chunks - 1)
            yield piece

    session_id = ""
    async with httpx.AsyncClient(trust_env=False) as http:
        client = sg.Sluicegate(servers.url, servers.keys["owner"], http)
        shown = ""
        async for event in client.guard(model(), policy=POLICY, rules_version=own.digest if own else ""):
            match event:
                case sg.Text(at, text):
                    shown = shown[:at] + text
                    if gate is None:
                        watched.paint(at, text)
                case sg.Ended():
                    session_id = event.session_id
    wanted = await asyncio.to_thread(_checked, servers, TEXT)
    if not (shown == watched.shown == wanted):
        raise RuntimeError(f"the visible text is not that of one check: {shown!r}, {watched.shown!r}, {wanted!r}")
    status = await asyncio.to_thread(
        Client(servers.url, servers.keys["owner"]).get, f"/v1/stream/status?session_id={session_id}"
    )
    policy = cast("dict[str, object]", status["policy"])
    return Message(watched, client.calls, _rows(servers, [session_id]), str(policy["digest"]))


def _paint_by_rules(watched: Watched, gate: Gate, piece: str, *, last: bool) -> None:
    effects = [*gate.feed(piece), *(gate.finish() if last else [])]
    text = "".join(effect[1] for effect in effects if effect[0] in (RELEASE, REDACTED))
    if text:
        watched.paint(len(watched.shown), text)


def _own_rules(digest: str) -> Policy:
    """The client's own copy of the policy that the server named by this digest."""
    document = json.loads((Path(services.__file__).parent / "starters" / f"{POLICY}.json").read_text("utf-8"))
    return compile_policy(document, digest=digest)


def _checked(servers: Stack, text: str) -> str:
    body = {"text": text, "kind": "response", "policy": POLICY, "accepts": ["redact"]}
    return str(Client(servers.url, servers.keys["owner"]).post("/v1/check", body)["text"])


def _chunk_by_chunk(servers: Stack, chunks: int) -> tuple[int, int]:
    """Calls and rows of a client that checks each chunk."""
    size = len(TEXT) // chunks
    client = Client(servers.url, servers.keys["owner"])
    sessions = []
    for n in range(chunks):
        body = {"text": TEXT[n * size : (n + 1) * size], "kind": "response", "policy": POLICY, "accepts": ["redact"]}
        sessions.append(str(client.post("/v1/check", body)["session_id"]))
    return len(sessions), _rows(servers, sessions)


def _rows(servers: Stack, sessions: list[str]) -> int:
    """All rows of the audit record: sessions, findings, entries of the log."""
    dashed = ", ".join(f"'{one}'" for one in sessions)
    bare = dashed.replace("-", "")
    queries = (
        f"SELECT count(*) FROM streaming_auditsession WHERE id IN ({bare})",
        f"SELECT count(*) FROM streaming_finding WHERE session_id IN ({bare})",
        f"SELECT count(*) FROM streaming_auditentry WHERE session IN ({dashed})",
    )
    return sum(int(str(servers.rows(query)[0][0])) for query in queries)
