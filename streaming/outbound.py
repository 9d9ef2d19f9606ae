"""HTTP calls to addresses that a policy names.

Exists because whoever writes policies must not be able to make this server talk to what only this server can reach.
Protects that rule at the one place where it can hold: the name is resolved here, every address that it has must be
public (or allowed by ``SLUICEGATE_HOOK_HOSTS``), and the connection goes to that very address, so that a second answer
of the name server changes nothing; a redirect is a new address and is asked the same, and none leads from https to
http. The environment's proxies are not followed.

    SecretMissing      the secret that a policy names is not set
    AddressRefused     the address is not http(s), or leads to where policies may not send anything
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx
from django.conf import settings

from guardrails.kinds.base import HOOK_SECRET, CheckFailed, NoVerdict, Reply

MAX_REDIRECTS = 3
MAX_ANSWER_BYTES = 1_048_576
NAMES_AT_ONCE = 16
Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]


class AddressRefused(CheckFailed):
    """Where policies may not send anything."""

    permanent = True


class SecretMissing(CheckFailed):
    """A secret that a policy names is not set here."""

    permanent = True


async def post(url: str, body: bytes, headers: Mapping[str, str], time_limit_s: float) -> Reply:
    """Send ``body`` and read the answer, at most 1 MB of it. Raises ``CheckFailed``, ``TimeoutError``."""
    async with asyncio.timeout(time_limit_s):
        return await _follow(url, body, headers, _resolve)


def secret(name: str) -> str:
    """A secret that policies may use, from the environment. Raises ``SecretMissing``."""
    value = os.environ.get(name, "") if HOOK_SECRET.fullmatch(name) else ""
    if not value:
        raise SecretMissing(f"{name} is not set")
    return value


async def _follow(url: str, body: bytes, headers: Mapping[str, str], resolve: Resolve) -> Reply:
    try:
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            reply, location = await _once(target, body, headers, resolve)
            if not location:
                return reply
            moved = target.join(location)
            if target.scheme == "https" and moved.scheme != "https":
                raise AddressRefused("a redirect leads from https to http, where the text could be read on the way")
            if (moved.scheme, moved.host, moved.port) != (target.scheme, target.host, target.port):
                # What proves us to one host must not be shown to another.
                headers = {name: value for name, value in headers.items() if name in ("Content-Type", "Accept")}
            target = moved
    except httpx.InvalidURL:
        raise AddressRefused("the address is not an http(s) address") from None
    except httpx.HTTPError as error:
        raise CheckFailed(f"the call failed ({type(error).__name__})") from None
    raise CheckFailed(f"more than {MAX_REDIRECTS} redirects")


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for the process: to read the trusted certificates takes the event loop many milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


async def _once(target: httpx.URL, body: bytes, headers: Mapping[str, str], resolve: Resolve) -> tuple[Reply, str]:
    address = await _allowed_address(target, resolve)
    host = f"[{address}]" if ":" in address else address
    named = {**headers, "Host": target.netloc.decode("ascii"), "Accept-Encoding": "identity"}
    verify = _tls() if target.scheme == "https" else False
    async with (
        # The caller's limit covers all of it; httpx's own ones would only be second opinions.
        httpx.AsyncClient(trust_env=False, verify=verify, timeout=None) as client,  # noqa: S113
        client.stream(
            "POST",
            target.copy_with(host=host),
            content=body,
            headers=named,
            extensions={"sni_hostname": target.host},
        ) as response,
    ):
        if response.status_code in (307, 308):  # the others would turn the POST into a GET without the text
            return Reply(response.status_code, b""), response.headers.get("location", "")
        data = b""
        async for part in response.aiter_raw():
            data += part
            if len(data) > MAX_ANSWER_BYTES:
                raise NoVerdict("the answer is larger than 1 MB")
        return Reply(response.status_code, data), ""


async def _allowed_address(target: httpx.URL, resolve: Resolve) -> str:
    """The address to connect to. Every address of the name has to be allowed, not only the one that is used."""
    if target.scheme not in ("http", "https") or not target.host or target.userinfo:
        raise AddressRefused("the address is not an http(s) address without a user")
    return await address_of(target.host, target.port or (443 if target.scheme == "https" else 80), resolve)


async def address_of(host: str, port: int, resolve: Resolve | None = None) -> str:
    """The address to connect to for a host. Raises ``CheckFailed``."""
    try:
        found = await (resolve or _resolve)(host, port)
    except OSError:
        raise CheckFailed("the host's name has no address") from None
    for text in found:
        if not _public(ip_address(text)) and not _listed(host, ip_address(text)):
            raise AddressRefused(f"{host} leads to a private address, and SLUICEGATE_HOOK_HOSTS does not allow it")
    return found[0]


_names = ThreadPoolExecutor(NAMES_AT_ONCE, thread_name_prefix="names")
"""Threads of its own: a name server that does not answer keeps one for many seconds, whatever limit its caller has."""


async def _resolve(host: str, port: int) -> list[str]:
    ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_names, ask)
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


_NEVER = tuple(map(ip_network, ("192.0.0.0/24", "168.63.129.16/32", "fec0::/10", "3fff::/20")))
"""What is no private address by name: metadata addresses of clouds, old site-local ones, and ones for documents."""


_CARRY = tuple(map(ip_network, ("64:ff9b::/96", "::ffff:0:0/96")))
"""NAT64 (RFC 6052) and mapped addresses: an IPv4 address in the last four bytes, which is where the call goes."""


def _public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and any(address in one for one in _CARRY):
        # Of itself the outer address says nothing: it lies in what is reserved.
        return _public(IPv4Address(int(address) & 0xFFFF_FFFF))
    teredo = getattr(address, "teredo", None)
    for part in (address, getattr(address, "sixtofour", None), *(teredo or ())):
        if part is None:
            continue
        if not part.is_global or part.is_multicast or part.is_reserved or any(part in one for one in _NEVER):
            return False
    return True


def _listed(host: str, address: Address) -> bool:
    """Whether the installation allows this host by name or this address by network."""
    for entry in getattr(settings, "SLUICEGATE_HOOK_HOSTS", ()):
        try:
            if address in ip_network(entry, strict=False):
                return True
        except ValueError:
            if entry.lower() == host.lower():
                return True
    return False
