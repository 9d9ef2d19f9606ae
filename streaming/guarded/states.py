"""The state of a stream in its two places: the store first, the database where the store cannot say.

Exists so that "which of two copies counts" is decided in one place. Protects these rules: the newer copy counts; one
that is damaged is passed over for the other, at the cost of a few deltas that are sent again; one that another version
of this program wrote, or another key sealed, is left alone for who can read it; a stream is lost only when nothing can
be read of it anywhere, and never when it is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from guardrails.policy import Policy
from streaming.conf import Conf
from streaming.core.events import Json
from streaming.core.gate import Gate
from streaming.core.snapshot import ForeignState, StateError
from streaming.database import in_database, reading
from streaming.guarded import rows
from streaming.guarded.record import ForeignRecord, Record, RecordBroken, unsealed
from streaming.guarded.refusals import NoSuchStream, OutOfTurn, StateForeign, StateLost, in_turn
from streaming.guarded.store import Behind, Following, Found, Store, Swapped
from streaming.guarded.telling import events_after
from streaming.log_redis import RedisLog
from streaming.models import AuditSession
from streaming.sessions import Visitor, is_session_id

logger = structlog.get_logger(__name__)
State = AuditSession.State


@dataclass(frozen=True, slots=True)
class Known:
    """What there is of a stream. ``seen``: the store's state, which a writer has to name.

    ``idle_s``: for how long no call has come, None where the store cannot say. ``again``: the database's, which is to
    stand in the store again.
    """

    record: Record
    seen: int
    idle_s: float | None
    again: bool = False


class States:
    """Reads and writes the states of streams, through one event loop's store."""

    def __init__(self, log: RedisLog, settings: Conf) -> None:
        self.store = Store(log)
        self._settings = settings
        self._ttl_s = max(float(settings.log_ttl_s), 2 * settings.stream_expiry_s)

    # -- reading ------------------------------------------------------------------------------------------------

    async def load(self, visitor: Visitor, session_id: str, seq: int | None = None) -> Record:
        """The record as the newer of the two places has it. ``seq``: of the delta that the client has now."""
        if not is_session_id(session_id):
            raise NoSuchStream
        found = await self.store.read(session_id)
        if found is None:
            return self._behind(await self._of_database(visitor, session_id))
        try:
            record = unsealed(found.blob, session_id)
        except ForeignRecord as error:
            kept = await self._kept(visitor, session_id)  # who may not know of it is told that there is none
            _foreign(session_id, error)
            _not_over(kept)
            raise StateForeign from None
        except RecordBroken as error:
            return await self._instead(visitor, session_id, found.rev, error)
        if not _may(visitor, record.client, session_id):
            raise NoSuchStream
        doubted = seq != record.expected_seq or found.unkept_s >= self._settings.write_through_s
        if not doubted or await self._newer(session_id, found) is None:
            return record
        record = self._behind(await self._of_database(visitor, session_id))
        await self.put_forward(record, found.rev)
        return record

    async def known(self, session_id: str) -> Known:
        """The same, whoever asks. Raises ``ForeignRecord``, and ``RecordBroken`` where nothing can be read of it."""
        found = await self.store.read(session_id)
        damaged = False
        if found is not None:
            try:
                record = unsealed(found.blob, session_id)
                if (newer := await self._newer(session_id, found)) is None:
                    return Known(record, found.rev, found.idle_s)
                record = self._behind(unsealed(newer.blob or b"", session_id))
                return Known(record, found.rev, 0.0, again=True)  # it has its five minutes from now on
            except ForeignRecord:
                raise
            except RecordBroken as error:
                _damaged(session_id, error)
                damaged = True
        kept: rows.Kept | None = await in_database(rows.kept)(session_id)
        if kept is None or kept.blob is None:
            raise RecordBroken("there is none")
        record = self._behind(unsealed(kept.blob, session_id))
        if found is None:
            return Known(record, record.rev, None)
        record.rev = max(record.rev, found.rev + damaged)
        return Known(record, found.rev, found.idle_s, again=True)

    async def gate(self, visitor: Visitor, record: Record, policy: Policy, seq: int | None) -> tuple[Record, Gate]:
        """The gate as it was, with the record that it is of: the database's where the one at hand has none that can be
        built again. A stream that has none anywhere is lost: no later call could do better.
        """
        session_id = record.session_id
        try:
            return record, _gate(record, policy)
        except ForeignState as error:
            _foreign(session_id, error)
            raise StateForeign from None
        except StateError as error:
            older = await self._instead(visitor, session_id, record.rev, error)
        in_turn(older, seq)
        try:
            return older, _gate(older, policy)
        except ForeignState as error:
            _foreign(session_id, error)
            raise StateForeign from None
        except StateError as error:
            _damaged(session_id, error)
            await self.lose(session_id)
            raise StateLost from None

    async def _instead(self, visitor: Visitor, session_id: str, seen: int, error: Exception) -> Record:
        """The database's state in the place of the store's, which is damaged; it goes on under a number of its own."""
        _damaged(session_id, error)
        record = self._behind(await self._of_database(visitor, session_id))
        record.rev = max(record.rev, seen + 1)
        await self.put_forward(record, seen)
        return record

    async def _of_database(self, visitor: Visitor, session_id: str) -> Record:
        """The record as the database has it."""
        kept = await self._kept(visitor, session_id)
        try:
            if kept.blob is not None:
                return unsealed(kept.blob, session_id)
        except ForeignRecord as error:
            _foreign(session_id, error)
            _not_over(kept)
            raise StateForeign from None
        except RecordBroken as error:
            _damaged(session_id, error)
            _not_over(kept)
        await self.lose(session_id)
        raise StateLost

    async def _kept(self, visitor: Visitor, session_id: str) -> rows.Kept:
        """What the database has, of a stream of this visitor that may still have a state."""
        kept: rows.Kept | None = await in_database(rows.kept)(session_id)
        if kept is None or not _may(visitor, kept.client, session_id):
            raise NoSuchStream
        if kept.error_code == rows.LOST:
            raise StateLost
        if kept.blob is None:
            _not_over(kept)
        return kept

    async def _newer(self, session_id: str, found: Found) -> rows.Kept | None:
        """What the database has, where it has a newer state than the store: then the store was put back to an older
        one (from a copy of its data), and what it says of this stream is not to be built upon.
        """
        kept: rows.Kept | None = await reading(rows.kept)(session_id)
        if kept is None or kept.rev <= found.rev:
            return None
        again = await self.store.read(session_id)
        if again is not None and again.rev >= kept.rev:
            return None  # another call has gone on meanwhile
        logger.error("stream_store_put_back", session=session_id, store_rev=found.rev, database_rev=kept.rev)
        return kept

    @staticmethod
    def _behind(record: Record) -> Record:
        """The database's: how far the client was answered is not known."""
        record.behind = not record.ended
        return record

    # -- writing ------------------------------------------------------------------------------------------------

    async def put(
        self,
        record: Record,
        seen: int,
        told: int,
        *,
        last: list[Json] | None = None,
        ttl_s: float | None = None,
        quiet_s: float = 0.0,
        kept: bool = False,
    ) -> tuple[Swapped | None, bytes]:
        """The record in the place of the state ``seen``, and the events behind the first ``told``, or neither.

        A log that has lost events gets them again, with the seqs that they had.
        """
        blob = record.seal()
        since = datetime.now(UTC) - datetime.fromisoformat(record.started_at)
        ms = max(0, round(since.total_seconds() * 1000))  # it may have begun by a clock that is ahead
        while True:
            events = Following(told, [*events_after(record, told), *(last or [])], last=last is not None)
            swapped = await self.store.swap(
                record.session_id, seen, record.rev, blob, events,
                ms=ms, ttl_s=ttl_s or self._ttl_s, quiet_s=quiet_s, kept=kept,
            )  # fmt: skip
            if not isinstance(swapped, Behind):
                return swapped, blob
            told = swapped.seq

    async def put_forward(self, record: Record, seen: int) -> None:
        """The database's state in the place of the store's; that of a stream that is over stays there."""
        if not record.over:
            await self.put(record, seen, record.events, kept=True)

    async def keep_open(self, record: Record) -> None:
        """A call has come that changes nothing: the stream's time begins anew, also in a store that had lost it."""
        if not await self.store.touch(record.session_id, self._ttl_s):
            await self.put_forward(record, record.rev)

    async def lose(self, session_id: str) -> None:
        """End it on record, and let nobody build upon what the store has of it."""
        logger.error("stream_state_lost", session=session_id)
        await in_database(rows.lose)(session_id=session_id)
        await self.store.drop(session_id)


def _gate(record: Record, policy: Policy) -> Gate:
    """The gate as it was. Raises ``StateError``."""
    if record.gate is None:
        raise StateError("there is none")
    return Gate.restore(policy, record.gate)


def _may(visitor: Visitor, client: str, session_id: str) -> bool:
    return visitor.only_session == session_id if visitor.only_session else visitor.client == client


def _not_over(kept: rows.Kept) -> None:
    """Raise ``OutOfTurn`` for a stream that is over: how it ended stands in its row, and only its answers are gone."""
    if kept.state is not State.ACTIVE:
        raise OutOfTurn("stream_ended", f"The stream is over ({kept.outcome}).", kept.expected_seq)


def _damaged(session_id: str, error: Exception) -> None:
    logger.error("stream_state_damaged", session=session_id, error=str(error))


def _foreign(session_id: str, error: Exception) -> None:
    logger.error("stream_state_of_another_engine", session=session_id, error=str(error))
