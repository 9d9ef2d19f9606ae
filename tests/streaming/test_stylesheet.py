"""Contrast of the colours that stand on each other, light and dark: WCAG 2.2, level AA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STYLESHEET = (Path(__file__).resolve().parents[2] / "static" / "css" / "sluicegate.css").read_text()
COLOURS = {
    name: {"light": light, "dark": dark}
    for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", STYLESHEET)
}
TEXT = 4.5
CONTROL = 3.0
PAIRS = [
    ("ink", "bg", TEXT),
    ("ink", "surface", TEXT),
    ("soft", "bg", TEXT),
    ("soft", "surface", TEXT),
    ("accent", "bg", TEXT),
    ("accent", "surface", TEXT),
    ("accent", "accent-soft", TEXT),
    ("on-accent", "accent", TEXT),
    ("red", "surface", TEXT),
    ("red", "red-soft", TEXT),
    ("ink", "red-soft", TEXT),
    ("soft", "red-soft", TEXT),
    ("line-strong", "surface", CONTROL),
    ("line-strong", "bg", CONTROL),
]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_it_works() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_colours_that_meet_can_be_told_apart(front: str, back: str, least: float, scheme: str) -> None:
    assert contrast(COLOURS[front][scheme], COLOURS[back][scheme]) >= least


def test_there_is_one_accent_and_one_red() -> None:
    outside = STYLESHEET[STYLESHEET.index("*, *::before") :]
    assert len(re.findall(r"#[0-9a-f]{3,8}\b", outside)) <= 2, "colours are named at the top"
