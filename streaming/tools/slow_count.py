"""A tool that takes its time and says how far it is: for the demo, and for whoever wants to see a progress bar."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field

from streaming.tools.base import Context, tool


class Count(BaseModel):
    """How far and how slowly."""

    steps: int = Field(default=5, ge=1, le=20, description="How many steps.")
    seconds: float = Field(default=2.0, ge=0, le=20, description="How long all of it takes.")


@tool("slow_count", "Counts slowly and reports progress; for demonstrations.")
async def count(given: Count, context: Context) -> str:
    """The number of steps, once they have been made."""
    for step in range(1, given.steps + 1):
        await asyncio.sleep(given.seconds / given.steps)
        await context.progress(step / given.steps, f"step {step} of {given.steps}")
    return f"counted to {given.steps}"
