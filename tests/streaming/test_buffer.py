"""The response buffer: nothing lost, order kept, nothing late; and the reader that it stands behind."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.conf import Conf
from streaming.core.buffer import LATEST_S, ResponseBuffer
from streaming.core.events import Hold, MessageStream, Redaction, ServerEvent, StateChange, stamp
from streaming.log import LogUnavailable, MemoryLog
from streaming.reader import follow

Event = dict[str, object]


def stamped(*events: ServerEvent, first: int = 1) -> list[Event]:
    return [stamp(event.payload(), seq=seq, session_id="s", ms=seq) for seq, event in enumerate(events, start=first)]


def text(chunk: str, channel: str = "text") -> MessageStream:
    return MessageStream("m", channel, 0, chunk)


@dataclass
class Reader:
    """A buffer whose flushes are made exactly when they are due, and when each event left it."""

    buffer: ResponseBuffer = field(default_factory=ResponseBuffer)
    sent: list[tuple[float, Event]] = field(default_factory=list)
    seq: int = 0

    def at(self, now: float, *events: ServerEvent) -> None:
        self.until(now)
        self._send(now, self.buffer.take(stamped(*events, first=self.seq + 1), now))
        self.seq += len(events)

    def until(self, now: float) -> None:
        while (due := self.buffer.due_at) is not None and due <= now:
            self._send(due, self.buffer.flush(due))

    def _send(self, now: float, events: list[Event]) -> None:
        self.sent += [(now, event) for event in events]

    @property
    def chunks(self) -> list[tuple[float, object]]:
        return [(round(at, 6), event.get("chunk")) for at, event in self.sent]


def test_it_works() -> None:
    reader = Reader()
    reader.at(0.0, text("A"))
    reader.at(0.01, text(" canal"))
    reader.at(0.02, text(" lock"))
    reader.at(0.06, text(" is"))
    reader.until(1.0)
    assert reader.chunks == [(0.0, "A"), (0.05, " canal lock"), (0.16, " is")]


def test_first_character_of_an_answer_does_not_wait_behind_its_thinking() -> None:
    reader = Reader()
    reader.at(0.0, text("hm", "thinking"))
    reader.at(0.001, text("x", "thinking"), text("T"))
    assert reader.chunks == [(0.0, "hm"), (0.001, "x"), (0.001, "T")]


def test_few_characters_never_wait_longer_than_a_tenth_of_a_second() -> None:
    reader = Reader()
    reader.at(0.0, text("a"))
    for n in range(1, 9):
        reader.at(n * 0.012, text("b"))
    reader.until(1.0)
    assert reader.chunks == [(0.0, "a"), (0.112, "bbbbbbbb")]


def test_a_fast_model_is_shown_at_a_faster_pace() -> None:
    reader = Reader()
    reader.at(0.0, text("a"))
    reader.at(0.001, text("b" * 256))
    reader.until(0.019)
    assert len(reader.sent) == 1
    reader.at(0.0195, text("c"))
    reader.until(1.0)
    assert reader.chunks == [(0.0, "a"), (0.02, "b" * 256 + "c")]


def test_text_after_a_pause_goes_at_once_when_it_is_enough() -> None:
    reader = Reader()
    reader.at(0.0, text("a"))
    reader.at(5.0, text("ten chars."))
    reader.at(5.01, text("nine char"))
    assert reader.chunks == [(0.0, "a"), (5.0, "ten chars.")]


def test_control_events_go_at_once_behind_what_is_pending() -> None:
    chip, hold = Redaction("m", "text", 2, "[SSN]"), Hold("m", "text", 3, "pii", "ssn")
    reader = Reader()
    reader.at(0.0, text("a"))
    reader.at(0.001, text("b"), chip, text("c"), hold, text("d"), text("e"))
    types = [(event["type"], event.get("chunk")) for _, event in reader.sent]
    assert types == [
        ("message_stream", "a"), ("message_stream", "b"), ("redaction", None), ("message_stream", "c"), ("hold", None)
    ]  # fmt: skip
    reader.until(1.0)
    assert reader.chunks[-1] == (0.101, "de")


def test_the_end_of_a_run_of_chunks_is_no_text_and_does_not_wait() -> None:
    reader = Reader()
    reader.at(0.0, text("a"), text("b"), MessageStream("m", "text", 0, "", is_final=True))
    assert [event["is_final"] for _, event in reader.sent] == [False, True]


def test_joined_event_says_the_last_seq_so_that_a_resume_misses_nothing_and_repeats_nothing() -> None:
    reader = Reader()
    reader.at(0.0, text("a"), text("b"), text("c"))
    assert [event["seq"] for _, event in reader.sent] == [1]
    reader.at(0.05, text("defghijkl"))
    assert [event["seq"] for _, event in reader.sent] == [1, 4]
    reader.at(0.06, text("m"))
    assert reader.sent[-1][1]["seq"] == 4, "what is pending has not been given to this reader yet"


_events = st.one_of(
    st.builds(text, st.text("abc", min_size=1, max_size=400), st.sampled_from(["text", "thinking"])),
    st.builds(text, st.text("abc", min_size=1, max_size=4)),
    st.just(Hold("m", "text", 1, "g", "r")),
    st.just(MessageStream("m", "text", 0, "", is_final=True)),
)
_batches = st.lists(st.tuples(st.floats(0, 0.2), st.lists(_events, min_size=1, max_size=6)), max_size=30)


@given(_batches)
def test_nothing_is_lost_reordered_or_late_however_events_come(batches: list[tuple[float, list[ServerEvent]]]) -> None:
    reader, now, came, whole = Reader(), 0.0, {}, []
    for pause, events in batches:
        now += pause
        for event in stamped(*events, first=reader.seq + 1):
            came[event["seq"]] = now
            whole.append(event)
        reader.at(now, *events)
    reader.until(now + 1)

    def flat(events: list[Event]) -> list[tuple[object, ...]]:
        """Every character on its own, so that joined and single chunks compare equal."""
        out: list[tuple[object, ...]] = []
        for event in events:
            place = (event["type"], event.get("channel"))
            out += [(*place, char) for char in str(event.get("chunk", ""))] if event.get("chunk") else [place]
        return out

    sent = [event for _, event in reader.sent]
    assert flat(sent) == flat(whole)
    seqs = [int(str(event["seq"])) for event in sent]
    assert seqs == sorted(set(seqs))
    begun: set[object] = set()
    upto = 0
    for at, event in reader.sent:
        covered = range(upto + 1, int(str(event["seq"])) + 1)
        upto = covered[-1]
        assert at - came[covered[0]] <= LATEST_S + 1e-9
        if event["type"] != "message_stream" or event["is_final"]:
            assert at == came[event["seq"]]
        elif event["channel"] not in begun:
            begun.add(event["channel"])
            assert at == came[covered[0]]
    assert upto == len(whole)


async def _append(log: MemoryLog, *events: ServerEvent) -> int:
    return await log.append("s", [event.payload() for event in events], ms=1)


async def _never(session_id: str) -> tuple[object, tuple[ServerEvent, ...]]:
    raise AssertionError("a reader that is told something need not ask the database")


async def test_a_reader_gets_what_is_pending_without_another_event() -> None:
    log = MemoryLog()
    await _append(log, text("a"), text("b"))
    async with asyncio.timeout(5), aclosing(follow(log, "s", 0, Conf(), session_over=_never)) as batches:  # type: ignore[arg-type]
        assert [event["chunk"] for event in await anext(batches)] == ["a"]
        began = time.monotonic()
        assert [(event["chunk"], event["seq"]) for event in await anext(batches)] == [("b", 2)]
    assert time.monotonic() - began < 2, "far less than the log's poll and the database's turn together"


async def test_resume_from_the_last_event_that_was_given_misses_nothing() -> None:
    log, got = MemoryLog(), ""
    await _append(log, text("a"), text("b"), text("c"))
    async with aclosing(follow(log, "s", 0, Conf(), session_over=_never)) as batches:  # type: ignore[arg-type]
        (event,) = await anext(batches)
        got += str(event["chunk"])
    await _append(log, text("d"), StateChange("COMPLETE", "allowed"))
    async with aclosing(follow(log, "s", int(str(event["seq"])), Conf(), session_over=_never)) as batches:  # type: ignore[arg-type]
        async for batch in batches:
            got += "".join(str(event.get("chunk", "")) for event in batch)
    assert got == "abcd"


async def test_a_log_that_goes_away_takes_nothing_that_was_read_with_it() -> None:
    class Going(MemoryLog):
        gone = False

        async def read(self, session_id: str, after: int, count: int = 500) -> list[Event]:
            if self.gone:
                raise LogUnavailable("away")
            return await super().read(session_id, after, count)

    log = Going()
    await _append(log, text("a"), text("b"))
    async with aclosing(follow(log, "s", 0, Conf(), session_over=_never)) as batches:  # type: ignore[arg-type]
        await anext(batches)
        log.gone = True
        await _append(log, text("c"))
        assert [event["chunk"] for event in await anext(batches)] == ["b"]
        with pytest.raises(LogUnavailable):
            await anext(batches)


@pytest.mark.parametrize("after", [0, 3, 19, 20])
async def test_memory_log_reads_from_any_place(after: int) -> None:
    log = MemoryLog()
    for n in range(20):
        await _append(log, text(str(n)))
    assert [event["seq"] for event in await log.read("s", after, 5)] == list(range(after + 1, min(after + 6, 21)))
