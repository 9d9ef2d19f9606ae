"""Who may talk to us: a signed-in user, the demo's visitor, an API key with the right scope, a stream token.

Exists so that sockets and calls decide it in one place. Protects the rule that outside of demo mode nothing streams
for a stranger, and that a key opens only what its scopes name.

    Refused     code (``unauthenticated``, ``forbidden``, ``origin_not_allowed``), with words for the client
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, overload
from urllib.parse import parse_qsl
from uuid import uuid4

from guardrails.models import CALLS_PER_MINUTE, UPDATES_PER_SECOND, ApiKey
from guardrails.selectors import api_key_read
from guardrails.services import key_use_is_noted, note_key_used
from streaming import stream_tokens
from streaming.conf import demo_mode
from streaming.database import in_database, reading
from streaming.selectors import key_of_session
from streaming.sessions import Visitor

PAGE_POLICY = "demo"
KEY_POLICY = "basic"
NOBODYS = "sluicegate.nobodys"
"""Where a socket's scope says what who is nobody here is told apart by."""
NO_TOKEN = "The stream token is not valid or has expired."  # noqa: S105


class Refused(Exception):
    """Access that is not given."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Access:
    """Who it is, the policy that runs when a call names none, and what the key allows.

    ``origins``: browser origins other than our own that may use it. ``by_key_at``: of a stream token, when a key last
    stood behind it. ``key``: the key's prefix, empty where it is none. ``answers_at_once`` None: as the setting says.
    """

    visitor: Visitor
    policy: str
    origins: tuple[str, ...] = ()
    calls_per_minute: int = CALLS_PER_MINUTE
    updates_per_second: int = UPDATES_PER_SECOND
    by_key_at: int | None = None
    key: str = ""
    answers_at_once: int | None = None

    @property
    def until(self) -> float | None:
        """When what was opened with a stream token ends (seconds since 1970); None where it was none."""
        return None if self.by_key_at is None else self.by_key_at + stream_tokens.RENEWABLE_S

    def stream_token(self, session_id: str) -> str:
        """A fresh token for this session."""
        return stream_tokens.issue(session_id, self.by_key_at)

    def check_origin(self, origin: str, own: str) -> bool:
        """Whether the browser says that a page of another origin calls (True), one that may. Raises ``Refused``.

        ``own``: our own origin as the browser would name it. Programs send no ``Origin``.
        """
        if not origin or origin == own:
            return False
        if origin not in self.origins:
            raise Refused("origin_not_allowed", "The API key may not be used from pages of this origin.")
        return True


def key_in(headers: Iterable[tuple[str, str]]) -> str:
    """The API key out of ``Authorization: Bearer …`` or ``X-API-Key``; names in lower case; empty if there is none."""
    found: Mapping[str, str] = dict(headers)
    scheme, _, value = found.get("authorization", "").partition(" ")
    bearer = value.strip() if scheme.lower() == "bearer" else ""
    return bearer or found.get("x-api-key", "").strip()


async def access_by_key(plaintext: str, scope: str) -> Access:
    """The access that a key gives, read without waiting for what others store but once a minute. Raises ``Refused``."""
    key = await reading(api_key_read)(plaintext)
    if key is not None and not key_use_is_noted(key=key):
        await in_database(note_key_used)(key=key)
    return opened_by(key, scope)


def opened_by(key: ApiKey | None, scope: str) -> Access:
    """The access that this key gives. Raises ``Refused``."""
    if key is None:
        raise Refused("unauthenticated", "The API key is not known or has been revoked.")
    check_scope(key.scopes, scope)
    return _access_of(key, Visitor(client=key.prefix))


def check_scope(scopes: Sequence[str], scope: str) -> None:
    """Raise ``Refused`` where a key's scopes do not have this one (any more)."""
    if scope not in scopes:
        raise Refused("forbidden", f"The API key has no scope “{scope}”.")


def _access_of(key: ApiKey, visitor: Visitor) -> Access:
    return Access(
        visitor, key.policy or KEY_POLICY, tuple(key.origins), key.calls_per_minute, key.updates_per_second,
        key=key.prefix, answers_at_once=key.answers_at_once,
    )  # fmt: skip


async def visitor_of(scope: Mapping[str, object], *, keys: bool) -> Access:
    """Who opened a socket. Raises ``Refused``.

    Who comes without a key, a login or a cookie is nobody whom another socket could tell: what begins here belongs to
    this socket alone.
    """
    if keys:
        pairs = headers_of(scope)
        if plaintext := key_in(pairs):
            access = await access_by_key(plaintext, "stream")
            access.check_origin(_header(pairs, "origin"), _own_origin(scope, pairs))
            return access
        if token := token_in(scope):
            access = await access_by_token(token, "stream")
            access.check_origin(_header(pairs, "origin"), _own_origin(scope, pairs))
            return access
    user = scope.get("user")
    user_id = getattr(user, "pk", None) if getattr(user, "is_authenticated", False) else None
    if user_id is None and not demo_mode():
        raise Refused("unauthenticated", "Please sign in first.")
    session_key = getattr(scope.get("session"), "session_key", None) or ""
    if user_id is None and not session_key:
        session_key = cast("dict[str, str]", scope).setdefault(NOBODYS, f"socket-{uuid4().hex}")
    return Access(Visitor(user_id=user_id, session_key=session_key), PAGE_POLICY)


async def access_by_token(token: str, scope: str) -> Access:
    """The access to one session that a stream token gives, as far as its key still stands and has the scope.

    Raises ``Refused``.
    """
    said = stream_tokens.opened(token)
    key = await reading(key_of_session)(said.session_id) if said else None
    if key is None or said is None:
        raise Refused("unauthenticated", NO_TOKEN)
    check_scope(key.scopes, scope)
    return replace(_access_of(key, Visitor(only_session=said.session_id)), by_key_at=said.by_key_at)


class Headers(Sequence[tuple[str, str]]):
    """A socket's headers as text, read out of its scope whenever they are asked for: every open answer keeps them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | Sequence[tuple[str, str]]:
        if isinstance(index, slice):
            return Headers(self._raw[index])
        name, value = self._raw[index]
        return name.decode("latin-1").lower(), value.decode("latin-1")


def headers_of(scope: Mapping[str, object]) -> Sequence[tuple[str, str]]:
    """Headers of a socket's request, names in lower case."""
    raw = scope.get("headers", [])
    return Headers(raw if isinstance(raw, list | tuple) else ())


def token_in(scope: Mapping[str, object]) -> str:
    """The stream token in a socket's address; empty if there is none."""
    return dict(parse_qsl(query_of(scope))).get("token", "")


def query_of(scope: Mapping[str, object]) -> str:
    """What stands behind the question mark of a socket's address."""
    raw = scope.get("query_string", b"")
    return raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)


def _header(pairs: Iterable[tuple[str, str]], name: str) -> str:
    return dict(pairs).get(name, "")


def _own_origin(scope: Mapping[str, object], pairs: Iterable[tuple[str, str]]) -> str:
    scheme = "https" if scope.get("scheme") == "wss" else "http"
    return f"{scheme}://{_header(pairs, 'host')}"
