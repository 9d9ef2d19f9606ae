"""A time after which work on patterns ends by itself.

Exists because an author's pattern is compiled by whoever publishes it: one that takes too long has to end, not only to
be told of afterwards. The work asks here as it goes on, so that nothing is left behind in another thread or process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from guardrails.patterns.errors import SlowError

_limit: ContextVar[tuple[float, float] | None] = ContextVar("limit", default=None)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Whatever is compiled within has so many seconds, all of it together."""
    before = _limit.set((monotonic() + seconds, seconds))
    try:
        yield
    finally:
        _limit.reset(before)


def in_time() -> None:
    """Go on, if there is time. Raises ``SlowError``."""
    limit = _limit.get()
    if limit is not None and monotonic() > limit[0]:
        raise SlowError(f"it takes more than {limit[1]:g} s to compile and was ended")


def is_limited() -> bool:
    """Whether what is done here has a time after which it ends."""
    return _limit.get() is not None
