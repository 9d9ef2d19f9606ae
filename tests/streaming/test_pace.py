"""What a session's timeline comes to stands in columns of its own, and says nothing that the timeline does not."""

from __future__ import annotations

import pytest

from guardrails.findings import Outcome
from streaming.models import AuditSession, Message
from streaming.pace import Pace, longest_wait
from streaming.sessions import Ending, finish_streaming
from tests.streaming.test_tasks import monitoring


def test_it_works() -> None:
    timing = {"arrivals": [[120, 10], [200, 10]], "releases": [[130, 4], [450, 16]], "tools_ok": 2, "tools_failed": 1}
    assert Pace.of(timing) == Pace(first_token_ms=120, hold_ms=330, tools_ok=2, tools_failed=1)


@pytest.mark.parametrize(
    ("arrivals", "releases", "waited"),
    [
        ([], [], None),
        ([(5, 3)], [], None),  # all of it was withheld: nobody knows how long it would have taken
        ([], [(5, 3)], None),
        ([(5, 3)], [(5, 3)], 0),
        ([(0, 1), (10, 1), (20, 1)], [(100, 1), (101, 1), (102, 1)], 100),
        ([(0, 5), (90, 5)], [(10, 5), (100, 5)], 10),
        ([(0, 5)], [(10, 1), (20, 1), (900, 3)], 900),
        ([(50, 5)], [(40, 5)], 0),  # two points that were merged bear the time of the first
        ([(0, 2)], [(10, 2), (99, 7)], 10),  # more than ever came
    ],
    ids=str,
)
def test_the_longest_wait_is_that_of_a_character(
    arrivals: list[tuple[int, int]], releases: list[tuple[int, int]], waited: int | None
) -> None:
    assert longest_wait(arrivals, releases) == waited


@pytest.mark.parametrize(
    "timing", [{}, {"arrivals": "x", "releases": 3}, {"arrivals": [[1], "ab", None], "tools_ok": "x"}]
)
def test_what_was_not_measured_is_unknown(timing: dict[str, object]) -> None:
    assert Pace.of(timing).hold_ms is None
    assert Pace.of(timing).tools_ok == 0


@pytest.mark.django_db
@pytest.mark.usefixtures("demo_policy")
def test_the_end_of_an_answer_stores_it() -> None:
    started, _ = monitoring()
    AuditSession.objects.filter(pk=started.session_id).update(state="ACTIVE")
    timing = {"arrivals": [[70, 9]], "releases": [[75, 9]], "tools_ok": 3}
    ending = Ending(outcome=Outcome.ALLOWED, status=Message.Status.COMPLETE, timing=timing)
    assert finish_streaming(session_id=started.session_id, ending=ending) == "COMPLETE"
    row = AuditSession.objects.get(pk=started.session_id)
    assert (row.first_token_ms, row.hold_ms, row.tools_ok, row.tools_failed) == (70, 5, 3, 0)
