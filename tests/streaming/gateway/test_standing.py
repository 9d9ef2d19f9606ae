"""What a call reads before it may begin: nothing that others store holds it up."""

from __future__ import annotations

import asyncio
import threading

import pytest
from django.contrib.auth.models import Group
from django.db import transaction

from guardrails.models import ApiKey
from streaming.database import in_database
from streaming.gateway.standing import _noting, standing
from tests.streaming.gateway.test_records import new_key

LIMIT_S = 20


@pytest.mark.django_db(transaction=True)
async def test_that_a_key_was_used_is_stored_beside_the_call() -> None:
    """While somebody writes, no other writer gets on; the call does."""
    key = await new_key()
    begun, free = threading.Event(), threading.Event()

    def stores() -> None:
        with transaction.atomic():
            Group.objects.create(name="being stored")
            begun.set()
            assert free.wait(LIMIT_S)

    storing = asyncio.create_task(in_database(stores)())
    try:
        assert await asyncio.to_thread(begun.wait, LIMIT_S)
        async with asyncio.timeout(5):
            found = [await standing(key, "gateway") for _ in range(2)]
    finally:
        free.set()
        await storing
    assert {one.access.key for one in found} == {found[0].key.prefix}
    (noting,) = _noting.values()
    await asyncio.wait({noting}, timeout=LIMIT_S)
    used = (await ApiKey.objects.aget()).last_used_at
    assert used is not None
    again = await standing(key, "gateway")
    assert again.key.last_used_at == used
    assert not _noting, "once a minute is enough"
