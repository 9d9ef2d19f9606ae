"""The test database as it is when nothing has happened, put back after a test that commits.

Django empties every table and then makes content types and permissions again, which costs more than most tests. Here
that is done once; from then on the pages of the emptied file are copied back. Ids go on counting all the same: what is
kept under an id outside the database (in Valkey, in a process) is never taken for that of another test.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from django.db import connection
from django.test import TransactionTestCase

LIMIT_S = 60.0
"""Seconds after which whoever keeps the file locked is a test that has not ended."""
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_Teardown = Callable[[TransactionTestCase], None]


def empty_by(flush: _Teardown) -> _Teardown:
    """What empties the database after a test: ``flush`` the first time, a copy of what that left ever after."""
    emptied: list[sqlite3.Connection] = []

    def restore(case: TransactionTestCase) -> None:
        if not emptied:
            flush(case)
            kept = sqlite3.connect(":memory:", check_same_thread=False)
            copy(_open(), kept)
            emptied.append(kept)
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT name, seq FROM sqlite_sequence")
            counted = cursor.fetchall()
        copy(emptied[0], _open())
        with connection.cursor() as cursor:
            for name, highest in counted:
                cursor.execute("UPDATE sqlite_sequence SET seq = %s WHERE name = %s", [highest, name])
                if not cursor.rowcount:
                    cursor.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (%s, %s)", [name, highest])

    return restore


def copy(source: sqlite3.Connection, target: sqlite3.Connection, *, limit_s: float = LIMIT_S) -> None:
    """All pages of ``source`` into ``target``. Raises ``TimeoutError`` where a lock stays."""
    until = time.monotonic() + limit_s

    def look(status: int, remaining: int, total: int) -> None:
        if status & 0xFF in _LOCKED and time.monotonic() > until:
            raise TimeoutError(f"the database was locked for {limit_s:g} seconds")

    source.backup(target, progress=look)


def _open() -> sqlite3.Connection:
    connection.ensure_connection()
    opened: sqlite3.Connection = connection.connection
    return opened
