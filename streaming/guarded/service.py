"""start, update, finish, status: what a client that owns its stream may ask for.

Exists apart from the calls' HTTP form so that the rules stand in one place. Protects these: an answer goes out only
after the state that follows from it is stored, so that a call repeated after a crash gets the very answer that was
lost; the events that follow from a call are stored with it, and once; a call that is refused changes nothing; a stream
is seen and continued by the key that began it alone.

    NoSuchStream   not there, or another key's
    OutOfTurn      gap, other body, lost race, after the end; ``expected_seq`` is what to send
    StateLost      no store has the state any more; the session has been ended
    TooLong        the whole text is over the limit
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from uuid import NAMESPACE_OID, uuid4, uuid5

import structlog
from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo, FindingDict
from guardrails.kinds.base import Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from guardrails.selectors import PolicyUnavailable, ShadowPolicy, policy_by_digest
from streaming import metrics, tasks, totals
from streaming.answer import block_reason
from streaming.aside import set_aside
from streaming.checks import CheckedText, settled
from streaming.conf import Conf
from streaming.core.events import Json
from streaming.core.gate import Gate
from streaming.core.snapshot import StateError
from streaming.guarded import rows, shadow
from streaming.guarded.hints import hints
from streaming.guarded.record import Answer, Block, Record, RecordBroken, action_of, unsealed
from streaming.guarded.store import Behind, Following, Found, Store, Swapped
from streaming.guarded.telling import LAST, events_after, last_events
from streaming.log_redis import RedisLog
from streaming.models import AuditSession
from streaming.selectors import named_turns
from streaming.sessions import Visitor, is_session_id
from streaming.together import together

logger = structlog.get_logger(__name__)
State = AuditSession.State


class NoSuchStream(Exception):
    """There is no such stream for this client."""


class OutOfTurn(Exception):
    """Nothing was applied; ``expected_seq`` is the seq of the next delta."""

    def __init__(self, code: str, message: str, expected_seq: int) -> None:
        super().__init__(message)
        self.code = code
        self.expected_seq = expected_seq


class StateLost(Exception):
    """The state is gone for good."""


class TooLong(Exception):
    """The text of the stream would become longer than a text may be."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a start says. ``repeat_key``: the client's ``Idempotency-Key``, empty if it sent none."""

    visitor: Visitor
    policy: Policy
    kind: AppliesTo
    delta: str | None = None
    conversation_key: str = ""
    correlation_id: str = ""
    repeat_key: str = ""
    rules_version: str = ""
    body_digest: str = ""
    shadow: ShadowPolicy | None = None


def digest_of(*parts: object) -> str:
    """Names a request's body."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


class Streams:
    """The streams, through one event loop's store."""

    def __init__(self, log: RedisLog, settings: Conf) -> None:
        self._log, self._settings = log, settings
        self._store = Store(log)
        self._ttl_s = max(float(settings.log_ttl_s), 2 * settings.stream_expiry_s)

    async def start(self, asked: Beginning) -> Answer:
        """Begin a stream; the same ``repeat_key`` with the same body begins it once."""
        client = asked.visitor.client
        if asked.repeat_key:
            session_id = str(uuid5(NAMESPACE_OID, f"sluicegate stream {client}\n{asked.repeat_key}"))
            if (before := await self._started_before(session_id, asked)) is not None:
                return before
        else:
            session_id = str(uuid4())
        policy, aside = set_aside(asked.policy, asked.kind)
        record = Record(
            session_id=session_id,
            client=client,
            policy=policy.name,
            version=policy.version,
            policy_digest=policy.digest,
            kind=asked.kind.value,
            conversation_id="",
            message_id="",
            started_at=datetime.now(UTC).isoformat(),
            start_digest=asked.body_digest,
            covered=bool(asked.rules_version) and asked.rules_version in (policy.digest, str(policy.version)),
            rev=1,
            calls=1,
            demoted={name: checkpoint.value for name, checkpoint in policy.demotions},
            aside=list(aside),
            shadow=shadow.begun(asked.shadow),
        )
        gate = Gate(policy, asked.kind, _channel(record))
        text = CheckedText()
        if asked.delta is not None:
            record.seq, record.chunks = 1, 1
            limit = self._settings.history_messages
            turns = await named_turns(asked.visitor, asked.conversation_key, limit, asked.kind, policy)
            text = await self._fed(gate, record, asked.delta, turns)
            await shadow.fed(record, gate, asked.delta)
        self._settle(gate, record, text, policy)
        record.start_answer = record.answer = {
            "session_id": session_id,
            "state": State.ACTIVE.value,
            "policy": {"name": policy.name, "version": policy.version, "digest": policy.digest},
            "expires_at": self._expires(await self._store.touch(session_id)),
            "seq": record.seq,
            "released": text.visible,
            "released_chars": len(record.visible),
            "held_chars": record.held,
            "action": _action(gate, record.findings),
            "findings": record.findings,
            "hints": hints(policy, asked.kind, covered=record.covered),
        }
        begin = partial(
            rows.begin,
            record=record,
            visitor=asked.visitor,
            conversation_key=asked.conversation_key,
            correlation_id=asked.correlation_id,
        )
        begun = await together(begin)
        if not begun:  # another process was first with the same Idempotency-Key
            before = await self._started_before(session_id, asked)
            if before is None:
                raise OutOfTurn("seq_conflict", "The stream is being started by another call.", 1)
            return before
        await self._put(record, 0, 0, kept=True)
        return record.start_answer

    async def update(self, visitor: Visitor, session_id: str, seq: int, delta: str) -> Answer:
        """Apply the next delta."""
        record = await self._load(visitor, session_id, seq)
        digest = digest_of("update", session_id, seq, delta)
        if (before := record.answered(digest)) is not None:
            return before
        self._in_turn(record, seq)
        found, told = len(record.findings), record.events
        seen, policy = record.rev, await self._policy(record)
        gate = self._gate(record, policy)
        record.chunks += 1
        text = await self._fed(gate, record, delta, await self._turns(record, policy))
        await shadow.fed(record, gate, delta)
        self._settle(gate, record, text, policy)
        record.seq = seq
        new = record.findings[found:]
        answer: Answer = {
            "session_id": session_id,
            "state": State.ACTIVE.value,
            "seq": seq,
            "released": text.visible,
            "released_chars": len(record.visible),
            "held_chars": record.held,
            "action": _action(gate, new),
            "findings": new,
            "hints": hints(policy, AppliesTo(record.kind), covered=record.covered),
        }
        swapped, blob = await self._commit(record, seen, told, digest, answer)
        if swapped is None:
            return await self._after_the_race(visitor, session_id, digest)
        if new or swapped.unkept_s >= self._settings.write_through_s:
            await database_sync_to_async(rows.write_through)(record=record, blob=blob)
            await self._store.kept(session_id)
        return answer

    async def finish(self, visitor: Visitor, session_id: str, seq: int | None, delta: str | None) -> Answer:
        """Apply the last delta, if there is one, and end the text."""
        record = await self._load(visitor, session_id, seq)
        digest = digest_of("finish", session_id, seq, delta)
        if digest == record.digest:
            await self._conclude(record)  # little to do but after a crash
            return record.answer
        self._in_turn(record, record.expected_seq if seq is None else seq)
        found, told = len(record.findings), record.events
        seen, policy = record.rev, await self._policy(record)
        gate = self._gate(record, policy)
        if delta is not None:
            record.seq += 1
            record.chunks += 1
        text = await self._fed(gate, record, delta or "", await self._turns(record, policy), last=True)
        await shadow.fed(record, gate, delta or "")
        self._settle(gate, record, text, policy)
        record.ended = record.outcome().value
        record.gate, record.held = None, 0
        record.deferred = _deferred(record, policy)
        new = record.findings[found:]
        state = State.MONITORING if record.deferred else State.COMPLETE
        answer: Answer = {
            "session_id": session_id,
            "state": state.value,
            "seq": record.seq,
            "released": text.visible,
            "released_chars": len(record.visible),
            "action": action_of(record.findings),
            "findings": new,
            "summary": self._summary(record),
        }
        swapped, _ = await self._commit(record, seen, told, digest, answer)
        if swapped is None:
            return await self._after_the_race(visitor, session_id, digest)
        await self._conclude(record)
        return answer

    async def status(self, visitor: Visitor, session_id: str) -> Record | None:
        """The open stream, whose expiry begins anew; None when it is over. Raises ``NoSuchStream``."""
        try:
            record = await self._load(visitor, session_id)
        except OutOfTurn:
            return None
        if record.ended:
            return None
        await self._store.touch(session_id)
        return record

    # -- ending -------------------------------------------------------------------------------------------------

    async def expire(self, session_id: str) -> str:
        """End a stream that the database has not heard of for long; "" when it is alive, else how it ended.

        A finish whose process died half way is brought to its end instead. Held text stays held.
        """
        found = await self._store.read(session_id)
        quiet_s = self._settings.stream_expiry_s
        try:
            if found is not None:
                record = unsealed(found.blob, session_id)
                if (newer := await self._newer(session_id, found)) is not None:
                    record = unsealed(newer.blob or b"", session_id)
                    await self._put_forward(record, found.rev)
                    await database_sync_to_async(rows.heard_of)(session_id=session_id, ago_s=0.0)
                    return ""  # it has its five minutes from now on
            elif (kept := await database_sync_to_async(rows.kept)(session_id)) is not None and kept.blob is not None:
                record = unsealed(kept.blob, session_id)
            else:
                raise RecordBroken("there is none")
        except RecordBroken:
            await self._lose(session_id)
            return rows.LOST
        if not record.ended:
            if found is not None and found.idle_s < quiet_s:
                await database_sync_to_async(rows.heard_of)(session_id=session_id, ago_s=found.idle_s)
                return ""
            seen = record.rev
            record.ended = "blocked" if record.gate is not None and record.gate["blocked"] else "expired"
            try:  # what was shown is judged, also where its client never said that it was all
                record.deferred = _deferred(record, await self._policy(record))
            except PolicyUnavailable as error:
                logger.error("deferred_checks_cannot_be_made", session=session_id, error=str(error))
            record.rev, record.gate = seen + 1, None
            swapped, _ = await self._put(record, seen, record.events, quiet_s=quiet_s)
            if swapped is None:
                return ""
        await self._conclude(record)
        return record.ended

    async def _conclude(self, record: Record) -> None:
        """What follows from an end that the store has: record, readers, workers, and the tombstone in its place.

        Each part is done once, whoever was cut off after whichever of them.
        """
        if not record.over:
            beside = await shadow.ended(record)
            tombstone = replace(
                record,
                rev=record.rev + 1,
                over=True,
                gate=None,
                visible="",
                raw="",
                redactions=[],
                earlier=[],
                shadow=None,
            )
            end = partial(
                rows.end, record=record, tombstone=tombstone.seal(), last_seq=record.events + LAST, shadow=beside
            )
            ended = await together(end)
            if ended.first:
                metrics.shadowed(record.policy, beside)
            last = last_events(record, ended.state, ended.outcome)
            await self._put(
                tombstone, record.rev, record.events, last=last, ttl_s=self._settings.tombstone_s, kept=True
            )
        if record.deferred:
            await tasks.queue_session(record.session_id)

    async def _lose(self, session_id: str) -> None:
        logger.error("stream_state_lost", session=session_id)
        await database_sync_to_async(rows.lose)(session_id=session_id)

    # -- the record ---------------------------------------------------------------------------------------------

    async def _started_before(self, session_id: str, asked: Beginning) -> Answer | None:
        try:
            record = await self._load(asked.visitor, session_id)
        except NoSuchStream:
            return None
        if record.start_digest != asked.body_digest:
            said = "The Idempotency-Key was used for another start."
            raise OutOfTurn("idempotency_conflict", said, record.expected_seq)
        if not record.ended:
            # Who began the stream may have been cut off before it was in the store, and its events in the log.
            await self._put(record, record.rev, 0)
        return record.start_answer

    async def _load(self, visitor: Visitor, session_id: str, seq: int | None = None) -> Record:
        """The record as the newer of the two stores has it. ``seq``: of the delta that the client has now."""
        if not is_session_id(session_id):
            raise NoSuchStream
        found = await self._store.read(session_id)
        if found is None:
            kept: rows.Kept | None = await database_sync_to_async(rows.kept)(session_id)
            if kept is None:
                raise NoSuchStream
            return await self._kept(visitor, session_id, kept)
        record = await self._unsealed(found.blob, session_id)
        if not _may(visitor, record.client, session_id):
            raise NoSuchStream
        doubted = seq not in (None, record.expected_seq) or found.unkept_s >= self._settings.write_through_s
        if not doubted or (kept := await self._newer(session_id, found)) is None:
            return record
        record = await self._kept(visitor, session_id, kept)
        await self._put_forward(record, found.rev)
        return record

    async def _kept(self, visitor: Visitor, session_id: str, kept: rows.Kept) -> Record:
        """The record as the database has it."""
        if not _may(visitor, kept.client, session_id):
            raise NoSuchStream
        if kept.error_code == rows.LOST:
            raise StateLost
        if kept.state is not State.ACTIVE and kept.blob is None:
            raise OutOfTurn("stream_ended", f"The stream is over ({kept.outcome}).", kept.expected_seq)
        return await self._unsealed(kept.blob, session_id)

    async def _unsealed(self, blob: bytes | None, session_id: str) -> Record:
        try:
            if blob is None:
                raise RecordBroken("there is none")
            return unsealed(blob, session_id)
        except RecordBroken:
            await self._lose(session_id)
            raise StateLost from None

    async def _newer(self, session_id: str, found: Found) -> rows.Kept | None:
        """What the database has, where it has a newer state than the store: then the store was put back to an older
        one (from a copy of its data), and what it says of this stream is not to be built upon.
        """
        kept: rows.Kept | None = await database_sync_to_async(rows.kept)(session_id)
        if kept is None or kept.rev <= found.rev:
            return None
        again = await self._store.read(session_id)
        if again is not None and again.rev >= kept.rev:
            return None  # another call has gone on meanwhile
        logger.error("stream_store_put_back", session=session_id, store_rev=found.rev, database_rev=kept.rev)
        return kept

    async def _put_forward(self, record: Record, seen: int) -> None:
        """The database's state in the place of the store's older one; that of a stream that is over stays there."""
        if not record.over:
            await self._put(record, seen, record.events, kept=True)

    @staticmethod
    def _in_turn(record: Record, seq: int) -> None:
        if record.ended:
            raise OutOfTurn("stream_ended", f"The stream is over ({record.ended}).", record.expected_seq)
        if seq != record.expected_seq:
            said = f"seq {record.expected_seq} comes next; nothing was applied."
            if seq == record.seq:
                said = f"seq {seq} was sent before with another body; nothing was applied."
            raise OutOfTurn("seq_conflict", said, record.expected_seq)

    async def _policy(self, record: Record) -> Policy:
        policy: Policy = await database_sync_to_async(policy_by_digest)(record.policy_digest)
        return policy.demoted({name: Checkpoint(checkpoint) for name, checkpoint in record.demoted.items()})

    def _gate(self, record: Record, policy: Policy) -> Gate:
        if record.gate is None:
            raise StateLost
        try:
            return Gate.restore(policy, record.gate)
        except StateError as error:
            logger.error("stream_state_of_another_engine", session=record.session_id, error=str(error))
            raise StateLost from error

    async def _commit(
        self, record: Record, seen: int, told: int, digest: str, answer: Answer
    ) -> tuple[Swapped | None, bytes]:
        """Store what a call led to. ``told``: so many events had followed before it."""
        record.rev, record.calls = seen + 1, record.calls + 1
        record.keep(digest, answer)
        return await self._put(record, seen, told)

    async def _put(
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
        ms = round((datetime.now(UTC) - datetime.fromisoformat(record.started_at)).total_seconds() * 1000)
        while True:
            events = Following(told, [*events_after(record, told), *(last or [])], last=last is not None)
            swapped = await self._store.swap(
                record.session_id, seen, record.rev, blob, events,
                ms=ms, ttl_s=ttl_s or self._ttl_s, quiet_s=quiet_s, kept=kept,
            )  # fmt: skip
            if not isinstance(swapped, Behind):
                return swapped, blob
            told = swapped.seq

    async def _after_the_race(self, visitor: Visitor, session_id: str, digest: str) -> Answer:
        """Another writer was first: with the same call, then its answer is ours, or with another one."""
        record = await self._load(visitor, session_id)
        if (answer := record.answered(digest)) is not None:
            return answer
        said = "Another call changed the stream at the same time; nothing was applied."
        raise OutOfTurn("seq_conflict", said, record.expected_seq)

    # -- the text -----------------------------------------------------------------------------------------------

    async def _fed(
        self, gate: Gate, record: Record, delta: str, turns: tuple[Turn, ...], *, last: bool = False
    ) -> CheckedText:
        if record.counts[0] + len(delta) > self._settings.max_own_text_chars:
            raise TooLong(f"The text has more than {self._settings.max_own_text_chars:,} characters.")
        record.came(len(delta))
        effects = gate.feed(delta)
        if last:
            effects = [*effects, *gate.finish()]
        out = await settled(gate, effects, conversation=turns)
        if any(not g.decides for g in gate.policy.deferred(gate.applies_to)):
            record.raw += delta
        return out

    @staticmethod
    def _settle(gate: Gate, record: Record, text: CheckedText, policy: Policy) -> None:
        """Take what a call led to into the record."""
        record.gate, record.held = gate.state(), gate.held
        record.visible += text.visible
        record.redactions += text.redactions
        counters = gate.counters
        record.counts = (counters.chars_in, counters.released, counters.withheld, counters.exposed)
        if record.block is None and text.blocked is None:
            record.settle(gate.settled)
        for finding in text.findings:
            record.findings.append(replace(finding, n=len(record.findings) + 1).as_dict())
        if (block := text.blocked) is not None:
            reason = block_reason(block, "prompt" if record.kind == AppliesTo.PROMPT else "answer")
            record.block = Block(
                after=len(record.findings), guardrail=block.guardrail, reason=reason,
                withheld=record.counts[0] - record.counts[1],
            )  # fmt: skip
        record.checks += totals.add(record.guardrails, findings=text.findings, statuses=text.statuses)

    async def _turns(self, record: Record, policy: Policy) -> tuple[Turn, ...]:
        if not any(g.impl.wants_conversation for g in policy.running(AppliesTo(record.kind))):
            return ()
        found: tuple[Turn, ...] = await database_sync_to_async(rows.turns)(record, self._settings.history_messages)
        return found

    def _summary(self, record: Record) -> Answer:
        chars_in, released, _, exposed = record.counts
        said = {"outcome": record.ended, "chars_in": chars_in, "released": released, "withheld": chars_in - released}
        total = {**rows.summary(record), "calls": record.calls + 1, "findings": len(record.findings)}
        return {**said, "exposed": exposed, **total}

    def _expires(self, now_ms: int) -> str:
        return datetime.fromtimestamp(now_ms / 1000 + self._settings.stream_expiry_s, UTC).isoformat()


def _may(visitor: Visitor, client: str, session_id: str) -> bool:
    return visitor.only_session == session_id if visitor.only_session else visitor.client == client


def _deferred(record: Record, policy: Policy) -> list[str]:
    """Guardrails that a worker asks about the whole text."""
    return [g.name for g in policy.deferred(AppliesTo(record.kind)) if record.raw and not g.decides]


def _channel(record: Record) -> str:
    return "prompt" if record.kind == AppliesTo.PROMPT else "text"


def _action(gate: Gate, findings: list[FindingDict]) -> str:
    return "block" if gate.blocked else action_of(findings)
