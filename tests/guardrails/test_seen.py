"""A serial that was seen is seen by every process of the machine, and after a restart."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guardrails import seen

PLACE = ("us", "support", "")
ANOTHER = """
import sys, django
django.setup()
from guardrails import seen
print(seen.highest(("us", "support", "")))
seen.note(("us", "support", ""), int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def folder(settings: Any, tmp_path: Path) -> Path:
    settings.SLUICEGATE_DATA_DIR = tmp_path / "data"
    return tmp_path / "data"


def test_it_works(folder: Path) -> None:
    assert seen.highest(PLACE) == 0
    seen.note(PLACE, 7)
    seen.note(PLACE, 6)
    assert seen.highest(PLACE) == 7
    assert [seen.highest(place) for place in (("us", "support", "rollout"), ("them", "support", ""))] == [0, 0]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_another_process_knows_it_and_what_it_sees_is_known_here(folder: Path) -> None:
    seen.note(PLACE, 7)
    env = os.environ | {"SLUICEGATE_DATA_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "project.settings"}
    said = subprocess.run([sys.executable, "-c", ANOTHER, "9"], env=env, capture_output=True, text=True, timeout=120)
    assert said.stdout.split() == ["7"], said.stderr
    assert seen.highest(PLACE) == 9


def test_nothing_is_lost_where_many_write_at_once(folder: Path) -> None:
    places = [("us", f"policy-{n}", "") for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda place: seen.note(place, 3), places))
    assert {seen.highest(place) for place in places} == {3}
    assert [name for name in os.listdir(folder) if name.startswith(".serials-")] == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"us": "x"}', '{"us": 1e999}', "[" * 9_999, "null"], ids=len)
def test_file_that_cannot_be_read_is_told_and_begins_anew(
    folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    seen.file().write_text(text)
    assert seen.highest(PLACE) == 0
    assert "serials_unreadable" in caplog.text
    seen.note(PLACE, 4)
    assert seen.highest(PLACE) == 4


def test_folder_that_cannot_be_written_is_told_and_stops_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the folder should be")
    seen.note(PLACE, 4)
    assert "serials_not_kept" in caplog.text
    assert seen.highest(PLACE) == 0
