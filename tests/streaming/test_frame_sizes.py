"""A frame has so many bytes at most, whatever its letters are, and the server in front does not decide it first."""

from __future__ import annotations

import json

import pytest
from channels.testing import WebsocketCommunicator
from django.test import override_settings

from project.demo import services
from streaming.conf import Conf
from streaming.frames import AckFrame, FrameError, StartFrame, frame_of, parse_frame
from tests.streaming.test_tenancy import new_key, socket, strict

__all__ = ["strict"]
MOST = Conf().max_frame_bytes
LETTERS = ["x", "é", "語", "😀"]


def padded(size: int, letter: str) -> str:
    """An acknowledgement of so many bytes, most of them this letter's."""
    empty = json.dumps({"type": "ack", "seq": 1, "pad": ""})
    many, rest = divmod(size - len(empty), len(letter.encode()))
    frame = empty.replace('""', f'"{letter * many}{"-" * rest}"')
    assert len(frame.encode()) == size
    return frame


@pytest.mark.parametrize("letter", LETTERS, ids=lambda letter: f"U+{ord(letter):04X}")
def test_it_works(letter: str) -> None:
    assert parse_frame(padded(MOST, letter), Conf()) == AckFrame(type="ack", seq=1)
    with pytest.raises(FrameError) as refused:
        parse_frame(padded(MOST + 1, letter), Conf())
    assert refused.value.code == "too_large"
    assert f"{MOST:,} bytes" in str(refused.value)


def test_half_a_pair_is_no_traceback() -> None:
    with pytest.raises(FrameError) as refused:
        parse_frame(padded(MOST, "x").replace("xxx", "\ud800"), Conf())
    assert refused.value.code == "invalid_text"


def test_a_name_that_nobody_could_read_is_not_repeated_whole() -> None:
    """Of a frame of a megabyte the answer would be two, said to who need not read it."""
    name = "語" * 200
    for given, shown in ((name, name), (name + "x" * 500_000, name + "…")):
        with pytest.raises(FrameError) as refused:
            parse_frame(json.dumps({"type": "ack", "seq": 1, given: "\0"}, ensure_ascii=False), Conf())
        assert (refused.value.code, refused.value.field) == ("invalid_text", shown)
        assert str(refused.value).startswith(f"“{shown}” ")
        assert len(str(refused.value)) < 300


def test_what_came_as_a_call_is_not_measured_again() -> None:
    """A body has its own limit; written anew it would be longer than what was sent."""
    frame = frame_of({"type": "start", "prompt": "語" * 32_000}, Conf(max_frame_bytes=100_000))
    assert isinstance(frame, StartFrame)


def test_the_demos_server_takes_more_than_a_frame_may_have() -> None:
    for most in (MOST, 20 * 1024 * 1024):
        with override_settings(SLUICEGATE_MAX_FRAME_BYTES=most):
            argv = services.web({}, 8000).argv
        for option in ("--websocket-max-message-size", "--websocket-max-frame-size"):
            assert int(argv[argv.index(option) + 1]) > most


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("demo_policy", "valkey_url", strict.__name__)
@override_settings(SLUICEGATE_MAX_FRAME_BYTES=2_000)
async def test_the_socket_says_it_and_stays_open() -> None:
    made: WebsocketCommunicator = await socket(key=await new_key("owner"))
    await made.send_to(padded(2_001, "é"))
    said = json.loads(await made.receive_from(timeout=60))
    assert (said["type"], said["code"]) == ("error", "too_large")
    await made.send_to(padded(2_000, "é"))  # taken: nothing is said about it
    await made.send_to('{"type": "fly"}')
    assert json.loads(await made.receive_from(timeout=60))["code"] == "unknown_type"
    await made.disconnect()
