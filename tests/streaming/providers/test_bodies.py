"""Bodies that are compressed although nobody asked for it: read as they come, in memory never larger than a limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import httpx
import pytest

from streaming.core.sse import SseParser, SseTooLarge
from streaming.providers import bodies
from streaming.providers.base import ProviderProtocolError, TimeLimits
from streaming.providers.waits import Waits
from tests.streaming.local_server import cuts

TEXT = "".join(f"data: {number} Grüße\n\n" for number in range(2_000)).encode()
MEGABYTE = 1024 * 1024


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "not at all": ("", bytes),
    "identity": ("identity", bytes),
    "a word that is no coding": ("utf-8", bytes),
    "gzip": ("gzip", gzip.compress),
    "its old name": ("X-Gzip", gzip.compress),
    "gzip and nothing": ("gzip, identity", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its frame": ("deflate", bare),
}


class Body(httpx.AsyncByteStream):
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


def response(coding: str, parts: list[bytes]) -> httpx.Response:
    headers = {"Content-Encoding": coding} if coding else {}
    return httpx.Response(200, headers=headers, stream=Body(parts), request=httpx.Request("GET", "http://box"))


async def read(coding: str, parts: list[bytes]) -> list[bytes]:
    async with aclosing(bodies.pieces(response(coding, parts))) as found:
        return [piece async for piece in found]


def bomb(size: int, filling: bytes = b"\0") -> bytes:
    """A body that grows a thousandfold."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(filling * MEGABYTE) for _ in range(size // MEGABYTE)) + packer.flush()


@pytest.mark.parametrize("packed", PACKED)
async def test_it_works(packed: str) -> None:
    coding, pack = PACKED[packed]
    for seed in range(5):
        parts = cuts(pack(TEXT), seed, most=1 if seed == 0 else 3_000)
        assert b"".join(await read(coding, parts)) == TEXT


async def test_what_has_been_packed_so_far_is_told_at_once() -> None:
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH) for word in (b"one ", b"two ", b"three")]
    assert await read("gzip", parts) == [b"one ", b"two ", b"three"]


async def test_what_grows_beyond_measure_is_refused_before_it_is_large() -> None:
    sizes: list[int] = []

    async def take() -> None:
        async with aclosing(bodies.pieces(response("gzip", [bomb(8 * MEGABYTE)]))) as found:
            async for piece in found:
                sizes.append(len(piece))  # noqa: PERF401 - what came before an error counts

    with pytest.raises(ProviderProtocolError, match="beyond all measure"):
        await take()
    assert sum(sizes) <= bodies.GROWS_FREELY_BYTES


async def test_a_stream_of_chunks_that_are_all_alike_does_not_grow_like_that() -> None:
    chunk = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
    chunks = b"".join(chunk % number for number in range(20_000))
    assert len(chunks) > 4 * bodies.GROWS_FREELY_BYTES
    assert b"".join(await read("gzip", [gzip.compress(chunks)])) == chunks


async def test_a_piece_is_small_whatever_it_was_packed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_GROWTH", 2_000)
    packed = bomb(64 * MEGABYTE)
    assert len(packed) < 80_000
    size = 0
    tracemalloc.start()
    try:
        async with aclosing(bodies.pieces(response("gzip", [packed]))) as found:
            async for piece in found:
                assert len(piece) <= bodies.MAX_PIECE_BYTES
                size += len(piece)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 64 * MEGABYTE
    assert most < 2 * MEGABYTE


async def test_the_limits_of_size_hold_for_what_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_GROWTH", 2_000)
    packed = bomb(64 * MEGABYTE)
    tracemalloc.start()
    try:
        with pytest.raises(ProviderProtocolError, match="larger than 16,777,216 bytes"):
            await bodies.whole(response("gzip", [packed]), Waits(TimeLimits(), "box", whole=True))
        told = await bodies.beginning(response("gzip", [packed]), Waits(TimeLimits(), "box"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(told) <= bodies.MAX_ERROR_BYTES + bodies.MAX_PIECE_BYTES
    assert most < 64 * MEGABYTE / 1.5


@pytest.mark.parametrize("coding", ["gzip, gzip", "gzip,deflate", "deflate, br", "x-gzip, identity, gzip"])
async def test_what_is_packed_twice_is_refused_before_a_byte_of_it_is_unpacked(coding: str) -> None:
    with pytest.raises(ProviderProtocolError, match="more than once"):
        await read(coding, [gzip.compress(gzip.compress(b"text"))])


@pytest.mark.parametrize("coding", ["br", "zstd", "compress"])
async def test_what_cannot_be_unpacked_here_is_refused_by_name(coding: str) -> None:
    with pytest.raises(ProviderProtocolError, match=rf"compressed \({coding}\)"):
        await read(coding, [b"text"])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_what_is_not_packed_as_it_says_is_no_dialect(coding: str) -> None:
    with pytest.raises(ProviderProtocolError, match="could not be decompressed"):
        await read(coding, [b"data: this is plain text\n\n"])
    packed = PACKED[coding][1](TEXT)
    with pytest.raises(ProviderProtocolError, match="could not be decompressed"):
        await read(coding, [packed[:50], b"\xff" * 100, packed[150:]])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_an_end_that_is_missing_leaves_what_came_and_what_follows_the_end_is_nothing(coding: str) -> None:
    packed = PACKED[coding][1](TEXT)
    came = b"".join(await read(coding, [packed[:-20]]))
    assert came
    assert TEXT.startswith(came)
    assert b"".join(await read(coding, [packed, b"more", b"\0" * 1_000])) == TEXT


def test_lines_of_nothing_take_room_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """One event of them alone would otherwise grow for as long as somebody sends them."""
    monkeypatch.setattr("streaming.core.sse.MAX_EVENT_BYTES", 50_000)
    parser = SseParser()
    parser.feed(b"data:\n" * 40_000)
    with pytest.raises(SseTooLarge):
        parser.feed(b"data:\n" * 20_000)
