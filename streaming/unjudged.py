"""Checks that nobody will make any more, because the text died with the process that had it.

Exists because deferred checks are handed to workers when a session ends, and a session that is lost has nobody who
could do that. Protects the rule that silence is no verdict: each guardrail that would have judged a text stands in the
session's record, with an error in the place of its result.
"""

from __future__ import annotations

from datetime import datetime

import structlog
from django.db import DatabaseError

from guardrails.findings import AppliesTo
from guardrails.policy import Policy
from guardrails.selectors import policy_by_digest
from streaming import demotion
from streaming.aside import set_aside
from streaming.models import AuditSession, DeferredCheck, Message
from streaming.salvage import Salvaged

logger = structlog.get_logger(__name__)

GONE = "The process that streamed the answer is gone; nobody judged its text."


def policy_of(session_id: str) -> Policy | None:
    """What the session began with, as sessions of its origin run it; None where it cannot be loaded, which is no reason
    to leave the session open."""
    found = AuditSession.objects.values_list("policy_digest", "origin").filter(pk=session_id).first()
    digest, origin = found or ("", "")
    try:
        policy: Policy | None = policy_by_digest(digest) if digest else None
        return policy if policy is None or origin != AuditSession.Origin.CHAT else demotion.current(policy)
    except DatabaseError:
        raise  # nothing else could be done either
    except Exception as error:  # whatever it is, the session has to end
        logger.error("unjudged_not_recorded", session=session_id, error=f"{type(error).__name__}: {error}")
        return None


def checks_of(
    session: AuditSession, policy: Policy | None, salvaged: Salvaged | None, now: datetime, why: str
) -> list[DeferredCheck]:
    """A row that has ended as an error for each guardrail and text that workers would have been given."""
    if policy is None:
        return []
    return [
        DeferredCheck(
            session=session,
            guardrail=guardrail.name,
            applies_to=applies_to.value,
            sentences=guardrail.name in aside,
            state=DeferredCheck.State.ERROR,
            queued_at=now,
            finished_at=now,
            error=why,
        )
        for applies_to in _texts(session, salvaged)
        for run, aside in (_as_run(session, policy, applies_to),)
        for guardrail in run.deferred(applies_to)
        if session.monitor or not guardrail.decides
    ]


def _as_run(session: AuditSession, policy: Policy, applies_to: AppliesTo) -> tuple[Policy, tuple[str, ...]]:
    """The version as the session ran it, and whose sentences workers would have been given."""
    return set_aside(policy, applies_to) if session.origin == AuditSession.Origin.STREAM else (policy, ())


def _texts(session: AuditSession, salvaged: Salvaged | None) -> list[AppliesTo]:
    """What the session had to judge; behind a prompt that was blocked there is nothing."""
    prompt, answer = session.prompt, session.answer
    if prompt is not None and prompt.status == Message.Status.BLOCKED:
        return []
    found = [AppliesTo.PROMPT] if prompt is not None and prompt.content else []
    # Without a log nobody knows what came behind the last sign of life.
    nothing_came = salvaged is not None and salvaged.content == "" and not session.chars_in
    if answer is not None and not nothing_came:
        found.append(AppliesTo.PROMPT if answer.role == Message.Role.USER else AppliesTo.RESPONSE)
    return found
