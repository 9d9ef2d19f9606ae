"""The database's threads: what stays open in them, and what they must not take out of its caller's hands."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Sequence
from unittest.mock import patch

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from streaming import database
from streaming.database import in_database, reading

LIMIT_S = 20


def _where() -> tuple[int, object]:
    """The thread, and the connection that is open in it."""
    connection.ensure_connection()
    return threading.get_ident(), connection.connection


@pytest.mark.django_db(transaction=True)
async def test_it_works() -> None:
    """Requests that come one after another find the connection open."""
    database.let_go()
    found = []
    for _ in range(3):
        async with ThreadSensitiveContext():
            found.append([await in_database(_where)() for _ in range(2)])
    first = found[0][0]
    assert first[0] != threading.get_ident()
    if connection.vendor == "sqlite":
        assert all(one == first for request in found for one in request)
    else:
        assert len({id(one[1]) for request in found for one in request}) <= database.THREADS


@pytest.mark.django_db
def test_what_a_caller_has_not_committed_is_seen_by_what_it_waits_for() -> None:
    with transaction.atomic():
        Group.objects.create(name="not committed")
        assert async_to_sync(in_database(Group.objects.filter(name="not committed").exists))()


@pytest.mark.django_db(transaction=True)
async def test_a_thousand_tasks_that_ask_hold_no_thousand_connections() -> None:
    """Django would make one, open or not, for each task that as much as looks at it in an event loop."""

    async def asks() -> Sequence[BaseDatabaseWrapper]:
        await in_database(_where)()
        await reading(_where)()
        return connections.all(initialized_only=True)

    assert not await asyncio.get_running_loop().create_task(asks(), context=contextvars.Context())


@pytest.mark.django_db(transaction=True)
async def test_a_connection_that_broke_is_replaced() -> None:
    database.let_go()
    broken = await in_database(_where)()

    def breaks() -> None:
        connection.errors_occurred = True  # what Django notes when a query fails

    await in_database(breaks)()
    with patch.object(type(connections["default"]), "is_usable", lambda self: self.connection is not broken[1]):
        after = [await in_database(_where)() for _ in range(database.THREADS + 1)]
    assert after[-1][1] is not None
    assert all(one[1] is not broken[1] for one in after if one[0] == broken[0])


@pytest.mark.django_db(transaction=True)
async def test_nobody_inherits_a_connection() -> None:
    """What runs before a fork closes them; the next call opens its own."""

    def own() -> BaseDatabaseWrapper:
        connections["default"].ensure_connection()
        return connections["default"]

    opened = await in_database(own)()
    assert opened.connection is not None
    database.let_go()
    assert opened.connection is None
    again = await in_database(own)()
    assert again is not opened
    assert again.connection is not None


@pytest.mark.django_db(transaction=True)
async def test_what_was_begun_comes_to_its_end_when_the_caller_is_cancelled() -> None:
    began, may_end = threading.Event(), threading.Event()

    def writes() -> None:
        began.set()
        assert may_end.wait(LIMIT_S)
        Group.objects.create(name="written")

    asked = asyncio.create_task(in_database(writes)())
    assert await asyncio.to_thread(began.wait, LIMIT_S)
    asked.cancel()
    may_end.set()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.wait([asked])
    assert await in_database(Group.objects.filter(name="written").exists)()


@pytest.mark.django_db(transaction=True)
async def test_what_a_call_has_to_read_does_not_wait_behind_what_others_store() -> None:
    begun, free = threading.Event(), threading.Event()

    def stores() -> None:
        with transaction.atomic():
            Group.objects.create(name="being stored")
            begun.set()
            assert free.wait(LIMIT_S)

    storing = [asyncio.create_task(in_database(stores)())]
    try:
        assert await asyncio.to_thread(begun.wait, LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            assert not await reading(Group.objects.filter(name="being stored").exists)()
    finally:
        free.set()
        await asyncio.gather(*storing)
    assert await reading(Group.objects.filter(name="being stored").exists)()
