"""Tokens for readers that cannot send headers: EventSource, and WebSocket in a browser.

Exists so that an API key never has to stand in an address. Protects the rule that what stands there opens little, and
not for long: a token is good for reading and stopping one session, for five minutes. Calls renew it; those that show
nothing but the token do so only for a while, so that a stolen one comes to an end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from django.core import signing

LIFETIME_S = 300
RENEWABLE_S = 1_800
"""For how long after the last call with the key itself a token gets another one."""
_SALT = "sluicegate.stream-token"


@dataclass(frozen=True, slots=True)
class StreamToken:
    """What a token says: its session, and when (seconds since 1970) a key last stood behind it."""

    session_id: str
    by_key_at: int


def issue(session_id: str, by_key_at: int | None = None) -> str:
    """A new token for this session, good for ``LIFETIME_S`` seconds; for a caller with a key unless ``by_key_at``."""
    return signing.dumps([session_id, int(time.time()) if by_key_at is None else by_key_at], salt=_SALT)


def opened(token: str) -> StreamToken | None:
    """What a token of ours says; None when it is none, or is too old."""
    try:
        found = signing.loads(token, salt=_SALT, max_age=LIFETIME_S)
    except signing.BadSignature:
        return None
    match found:
        case [str(session_id), int(by_key_at)] if time.time() - by_key_at <= RENEWABLE_S:
            return StreamToken(session_id, by_key_at)
    return None
