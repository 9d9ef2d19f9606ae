"""Reads that pump, consumers, pages and tasks share.

Exists so that a query is written once. Protects the rule that a provider is shown only what a reader may see: the
history is made of visible text, and of prompts that were not blocked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile

from django.db.models import QuerySet

from guardrails.findings import AppliesTo
from guardrails.kinds.base import Turn
from guardrails.models import ApiKey
from guardrails.policy import Policy
from streaming import conversing
from streaming.core.events import Done, MessageUpdate, ServerEvent, StateChange
from streaming.database import in_database
from streaming.models import AuditSession, DeferredCheck, Message
from streaming.providers.base import ChatMessage
from streaming.sessions import Visitor, conversation_of, meant, session_of
from streaming.standing import lines_of


def conversation_messages(conversation_id: str) -> QuerySet[Message]:
    """All messages of a conversation in order."""
    return Message.objects.filter(conversation_id=conversation_id).order_by("created")


def history(visitor: Visitor, conversation_id: str, limit: int) -> tuple[ChatMessage, ...]:
    """The last ``limit`` messages of the visitor's conversation for a provider, oldest first, from a user's on.

    Where the limit or a prompt that was blocked would leave an answer at their head, it goes: a model would be shown an
    answer to nothing, and one vendor refuses that. Raises ``Conversation.DoesNotExist``.
    """
    return history_and_earlier(visitor, conversation_id, limit, 0)[1]


History = tuple[tuple[Turn, ...], tuple[ChatMessage, ...]]


def history_and_earlier(visitor: Visitor, conversation_id: str, limit: int, wanted: int) -> History:
    """What was said before the history, and the history. Both together are the last ``wanted`` messages, if these are
    more, for guardrails that want to know them.
    """
    conversation = conversation_of(visitor, conversation_id)
    rows = (
        Message.objects.filter(conversation=conversation)
        .exclude(role=Message.Role.USER, status=Message.Status.BLOCKED)
        .exclude(content="")
        .order_by("-created")[: max(limit, wanted + 1)]
    )
    said = [ChatMessage(row.role, row.content) for row in rows][::-1]
    shown = tuple(dropwhile(lambda one: one.role == Message.Role.ASSISTANT, said[-limit:] if limit else ()))
    turns = conversing.newest([Turn(one.role, one.text) for one in said], max(wanted, len(shown)))
    return turns[: len(turns) - len(shown)] if wanted else (), shown


async def named_turns(
    visitor: Visitor, key: str, limit: int, applies_to: AppliesTo, *policies: Policy
) -> tuple[Turn, ...]:
    """The last messages of the client's conversation of that name or id, visible text only, oldest first: ``limit`` of
    them, and more where a guardrail wants more.

    Empty without a name, and where no guardrail of these policies wants to know them.
    """
    wanted = conversing.turns_wanted(applies_to, *policies)
    if not key or not wanted:
        return ()
    found: tuple[Turn, ...] = await in_database(_named_turns)(visitor, key, max(limit, wanted))
    return found


def _named_turns(visitor: Visitor, key: str, limit: int) -> tuple[Turn, ...]:
    conversation = meant(visitor, key)
    if conversation is None:
        return ()
    rows = Message.objects.filter(conversation=conversation).exclude(content="").order_by("-created")[: limit + 1]
    return conversing.newest([Turn(row.role, row.content) for row in reversed(rows)], limit)


def session_over(session_id: str) -> tuple[AuditSession.State, Sequence[ServerEvent]]:
    """State of a session, and, when its answer is over, the events that say so from the database alone.

    What its deferred checks came to stands before the session's state, as it does in the log.
    """
    session = AuditSession.objects.select_related("answer").get(pk=session_id)
    state = AuditSession.State(session.state)
    if state is AuditSession.State.ACTIVE:
        return state, ()
    content = session.answer.content if session.answer else ""
    events: list[ServerEvent] = []
    if session.answer is not None:
        events.append(MessageUpdate(str(session.answer_id), content, session.answer.metadata))
    events.append(Done(content, session.outcome))
    events += lines_of(session_id)
    events.append(StateChange(state.value, session.outcome))
    return state, events


def open_checks(session_id: str) -> QuerySet[DeferredCheck]:
    """Deferred checks of a session that have not ended."""
    return DeferredCheck.objects.filter(session__pk=session_id, state__in=DeferredCheck.OPEN).order_by("id")


def key_of_session(session_id: str) -> ApiKey | None:
    """The key that began a session, unless it has been revoked since."""
    clients = AuditSession.objects.filter(pk=session_id).exclude(client="").values("client")
    return ApiKey.objects.filter(prefix__in=clients, revoked_at__isnull=True).first()


def standing(session_ids: Sequence[str], at_once: int = 500) -> dict[str, bool]:
    """Which of these sessions are still ACTIVE; those that are not stored are not named."""
    found: dict[str, bool] = {}
    for at in range(0, len(session_ids), at_once):
        rows = AuditSession.objects.filter(pk__in=session_ids[at : at + at_once]).values_list("pk", "state")
        found |= {str(pk): state == AuditSession.State.ACTIVE for pk, state in rows}
    return found


def open_of(client: str, most: int) -> list[str]:
    """The streams and chats of a key that are ACTIVE, at most so many."""
    origins = (AuditSession.Origin.STREAM, AuditSession.Origin.CHAT)
    rows = AuditSession.objects.filter(state=AuditSession.State.ACTIVE, client=client, origin__in=origins)
    return [str(pk) for pk in rows.values_list("pk", flat=True)[:most]]


def scopes_of_key(prefix: str) -> Sequence[str] | None:
    """What the key of this prefix opens now; None where there is none, or it has been revoked."""
    return ApiKey.objects.filter(prefix=prefix, revoked_at__isnull=True).values_list("scopes", flat=True).first()


async def owned_session(visitor: Visitor, session_id: str) -> AuditSession:
    """The visitor's session. Raises ``AuditSession.DoesNotExist``."""
    found: AuditSession = await in_database(session_of)(visitor, session_id)
    return found
