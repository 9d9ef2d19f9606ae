"""Verdicts that nobody waited for and that are still out when a reader stops the answer.

Exists because a stop takes effect at once: the readers are told the answer's end first, and these afterwards, while
the session is MONITORING. Protects two rules. What guardrails find in texts that did not wait for them belongs to the
session's record, however the answer ended. And each check ends once: it stands in the outbox from the answer's end on,
on lease of this process as if of a worker, so that a process that dies leaves no session open (``streaming.sweep``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from guardrails.findings import Verdict
from streaming.aside import SHARE_OF_LEASE, Judged, worst_of
from streaming.asking import Asking
from streaming.away import AGAIN_S, noted
from streaming.checks import Checked, Later, status_after
from streaming.conf import conf
from streaming.database import AWAY, in_database
from streaming.deferred import record_result, tell_recorded
from streaming.leases import held
from streaming.log import SessionLog
from streaming.sessions import DeferredText

Key = tuple[str, str]
"""A guardrail's name, and what it was asked about: the outbox has one row for both."""
T = TypeVar("T")
TOO_LATE = "no verdict before the session's end"
STOPPED = "the server was stopped before the verdict came"
ENDED = "the answer broke off before the verdict came"


class Overheard:
    """The verdicts that a session still owes its record. ``deferred`` goes into its ending, then ``settle``."""

    def __init__(self, session_id: str, out: Sequence[Later]) -> None:
        self._session_id = session_id
        self._out: dict[Key, list[Later]] = {}
        for later in out:
            self._out.setdefault((later.guardrail.name, later.gate.applies_to.value), []).append(later)
        self._said: dict[int, Checked] = {}
        self._judged: dict[Key, Judged] = {}
        self._until: float | None = None

    @property
    def deferred(self) -> tuple[DeferredText, ...]:
        """A row for each guardrail and what it was asked about."""
        return tuple(
            DeferredText(name, applies_to, "\n".join(later.check.text for later in asked), sentences=True, held=True)
            for (name, applies_to), asked in self._out.items()
        )

    async def settle(self, asking: Asking, log: SessionLog) -> None:
        """Store and tell what they say, guardrail by guardrail; those that take longer than a lease have failed.

        A database that is away meanwhile is waited for, within the lease. Raises what it fails of beyond that.
        """
        until, now = self._limit(), asyncio.get_running_loop().time
        while self._out and (heard := await asking.overheard(until - now())):
            self._said |= {id(one.later): one.checked for one in heard}
            await self._store(log, [key for key, asked in self._out.items() if all(id(o) in self._said for o in asked)])
        asking.give_up()
        await self._store(log, list(self._out))

    async def give_up(self, log: SessionLog, words: str = STOPPED) -> None:
        """The server stops, or nothing is waited for any more: what has not been said is an error."""
        await self._store(log, list(self._out), words=words)

    async def _store(self, log: SessionLog, keys: list[Key], words: str = TOO_LATE) -> None:
        if not keys:
            return
        found = await self._patiently(in_database(partial(held, session_id=self._session_id)))
        leases = {(lease.guardrail, lease.applies_to): lease for lease in found}
        for key in keys:
            asked, lease = self._out[key], leases.get(key)
            recorded = None
            if lease is not None:  # else somebody has taken it for forgotten
                judged = self._judgement(key, words)
                record = partial(
                    record_result,
                    lease=lease,
                    guardrail=asked[0].guardrail,
                    checked=judged.checked,
                    judged_chars=sum(len(one.check.text) for one in asked),
                    judged=judged,
                )
                recorded = await self._patiently(in_database(record))
            del self._out[key]
            if lease is not None and recorded is not None:
                await tell_recorded(log, lease, recorded)

    def _judgement(self, key: Key, words: str) -> Judged:
        """What was said, or was not; the same however often it is asked for, because a gate takes a verdict once."""
        if (judged := self._judged.get(key)) is None:
            asked = self._out[key]
            late = Checked(Verdict(hit=False, error=words), 0.0, timed_out=words == TOO_LATE, permanent=True)
            results = [self._said.pop(id(one), late) for one in asked]
            judged = self._judged[key] = Judged(
                worst_of(results),
                tuple(found for one, said in zip(asked, results, strict=True) for found in one.findings(said)),
                tuple(status_after(asked[0].guardrail, said) for said in results),
                exposed=True,
            )
        return judged

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` returns; it is done again while the database is away, until the lease is nearly over."""
        until, now = self._limit(), asyncio.get_running_loop().time
        while True:
            try:
                return await work()
            except AWAY as error:
                if now() >= until:
                    raise
                noted(error, session=self._session_id)
            await asyncio.sleep(AGAIN_S)

    def _limit(self) -> float:
        """On the loop's clock. It begins when this is asked for first: right after the rows were put on lease."""
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + conf().check_lease_s * SHARE_OF_LEASE
        return self._until
