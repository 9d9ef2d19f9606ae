"""What is said while the database is away, to programs, pages and sockets alike.

Exists so that a database that restarts is no failure of ours: whoever calls meanwhile is told in a code of its own to
come again. Protects the rules that such a call is answered in the form of all other refusals, and that it is a line of
the log and no traceback.
"""

from __future__ import annotations

import structlog

from streaming.core.events import ErrorEvent

logger = structlog.get_logger(__name__)

CODE = "database_unavailable"
SAID = "The database cannot be reached now; the same call may be sent again."
AGAIN_S = 2
"""Seconds after which it is worth trying again."""


def noted(error: BaseException, **where: object) -> ErrorEvent:
    """Log one line of it; what a socket or a stream of events says."""
    lines = str(error).splitlines() or [type(error).__name__]
    logger.error(CODE, error=lines[0], **where)
    return ErrorEvent(CODE, SAID, recoverable=True)
