"""The life of a session: ACTIVE -> MONITORING -> COMPLETE, each step taken exactly once.

Exists so that state moves in one place. Protects two rules: whatever happened in between, the database alone says
what a session was (prompt and placeholder before streaming, visible text after); and of several processes that see
the same end coming, one takes the step and tells the readers, because each step is a conditional UPDATE whose row
count is the answer.

    from        step                    to
    ACTIVE      answered, checks left   MONITORING
    ACTIVE      answered                COMPLETE
    ACTIVE      pump or state lost      COMPLETE (outcome "error")
    ACTIVE      its client is silent    COMPLETE (outcome "expired")
    MONITORING  last check ended        COMPLETE
    MONITORING  time limit passed       COMPLETE (open checks "expired")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from guardrails.findings import Finding as FoundHit
from guardrails.findings import Outcome
from guardrails.kinds.base import Turn
from streaming import conversing, models, statement, unjudged
from streaming.audit import services as audit
from streaming.core.events import PolicyRef
from streaming.models import AuditSession, Conversation, DeferredCheck, Message, ShadowCheck, place_of
from streaming.pace import Pace
from streaming.salvage import Salvaged
from streaming.sealed import seal
from streaming.shadow.record import ShadowRecord
from streaming.shadow.sealing import rows_of

State = AuditSession.State
FALLBACK_CHARS = 200
"""What the column takes."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.ACTIVE: frozenset({State.MONITORING, State.COMPLETE}),
    State.MONITORING: frozenset({State.COMPLETE}),
    State.COMPLETE: frozenset(),
}
"""Where a session may go from where it is; ``_move`` refuses everything else."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks: a signed-in user, a browser session, or an API client (prefix of its key).

    ``only_session``: whoever holds a stream token; they may read and stop that session and begin none.
    """

    user_id: int | None = None
    session_key: str = ""
    client: str = ""
    only_session: str = ""


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a session begins with. ``prompt`` is the visible prompt, after its guardrails.

    ``conversation_id`` continues a conversation; ``fresh_id`` is the id of the one that begins, when it has to be
    known before, and ``session_id`` the session's. ``streaming`` and ``fallback``: what was decided; the end says what
    it came to. ``shadow``: the number of the version that runs beside, 0 for none.
    """

    visitor: Visitor
    prompt: str
    policy: PolicyRef
    provider: str
    model: str
    conversation_id: str = ""
    prompt_metadata: dict[str, object] = field(default_factory=dict)
    blocked: bool = False
    monitor: bool = False
    correlation_id: str = ""
    fresh_id: str = ""
    streaming: bool = True
    fallback: str = ""
    shadow: int = 0
    origin: AuditSession.Origin = AuditSession.Origin.CHAT
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """Ids of the rows that now exist, when the session began, and the id that leads from its call to all of it."""

    session_id: str
    conversation_id: str
    prompt_id: str
    answer_id: str
    started_at: datetime
    correlation_id: str = ""


@dataclass(frozen=True, slots=True)
class DeferredText:
    """A text that a worker shall judge, as a whole or sentence by sentence.

    ``held``: the process that made the answer has asked already, and holds the check as if it were a worker. The text
    is not stored then: if that process dies, the check ends as an error. ``part``: which of several texts of that sort
    it is. ``turns``: what was said before, where no conversation is stored that says it; sealed with the text.
    ``shown``: of a text beside prompt and answer, how many of its characters were shown.
    """

    guardrail: str
    applies_to: str
    text: str
    sentences: bool = False
    held: bool = False
    part: int = 0
    turns: tuple[Turn, ...] | None = None
    shown: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended. ``content`` is the visible text; counts are code points.

    ``provider``, ``model``: who answered; empty: who was asked, as far as is known.
    """

    outcome: Outcome
    status: Message.Status
    content: str = ""
    metadata: dict[str, object] = field(default_factory=dict)
    findings: Sequence[FoundHit] = ()
    deferred: Sequence[DeferredText] = ()
    chars_in: int = 0
    released: int = 0
    withheld: int = 0
    exposed: int = 0
    provider: str = ""
    model: str = ""
    timing: dict[str, object] = field(default_factory=dict)
    last_seq: int = 0
    error_code: str = ""
    error: str = ""
    streaming: bool = False
    fallback: str = ""
    shadow: ShadowRecord | None = None


def start_session(new: NewSession) -> Started:
    """Store conversation, prompt, placeholder and audit session in one transaction.

    Raises ``Conversation.DoesNotExist`` when ``conversation_id`` is not one of the visitor's.
    """
    now = timezone.now()
    with transaction.atomic():
        conversation = conversation_of(new.visitor, new.conversation_id) if new.conversation_id else None
        if conversation is None:
            conversation = Conversation(
                id=UUID(new.fresh_id) if new.fresh_id else uuid4(),
                user_id=new.visitor.user_id,
                session_key=new.visitor.session_key,
                client=new.visitor.client,
                policy=new.policy["name"],
                created=now,
            )
            statement.insert([conversation])
        prompt = Message(
            conversation=conversation,
            role=Message.Role.USER,
            content=new.prompt,
            status=Message.Status.BLOCKED if new.blocked else Message.Status.COMPLETE,
            created=now,
            metadata=new.prompt_metadata,
        )
        # One microsecond later: messages are read in the order of their creation.
        answer = Message(
            conversation=conversation,
            role=Message.Role.ASSISTANT,
            status=Message.Status.PENDING,
            provider=new.provider,
            model=new.model,
            in_reply_to=prompt,
            created=now + timedelta(microseconds=1),
        )
        statement.insert([prompt, answer])
        session = AuditSession(
            id=UUID(new.session_id) if new.session_id else uuid4(),
            origin=new.origin,
            conversation=conversation,
            prompt=prompt,
            answer=answer,
            monitor=new.monitor,
            policy_name=new.policy["name"],
            policy_version=new.policy["version"],
            policy_digest=new.policy["digest"],
            provider=new.provider,
            model=new.model,
            streaming=new.streaming,
            fallback=new.fallback,
            shadow_version=new.shadow,
            client=new.visitor.client,
            correlation_id=new.correlation_id,
            started_at=now,
        )
        statement.insert([session], now="heartbeat_at")
        audit.opened(session=session)
    ids = (str(session.id), str(conversation.id), str(prompt.id), str(answer.id))
    return Started(*ids, now, session.correlation_id)


def conversation_of(visitor: Visitor, conversation_id: str) -> Conversation:
    """The visitor's conversation, by its id or, for an API client, by the name that it gave it.

    Raises ``Conversation.DoesNotExist``, also when it is somebody else's.
    """
    found = meant(visitor, conversation_id)
    if found is None:
        raise Conversation.DoesNotExist
    return found


def meant(visitor: Visitor, said: str) -> Conversation | None:
    """The conversation that the visitor means; None when none of theirs has this name or id.

    A name goes before an id: clients may take ids of their own for names.
    """
    if visitor.client and said:
        named = Conversation.objects.filter(client=visitor.client, external_id=said).first()
        if named is not None:
            return named
    try:
        found = Conversation.objects.filter(pk=UUID(said)).first()
    except ValueError:
        return None
    return found if found is not None and _owns(visitor, found) else None


def is_session_id(said: str) -> bool:
    """Whether this is written as our ids are. Keys of stores are made of it, so a session has one spelling only."""
    try:
        return str(UUID(said)) == said
    except ValueError:
        return False


def session_of(visitor: Visitor, session_id: str) -> AuditSession:
    """The visitor's session. Raises ``AuditSession.DoesNotExist``, also when it is somebody else's."""
    if not is_session_id(session_id):
        raise AuditSession.DoesNotExist
    found = AuditSession.objects.select_related("conversation").get(pk=session_id)
    if visitor.only_session:
        owned = str(found.pk) == visitor.only_session
    else:
        owned = found.conversation is not None and _owns(visitor, found.conversation)
    if not owned:
        raise AuditSession.DoesNotExist
    return found


def _owns(visitor: Visitor, conversation: Conversation) -> bool:
    if conversation.client:
        return conversation.client == visitor.client
    if conversation.user_id is not None:
        return conversation.user_id == visitor.user_id
    # What belongs to nobody has no key of a session, and nobody who comes without one is its owner.
    by_session = visitor.user_id is None and not (visitor.client or visitor.only_session)
    return by_session and visitor.session_key != "" and conversation.session_key == visitor.session_key


def keep_partial(*, session_id: str, content: str, released: int, chars_in: int, last_seq: int) -> bool:
    """Write through what is visible so far, as the pump's sign of life. False when the session has ended."""
    with transaction.atomic():
        alive = statement.update(
            AuditSession,
            {"pk": session_id, "state": State.ACTIVE},
            {"heartbeat_at": Now(), "released": released, "chars_in": chars_in, "last_seq": last_seq},
        )
        if alive:
            _answer(session_id, content=content, status=Message.Status.STREAMING)
    return bool(alive)


def _answer(session_id: str, **changes: object) -> None:
    """Change the session's answer, if it has one still."""
    statement.update(Message, {"pk": statement.Of(AuditSession, session_id, "answer")}, changes)


def finish_streaming(*, session_id: str, ending: Ending) -> State | None:
    """The answer is over: store all of it and move on, in one transaction.

    Returns MONITORING when deferred checks are left, else COMPLETE; None when another process ended the session
    first (then nothing is changed).
    """
    target = State.MONITORING if ending.deferred else State.COMPLETE
    now = timezone.now()
    with transaction.atomic():
        moved = _move(
            session_id,
            State.ACTIVE,
            target,
            outcome=ending.outcome.value,
            would_have=worst_would_have(ending.findings),
            answered_at=now,
            ended_at=None if ending.deferred else now,
            heartbeat_at=Now(),
            chars_in=ending.chars_in,
            released=ending.released,
            withheld=ending.withheld,
            exposed=ending.exposed,
            timing=ending.timing,
            **asdict(Pace.of(ending.timing)),
            last_seq=ending.last_seq,
            error_code=ending.error_code,
            error=ending.error,
            streaming=ending.streaming,
            fallback=ending.fallback[:FALLBACK_CHARS],
            **_who(ending),
            **_shadow_columns(ending.shadow),
        )
        if not moved:
            return None
        _answer(session_id, content=ending.content, status=ending.status, metadata=ending.metadata, **_who(ending))
        # Some may have been written through before: a finding is stored once, by its number.
        rows = [finding_row(session_id, hit) for hit in ending.findings]
        if rows:
            models.Finding.objects.bulk_create(rows, ignore_conflicts=True)
        if ending.deferred:
            DeferredCheck.objects.bulk_create(_outbox_row(session_id, item, now) for item in ending.deferred)
        if ending.shadow is not None and ending.shadow.late:
            ShadowCheck.objects.bulk_create(rows_of(session_id, ending.shadow))
        if target is State.COMPLETE:
            audit.sealed(session_id=session_id)
    return target


def _who(ending: Ending) -> dict[str, str]:
    """Who answered, where that may differ from who was asked."""
    return {name: value for name in ("provider", "model") if (value := getattr(ending, name))}


def _shadow_columns(record: ShadowRecord | None) -> dict[str, object]:
    if record is None:
        return {}
    return {
        "shadow_version": record.version,
        "shadow_comparison": record.comparison.value,
        "shadow_would_have": record.would_have,
        "shadow": record.details(),
    }


def finding_row(session_id: str, hit: FoundHit) -> models.Finding:
    """The stored form of a finding."""
    return models.Finding(
        session_id=UUID(str(session_id)),
        n=hit.n,
        guardrail=hit.guardrail,
        kind=hit.kind,
        rule=hit.rule,
        category=hit.category,
        channel=hit.channel,
        start=hit.start,
        end=hit.end,
        score=hit.score,
        mode=hit.mode.value,
        action=hit.action.value,
        would_have=hit.would_have or "",
        exposed=hit.exposed,
    )


def seal_context(session_id: str, guardrail: str, place: str, *, conversed: bool = False) -> str:
    """What a sealed text is bound to; ``place``: ``DeferredCheck.place``."""
    return f"{session_id}/{guardrail}/{place}" + ("/conversed" if conversed else "")


def _outbox_row(session_id: str, item: DeferredText, now: datetime) -> DeferredCheck:
    conversed = item.turns is not None
    context = seal_context(session_id, item.guardrail, place_of(item.applies_to, item.part), conversed=conversed)
    text = item.text if item.turns is None else conversing.together(item.text, item.turns)
    return DeferredCheck(
        session_id=UUID(session_id),
        guardrail=item.guardrail,
        applies_to=item.applies_to,
        queued_at=Now(),  # the sweep compares it with the database's clock
        shown=item.shown,
        sealed_text=None if item.held else seal(text, context=context),
        sentences=item.sentences,
        part=item.part,
        conversed=conversed,
        **({"state": DeferredCheck.State.CHECKING, "attempts": 1, "started_at": Now()} if item.held else {}),
    )


def worst_would_have(findings: Sequence[FoundHit]) -> str:
    """``blocked`` before ``redacted`` before nothing."""
    return _worst([hit.would_have or "" for hit in findings])


def _worst(said: Sequence[str]) -> str:
    return "blocked" if "blocked" in said else "redacted" if "redacted" in said else ""


def complete_if_done(session_id: str) -> bool:
    """MONITORING -> COMPLETE when no deferred check is open. True for exactly one caller."""
    with transaction.atomic():
        # The lock makes two workers that end the last two checks see each other's result.
        AuditSession.objects.select_for_update().filter(pk=session_id).first()
        if DeferredCheck.objects.filter(session__pk=session_id, state__in=DeferredCheck.OPEN).exists():
            return False
        if not _move(session_id, State.MONITORING, State.COMPLETE, ended_at=timezone.now()):
            return False
        audit.sealed(session_id=session_id, checks=True)
        return True


def end_lost(
    *,
    session_id: str,
    stale_before: datetime,
    error: str,
    code: str = "pump_lost",
    salvaged: Salvaged | None = None,
    why_unjudged: str = unjudged.GONE,
) -> bool:
    """ACTIVE -> COMPLETE, outcome "error", for a session that gave no sign of life since ``stale_before``.

    What was written through stays as the message's content, unless the log told more. The checks that workers would
    have made end as errors, with ``why_unjudged``; empty: there was nothing to judge. True for exactly one caller.
    """
    now = timezone.now()
    policy = unjudged.policy_of(session_id) if why_unjudged else None  # before the lock: it may have to be compiled
    with transaction.atomic():
        session = AuditSession.objects.select_for_update().filter(pk=session_id, heartbeat_at__lt=stale_before).first()
        if session is None or not _move(
            session_id,
            State.ACTIVE,
            State.COMPLETE,
            outcome=Outcome.ERROR.value,
            error_code=code,
            error=error,
            answered_at=now,
            ended_at=now,
        ):
            return False
        answer = Message.objects.filter(sessions_answered__pk=session_id)
        answer.update(status=Message.Status.ERROR)
        if salvaged is not None:
            _put_back(session, salvaged, answer)
        checks = unjudged.checks_of(session, policy, salvaged, now, why_unjudged)
        DeferredCheck.objects.bulk_create(checks)
        _count_what_is_there(session)
        audit.sealed(session_id=session_id, checks=bool(checks))
    return True


def _count_what_is_there(session: AuditSession) -> None:
    """Counters of an answer whose process cannot say them: what was written through, and the findings in the table."""
    said = list(models.Finding.objects.filter(session=session).values_list("would_have", flat=True))
    timing = {**session.timing, "findings": len(said), "audit_rows": 3 + len(said)}
    AuditSession.objects.filter(pk=session.pk).update(would_have=_worst(said), timing=timing)


def _put_back(session: AuditSession, salvaged: Salvaged, answer: QuerySet[Message]) -> None:
    rows = [finding_row(str(session.pk), hit) for hit in salvaged.findings]
    models.Finding.objects.bulk_create(rows, ignore_conflicts=True)
    released = max(session.released, salvaged.released)
    AuditSession.objects.filter(pk=session.pk).update(
        released=released,
        chars_in=max(session.chars_in, released),
        last_seq=max(session.last_seq, salvaged.last_seq),
    )
    if salvaged.content is not None:
        metadata = {"status": Message.Status.ERROR.value, "redactions": [list(pair) for pair in salvaged.redactions]}
        answer.update(content=salvaged.content, metadata=metadata)


def _move(session_id: str, source: State, target: State, **changes: object) -> bool:
    if target not in TRANSITIONS[source]:
        raise ValueError(f"a session cannot go from {source} to {target}")
    return statement.update(AuditSession, {"pk": session_id, "state": source}, {"state": target, **changes}) == 1


def named_conversation(*, visitor: Visitor, key: str, policy: str, now: datetime) -> Conversation:
    """The client's conversation of that name or id, begun if there is none; without a name, a new one.

    Of two first calls that come at once both get the same one: the name is unique in the database, and whoever comes
    second waits for the first one's transaction.
    """
    new = {"user_id": visitor.user_id, "session_key": visitor.session_key, "policy": policy, "created": now}
    if not key:
        return Conversation.objects.create(client=visitor.client, **new)
    if (known := meant(visitor, key)) is not None:
        return known
    found, _ = Conversation.objects.get_or_create(client=visitor.client, external_id=key, defaults=new)
    return found


def record_check(
    *,
    visitor: Visitor,
    policy: PolicyRef,
    ending: Ending,
    monitor: bool,
    conversation_key: str,
    correlation_id: str,
    session_id: str = "",
    started_at: datetime | None = None,
    role: Message.Role = Message.Role.ASSISTANT,
) -> str:
    """Store a one-shot check as a session of its own, with its findings and outbox rows; returns the session's id.

    Calls that name the same ``conversation_key`` are one conversation of that client: the visible text is kept there as
    a message for those that come later. Without a name nobody could ask for it, and no text is kept. ``started_at``:
    when the call came, now where that is not said.
    """
    now = timezone.now()
    with transaction.atomic():
        conversation = named_conversation(visitor=visitor, key=conversation_key, policy=policy["name"], now=now)
        message = None
        if conversation_key:
            message = Message.objects.create(conversation=conversation, role=role, created=now)
        session = AuditSession.objects.create(
            pk=UUID(session_id) if session_id else uuid4(),
            origin=AuditSession.Origin.CHECK,
            conversation=conversation,
            answer=message,
            monitor=monitor,
            policy_name=policy["name"],
            policy_version=policy["version"],
            policy_digest=policy["digest"],
            client=visitor.client,
            correlation_id=correlation_id,
            started_at=started_at or now,
        )
        audit.opened(session=session)
        finish_streaming(session_id=str(session.pk), ending=ending)
    return str(session.pk)
