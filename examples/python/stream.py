"""Guard text that comes in pieces: ``python stream.py``, or ``some-model | python stream.py -``.

Exists to be read beside the README. Reads ``SLUICEGATE_URL`` and ``SLUICEGATE_KEY``; visible text goes to standard
output as it comes, findings to standard error. Exit status 0 when the answer was shown, 1 when it was stopped.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

from sluicegate_client import Ended, Found, Sluicegate, Text

SAMPLE = "Our records say 536-22-8145 for you, and we write to desk@example.com. Is there anything else that you need?"


async def sample() -> AsyncIterator[str]:
    """A model that says a few characters every 50 ms."""
    for at in range(0, len(SAMPLE), 6):
        yield SAMPLE[at : at + 6]
        await asyncio.sleep(0.05)


async def standard_input() -> AsyncIterator[str]:
    """Line by line, without standing in the way of the calls."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


async def main(arguments: list[str]) -> int:
    """Show the guarded text; the exit status."""
    shown = 0
    outcome = ""
    async with Sluicegate(
        os.environ.get("SLUICEGATE_URL", "http://127.0.0.1:8000"), os.environ["SLUICEGATE_KEY"]
    ) as gate:
        async for event in gate.guard(standard_input() if arguments == ["-"] else sample()):
            match event:
                case Text(at, text):
                    if at < shown:  # rare; a page would cut its text at `at`, a terminal cannot
                        sys.stdout.write(f"\n(from character {at} anew:)\n")
                    sys.stdout.write(text)
                    sys.stdout.flush()
                    shown = at + len(text)
                case Found(one):
                    sys.stderr.write(f"\n{one['guardrail']}/{one['rule']}: {one['action']}\n")
                case Ended():
                    outcome = event.outcome
                    sys.stderr.write(f"\n{outcome} after {event.summary['calls']} calls\n")
    return 1 if outcome == "blocked" else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
