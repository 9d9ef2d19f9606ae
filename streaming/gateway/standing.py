"""What a request through the gateway may do, as it stands when the request comes: key, limits, policy, upstreams.

Exists because every visit to the database and to the store waits for its turn behind all that streams, so one of each
is made and not three. Protects the rule that nothing of it is kept: a key that was revoked, a limit that was changed, a
version that was rolled back and an upstream that was taken away count for the next request. A call that is one too many
takes no place. No call waits for a writer before it may begin: that its key was used is stored beside it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import structlog

from guardrails.cohorts import Subject
from guardrails.models import ApiKey
from guardrails.selectors import Running, api_key_read
from guardrails.services import key_use_is_noted, note_key_used
from streaming.access import Access, opened_by
from streaming.chat import StartRefused, running_now
from streaming.conf import conf
from streaming.database import AWAY, in_database, reading
from streaming.gateway import places
from streaming.gateway.places import Place
from streaming.limits import Allowance, Spends, rate_key
from streaming.log import LogUnavailable
from streaming.registry import own_context
from streaming.upstreams import Offered, offered_now

logger = structlog.get_logger(__name__)

_BEGIN = """
local used = redis.call('INCR', KEYS[2])
if used == 1 then redis.call('PEXPIRE', KEYS[2], ARGV[4]) end
local left = redis.call('PTTL', KEYS[2])
if used > tonumber(ARGV[5]) then return {used, left, 0} end
local function take()
""" + places.TAKE + """
end
return {used, left, take()}
"""  # fmt: skip
"""Both scripts in one: what ``limits`` counts, and a place where that leaves one. Its keys are of one client."""


@dataclass(frozen=True, slots=True)
class Standing:
    """``running``: the policy that runs, or why none does. ``key``: as it was read."""

    access: Access
    running: Running | StartRefused
    offered: Offered
    key: ApiKey

    @property
    def at_once(self) -> int:
        """How many answers the key may have under way."""
        own = self.access.answers_at_once
        return conf().gateway_at_once if own is None else own


@reading
def _read(plaintext: str, scope: str) -> Standing:
    key = api_key_read(plaintext)
    access = opened_by(key, scope)
    assert key is not None  # nothing else opens anything
    running: Running | StartRefused
    try:
        running = running_now(access.policy, Subject("", access.visitor.user_id))
    except StartRefused as error:
        running = error
    return Standing(access, running, offered_now(), key)


async def standing(plaintext: str, scope: str) -> Standing:
    """What this key may do now. Raises ``Refused``."""
    found = await _read(plaintext, scope)
    if not key_use_is_noted(key=found.key) and found.key.pk not in _noting:
        noting = _noting[found.key.pk] = asyncio.create_task(_note(found.key), context=own_context())
        noting.add_done_callback(lambda _: _noting.pop(found.key.pk, None))
    return found


_noting: dict[int, asyncio.Task[None]] = {}
"""Keys whose use is being stored."""


async def _note(key: ApiKey) -> None:
    with suppress(*AWAY):
        await in_database(note_key_used)(key=key)


async def begin(standing: Standing) -> tuple[Allowance | None, Place | None]:
    """Count the call, and take a place for its answer: None where all are taken, or the call is one too many.

    While the store is away nothing is counted, and nobody refused.
    """
    client, limit = standing.access.visitor.client, standing.access.calls_per_minute
    place = Place(places.key_of(client))
    ttl_ms, window_ms = round(places.LONGEST_S * 1000), round(Spends.START.value * 1000)
    try:
        said = await places.taking(
            place, _BEGIN, [place.key, rate_key(client, Spends.START)],
            [standing.at_once, ttl_ms, place.member, window_ms, limit],
        )  # fmt: skip
    except LogUnavailable:
        logger.warning("call_not_counted", client=client)
        return None, place
    used, left_ms, taken = cast("list[int]", said)
    return Allowance(limit, used, max(0, left_ms) / 1000), place if taken else None
