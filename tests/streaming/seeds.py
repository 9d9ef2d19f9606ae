"""Run one check on many seeds. The generators here take nothing but a seed, so a tool that shrinks inputs has nothing
to shrink: a plain loop says as much and goes through ten times as many.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


class LeftOut(Exception):
    """This seed makes an example that the check says nothing about."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """``count`` seeds from the ``first`` of one endless, fixed list on."""

    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.first}-{self.first + self.count - 1}"

    def each(self, check: Callable[[int], None]) -> None:
        """Run the check on every seed. What it raises is raised with the seed named; at most half may be left out."""
        chance = random.Random(self.first)
        left_out = 0
        for _ in range(self.count):
            seed = chance.getrandbits(48)
            try:
                check(seed)
            except LeftOut:
                left_out += 1
            except Exception as failed:
                failed.add_note(f"seed {seed}")
                raise
        assert left_out <= self.count / 2, f"{left_out} of {self.count} examples were left out"
