"""Guard a stream of text that you own: a small client for ``/v1/stream/start|update|finish|status``.

Exists to be copied: one file, no dependency but httpx. Protects these rules of the API for you:

- a call that got no answer (or a 5xx) is sent again with the same seq and the same body, so nothing is applied twice;
- ``Retry-After`` is obeyed;
- a 409 that asks for an earlier seq is answered by sending again from there, and what is shown is put right;
- text is collected as ``hints`` say, and no text waits longer than they say, also when the model pauses;
- a finding is told once.

    async with Sluicegate("http://127.0.0.1:8000", key) as gate:
        async for event in gate.guard(chunks_of_the_model()):
            ...  # Text, Found, at last Ended
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypeAlias, TypedDict, cast
from uuid import uuid4

import httpx

State: TypeAlias = Literal["ACTIVE", "MONITORING", "COMPLETE"]
Json: TypeAlias = dict[str, object]
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
EARLIEST, LATEST = 0.8, 0.95
"""Shares of ``flush_ms`` after which text is sent: the call itself takes a moment, and no text waits longer. The
smaller one where the last call took long."""
SILENCE_S = 45.0
"""Servers send a comment every 15 s on a stream of events; after so long a silence the connection is dead."""


class Hints(TypedDict):
    """How much may be collected: at most so many characters, or for so many milliseconds."""

    max_delta_chars: int
    flush_ms: int


class Finding(TypedDict):
    """One hit; ``start`` and ``end`` are characters of the original text, ``n`` counts a session's findings from 1."""

    n: int
    guardrail: str
    kind: str
    rule: str
    category: str
    channel: str
    start: int
    end: int
    score: float
    mode: str
    action: str
    would_have: str | None
    exposed: int


class Answer(TypedDict):
    """What start, update and finish answer; the API guide says what the fields mean."""

    session_id: str
    state: State
    seq: int
    released: str
    released_chars: int
    action: Literal["allow", "warn", "redact", "block"]
    findings: list[Finding]
    hints: NotRequired[Hints]
    held_chars: NotRequired[int]
    summary: NotRequired[Json]
    stream_token: NotRequired[str]


class Guardrail(TypedDict):
    """One guardrail of the policy in one stream; times in milliseconds, None where nothing was measured."""

    checkpoint: Literal["IMMEDIATE", "BATCHED", "DEFERRED"]
    mode: Literal["BLOCK", "MONITOR", "DISABLED"]
    state: str
    checks: int
    hits: int
    errors: int
    ms: float
    last_ms: float | None
    p95_ms: float | None


class Status(TypedDict):
    """What the server knows of a stream. ``guardrails`` by name, all of the policy."""

    session_id: str
    state: State
    outcome: str
    counts: dict[str, int]
    guardrails: dict[str, Guardrail]
    deferred: list[dict[str, str]]
    held_chars: int
    expected_seq: int


@dataclass(frozen=True, slots=True)
class Text:
    """Visible text. It belongs at character ``at`` of what is shown and replaces what stands there and after.

    ``at`` is where the shown text ends, but after the server lost its newest state and judged anew.
    """

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A guardrail found something."""

    finding: Finding


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event. ``state`` MONITORING: deferred checks still run, ``Stream.status`` tells of them."""

    session_id: str
    state: State
    outcome: str
    summary: Json


Event: TypeAlias = Text | Found | Ended


class Refused(Exception):
    """A call that is wrong however often it is sent. ``field``: what is wrong in it."""

    def __init__(self, status: int, code: str, message: str, field: str, expected_seq: int | None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.field, self.expected_seq = status, code, field, expected_seq


class OutOfTurn(Refused):
    """409: another writer has changed this stream, or it is over (expired, ended by somebody else)."""


class StateLost(Refused):
    """410: no store has the stream's state any more. What was shown was safe; begin a new stream for the rest."""


class Unreachable(Exception):
    """Nobody answered for as long as this client is patient. What was held stays held."""


@dataclass(slots=True)
class Sluicegate:
    """One server and one key.

    ``http`` is closed with this object only when it was made by it. ``timeout_s`` is for one try, ``patience_s`` for a
    call with all its tries; keep it below the five minutes after which a stream without calls expires. ``silence_s``:
    after so long without a byte a stream of events is opened again.
    """

    url: str
    key: str = field(repr=False)
    http: httpx.AsyncClient | None = None
    timeout_s: float = 20.0
    patience_s: float = 120.0
    silence_s: float = SILENCE_S
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    calls: int = 0
    """Calls that were answered."""
    tries: int = 0
    """Requests that were sent."""
    _own: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Sluicegate:
        if self.http is None:
            self.http = self._own = httpx.AsyncClient()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own is not None:
            await self._own.aclose()
            self.http = self._own = None

    def stream(
        self,
        *,
        policy: str = "",
        kind: Literal["prompt", "response"] = "response",
        conversation_id: str = "",
        rules_version: str = "",
    ) -> Stream:
        """A stream that has not begun. ``policy`` empty: the key's.

        ``rules_version``: digest or version of the policy's own rules, if you run them yourself and show text by them;
        then the server need not be asked so often.
        """
        about = {"name": "sluicegate-python", "version": "1", "rules_version": rules_version}
        body: Json = {"kind": kind, "client": about}
        if policy:
            body["policy"] = policy
        if conversation_id:
            body["context"] = {"conversation_id": conversation_id}
        return Stream(self, body)

    async def guard(
        self,
        chunks: AsyncIterable[str],
        *,
        policy: str = "",
        kind: Literal["prompt", "response"] = "response",
        conversation_id: str = "",
        rules_version: str = "",
    ) -> AsyncGenerator[Event, None]:
        """Send ``chunks`` through a stream; what may be shown, and what was found, as it comes.

        When a guardrail blocks, no more chunks are read. When ``chunks`` raises, so does this, and the stream is left
        to expire: what was held is not shown. Raises ``Refused``, ``OutOfTurn``, ``StateLost``, ``Unreachable``.
        """
        stream = self.stream(policy=policy, kind=kind, conversation_id=conversation_id, rules_version=rules_version)
        collected = _Collected(aiter(chunks), self.clock)
        try:
            first = await collected.first()
            for event in await stream.start(first, collected.count()):
                yield event
            while not stream.blocked and (delta := await collected.next(stream.hints)) is not None:
                for event in await stream.update(delta, collected.count()):
                    yield event
            rest = "" if stream.blocked else collected.rest()
            for event in await stream.finish(rest, collected.count()):
                yield event
        finally:
            await collected.close()

    async def call(self, method: str, path: str, body: Json | None = None, **headers: str) -> Json:
        """The answer of a call, sent again until somebody answers. Raises ``Refused`` and ``Unreachable``."""
        # Before the first try: what cannot be written is not for another one.
        content = None if body is None else _written(body)
        if self.http is None:
            raise RuntimeError("use `async with Sluicegate(…)`, or give it an http client")
        give_up, wait_s = self.clock() + self.patience_s, FIRST_WAIT_S
        headers["Authorization"] = f"Bearer {self.key}"
        if content is not None:
            headers["Content-Type"] = "application/json"
        while True:
            pause_s: float | None = None
            self.tries += 1
            try:
                response = await self.http.request(
                    method, self.url.rstrip("/") + path, content=content, headers=headers, timeout=self.timeout_s
                )
                if response.status_code < 300:
                    said = cast("Json", response.json())
                    self.calls += 1
                    return said
                why = f"{response.status_code} {response.text[:200]}"
                if response.status_code < 500 and response.status_code != 429:
                    raise _refusal(response)
                pause_s = _retry_after_s(response)
            except (httpx.TransportError, ValueError) as error:  # ValueError: an answer that is not JSON
                why = repr(error)
            if pause_s is None:  # half of it is chance, so that many clients do not come back at one moment
                pause_s = wait_s * (0.5 + random.random() / 2)  # noqa: S311
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            if self.clock() + pause_s > give_up:
                raise Unreachable(f"{path}: no answer within {self.patience_s:g} s; the last try: {why}")
            await self.sleep(pause_s)

    async def events(self, session_id: str, *, after: int = 0) -> AsyncGenerator[Json, None]:
        """The session's events with a seq above ``after``, until it is COMPLETE; none comes twice.

        A connection that is cut or falls silent is opened again, behind the last event that came (``Last-Event-ID``).
        Raises ``Refused``, and ``Unreachable`` when nothing has come for as long as this client is patient, not even a
        sign of life.
        """
        if self.http is None:
            raise RuntimeError("use `async with Sluicegate(…)`, or give it an http client")
        url = f"{self.url.rstrip('/')}/v1/stream/events?session_id={session_id}"
        give_up, wait_s = self.clock() + self.patience_s, FIRST_WAIT_S
        while True:
            headers = {"Authorization": f"Bearer {self.key}", "Accept": "text/event-stream"}
            if after:
                headers["Last-Event-ID"] = str(after)
            why = "the events ended before the session did"
            pause_s: float | None = None
            try:
                limits = httpx.Timeout(self.timeout_s, read=self.silence_s)
                async with self.http.stream("GET", url, headers=headers, timeout=limits) as response:
                    if response.status_code == 204:
                        return
                    if response.status_code >= 300:
                        await response.aread()
                        why = f"{response.status_code} {response.text[:200]}"
                        if response.status_code < 500 and response.status_code != 429:
                            raise _refusal(response)
                        pause_s = _retry_after_s(response)
                    else:
                        async with aclosing(_events_of(response)) as events:
                            async for event in events:
                                if event is None:
                                    give_up, wait_s = self.clock() + self.patience_s, FIRST_WAIT_S
                                    continue
                                # Seq 0 stands in no log: it says how a session ended whose log is gone.
                                seq = int(str(event["seq"]))
                                if 0 < seq <= after:
                                    continue
                                if seq:
                                    after, give_up, wait_s = seq, self.clock() + self.patience_s, FIRST_WAIT_S
                                yield event
                                if event["type"] == "state" and event["state"] == "COMPLETE":
                                    return
            except (httpx.TransportError, ValueError) as error:
                why = repr(error)
            if pause_s is None:
                pause_s, wait_s = wait_s * (0.5 + random.random() / 2), min(2 * wait_s, LONGEST_WAIT_S)  # noqa: S311
            if self.clock() + pause_s > give_up:
                raise Unreachable(f"no events within {self.patience_s:g} s; the last try: {why}")
            await self.sleep(pause_s)


@dataclass(slots=True)
class Stream:
    """One session, call by call. ``guard`` is this with the collecting of chunks."""

    gate: Sluicegate
    opening: Json
    session_id: str = ""
    hints: Hints = field(default_factory=lambda: Hints(max_delta_chars=1_000, flush_ms=800))
    blocked: bool = False
    _half: str = ""
    """Half a character (one of two surrogates) at the end of the text so far; it is sent with what follows."""
    _waiting: int = 0
    """The chunks of that half, where there was nothing else in them."""
    _sent: list[Json] = field(default_factory=list)
    """The delta of each seq with its chunks, for the case that the server asks for one again."""
    _visible: str = ""
    """The visible text as the server's last answer leaves it."""
    _shown: str = ""
    """The visible text as the events so far leave it."""
    _told: set[tuple[int, str, str, int, int]] = field(default_factory=set)
    _found: list[Finding] = field(default_factory=list)

    async def start(self, delta: str | None = None, chunks: int | None = None) -> list[Event]:
        """Begin; a repeated start is the same start. ``chunks``: so many of the model's are in the delta."""
        first = None if delta is None else self._next(delta, chunks)
        self._sent = [] if first is None else [first]
        body = {**self.opening, **(self._sent[0] if self._sent else {})}
        answer = await self._start(body, {"Idempotency-Key": str(uuid4())})
        self.session_id = answer["session_id"]
        self._take(answer)
        return self._events()

    async def update(self, delta: str, chunks: int | None = None) -> list[Event]:
        """Send what is new; ``chunks``: so many of the model's are in it."""
        if (said := self._next(delta, chunks)) is None:
            return []
        self._sent.append(said)
        await self._send_from(len(self._sent))
        return self._events()

    async def finish(self, delta: str = "", chunks: int | None = None) -> list[Event]:
        """Send the last of the text and end it; the last of the events is ``Ended``."""
        if not self.blocked:
            delta, chunks = self._half + delta, None if chunks is None else chunks + self._waiting
        while True:
            # Always with its seq: a server that lost its newest state must not take this for the end of what it has.
            body: Json = {"session_id": self.session_id, "seq": len(self._sent) + 1}
            try:
                answer = await self._post("finish", {**body, **_delta(delta, chunks)} if delta else body)
                break
            except OutOfTurn as error:
                await self._send_from(self._asked_for(error, below=len(self._sent) + 1))
        self._take(answer)
        summary = answer.get("summary", {})
        ended = Ended(self.session_id, answer["state"], str(summary.get("outcome", "")), summary)
        return [*self._events(), ended]

    async def status(self) -> Status:
        """What the server knows; asking keeps an open stream from expiring."""
        said = await self.gate.call("GET", f"/v1/stream/status?session_id={self.session_id}")
        return cast("Status", said)

    async def _start(self, body: Json, headers: dict[str, str]) -> Answer:
        while True:
            try:
                return cast("Answer", await self.gate.call("POST", "/v1/stream/start", body, **headers))
            except OutOfTurn as error:
                if error.code != "seq_conflict":
                    raise
                await self.gate.sleep(FIRST_WAIT_S)  # an earlier try of this very start is still under way

    def _next(self, delta: str, chunks: int | None) -> Json | None:
        """What is sent of the text so far; None when that is nothing but half a character."""
        whole, self._half = self._half + delta, ""
        if whole and "\ud800" <= whole[-1] <= "\udbff":
            whole, self._half = whole[:-1], whole[-1]
        came = None if chunks is None else chunks + self._waiting
        self._waiting = 0
        if whole or not self._half:
            return _delta(whole, came)
        self._waiting = came or 0
        return None

    async def _send_from(self, seq: int) -> None:
        while seq <= len(self._sent):
            body: Json = {"session_id": self.session_id, "seq": seq, **self._sent[seq - 1]}
            try:
                self._take(await self._post("update", body))
                seq += 1
            except OutOfTurn as error:
                seq = self._asked_for(error, below=seq)

    def _asked_for(self, error: OutOfTurn, *, below: int) -> int:
        """The earlier seq that the server wants again; anything else is not for this client to repair."""
        if error.code != "seq_conflict" or error.expected_seq is None or not 1 <= error.expected_seq < below:
            raise error
        return error.expected_seq

    async def _post(self, name: str, body: Json) -> Answer:
        return cast("Answer", await self.gate.call("POST", f"/v1/stream/{name}", body))

    def _take(self, answer: Answer) -> None:
        at = answer["released_chars"] - len(answer["released"])
        self._visible = self._visible[:at] + answer["released"]
        self.hints = answer.get("hints", self.hints)
        self.blocked = self.blocked or answer["action"] == "block"
        for one in answer["findings"]:
            name = (one["n"], one["guardrail"], one["rule"], one["start"], one["end"])
            if name not in self._told:
                self._told.add(name)
                self._found.append(one)

    def _events(self) -> list[Event]:
        """What has changed since the last events. Asked only when nothing has to be sent again any more."""
        events: list[Event] = []
        if self._visible != self._shown:
            at = _common(self._visible, self._shown)
            events.append(Text(at, self._visible[at:]))
            self._shown = self._visible
        events += [Found(one) for one in self._found]
        self._found = []
        return events


def _written(body: Json) -> bytes:
    """As JSON. With escapes where a text has half a character, for which there are no bytes: halves that follow each
    other are one again when they are read, and one that is alone is for the server to refuse."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(body).encode()


def _delta(text: str, chunks: int | None) -> Json:
    """Of a call; a server that knows how many chunks came can say what a check of each would have cost."""
    return {"delta": text} if chunks is None else {"delta": text, "chunks": chunks}


class _Collected:
    """Chunks joined into deltas of the size that the hints allow; a pause of the model does not keep text waiting."""

    def __init__(self, chunks: AsyncIterator[str], clock: Callable[[], float]) -> None:
        self._chunks, self._clock = chunks, clock
        self._text, self._called, self._came = "", 0.0, 0
        self._coming: asyncio.Future[str | None] | None = None
        self._over = False

    async def first(self) -> str | None:
        """The first chunk as it is: a start brings the hints for all others."""
        while not self._text and not self._over:
            await self._read(None)
        text = self._text[:1_000]
        self._text = self._text[1_000:]
        self._called = self._clock()
        return text or None

    async def next(self, hints: Hints) -> str | None:
        """The next delta; None when there is no more, and what is left goes with the finish.

        It is due so long after the last call, not after its first chunk: then that is also the longest time between
        two answers while the model speaks, and what comes after a pause of the model is sent at once.
        """
        most, flush_s = max(1, hints["max_delta_chars"]), hints["flush_ms"] / 1000
        took_s = self._clock() - self._called
        due = self._called + min(LATEST * flush_s, max(EARLIEST * flush_s, 1.05 * flush_s - 1.5 * took_s))
        while len(self._text) <= most and not self._over:
            left_s = due - self._clock() if self._text else None
            if left_s is not None and left_s <= 0:
                break
            await self._read(left_s)
        if self._over and len(self._text) <= most:
            return None
        delta, self._text = self._text[:most], self._text[most:]
        self._called = self._clock()
        return delta

    def count(self) -> int:
        """How many chunks have come since this was last asked: those of the delta that is sent now."""
        came, self._came = self._came, 0
        return came

    def rest(self) -> str:
        """What was collected and not sent."""
        return self._text

    async def close(self) -> None:
        """Read no more."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    async def _read(self, limit_s: float | None) -> None:
        if self._coming is None:
            self._coming = asyncio.ensure_future(anext(self._chunks, None))
        done, _ = await asyncio.wait({self._coming}, timeout=limit_s)
        if not done:
            return
        chunk, self._coming = self._coming.result(), None
        if chunk is None:
            self._over = True
        else:
            self._text += chunk
            self._came += 1


async def _events_of(response: httpx.Response) -> AsyncGenerator[Json | None, None]:
    """The data of whole server-sent events, None for a comment. Half an event where a connection is cut is none."""
    data: list[bytes] = []
    async with aclosing(_lines_of(response)) as lines:
        async for line in lines:
            if line.startswith(b":"):
                yield None
            elif line.startswith(b"data:"):
                data.append(line[5:])
            elif not line and data:
                yield cast("Json", json.loads(b"\n".join(data)))
                data = []


async def _lines_of(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Whole lines. LF alone ends one: whatever else Unicode takes for a line's end may stand in an event's text."""
    parts: list[bytes] = []
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as came:
        async for part in came:
            *whole, rest = part.split(b"\n")
            for line in whole:
                yield b"".join([*parts, line])
                parts = []
            parts.append(rest)


def _common(one: str, other: str) -> int:
    if one.startswith(other):
        return len(other)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _refusal(response: httpx.Response) -> Refused:
    try:
        said = response.json()["error"]
        code, message = str(said["code"]), str(said["message"])
        field, expected = str(said.get("field", "")), said.get("expected_seq")
    except (ValueError, KeyError, TypeError, AttributeError):  # something between us and the server has answered
        code, message, field, expected = "unknown", response.text[:200], "", None
        if response.has_redirect_location:  # not followed: the key goes where it was meant to go
            code, message = "redirected", f"the address leads to {response.headers['Location']}"
    kind = {409: OutOfTurn, 410: StateLost}.get(response.status_code, Refused)
    return kind(response.status_code, code, message, field, expected if isinstance(expected, int) else None)


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
