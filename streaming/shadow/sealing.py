"""The texts of a shadow's late checks on their way to a worker.

Exists so that writing and reading stand side by side. Protects the rule that no text lies anywhere in clear: they are
sealed together with what was said before, bound to the check that they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from django.db.models.functions import Now

from guardrails.kinds.base import Turn
from streaming.sealed import SealBroken, seal, unseal
from streaming.shadow.outbox import ShadowCheck
from streaming.shadow.record import Piece, ShadowRecord


def rows_of(session_id: str, record: ShadowRecord) -> list[ShadowCheck]:
    """What is to be stored with the session's end."""
    made = []
    for late in record.late:
        pieces = [[one.channel, one.start, one.end, one.exposed, one.text] for one in late.pieces]
        said = json.dumps([pieces, [[turn.role, turn.text] for turn in late.turns]])
        row = ShadowCheck(
            session_id=UUID(session_id),
            policy_digest=record.digest,
            guardrail=late.guardrail,
            applies_to=late.applies_to,
            part=late.part,
            queued_at=Now(),
            stored_at=Now(),
        )
        row.sealed = seal(said, context=_context(row))
        made.append(row)
    return made


def opened(row: ShadowCheck) -> tuple[Sequence[Piece], tuple[Turn, ...]]:
    """The texts, and what was said before them. Raises ``SealBroken``."""
    try:
        pieces, turns = json.loads(unseal(bytes(row.sealed), context=_context(row)))
        return [Piece(*one) for one in pieces], tuple(Turn(str(role), str(said)) for role, said in turns)
    except (ValueError, TypeError) as error:
        raise SealBroken("the stored texts cannot be opened with this installation's key") from error


def _context(row: ShadowCheck) -> str:
    return f"shadow/{row.session_id}/{row.guardrail}/{row.applies_to}/{row.part}"
