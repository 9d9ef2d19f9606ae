"""Who may talk to us: a signed-in user, the demo's visitor, an API key with the right scope, a stream token.

Exists so that sockets and calls decide it in one place. Protects the rule that outside of demo mode nothing streams
for a stranger, and that a key opens only what its scopes name.

    Refused     code (``unauthenticated``, ``forbidden``), with words for the client
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from channels.db import database_sync_to_async

from guardrails.selectors import api_key_for
from streaming import stream_tokens
from streaming.conf import demo_mode
from streaming.sessions import Visitor

PAGE_POLICY = "demo"
KEY_POLICY = "basic"


class Refused(Exception):
    """Access that is not given."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Access:
    """Who it is, and the policy that runs when a call names none."""

    visitor: Visitor
    policy: str


def key_in(headers: Iterable[tuple[str, str]]) -> str:
    """The API key out of ``Authorization: Bearer …`` or ``X-API-Key``; names in lower case; empty if there is none."""
    found: Mapping[str, str] = dict(headers)
    scheme, _, value = found.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else found.get("x-api-key", "").strip()


async def access_by_key(plaintext: str, scope: str) -> Access:
    """The access that a key gives. Raises ``Refused``."""
    key = await database_sync_to_async(api_key_for)(plaintext)
    if key is None:
        raise Refused("unauthenticated", "The API key is not known or has been revoked.")
    if scope not in key.scopes:
        raise Refused("forbidden", f"The API key has no scope “{scope}”.")
    return Access(Visitor(client=key.prefix), key.policy or KEY_POLICY)


async def visitor_of(scope: Mapping[str, object], *, keys: bool) -> Access:
    """Who opened a socket. Raises ``Refused``."""
    if keys:
        headers = scope.get("headers", [])
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in _pairs(headers)]
        if plaintext := key_in(pairs):
            return await access_by_key(plaintext, "stream")
        if token := dict(parse_qsl(_query(scope).decode("latin-1"))).get("token", ""):
            return access_by_token(token)
    user = scope.get("user")
    user_id = getattr(user, "pk", None) if getattr(user, "is_authenticated", False) else None
    if user_id is None and not demo_mode():
        raise Refused("unauthenticated", "Please sign in first.")
    session_key = getattr(scope.get("session"), "session_key", None) or ""
    return Access(Visitor(user_id=user_id, session_key=session_key), PAGE_POLICY)


def access_by_token(token: str) -> Access:
    """The access to one session that a stream token gives. Raises ``Refused``."""
    session_id = stream_tokens.session_of(token)
    if session_id is None:
        raise Refused("unauthenticated", "The stream token is not valid or has expired.")
    return Access(Visitor(only_session=session_id), "")


def _query(scope: Mapping[str, object]) -> bytes:
    raw = scope.get("query_string", b"")
    return raw if isinstance(raw, bytes) else b""


def _pairs(headers: object) -> list[tuple[bytes, bytes]]:
    return list(headers) if isinstance(headers, list | tuple) else []
