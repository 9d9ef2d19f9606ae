"""Recorded answers of real providers, where they are at hand, and which of the three libraries reads each."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "streams"


def recordings(*begins: str) -> list[Path]:
    """In a fixed order; none where the folder is not there."""
    return sorted(file for begin in begins for file in FOLDER.glob(f"{begin}-*"))
