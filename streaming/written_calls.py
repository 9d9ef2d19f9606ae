"""A provider's events with the tool calls that stand in its texts read out of them.

The loop around ``core.markup``. Protects two rules. Only who was offered tools, and only in its answer, can make a call
by writing it; written anywhere else it is dropped and told (docs/adr/0205). And an answer that ends early keeps its
text: what was held back because it might have become markup is given out before the error.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from streaming.core.events import ProviderEvent, Stopped, TextDelta, ThinkingDelta
from streaming.core.markup import FIRST_INDEX, NOT_OFFERED, THOUGHT, MarkupReader
from streaming.core.markup_calls import Types
from streaming.providers.base import ProviderError, ToolSpec


async def without_markup(
    events: AsyncGenerator[ProviderEvent, None], offered: Sequence[ToolSpec]
) -> AsyncGenerator[ProviderEvent, None]:
    """The same events; markup has become ``ToolCallDelta`` or, where no call may be made, a notice.

    ``offered``: the tools that the model was told of. Raises what ``events`` raises.
    """
    readers: dict[tuple[int, bool], MarkupReader] = {}
    numbers, types = itertools.count(FIRST_INDEX), _texts(offered)

    def reader(choice: int, *, thinking: bool) -> MarkupReader:
        if (known := readers.get((choice, thinking))) is None:
            instead = THOUGHT if thinking else "" if offered else NOT_OFFERED
            known = MarkupReader(choice, numbers, instead=instead, thinking=thinking, types=types)
            readers[choice, thinking] = known
        return known

    def ended(*choices: int) -> Iterator[ProviderEvent]:
        for key in [key for key in readers if key[0] in choices]:
            yield from readers.pop(key).finish()

    async with aclosing(events):
        try:
            async for event in events:
                if isinstance(event, TextDelta):
                    for found in reader(event.choice, thinking=False).feed(event.text):
                        yield found
                elif isinstance(event, ThinkingDelta):
                    for found in reader(event.choice, thinking=True).feed(event.text):
                        yield found
                    if event.signature:
                        yield ThinkingDelta("", event.choice, event.signature)
                else:
                    if isinstance(event, Stopped):
                        for found in ended(event.choice):
                            yield found
                    yield event
        except ProviderError:
            for found in ended(*{choice for choice, _ in readers}):
                if isinstance(found, TextDelta | ThinkingDelta):  # a call that was cut off is not made
                    yield found
            raise
        for found in ended(*{choice for choice, _ in readers}):
            yield found


def _texts(offered: Sequence[ToolSpec]) -> Types:
    """By tool, the parameters that are text: what stands for them is not read as a number or anything else."""
    found: dict[str, frozenset[str]] = {}
    for spec in offered:
        properties = spec.parameters.get("properties")
        named = properties.items() if isinstance(properties, dict) else ()
        found[spec.name] = frozenset(
            name for name, schema in named if isinstance(schema, dict) and schema.get("type") == "string"
        )
    return found
