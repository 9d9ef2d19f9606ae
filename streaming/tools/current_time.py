"""What time it is: a model does not know."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, Field

from streaming.tools.base import Context, ToolError, tool


class Place(BaseModel):
    """Where."""

    time_zone: str = Field(default="UTC", max_length=64, description="A name such as Europe/Berlin.")


@tool("current_time", "Says the present date and time in a time zone.")
async def now(given: Place, context: Context) -> str:
    """Date, time, day of the week and zone."""
    try:
        zone = UTC if given.time_zone.upper() == "UTC" else ZoneInfo(given.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(f"there is no time zone {given.time_zone!r}") from None
    return datetime.now(zone).strftime("%A, %Y-%m-%d %H:%M:%S %Z").strip()
