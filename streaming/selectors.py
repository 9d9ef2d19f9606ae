"""Reads that pump, consumers, pages and tasks share.

Exists so that a query is written once. Protects the rule that a provider is shown only what a reader may see: the
history is made of visible text, and of prompts that were not blocked.
"""

from __future__ import annotations

from collections.abc import Sequence

from channels.db import database_sync_to_async
from django.db.models import QuerySet

from guardrails.findings import AppliesTo
from guardrails.kinds.base import Turn
from guardrails.models import ApiKey
from guardrails.policy import Policy
from streaming.core.events import Done, MessageUpdate, ServerEvent, StateChange
from streaming.models import AuditSession, DeferredCheck, Message
from streaming.providers.base import ChatMessage
from streaming.sessions import Visitor, conversation_of, meant, session_of


def conversation_messages(conversation_id: str) -> QuerySet[Message]:
    """All messages of a conversation in order."""
    return Message.objects.filter(conversation_id=conversation_id).order_by("created")


def history(visitor: Visitor, conversation_id: str, limit: int) -> tuple[ChatMessage, ...]:
    """The last ``limit`` messages of the visitor's conversation for a provider, oldest first.

    Raises ``Conversation.DoesNotExist``.
    """
    conversation = conversation_of(visitor, conversation_id)
    rows = (
        Message.objects.filter(conversation=conversation)
        .exclude(role=Message.Role.USER, status=Message.Status.BLOCKED)
        .exclude(content="")
        .order_by("-created")[:limit]
    )
    return tuple(ChatMessage(row.role, row.content) for row in reversed(rows))


async def named_turns(
    visitor: Visitor, key: str, limit: int, applies_to: AppliesTo, *policies: Policy
) -> tuple[Turn, ...]:
    """The last ``limit`` messages of the client's conversation of that name or id, visible text only, oldest first.

    Empty without a name, and where no guardrail of these policies wants to know them.
    """
    if not key or not any(g.impl.wants_conversation for policy in policies for g in policy.running(applies_to)):
        return ()
    found: tuple[Turn, ...] = await database_sync_to_async(_named_turns)(visitor, key, limit)
    return found


def _named_turns(visitor: Visitor, key: str, limit: int) -> tuple[Turn, ...]:
    conversation = meant(visitor, key)
    if conversation is None:
        return ()
    rows = Message.objects.filter(conversation=conversation).exclude(content="").order_by("-created")[:limit]
    return tuple(Turn(row.role, row.content) for row in reversed(rows))


def session_over(session_id: str) -> tuple[AuditSession.State, Sequence[ServerEvent]]:
    """State of a session, and, when its answer is over, the events that say so from the database alone."""
    session = AuditSession.objects.select_related("answer").get(pk=session_id)
    state = AuditSession.State(session.state)
    if state is AuditSession.State.ACTIVE:
        return state, ()
    content = session.answer.content if session.answer else ""
    events: list[ServerEvent] = []
    if session.answer is not None:
        events.append(MessageUpdate(str(session.answer_id), content, session.answer.metadata))
    events.append(Done(content, session.outcome))
    events.append(StateChange(state.value, session.outcome))
    return state, events


def open_checks(session_id: str) -> QuerySet[DeferredCheck]:
    """Deferred checks of a session that have not ended."""
    return DeferredCheck.objects.filter(session__pk=session_id, state__in=DeferredCheck.OPEN).order_by("id")


def key_of_session(session_id: str) -> ApiKey | None:
    """The key that began a session, unless it has been revoked since."""
    clients = AuditSession.objects.filter(pk=session_id).exclude(client="").values("client")
    return ApiKey.objects.filter(prefix__in=clients, revoked_at__isnull=True).first()


async def owned_session(visitor: Visitor, session_id: str) -> AuditSession:
    """The visitor's session. Raises ``AuditSession.DoesNotExist``."""
    found: AuditSession = await database_sync_to_async(session_of)(visitor, session_id)
    return found
