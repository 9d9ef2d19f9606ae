"""The threads in which asynchronous code asks the database, and the connections that stay open in them.

Exists because a request's own thread ends with it, and so would its connection: a call would open and close one at each
step, which on PostgreSQL costs more than what is asked, and on SQLite makes whoever closes the last one write the whole
log back into the file. Protects two rules. What a caller waits for in a thread of its own (a synchronous view, a test's
transaction) is seen from inside: code that such a thread runs stays in that thread. And no process inherits another
one's connections: before a fork they are closed.

What reads many rows at once (exports, reports, metrics) uses a thread of its own, so that nobody waits behind it:
``channels.db.database_sync_to_async``. What a call has to know before it may begin (``reading``) does not wait behind
what others store.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync, sync_to_async
from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper

KEPT_S = 300
"""Seconds after which a connection is opened anew; one that broke is at once."""
THREADS = 4
"""Threads where the database lets several write. On SQLite they would only wait for each other: there is one."""

AWAY = (OperationalError, InterfaceError)
"""What is raised where the database cannot be reached, or not now. Not permanent: the same call may succeed later."""

_UNREACHABLE = ("08", "57P", "53300")
"""How PostgreSQL's SQLSTATE begins where the connection is what failed: lost, ended by an operator, or one too many."""
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

P = ParamSpec("P")
R = TypeVar("R")


class _Threads(ThreadPoolExecutor):
    """Threads that know which connections are open in them."""

    def __init__(self, count: int) -> None:
        self.opened: list[BaseDatabaseWrapper] = []
        super().__init__(count, thread_name_prefix="database", initializer=self._keep)

    def _keep(self) -> None:
        for one in connections.all():
            one.settings_dict = {**one.settings_dict, "CONN_MAX_AGE": KEPT_S, "CONN_HEALTH_CHECKS": True}
            self.opened.append(one)


class _InThread(SyncToAsync[..., Any]):
    """What Channels does for a call to the database, without closing what can be used again."""

    def thread_handler(self, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any) -> Any:
        close_old_connections()
        return super().thread_handler(loop, *args, **kwargs)  # type: ignore[no-untyped-call]


_threads: dict[bool, _Threads] = {}
"""By whether they only read."""


def in_database(do: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """``do`` as a coroutine function that runs it in one of the database's threads.

    A call that is cancelled lets ``do`` come to its end first.
    """
    return _in_thread(do, reads=False)


def reading(do: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The same for what reads a few rows and stores next to nothing: on SQLite it has a thread of its own, because
    readers of a file wait for no writer.
    """
    return _in_thread(do, reads=True)


def _in_thread(do: Callable[P, R], *, reads: bool) -> Callable[P, Coroutine[Any, Any, R]]:
    @wraps(do)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(AsyncToSync.executors, "current", None):
            # A thread waits for us that has the caller's connection and transaction; the caller closes them.
            return await sync_to_async(do)(*args, **kwargs)
        found: R = await _InThread(do, thread_sensitive=False, executor=_at_work(reads=reads))(*args, **kwargs)
        return found

    return run


def of_one_statement(error: BaseException) -> bool:
    """Whether the database answered, and only this statement failed: a deadlock, a lock or a time limit. The next one,
    about another row, may succeed. What the database did not say itself counts as its being away.
    """
    if isinstance(cause := error.__cause__, sqlite3.OperationalError):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _LOCKED  # above that, it says which kind of lock
    sqlstate = getattr(cause, "sqlstate", None)
    return isinstance(sqlstate, str) and not sqlstate.startswith(_UNREACHABLE)


def let_go() -> None:
    """Wait for what is asked just now, and close every connection. The next call opens them again."""
    while _threads:
        _, threads = _threads.popitem()
        threads.shutdown(wait=True)
        closer = threading.Thread(target=_close, args=(threads.opened,))  # whoever calls may be an event loop
        closer.start()
        closer.join()


def _close(opened: list[BaseDatabaseWrapper]) -> None:
    for one in opened:
        one.inc_thread_sharing()
        one.close()


def _at_work(*, reads: bool) -> _Threads:
    # Asked of the settings: in an event loop the connection itself would be made for every task that asks, and kept
    # with its context, four kilobytes each.
    alone = connections.settings[DEFAULT_DB_ALIAS]["ENGINE"].endswith("sqlite3")
    found = _threads.get(reads and alone)
    if found is None:
        found = _threads[reads and alone] = _Threads(1 if alone else THREADS)
    return found


os.register_at_fork(before=let_go)
