"""The id that leads from a call to everything that came of it.

Exists because a session outlives the call that began it: a pump goes on, a worker checks later. Protects the rule that
all of them write the same id into their log lines, and that an id from outside can forge none.
"""

from __future__ import annotations

import re
import uuid

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{8,64}")


def correlation_of(given: str) -> str:
    """The id that a caller gave, if it is well formed, else a new one."""
    return given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
