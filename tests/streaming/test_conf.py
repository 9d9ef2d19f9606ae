"""Numbers that were promised: who changes one changes what clients and operators rely on, and has to say so."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from guardrails.models import Scope
from guardrails.services import create_api_key
from streaming.conf import Conf, conf

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"
OTHERS = {"SLUICEGATE_OLLAMA_TOKEN_S"}


def test_it_works(settings: object) -> None:
    settings.SLUICEGATE_STREAM_EXPIRY_S = 7.0  # type: ignore[attr-defined]
    assert conf() == Conf(stream_expiry_s=7.0)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("stream_expiry_s", 300), ("monitoring_limit_s", 600), ("tombstone_s", 300), ("write_through_s", 2)],
)
def test_times_are_the_promised_ones_where_nothing_is_set(name: str, seconds: float) -> None:
    assert getattr(Conf(), name) == seconds
    assert getattr(conf(), name) == seconds, "nor do this project's settings change it"


def test_every_number_that_may_be_set_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `SLUICEGATE_(\w+)` \| .+ \| ([0-9.]+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    said = {name.lower(): float(default) for name, default in rows}
    assert len(rows) == len(said)
    assert said == {name: float(value) for name, value in asdict(Conf()).items()}


def test_seconds_that_may_be_no_fractions_are_named() -> None:
    seconds = {name: value for name, value in asdict(Conf()).items() if name.endswith("_s")}
    whole = {f"SLUICEGATE_{name.upper()}" for name, value in seconds.items() if isinstance(value, int)}
    said = re.findall(r"^Seconds may be fractions.*?\n\n", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"SLUICEGATE_\w+", said[0])) == whole


def test_what_is_said_elsewhere_of_a_number_is_a_number_that_there_is() -> None:
    """A variable that ends like one of these and is read by nobody would be set in vain."""
    read = re.findall(r"SLUICEGATE_[A-Z_]+", (DOCS.parents[1] / "project" / "settings.py").read_text("utf-8"))
    known = {f"SLUICEGATE_{name.upper()}" for name in asdict(Conf())} | set(read) | OTHERS
    for page in (*DOCS.parent.glob("*.md"), DOCS.parents[1] / "README.md"):
        named = re.findall(r"SLUICEGATE_[A-Z_]+_(?:S|CHARS|BYTES|AT_ONCE|EVENTS|ATTEMPTS)\b", page.read_text("utf-8"))
        assert set(named) <= known, page.name


@pytest.mark.django_db
def test_a_key_has_the_promised_limits() -> None:
    key, _ = create_api_key(name="a", scopes=list(Scope))
    key.refresh_from_db()
    assert (key.calls_per_minute, key.updates_per_second) == (60, 20)
