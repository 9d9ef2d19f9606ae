"""What every test of streams starts from: breakers that nobody has tripped, and no waiting between two tries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis
import stamina

from streaming import breakers, checks
from streaming.resilience import TRIES


@pytest.fixture(scope="session")
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """The tests' Valkey, for looking at it from outside."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture(autouse=True)
def tries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guardrail that failed is asked again without a wait; ``test_tries`` looks at the waits."""
    monkeypatch.setattr(checks, "rest", lambda seconds: asyncio.sleep(0))


@pytest.fixture(autouse=True)
def breakers_closed(store: redis.Redis) -> Iterator[None]:
    """Breakers outlive a process, so they would outlive a test: five failures here would break an answer there."""
    if keys := store.keys("sg:breaker:*"):
        store.delete(*keys)
    breakers.forget()
    stamina.set_testing(True, attempts=TRIES, cap=True)
    yield
    stamina.set_testing(False)
