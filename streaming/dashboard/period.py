"""The time that the admin's front page looks at: today by the hour, or some days by the day. All in UTC. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

DAYS = {"today": 1, "7": 7, "30": 30}
"""By the word in the page's address."""
WORDS = {"today": "Today", "7": "7 days", "30": "30 days"}
USUAL = "7"


@dataclass(frozen=True, slots=True)
class Period:
    """From ``begin`` until before ``end``, which is the end of the day that it is; ``step``: hour or day."""

    key: str
    begin: datetime
    end: datetime

    @classmethod
    def of(cls, key: str, now: datetime) -> Period:
        """What the word means at that moment; of another word the usual one."""
        key = key if key in DAYS else USUAL
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = midnight + timedelta(days=1)
        return cls(key, end - timedelta(days=DAYS[key]), end)

    @property
    def step(self) -> str:
        """What one slot is."""
        return "hour" if DAYS[self.key] == 1 else "day"

    @property
    def words(self) -> str:
        """For the page's title."""
        return WORDS[self.key]

    def slots(self) -> Iterator[datetime]:
        """When each begins."""
        at, width = self.begin, timedelta(hours=1) if self.step == "hour" else timedelta(days=1)
        while at < self.end:
            yield at
            at += width

    def label(self, slot: datetime) -> str:
        """A slot in words."""
        return f"{slot:%H:%M}" if self.step == "hour" else f"{slot.day} {slot:%b}"
