"""start, update, finish, status: what a client that owns its stream may ask for.

Exists apart from the calls' HTTP form so that the rules stand in one place. Protects these: an answer goes out only
after the state that follows from it is stored, so that a call repeated after a crash gets the very answer that was
lost; the events that follow from a call are stored with it, and once; a call that is refused changes nothing; a stream
is seen and continued by the key that began it alone. What is refused is in ``streaming.guarded.refusals``, which of two
copies of a state counts in ``streaming.guarded.states``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import cast
from uuid import NAMESPACE_OID, uuid4, uuid5

import structlog

from guardrails.findings import AppliesTo, FindingDict
from guardrails.kinds.base import Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from guardrails.selectors import PolicyUnavailable, ShadowPolicy, policy_by_digest
from streaming import conversing, metrics, tasks, totals
from streaming.answer import block_reason
from streaming.aside import set_aside
from streaming.checks import CheckedText, settled
from streaming.conf import Conf
from streaming.core.gate import Gate
from streaming.database import AWAY, in_database
from streaming.guarded import rows, shadow
from streaming.guarded.hints import hints
from streaming.guarded.late import Late
from streaming.guarded.record import Answer, Block, ForeignRecord, Record, RecordBroken, action_of
from streaming.guarded.refusals import NoSuchStream, OutOfTurn, TooLong, in_turn
from streaming.guarded.states import States
from streaming.guarded.store import Swapped
from streaming.guarded.telling import LAST, last_events
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog
from streaming.models import AuditSession
from streaming.open_sessions import place
from streaming.selectors import named_turns
from streaming.sessions import Visitor
from streaming.shadow.record import ShadowRecord
from streaming.slices import fed
from streaming.together import together

logger = structlog.get_logger(__name__)
State = AuditSession.State


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a start says. ``repeat_key``: the client's ``Idempotency-Key``, empty if it sent none.

    ``chunks``: so many had come to the client for the delta, None where it does not say.
    """

    visitor: Visitor
    policy: Policy
    kind: AppliesTo
    delta: str | None = None
    chunks: int | None = None
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
        self._states = States(log, settings)
        self._late = log.companion(Late)

    async def start(self, asked: Beginning) -> Answer:
        """Begin a stream; the same ``repeat_key`` with the same body begins it once."""
        client = asked.visitor.client
        session_id = _repeatable(client, asked.repeat_key) if asked.repeat_key else str(uuid4())
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
        async with place(self._log, client, session_id, self._settings, repeatable=bool(asked.repeat_key)):
            if asked.delta is not None:
                record.seq = 1
                record.took(asked.chunks)
                limit = self._settings.history_messages
                turns = await named_turns(asked.visitor, asked.conversation_key, limit, asked.kind, policy)
                text = await self._fed(gate, record, asked.delta, turns)
                await shadow.fed(record, gate, asked.delta)
            now_ms = await self._states.store.now_ms()
        self._settle(gate, record, text, policy)
        record.start_answer = record.answer = {
            "session_id": session_id,
            "state": State.ACTIVE.value,
            "policy": {"name": policy.name, "version": policy.version, "digest": policy.digest},
            "expires_at": self._expires(now_ms),
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
            before = await self.begun(asked.visitor, asked.repeat_key, asked.body_digest)
            if before is None:
                raise OutOfTurn("seq_conflict", "The stream is being started by another call.", 1)
            return before
        try:
            await self._states.put(record, 0, 0, kept=True)
        except LogUnavailable:
            if not asked.repeat_key:  # nobody knows its name: no call will ever continue it
                await in_database(rows.withdraw)(session_id=session_id)
            raise
        return record.start_answer

    async def begun(self, visitor: Visitor, repeat_key: str, body_digest: str) -> Answer | None:
        """What the start with this ``repeat_key`` was answered; None where there was none.

        Asked before anything else of a start is looked at: what has been answered does not depend on what holds now.
        """
        try:
            record = await self._states.load(visitor, _repeatable(visitor.client, repeat_key))
        except NoSuchStream:
            return None
        if record.start_digest != body_digest:
            said = "The Idempotency-Key was used for another start."
            raise OutOfTurn("idempotency_conflict", said, record.expected_seq)
        if not record.ended:
            # Who began the stream may have been cut off before it was in the store, and its events in the log: then
            # nothing newer was lost, and what is answered here is all that its client has been answered.
            record.behind = record.behind and record.rev > 1
            await self._states.put(record, record.rev, 0)
        return record.start_answer

    async def update(
        self, visitor: Visitor, session_id: str, seq: int, delta: str, *, chunks: int | None = None
    ) -> Answer:  # fmt: skip
        """Apply the next delta. ``chunks``: so many had come to the client for it, if it says so."""
        record = await self._states.load(visitor, session_id, seq)
        digest = digest_of("update", session_id, seq, delta)
        if (before := record.answered(digest)) is not None:
            if not record.ended:
                await self._states.keep_open(record)
                self._late.leave(session_id, self._settings.write_through_s)  # whoever was first may be dead
            return before
        in_turn(record, seq)
        policy = await self._policy(record)
        record, gate = await self._states.gate(visitor, record, policy, seq)
        found, told, seen = len(record.findings), record.events, record.rev
        record.took(chunks)
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
        try:
            swapped, blob = await self._commit(record, seen, told, digest, answer)
        except (asyncio.CancelledError, LogUnavailable):
            self._late.leave(session_id, self._settings.write_through_s)  # the store may have it
            raise
        if swapped is None:
            return await self._after_the_race(visitor, session_id, digest)
        if new or swapped.unkept_s >= self._settings.write_through_s:
            await self._write_through(record, blob)
        else:
            self._late.leave(session_id, self._settings.write_through_s - swapped.unkept_s)
        return answer

    async def finish(
        self, visitor: Visitor, session_id: str, seq: int | None, delta: str | None, *, chunks: int | None = None
    ) -> Answer:
        """Apply the last delta, if there is one, and end the text. ``chunks`` as in ``update``."""
        record = await self._states.load(visitor, session_id, seq)
        digest = digest_of("finish", session_id, seq, delta)
        if digest == record.digest:
            await self._conclude(record)  # little to do but after a crash
            return record.answer
        in_turn(record, seq)
        policy = await self._policy(record)
        record, gate = await self._states.gate(visitor, record, policy, seq)
        found, told, seen = len(record.findings), record.events, record.rev
        if delta is not None:
            record.seq += 1
            record.took(chunks)
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
        try:
            swapped, _ = await self._commit(record, seen, told, digest, answer)
            if swapped is not None:
                await self._conclude(record)
        except (asyncio.CancelledError, LogUnavailable, *AWAY):
            self._late.leave(session_id, self._settings.write_through_s)  # the store may have it
            raise
        if swapped is None:
            return await self._after_the_race(visitor, session_id, digest)
        self._late.written(session_id)
        return answer

    async def status(self, visitor: Visitor, session_id: str) -> Record | None:
        """The open stream, whose expiry begins anew; None when it is over. Raises ``NoSuchStream``.

        One whose finish was cut off half way is brought to its end: else it would be told as open for minutes.
        """
        try:
            record = await self._states.load(visitor, session_id)
        except OutOfTurn:
            return None
        if record.ended:
            if not record.over:
                await self._conclude(record)
            return None
        await self._states.keep_open(record)
        return record

    # -- ending -------------------------------------------------------------------------------------------------

    async def expire(self, session_id: str) -> str:
        """End a stream that the database has not heard of for long; "" when it is alive, else how it ended.

        A finish whose process died half way is brought to its end instead. Held text stays held.
        """
        quiet_s = self._settings.stream_expiry_s
        try:
            known = await self._states.known(session_id)
        except ForeignRecord as error:
            return await self._leave(session_id, error)
        except RecordBroken:
            await self._states.lose(session_id)
            return rows.LOST
        record, idle_s = known.record, quiet_s if known.idle_s is None else known.idle_s
        alive = idle_s < quiet_s
        if known.again and (alive or record.ended):
            await self._states.put_forward(record, known.seen)
        if alive and (known.again or not record.ended):
            await in_database(rows.heard_of)(session_id=session_id, ago_s=idle_s)
            return ""
        if not record.ended:
            seen = known.seen
            record.ended = "blocked" if record.gate is not None and record.gate["blocked"] else "expired"
            try:  # what was shown is judged, also where its client never said that it was all
                record.deferred = _deferred(record, await self._policy(record))
            except PolicyUnavailable as error:
                logger.error("deferred_checks_cannot_be_made", session=session_id, error=str(error))
            record.rev, record.gate = max(record.rev, seen) + 1, None
            swapped, _ = await self._states.put(record, seen, record.events, quiet_s=quiet_s)
            if swapped is None:
                return ""
        await self._conclude(record)
        return record.ended

    async def _leave(self, session_id: str, error: ForeignRecord) -> str:
        """Leave a stream that cannot be read here to who can, for as long again as streams may be silent."""
        quiet_s = self._settings.stream_expiry_s
        found = await self._states.store.read(session_id)
        idle_s = await in_database(rows.silent_for)(session_id=session_id) if found is None else found.idle_s
        if idle_s >= 2 * quiet_s:
            logger.error("stream_state_of_another_engine", session=session_id, error=str(error))
            await self._states.lose(session_id)
            return rows.LOST
        if idle_s < quiet_s:
            await in_database(rows.heard_of)(session_id=session_id, ago_s=idle_s)
        return ""

    async def _conclude(self, record: Record) -> None:
        """What follows from an end that the store has: record, readers, workers, and the tombstone in its place.

        Each part is done once, whoever was cut off after whichever of them.
        """
        beside: ShadowRecord | None = None
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
            await self._states.put(
                tombstone, record.rev, record.events, last=last, ttl_s=self._settings.tombstone_s, kept=True
            )
        if record.deferred or (beside is not None and beside.late):
            await tasks.queue_session(record.session_id)

    # -- the record ---------------------------------------------------------------------------------------------

    async def _policy(self, record: Record) -> Policy:
        policy: Policy = await in_database(policy_by_digest)(record.policy_digest)
        return policy.demoted({name: Checkpoint(checkpoint) for name, checkpoint in record.demoted.items()})

    async def _commit(
        self, record: Record, seen: int, told: int, digest: str, answer: Answer
    ) -> tuple[Swapped | None, bytes]:
        """Store what a call led to. ``told``: so many events had followed before it."""
        record.rev, record.calls, record.behind = seen + 1, record.calls + 1, False
        record.keep(digest, answer)
        return await self._states.put(record, seen, told)

    async def _write_through(self, record: Record, blob: bytes) -> None:
        """Bring the database to this state. The call has been applied: where one of the two is away, it is answered
        all the same, and it is written later, as it is where its client went away just now."""
        self._late.written(record.session_id)  # what is left from here on is newer, and has its own time
        done = False
        try:
            if await in_database(rows.write_through)(record=record, blob=blob):
                await self._states.store.kept(record.session_id)
            done = True
        except (LogUnavailable, *AWAY) as error:
            logger.warning("stream_not_written_through", session=record.session_id, error=str(error))
        finally:
            if not done:
                self._late.leave(record.session_id, self._settings.write_through_s)

    async def _after_the_race(self, visitor: Visitor, session_id: str, digest: str) -> Answer:
        """Another writer was first: with the same call, then its answer is ours, or with another one."""
        record = await self._states.load(visitor, session_id)
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
        effects = await fed(gate, delta)
        if last:
            effects = [*effects, *gate.finish()]
        out = await settled(gate, effects, conversation=turns)
        if shadow.keeps_text(gate.policy, gate.applies_to):
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
        if not (wanted := conversing.turns_wanted(AppliesTo(record.kind), policy)):
            return ()
        found: tuple[Turn, ...] = await in_database(rows.turns)(record, max(wanted, self._settings.history_messages))
        return found

    def _summary(self, record: Record) -> rows.Summary:
        chars_in, released, _, exposed = record.counts
        counted = rows.summary(record)
        counted["calls"] += 1  # this one
        return rows.Summary(
            **counted,
            outcome=cast("rows.OutcomeName", record.ended),
            chars_in=chars_in,
            released=released,
            withheld=chars_in - released,
            exposed=exposed,
            findings=len(record.findings),
        )

    def _expires(self, now_ms: int) -> str:
        return datetime.fromtimestamp(now_ms / 1000 + self._settings.stream_expiry_s, UTC).isoformat()


def _repeatable(client: str, repeat_key: str) -> str:
    """The id of the stream that this client begins with this key, however often."""
    return str(uuid5(NAMESPACE_OID, f"sluicegate stream {client}\n{repeat_key}"))


def _deferred(record: Record, policy: Policy) -> list[str]:
    """Guardrails that a worker asks about the whole text."""
    return [g.name for g in policy.deferred(AppliesTo(record.kind)) if record.raw and not g.decides]


def _channel(record: Record) -> str:
    return "prompt" if record.kind == AppliesTo.PROMPT else "text"


def _action(gate: Gate, findings: list[FindingDict]) -> str:
    return "block" if gate.blocked else action_of(findings)
