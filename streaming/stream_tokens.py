"""Tokens for readers that cannot send headers: EventSource, and WebSocket in a browser.

Exists so that an API key never has to stand in an address. Protects the rule that what stands there opens little: a
token is good for reading and stopping one session, for five minutes, and is renewed by the calls that use it.
"""

from __future__ import annotations

from django.core import signing

LIFETIME_S = 300
_SALT = "sluicegate.stream-token"


def issue(session_id: str) -> str:
    """A new token for this session, good for ``LIFETIME_S`` seconds."""
    return signing.dumps(session_id, salt=_SALT)


def session_of(token: str) -> str | None:
    """The session that the token opens; None when it is no token of ours or has expired."""
    try:
        found = signing.loads(token, salt=_SALT, max_age=LIFETIME_S)
    except signing.BadSignature:
        return None
    return found if isinstance(found, str) else None
