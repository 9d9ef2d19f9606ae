"""The database's clock: what tells a session that is alive from one that nobody runs any more.

Exists because the process that says "still alive" and the worker that looks for the silent ones may be two machines
whose clocks differ. Protects the rule that no session is ended early by that: signs of life are written with the
database's time and compared with the database's time. (Of a stream that its client owns, the store's clock has the last
word; see ``streaming.guarded.store``. Times that people read, such as ``answered_at``, are those of the process.)
"""

from __future__ import annotations

from datetime import UTC, datetime

from django.db import connection


def database_now() -> datetime:
    """The time there, never later than it is; SQLite, which runs on this machine's clock, leaves fractions out."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT CURRENT_TIMESTAMP")
        (said,) = cursor.fetchone()
    return datetime.fromisoformat(said).replace(tzinfo=UTC) if isinstance(said, str) else said
