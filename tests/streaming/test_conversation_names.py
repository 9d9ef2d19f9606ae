"""A client's name for a conversation leads to one row, whatever was there before and whoever comes at the same time.

The race itself is run on PostgreSQL (``tests/stack/test_two_processes.py``): SQLite lets nobody else write meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from django.apps.registry import Apps
from django.db import IntegrityError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from streaming.models import Conversation
from streaming.sessions import Visitor, named_conversation

pytestmark = pytest.mark.django_db(transaction=True)
BEFORE, AFTER = "0020_figures_index", "0021_one_conversation_of_a_name"


def named(key: str, client: str = "sg_one") -> UUID:
    """What a call that names ``key`` gets."""
    with transaction.atomic():
        return named_conversation(visitor=Visitor(client=client), key=key, policy="basic", now=timezone.now()).pk


def test_it_works() -> None:
    assert named("c-1") == named("c-1")
    assert len({named("c-1"), named("c-2"), named("c-1", "sg_two"), named(""), named("")}) == 5


def test_no_writer_can_make_a_second_row_of_a_name() -> None:
    named("c-1")
    with pytest.raises(IntegrityError), transaction.atomic():
        Conversation.objects.create(client="sg_one", external_id="c-1")


def test_first_calls_of_many_threads_get_one_conversation() -> None:
    together, got = threading.Barrier(4), []

    def call() -> None:
        try:
            together.wait(60)
            got.append(named("c-1"))
        finally:
            connection.close()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(got), len(set(got))) == (4, 1)


def migrated(name: str) -> Apps:
    executor = MigrationExecutor(connection)
    found: Apps = executor.migrate([("streaming", name)]).apps
    return found


@pytest.fixture
def before() -> Iterator[Apps]:
    """The tables as they were; afterwards they are as they are."""
    try:
        yield migrated(BEFORE)
    finally:
        migrated(AFTER)
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes())


def test_of_rows_of_one_name_the_one_that_later_calls_went_to_keeps_it(before: Apps) -> None:
    made, now = before.get_model("streaming", "Conversation"), timezone.now()
    older, newest = (
        made.objects.create(client="sg_one", external_id="c-1", created=now + timedelta(seconds=n)) for n in range(2)
    )
    oldest = made.objects.create(client="sg_one", external_id="c-1", created=now - timedelta(seconds=1))
    nameless = [made.objects.create(client="sg_one") for _ in range(2)]
    others = [made.objects.create(client=client, external_id=name) for client, name in
              (("sg_two", "c-1"), ("sg_one", "c-2"))]  # fmt: skip
    migrated(AFTER)
    rows = dict(Conversation.objects.values_list("pk", "external_id"))
    assert rows == {
        newest.pk: "c-1", others[0].pk: "c-1", others[1].pk: "c-2",
        **dict.fromkeys([one.pk for one in (older, oldest, *nameless)], ""),
    }  # fmt: skip
    assert named("c-1") == newest.pk
