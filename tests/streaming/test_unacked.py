"""What a socket's client has not acknowledged: counted by the byte, in the order in which it was sent."""

from __future__ import annotations

import asyncio
import sys

import pytest

from streaming.conf import Conf
from streaming.consumers import StreamConsumer
from streaming.unacked import Unacked
from streaming.wake import Wake


def test_it_works() -> None:
    unacked = Unacked()
    for seq in (1, 2, 3):
        unacked.sent("a", seq, 10 * seq)
    assert unacked.bytes == 60
    unacked.acknowledge("a", 2)
    assert unacked.bytes == 30
    unacked.acknowledge("a", 2)
    assert unacked.bytes == 30, "said again, it changes nothing"
    unacked.acknowledge("a", 9)
    assert unacked.bytes == 0


def test_what_was_sent_before_it_is_acknowledged_with_it_whatever_the_session() -> None:
    unacked = Unacked()
    for session, seq in (("a", 1), ("b", 1), ("a", 2), ("b", 2)):
        unacked.sent(session, seq, 1)
    unacked.acknowledge("a", 2)
    assert unacked.bytes == 1
    unacked.acknowledge("b", 1)
    assert unacked.bytes == 1
    unacked.acknowledge("b", 2)
    assert unacked.bytes == 0


def test_a_session_that_nobody_reads_here_acknowledges_nothing() -> None:
    unacked = Unacked()
    unacked.sent("a", 0, 5)
    unacked.acknowledge("b", 7)
    unacked.acknowledge("a", -1)
    assert unacked.bytes == 5


def test_an_event_weighs_three_numbers() -> None:
    unacked = Unacked()
    for seq in range(10_000):
        unacked.sent("a", seq, 100)
    assert sys.getsizeof(unacked._seqs) + sys.getsizeof(unacked._sent) < 10_000 * (8 + 2 * 4) * 1.3


def test_a_seq_has_room_for_a_session_that_counts_on_after_months() -> None:
    unacked = Unacked()
    seq = 200 * 24 * 3_600 * 1_000
    unacked.sent("a", seq, 5)
    unacked.sent("a", seq + 1, 7)
    unacked.acknowledge("a", seq)
    assert unacked.bytes == 7


async def test_of_two_readers_with_room_for_one_event_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what lies unread grows with every session that a socket has resumed."""
    sent: list[str] = []

    async def send(*, text_data: str) -> None:
        sent.append(text_data)

    made = StreamConsumer()
    made.settings, made.unacked, made.room = Conf(max_unacked_bytes=100), Unacked(), Wake()
    monkeypatch.setattr(made, "send", send)
    events = [{"type": "message_stream", "session_id": name, "seq": 1, "chunk": "x" * 100} for name in ("a", "b")]
    async with asyncio.TaskGroup() as readers:
        for event in events:
            readers.create_task(made.pass_on(dict(event), ""))
        for read in (0, 1, 2):
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(sent) == read
            made.acknowledge(made.last_read if sent else "", 1)
