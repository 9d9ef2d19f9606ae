"""Rows that are read each time as they stand, and made into objects anew only where they have changed.

Exists because every session and every call asks for its key and its policy: writing the statement and making objects of
the answer cost a multiple of what the database does. Protects the rule that nothing is believed because it was true a
moment ago: the database is asked each time, and what it says is compared column by column. The objects are shared:
nobody changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from django.db import connection
from django.db.models import Model, QuerySet

M = TypeVar("M", bound=Model)
MOST = 500
"""Answers that a process keeps of one question."""
_ASKED = "\N{REPLACEMENT CHARACTER}what is asked for\N{REPLACEMENT CHARACTER}"
"""Stands in the statement for what is asked for."""

Row = tuple[Any, ...]


class Unchanged(Generic[M]):
    """``rows``: those of ``about(asked)``. Its statement is the same whatever is asked for, but for that one text.

    One query, and two more where something has changed: what was made is kept if the row is the same before and after.
    (One that is changed and changed back between these three statements would be taken for what it was between.)
    Raises what the database raises.
    """

    def __init__(self, about: Callable[[str], QuerySet[M]]) -> None:
        self._about = about
        self._statements: dict[str, tuple[str, tuple[Any, ...]]] = {}
        self._kept: dict[str, tuple[list[Row], tuple[M, ...]]] = {}

    def rows(self, asked: str = "") -> tuple[M, ...]:
        """What is found, in the statement's order."""
        said = self._said(asked)
        if not said:
            self._kept.pop(asked, None)
            return ()
        kept = self._kept.get(asked)
        if kept is not None and kept[0] == said:
            return kept[1]
        found = tuple(self._about(asked))
        if self._said(asked) == said:  # else it has changed meanwhile, and nobody knows which of them was made
            if len(self._kept) >= MOST:
                self._kept.clear()
            self._kept[asked] = (said, found)
        else:
            self._kept.pop(asked, None)
        return found

    def forget(self) -> None:
        """Make all objects anew (tests: as after a restart)."""
        self._kept.clear()

    def _said(self, asked: str) -> list[Row]:
        statement, values = self._statement()
        with connection.cursor() as cursor:
            cursor.execute(statement, [asked if value == _ASKED else value for value in values])
            return list(cursor.fetchall())

    def _statement(self) -> tuple[str, tuple[Any, ...]]:
        if (found := self._statements.get(connection.vendor)) is None:
            found = self._statements[connection.vendor] = self._about(_ASKED).query.sql_with_params()
        return found
