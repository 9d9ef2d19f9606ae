"""Whether what opened a reader still stands: its key, the scope of that key, and the time of its token.

Exists because a reader may stay open for as long as its session does, and a key that was revoked or has lost the scope
must read no further, nor must a token that somebody stole for longer than one can be renewed.
Protects the rule that such a reader ends ten seconds later at most: ``CHECK_S`` after the last look while events come,
and as often as a quiet reader asks the database anyway while none do. One look is for all readers of a key in this
process, as far as they need the same scope.
"""

from __future__ import annotations

import time

from streaming.access import Refused, check_scope
from streaming.database import AWAY, in_database
from streaming.selectors import scopes_of_key

CHECK_S = 5.0
_stood: dict[tuple[str, str], float] = {}
"""When each key was last found to stand with a scope, by this process's own clock."""


async def look(key: str, scope: str, *, until: float | None = None, now: bool = False) -> None:
    """Look whether the key of this prefix stands and has the scope, if that was not done lately or is wanted ``now``.

    Raises ``Refused``. An empty one is no key. ``until``: when a token ends, seconds since 1970. While the database is
    away nobody can be told anything else about the key than before.
    """
    if until is not None and time.time() > until:
        raise Refused("unauthenticated", "The stream token has come to its end; a call with the key gives another one.")
    at = time.monotonic()
    if not key or (not now and at - _stood.get((key, scope), float("-inf")) < CHECK_S):
        return
    try:
        scopes = await in_database(scopes_of_key)(key)
    except AWAY:
        return
    _stood.pop((key, scope), None)
    if scopes is None:
        raise Refused("unauthenticated", "The API key has been revoked.")
    check_scope(scopes, scope)
    _stood[key, scope] = at
