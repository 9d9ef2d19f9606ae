"""The id that leads from a call to everything that came of it.

Exists because a session outlives the call that began it: a pump goes on, a worker checks later. Protects the rule that
all of them write the same id into their log lines, and that an id from outside can forge none.
"""

from __future__ import annotations

import re
import uuid

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{8,64}")
_OF_A_TASK = re.compile(r"(?<![A-Za-z0-9._-])([A-Za-z0-9._-]{8,64})~[0-9a-f]{32}(?![A-Za-z0-9])")


def correlation_of(given: str) -> str:
    """The id that a caller gave, if it is well formed, else a new one."""
    return given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex


def task_id_of(correlation_id: str) -> str:
    """A name for a task of a worker that leads to the call: the broker's own lines say nothing else of a task."""
    fresh = uuid.uuid4().hex
    return f"{correlation_id}~{fresh}" if _WELL_FORMED.fullmatch(correlation_id) else fresh


def correlation_in(said: str) -> str:
    """The correlation id of the task that is named there; empty if there is none."""
    found = _OF_A_TASK.search(said)
    return found[1] if found else ""
