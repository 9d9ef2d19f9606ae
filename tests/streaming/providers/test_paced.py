"""A connection at rest: what comes meanwhile is taken together, nothing is lost, and a rest is nobody's silence."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from streaming.core.events import TextDelta
from streaming.providers import http
from streaming.providers.base import ProviderRequest, ProviderTimeout, StreamCutOff, TimeLimits, never_rest
from streaming.providers.openai import OpenAIProvider
from streaming.providers.waits import Waits
from tests.streaming.local_server import HEAD
from tests.streaming.providers.test_limits import ASK, END, A, Loop, run

TOKENS = 20


@dataclass
class Upstream:
    """Sends the first token, and the others one by one as soon as ``go`` is set; then waits for ``over``."""

    tls: ssl.SSLContext | None = None
    last: bytes = END
    chunked: bool = False
    url: str = ""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self.tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(data: bytes) -> None:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)
            await writer.drain()

        try:
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" if self.chunked else HEAD
            writer.write(head)
            await send(A)
            await self.go.wait()
            for _ in range(TOKENS):
                await send(A)
            await send(self.last)
            self.sent.set()
            if not self.last:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            self.gone.set()
            writer.close()


@dataclass
class Rests:
    """Rests after the first token, and lets the upstream go on when it does."""

    upstream: Upstream
    seconds: float = 0.3
    text: str = ""
    begun: bool = False
    asked: int = 0

    def __call__(self) -> float:
        if not self.begun:
            return 0.0
        self.asked += 1
        self.upstream.go.set()
        return self.seconds


async def answer(upstream: Upstream, rests: Rests) -> str:
    async with aclosing(OpenAIProvider(upstream.url).stream(replace(ASK, rest_s=rests))) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                rests.text, rests.begun = rests.text + event.text, True
    return rests.text


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server on this host shows, and our side believes."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "upstream")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.now(UTC) - timedelta(days=1))
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = signed.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "pem").write_bytes(secret + pem)
    ours = ssl.create_default_context(cadata=pem.decode())
    monkeypatch.setattr(http, "_tls", lambda: ours)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tmp_path / "pem")
    return theirs


async def test_it_works() -> None:
    async with asyncio.timeout(30), Upstream().up() as upstream:
        rests = Rests(upstream)
        assert await answer(upstream, rests) == "a" * (TOKENS + 1)
        assert rests.asked < TOKENS / 2, "what came during a rest is one read"


@pytest.mark.parametrize("chunked", [False, True])
async def test_records_of_tls_that_came_during_a_rest_need_no_rest_each(
    certificate: ssl.SSLContext, chunked: bool
) -> None:
    async with asyncio.timeout(30), Upstream(certificate, chunked=chunked, last=END).up() as upstream:
        rests = Rests(upstream)
        assert await answer(upstream, rests) == "a" * (TOKENS + 1)
        assert rests.asked < TOKENS / 2


async def test_the_socket_is_not_read_while_it_rests() -> None:
    """Everything is sent, and our process has taken none of it: the kernel keeps it."""
    async with asyncio.timeout(30), Upstream(last=b"").up() as upstream:
        rests = Rests(upstream, seconds=3_600)
        events = OpenAIProvider(upstream.url).stream(replace(ASK, rest_s=rests))
        assert await anext(events) == TextDelta("a")
        rests.begun = True
        more = asyncio.ensure_future(anext(events))
        await upstream.sent.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not more.done()
        more.cancel()
        await asyncio.gather(more, return_exceptions=True)
        await events.aclose()
        await upstream.gone.wait()  # and who is interrupted while it rests closes its connection


async def test_text_that_came_before_a_reset_during_a_rest_stands() -> None:
    async with asyncio.timeout(30), Upstream(last=b": ").up() as upstream:
        rests = Rests(upstream)
        with pytest.raises(StreamCutOff):
            await answer(upstream, rests)
        assert rests.text == "a" * (TOKENS + 1)


def resting(limits: TimeLimits, rest_s: Callable[[], float]) -> Waits:
    waits = Waits(limits, "here", rest_s=rest_s)
    waits.connected()
    return waits


async def one_wait(waits: Waits, wait: Callable[[], Awaitable[None]]) -> None:
    async with waits.waiting():
        await wait()


def test_a_rest_is_nobodys_silence() -> None:
    async def test(loop: Loop) -> None:
        waits = resting(TimeLimits(token_s=10, total_s=1_000), lambda: 8.0)

        async def rests_and_listens() -> None:
            loop.call_soon(setattr, loop, "ahead", loop.ahead + 8.1)
            await waits.rest()
            loop.ahead += 1.0

        async def listens() -> None:
            loop.ahead += 6.0
            await asyncio.sleep(3_600)

        for _ in range(5):  # 40 s of rest and 5 s of listening, and never a token
            await one_wait(waits, rests_and_listens)
        with pytest.raises(ProviderTimeout, match="no token for 10 s"):
            await one_wait(waits, listens)

    run(test)


def test_the_limit_for_the_whole_answer_passes_during_a_rest() -> None:
    async def test(loop: Loop) -> None:
        waits = resting(TimeLimits(token_s=10, total_s=20), lambda: 3_600.0)
        loop.call_soon(setattr, loop, "ahead", 20.5)
        with pytest.raises(ProviderTimeout, match="not complete within 20 s"):
            await one_wait(waits, waits.rest)

    run(test)


def test_who_sets_no_rest_never_rests() -> None:
    assert ProviderRequest(()).rest_s is never_rest
    assert ProviderRequest(()) == replace(ProviderRequest(()), rest_s=lambda: 1.0), "it is no part of what is asked"
