"""Calls to addresses that a policy names: where they may not go, however the address is dressed up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest

from guardrails.kinds.base import CheckFailed, Reply
from streaming import outbound
from streaming.outbound import AddressRefused, post, secret

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer secret", "X-Sluicegate-Signature": "t=1,v1=ab"}


@asynccontextmanager
async def endpoint(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A local server that gives one answer to everybody; its port and the requests it saw."""
    seen: list[bytes] = []

    async with serving(partial(give, answer, seen)) as port:
        yield port, seen


async def give(answer: bytes, seen: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    seen.append(head + await reader.readexactly(length))
    writer.write(answer)
    await writer.drain()


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A local server; when it is left every connection of it is closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(one, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*tasks)


def ok(body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture
def local(settings: object) -> None:
    settings.SLUICEGATE_HOOK_HOSTS = ["127.0.0.0/8"]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("local")
async def test_it_works() -> None:
    async with endpoint(ok(b'{"score": 1}')) as (port, seen):
        reply = await post(f"http://127.0.0.1:{port}/judge?x=1", b'{"text": "t"}', HEADERS, 5)
    assert (reply.status, json.loads(reply.body)) == (200, {"score": 1})
    assert seen[0].startswith(b"POST /judge?x=1 HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{port}".encode() in seen[0].lower()
    assert seen[0].endswith(b'{"text": "t"}')


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://2852039166/",
        "http://[::]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[fc00::1]/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[fec0::1]/",
        "http://[fd00:ec2::254]/",
        "http://100.100.100.200/",
        "http://192.0.0.192/opc/v2/",
        "http://168.63.129.16/machine",
        "http://[::ffff:168.63.129.16]/",
        "http://[2002:c000:c0::]/",
        "http://[64:ff9b::c000:c0]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://localhost/",
        "http://localhost./",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://user:word@example.com/",
        "http:///",
    ],
)
async def test_what_is_private_is_refused_in_every_spelling(url: str) -> None:
    with pytest.raises(CheckFailed) as refused:
        await post(url, b"{}", HEADERS, 5)
    assert isinstance(refused.value, AddressRefused) or "no address" in str(refused.value)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
)
async def test_what_is_public_is_allowed_in_every_spelling(address: str) -> None:
    """Behind NAT64 every IPv4 host has such an address."""

    async def resolve(host: str, port: int) -> list[str]:
        return [address]

    assert await outbound.address_of("checks.example", 443, resolve) == address


@pytest.mark.parametrize(
    "address", ["64:ff9b::7f00:1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b:1::808:808"]
)
async def test_what_carries_a_private_address_is_refused(address: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [address]

    with pytest.raises(AddressRefused):
        await outbound.address_of("checks.example", 443, resolve)


async def test_a_name_with_one_private_address_among_public_ones_is_refused() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "169.254.169.254"]

    with pytest.raises(AddressRefused):
        await outbound._follow("http://rebind.example/", b"{}", HEADERS, resolve)


@pytest.mark.usefixtures("local")
async def test_a_second_answer_of_the_name_server_changes_nothing() -> None:
    """The name is asked once; the connection goes to the address that was looked at."""
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    async with endpoint(ok()) as (port, seen):
        reply = await outbound._follow(f"http://judge.example:{port}/", b"{}", HEADERS, resolve)
    assert (reply.status, asked) == (200, ["judge.example"])
    assert f"host: judge.example:{port}".encode() in seen[0].lower()


@pytest.mark.usefixtures("local")
async def test_a_redirect_to_a_metadata_address_is_refused() -> None:
    answer = b"HTTP/1.1 307 Moved\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n"
    async with endpoint(answer) as (port, _):
        with pytest.raises(AddressRefused):
            await post(f"http://127.0.0.1:{port}/", b"{}", HEADERS, 5)


PRIVATE = [
    "http://169.254.169.254/latest/", "http://2852039166/", "http://[::ffff:169.254.169.254]/", "http://[fd00:ec2::254]/",
    "//169.254.169.254/latest/", "http://metadata.example/", "file:///etc/passwd", "http://user:word@127.0.0.1/",
]  # fmt: skip


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("last", PRIVATE)
async def test_a_redirect_behind_allowed_ones_is_looked_at_like_the_first(last: str, hops: int) -> None:
    """Every hop is allowed but the last, which no socket is opened to; a name may have turned private meanwhile."""
    looked_up: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["169.254.169.254"] if host == "metadata.example" else await outbound._resolve(host, port)

    seen: list[bytes] = []

    async def next_hop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        where = f"http://127.0.0.1:{port}/{len(seen)}" if len(seen) + 1 < hops else last
        answer = f"HTTP/1.1 307 Moved\r\nLocation: {where}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        await give(answer.encode(), seen, reader, writer)

    async with serving(next_hop) as port:
        with pytest.raises(AddressRefused):
            await outbound._follow(f"http://127.0.0.1:{port}/", b"{}", HEADERS, resolve)
    assert len(seen) == hops
    assert (looked_up[-1] == "metadata.example") is ("metadata" in last)


@pytest.mark.usefixtures("local")
async def test_a_name_that_turns_private_between_two_hops_is_refused() -> None:
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])

    async def resolve(host: str, port: int) -> list[str]:
        assert host == "judge.example"
        return next(answers)

    async with endpoint(b"HTTP/1.1 308 Moved\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n") as (port, seen):
        with pytest.raises(AddressRefused):
            await outbound._follow(f"http://judge.example:{port}/", b"{}", HEADERS, resolve)
    assert len(seen) == 1


@pytest.mark.usefixtures("local")
async def test_a_redirect_to_another_host_does_not_take_the_secrets_along() -> None:
    async with endpoint(ok()) as (second, seen):
        answer = b"HTTP/1.1 308 Moved\r\nLocation: http://127.0.0.2:%d/\r\nContent-Length: 0\r\n\r\n" % second

        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        async with endpoint(answer) as (port, _):
            await outbound._follow(f"http://127.0.0.1:{port}/", b"{}", HEADERS, resolve)
    assert b"secret" not in seen[0]
    assert b"x-sluicegate-signature" not in seen[0].lower()


@pytest.mark.parametrize("last", ["http://judge.example/", "http://judge.example:443/", "http://other.example/"])
async def test_a_redirect_does_not_lead_out_of_tls(last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text would go in clear, to wherever whoever answered likes."""
    sent: list[str] = []

    async def once(target: httpx.URL, *_: object) -> tuple[Reply, str]:
        sent.append(str(target))
        return Reply(307, b""), last if len(sent) == 2 else "https://judge.example/again"

    monkeypatch.setattr(outbound, "_once", once)
    with pytest.raises(AddressRefused, match="from https to http"):
        await post("https://judge.example/", b"{}", HEADERS, 5)
    assert sent == ["https://judge.example/", "https://judge.example/again"]


@pytest.mark.usefixtures("local")
async def test_redirects_come_to_an_end() -> None:
    async with endpoint(b"HTTP/1.1 307 M\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n") as (port, seen):
        with pytest.raises(CheckFailed, match="redirects"):
            await post(f"http://127.0.0.1:{port}/", b"{}", HEADERS, 5)
    assert len(seen) == outbound.MAX_REDIRECTS + 1


@pytest.mark.usefixtures("local")
async def test_an_answer_without_end_is_cut_off() -> None:
    async with endpoint(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000) as (port, _):
        with pytest.raises(CheckFailed, match="1 MB"):
            await post(f"http://127.0.0.1:{port}/", b"{}", HEADERS, 5)


@pytest.mark.usefixtures("local")
async def test_a_silent_endpoint_costs_its_time_limit_and_no_more() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        with pytest.raises(TimeoutError):
            await post(f"http://127.0.0.1:{port}/", b"{}", HEADERS, 0.1)


@pytest.mark.usefixtures("local")
async def test_nobody_there_is_a_failure_in_words() -> None:
    with pytest.raises(CheckFailed, match="ConnectError"):
        await post("http://127.0.0.1:1/", b"{}", HEADERS, 5)


def test_only_secrets_that_policies_may_use_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_HOOK_JUDGE", "key")
    monkeypatch.setenv("SLUICEGATE_SECRET_KEY", "never")
    assert secret("SLUICEGATE_HOOK_JUDGE") == "key"
    for name in ("SLUICEGATE_SECRET_KEY", "SLUICEGATE_HOOK_", "SLUICEGATE_HOOK_OTHER", "X\nSLUICEGATE_HOOK_JUDGE"):
        with pytest.raises(CheckFailed):
            secret(name)
