"""The response buffer: nothing lost, order kept, nothing late; and readers, who get what it lets through at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.conf import Conf
from streaming.core.buffer import LATEST_S, ResponseBuffer
from streaming.core.events import Done, Hold, MessageStream, Redaction, ServerEvent, StateChange
from streaming.log import MemoryLog
from streaming.models import AuditSession
from streaming.reader import follow

Event = dict[str, object]


def text(chunk: str, channel: str = "text") -> MessageStream:
    return MessageStream("m", channel, 0, chunk)


@dataclass
class Teller:
    """A buffer whose flushes are made exactly when they are due, and when each event left it."""

    buffer: ResponseBuffer = field(default_factory=ResponseBuffer)
    sent: list[tuple[float, ServerEvent]] = field(default_factory=list)

    def at(self, now: float, *events: ServerEvent) -> None:
        self.until(now)
        self._send(now, self.buffer.take(events, now))

    def until(self, now: float) -> None:
        while (due := self.buffer.due_at) is not None and due <= now:
            self._send(due, self.buffer.flush(due))

    def _send(self, now: float, events: list[ServerEvent]) -> None:
        self.sent += [(now, event) for event in events]

    @property
    def chunks(self) -> list[tuple[float, object]]:
        return [(round(at, 6), getattr(event, "chunk", None)) for at, event in self.sent]


def test_it_works() -> None:
    teller = Teller()
    teller.at(0.0, text("A"))
    teller.at(0.01, text(" canal"))
    teller.at(0.02, text(" lock"))
    teller.at(0.06, text(" is"))
    teller.until(1.0)
    assert teller.chunks == [(0.0, "A"), (0.05, " canal lock"), (0.16, " is")]


def test_first_character_of_an_answer_does_not_wait_behind_its_thinking() -> None:
    teller = Teller()
    teller.at(0.0, text("hm", "thinking"))
    teller.at(0.001, text("x", "thinking"), text("T"))
    assert teller.chunks == [(0.0, "hm"), (0.001, "x"), (0.001, "T")]


def test_few_characters_never_wait_longer_than_a_tenth_of_a_second() -> None:
    teller = Teller()
    teller.at(0.0, text("a"))
    for n in range(1, 9):
        teller.at(n * 0.012, text("b"))
    teller.until(1.0)
    assert teller.chunks == [(0.0, "a"), (0.112, "bbbbbbbb")]


def test_a_fast_model_is_shown_at_a_faster_pace() -> None:
    teller = Teller()
    teller.at(0.0, text("a"))
    teller.at(0.001, text("b" * 256))
    teller.until(0.019)
    assert len(teller.sent) == 1
    teller.at(0.0195, text("c"))
    teller.until(1.0)
    assert teller.chunks == [(0.0, "a"), (0.02, "b" * 256 + "c")]


def test_text_after_a_pause_goes_at_once_when_it_is_enough() -> None:
    teller = Teller()
    teller.at(0.0, text("a"))
    teller.at(5.0, text("ten chars."))
    teller.at(5.01, text("nine char"))
    assert teller.chunks == [(0.0, "a"), (5.0, "ten chars.")]


def test_control_events_go_at_once_behind_what_is_pending() -> None:
    chip, hold = Redaction("m", "text", 2, "[SSN]"), Hold("m", "text", 3, "pii", "ssn")
    teller = Teller()
    teller.at(0.0, text("a"))
    teller.at(0.001, text("b"), chip, text("c"), hold, text("d"), text("e"))
    types = [(event.type, getattr(event, "chunk", None)) for _, event in teller.sent]
    assert types == [
        ("message_stream", "a"), ("message_stream", "b"), ("redaction", None), ("message_stream", "c"), ("hold", None)
    ]  # fmt: skip
    teller.until(1.0)
    assert teller.chunks[-1] == (0.101, "de")


def test_the_end_of_a_run_of_chunks_is_no_text_and_does_not_wait() -> None:
    teller = Teller()
    teller.at(0.0, text("a"), text("b"), MessageStream("m", "text", 0, "", is_final=True))
    assert [event.is_final for _, event in teller.sent if isinstance(event, MessageStream)] == [False, True]


_events = st.one_of(
    st.builds(text, st.text("abc", min_size=1, max_size=400), st.sampled_from(["text", "thinking"])),
    st.builds(text, st.text("abc", min_size=1, max_size=4)),
    st.just(Hold("m", "text", 1, "g", "r")),
    st.just(MessageStream("m", "text", 0, "", is_final=True)),
)
_batches = st.lists(st.tuples(st.floats(0, 0.2), st.lists(_events, min_size=1, max_size=6)), max_size=30)


@given(_batches)
def test_nothing_is_lost_reordered_or_late_however_events_come(batches: list[tuple[float, list[ServerEvent]]]) -> None:
    teller, now = Teller(), 0.0
    came: list[tuple[float, tuple[object, ...]]] = []
    for pause, events in batches:
        now += pause
        came += flat(now, events)
        teller.at(now, *events)
    teller.until(now + 1)
    left = [piece for at, event in teller.sent for piece in flat(at, [event])]
    assert [piece for _, piece in left] == [piece for _, piece in came]
    begun: set[object] = set()
    for (at, piece), (since, _) in zip(left, came, strict=True):
        assert at - since <= LATEST_S + 1e-9
        if len(piece) == 2:
            assert at == since, "what is no text does not wait"
        elif piece[1] not in begun:
            begun.add(piece[1])
            assert at == since, "nor does the first text of a channel"


def looks(arrivals: list[tuple[float, str]], *, rests: bool) -> tuple[list[tuple[float, str]], int]:
    """When each character was told to whom, and how often somebody looked at the source. Time stands while we work."""
    teller, at, now, looked = Teller(), 0, 0.0, 0
    while at < len(arrivals):
        now = max(now + (teller.buffer.rest(now) if rests else 0.0), arrivals[at][0])
        teller.until(now)
        looked, due = looked + 1, False
        while at < len(arrivals) and arrivals[at][0] <= now:
            due |= teller.buffer.add([text(arrivals[at][1])], now)
            at += 1
        if due:
            teller._send(now, teller.buffer.take([], now))
    teller.until(now + 1)
    return [(at, char) for at, event in teller.sent for char in getattr(event, "chunk", "")], looked


@given(st.lists(st.tuples(st.floats(0, 0.2), st.text("abc", min_size=1, max_size=40)), min_size=1, max_size=60))
def test_a_source_that_rests_loses_nothing_is_never_later_than_the_latest_and_begins_at_once(
    pieces: list[tuple[float, str]],
) -> None:
    now, arrivals = 0.0, list[tuple[float, str]]()
    for pause, chunk in pieces:
        now += pause
        arrivals.append((now, chunk))
    told, _ = looks(arrivals, rests=True)
    came = [(at, char) for at, chunk in arrivals for char in chunk]
    assert [char for _, char in told] == [char for _, char in came]
    assert told[0][0] == came[0][0]
    for (out, _), (since, _) in zip(told, came, strict=True):
        assert since <= out <= since + LATEST_S + 1e-9


@pytest.mark.parametrize(("rate", "size", "fewer"), [(100, 7, 4.5), (50, 5, 2.2), (3_000, 5, 1.2)])
def test_a_source_that_rests_is_asked_once_a_flush_and_its_text_is_hardly_later(
    rate: int, size: int, fewer: float
) -> None:
    arrivals = [(n / rate, "x" * size) for n in range(rate * 5)]
    awake, often = looks(arrivals, rests=False)
    rested, seldom = looks(arrivals, rests=True)
    assert often == len(arrivals)
    assert seldom * fewer < often
    mean = sum(rest - wake for (rest, _), (wake, _) in zip(rested, awake, strict=True)) / len(awake)
    assert mean < 0.005


def test_a_source_does_not_rest_before_something_is_told_nor_when_the_next_character_may_be_due() -> None:
    buffer = ResponseBuffer()
    assert buffer.rest(0.0) == 0.0
    assert buffer.take([text("A")], 0.0)
    assert buffer.rest(0.01) == pytest.approx(0.042)
    assert not buffer.take([text("few")], 0.053)
    assert buffer.rest(0.053) == 0.0, "with ten characters it would be due"
    assert buffer.due_at == pytest.approx(0.11), "counted from the beginning of the rest"
    assert buffer.take([text("and more.")], 0.06)
    assert buffer.rest(0.06) == pytest.approx(0.052)


def test_a_source_that_was_fast_is_asked_when_the_faster_pace_may_apply() -> None:
    buffer = ResponseBuffer()
    assert buffer.take([text("A")], 0.0)
    assert buffer.take([text("x" * 150)], 0.06)
    assert buffer.rest(0.06) == pytest.approx(0.02)
    assert not buffer.take([text("x" * 150)], 0.08)
    assert buffer.rest(0.081) == 0.0
    assert buffer.take([text("x" * 150)], 0.085)


def flat(at: float, events: list[ServerEvent]) -> list[tuple[float, tuple[object, ...]]]:
    """Every character on its own, so that joined and single chunks compare equal."""
    out: list[tuple[float, tuple[object, ...]]] = []
    for event in events:
        if isinstance(event, MessageStream) and not event.is_final:
            out += [(at, (event.type, event.channel, char)) for char in event.chunk]
        else:
            out.append((at, (event.type, getattr(event, "channel", ""))))
    return out


async def _append(log: MemoryLog, *events: ServerEvent) -> int:
    return await log.append("s", [event.payload() for event in events], ms=1)


async def _never(session_id: str) -> tuple[object, tuple[ServerEvent, ...]]:
    raise AssertionError("a reader that is told something need not ask the database")


async def test_chunks_that_are_read_together_are_joined_and_say_the_last_seq() -> None:
    log = MemoryLog()
    await _append(log, text("a"), text("b"))
    async with (
        asyncio.timeout(5),
        aclosing(follow(log, "s", 0, Conf(), correlation_id="c", session_over=_never)) as batches,
    ):  # type: ignore[arg-type]
        assert [(event["chunk"], event["seq"]) for event in await anext(batches)] == [("ab", 2)]


async def test_resume_from_the_last_event_that_was_given_misses_nothing() -> None:
    log, got = MemoryLog(), ""
    await _append(log, text("a"), text("b"), text("c"))
    async with aclosing(follow(log, "s", 0, Conf(), correlation_id="c", session_over=_never)) as batches:  # type: ignore[arg-type]
        (event,) = await anext(batches)
        got += str(event["chunk"])
    await _append(log, text("d"), Done("abcd", "allowed"), StateChange("COMPLETE", "allowed"))
    async with aclosing(
        follow(log, "s", int(str(event["seq"])), Conf(), correlation_id="c", session_over=_never)
    ) as batches:  # type: ignore[arg-type]
        async for batch in batches:
            got += "".join(str(event.get("chunk", "")) for event in batch)
    assert got == "abcd"


async def test_a_reader_that_asks_between_the_storing_of_the_end_and_its_telling_misses_nothing() -> None:
    log, got = MemoryLog(), ""
    await _append(log, text("It "))

    async def stored(session_id: str) -> tuple[AuditSession.State, tuple[ServerEvent, ...]]:
        rest = (text("works."), Done("It works.", "allowed"), StateChange("COMPLETE", "allowed"))
        telling.add(asyncio.create_task(_append(log, *rest)))
        return AuditSession.State.COMPLETE, (Done("It works.", "allowed"), StateChange("COMPLETE", "allowed"))

    telling: set[asyncio.Task[int]] = set()
    asks = Conf(log_poll_s=0.01, idle_check_s=0.02)
    async with asyncio.timeout(30):
        async for batch in follow(log, "s", 0, asks, correlation_id="c", session_over=stored):
            got += "".join(str(event.get("chunk", "")) for event in batch)
    assert got == "It works."


@pytest.mark.parametrize("after", [0, 3, 19, 20])
async def test_memory_log_reads_from_any_place(after: int) -> None:
    log = MemoryLog()
    for n in range(20):
        await _append(log, text(str(n)))
    assert [event["seq"] for event in await log.read("s", after, 5)] == list(range(after + 1, min(after + 6, 21)))
