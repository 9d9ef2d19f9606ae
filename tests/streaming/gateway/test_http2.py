"""An upstream that offers HTTP/2 is spoken to over HTTP/2: a real peer, real TLS, one connection for many answers."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset

from streaming.gateway import upstream
from streaming.gateway.upstream import Passing
from streaming.providers.base import ProviderUnavailable
from streaming.providers.openai import OpenAIProvider
from tests.streaming.gateway.fake import sse
from tests.streaming.gateway.test_openai_sdk import chunk, whole

LIMIT_S = 60.0


@dataclass
class Peer:
    """``connections``: protocols that were agreed on; ``asked``: bodies; ``reset``: streams that the client ended."""

    port: int = 0
    connections: list[str | None] = field(default_factory=list)
    asked: list[dict[str, object]] = field(default_factory=list)
    reset: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def provider(self) -> OpenAIProvider:
        return OpenAIProvider(f"https://127.0.0.1:{self.port}/v1", "k", "m")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        self.connections.append(tls.selected_alpn_protocol())
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        bodies: dict[int, bytes] = {}
        try:
            while True:
                writer.write(connection.data_to_send())
                if not (data := await reader.read(1 << 16)):
                    return
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived) and event.stream_id is not None:
                        bodies[event.stream_id] = b""
                    elif isinstance(event, DataReceived) and event.stream_id is not None:
                        bodies[event.stream_id] += event.data or b""
                        connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                    elif isinstance(event, StreamEnded) and event.stream_id is not None:
                        self._answer(connection, event.stream_id, json.loads(bodies[event.stream_id]))
                    elif isinstance(event, StreamReset):
                        self.reset.set()
        except ConnectionError:
            return
        finally:
            writer.close()

    def _answer(self, connection: H2Connection, stream_id: int, body: dict[str, object]) -> None:
        self.asked.append(body)
        streaming = body.get("stream") is True
        kind = "text/event-stream" if streaming else "application/json"
        connection.send_headers(stream_id, [(":status", "200"), ("content-type", kind)])
        said = sse(chunk({"role": "assistant", "content": str(body["model"])}), chunk({}, "stop"))
        if body["model"] == "endless":
            connection.send_data(stream_id, said[0])
            return
        for part in said if streaming else whole("Whole."):
            connection.send_data(stream_id, part)
        connection.end_stream(stream_id)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "upstream")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "key.pem", folder / "certificate.pem"
    plain = serialization.NoEncryption()
    paths[0].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=plain)
    )
    paths[1].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return paths


@asynccontextmanager
async def peer(folder: Path) -> AsyncIterator[Peer]:
    """The upstream; the connections to it are closed at the end."""
    key, cert = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    made = Peer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        await upstream.close_pool()
        server.close()


@pytest.fixture
async def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    trusting = upstream._tls.__wrapped__()
    async with peer(tmp_path) as made:
        trusting.load_verify_locations(tmp_path / "certificate.pem")
        monkeypatch.setattr(upstream, "_tls", lambda: trusting)
        yield made


def asked(model: str, *, streaming: bool = True) -> Passing:
    return Passing({"model": model, "messages": [], "stream": streaming}, streaming, {})


async def answer(made: Peer, model: str, *, streaming: bool = True) -> list[dict[str, object]]:
    async with asyncio.timeout(LIMIT_S), aclosing(
        upstream.chunks(made.provider, asked(model, streaming=streaming), "openai")
    ) as found:  # fmt: skip
        return [one async for one in found]


def text(chunks: list[dict[str, object]]) -> str:
    deltas = [one["choices"][0]["delta"] for one in chunks if "choices" in one]  # type: ignore[index]
    return "".join(delta.get("content", "") for delta in deltas)


async def test_it_works(other: Peer) -> None:
    assert text(await answer(other, "first")) == "first"
    (document,) = await answer(other, "second", streaming=False)
    assert document["choices"][0]["message"]["content"] == "Whole."  # type: ignore[index]
    assert other.connections == ["h2"], "both over one connection"
    assert [body["model"] for body in other.asked] == ["first", "second"]


async def test_an_answer_that_nobody_wants_ends_alone_while_others_share_its_connection(other: Peer) -> None:
    async with asyncio.timeout(LIMIT_S):
        endless = upstream.chunks(other.provider, asked("endless"), "openai")
        await anext(endless)
        both = await asyncio.gather(answer(other, "one"), answer(other, "two"))
        assert [text(chunks) for chunks in both] == ["one", "two"], "while the other one is open"
        assert not other.reset.is_set()
        await endless.aclose()
        await other.reset.wait()
        assert text(await answer(other, "three")) == "three"
    assert other.connections == ["h2"]


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(tmp_path: Path) -> None:
    async with peer(tmp_path) as made:
        with pytest.raises(ProviderUnavailable):
            await answer(made, "first")
        assert made.asked == []
