"""A provider's events with the tool calls that stand in its text read out of it.

The loop around ``core.markup``. Protects the rule that an answer that ends early keeps its text: what was held back
because it might have become markup is given out before the error.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing

from streaming.core.events import ProviderEvent, Stopped, TextDelta
from streaming.core.markup import FIRST_INDEX, MarkupReader
from streaming.providers.base import ProviderError


async def without_markup(events: AsyncGenerator[ProviderEvent, None]) -> AsyncGenerator[ProviderEvent, None]:
    """The same events; markup has become ``ToolCallDelta``. Raises what ``events`` raises."""
    readers: dict[int, MarkupReader] = {}
    numbers = itertools.count(FIRST_INDEX)
    async with aclosing(events):
        try:
            async for event in events:
                if isinstance(event, TextDelta):
                    reader = readers.setdefault(event.choice, MarkupReader(event.choice, numbers))
                    for found in reader.feed(event.text):
                        yield found
                    continue
                if isinstance(event, Stopped) and (ended := readers.pop(event.choice, None)) is not None:
                    for found in ended.finish():
                        yield found
                yield event
        except ProviderError:
            for reader in readers.values():
                for found in reader.finish():
                    if isinstance(found, TextDelta):  # a call that was cut off is not made
                        yield found
            raise
        for reader in readers.values():
            for found in reader.finish():
                yield found
