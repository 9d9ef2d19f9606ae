"""Numbers that were promised: who changes one changes what clients and operators rely on, and has to say so."""

from __future__ import annotations

import pytest

from guardrails.models import Scope
from guardrails.services import create_api_key
from streaming.conf import Conf, conf


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


@pytest.mark.django_db
def test_a_key_has_the_promised_limits() -> None:
    key, _ = create_api_key(name="a", scopes=list(Scope))
    key.refresh_from_db()
    assert (key.calls_per_minute, key.updates_per_second) == (60, 20)
