"""The admin's front page: every figure against rows made by hand, and who may see it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import count as numbers

import pytest
import redis
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from streaming import breakers
from streaming.dashboard.charts import BOTTOM, TOP, Series, bar, chart, percent, times
from streaming.dashboard.figures import Figures, Spread, report
from streaming.dashboard.page import charts, tiles, versions
from streaming.dashboard.period import Period
from streaming.models import AuditSession, DeferredCheck, Upstream

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 3, 10, 15, 30, tzinfo=UTC)
WEEK = Period.of("7", NOW)
QUERIES = 4


def row(at: datetime = NOW, *, checks: tuple[str, ...] = (), **columns: object) -> AuditSession:
    """A session of ``support`` v1 that was answered as it stands, unless ``columns`` say something else."""
    usual = {"outcome": "allowed", "state": "COMPLETE", "policy_name": "support", "policy_version": 1}
    made = AuditSession.objects.create(started_at=at, **{**usual, **columns})
    for number, state in zip(numbers(), checks, strict=False):
        DeferredCheck.objects.create(session=made, guardrail=f"g{number}", state=state, digest="sha256:0")
    return made


@pytest.fixture
def reviewer(client: Client) -> Client:
    user = User.objects.create_user("reviewer", is_staff=True)
    user.groups.add(Group.objects.get(name="Reviewer"))
    client.force_login(user)
    return client


def test_it_works(reviewer: Client) -> None:
    row(timezone.now())
    page = reviewer.get(reverse("admin:index")).content.decode()
    assert '<h2 id="board-title">7 days' in page
    assert page.count('class="board-drawing"') >= 3
    assert "support v1" in page


def test_every_figure_is_what_the_rows_say() -> None:
    row(outcome="blocked", tools_ok=3, tools_failed=1, first_token_ms=99, hold_ms=0)
    row(outcome="blocked", would_have="redacted", first_token_ms=1_234, hold_ms=40)
    row(outcome="redacted", would_have="blocked", fallback="provider_timeout", first_token_ms=120, hold_ms=70)
    row(outcome="warned", checks=("passed", "hit", "would_block", "error", "waiting"))
    row(outcome="error", error_code="pump_lost", checks=("checking", "expired", "timeout"))
    row(outcome="interrupted", would_have="blocked")
    row(outcome="allowed", tools_ok=1)
    row(outcome="allowed", state="MONITORING")
    row(outcome="", state="ACTIVE", fallback="flag_off", would_have="blocked")  # not answered yet: in no rate
    whole = report(WEEK).whole
    assert (whole.sessions, whole.ended) == (9, 8)
    assert whole.block_rate == 2 / 8
    assert whole.redact_rate == 1 / 8
    assert whole.would_block_rate == 2 / 8
    assert whole.completion_rate == 6 / 8
    assert whole.error_rate == 1 / 8
    assert whole.fallback_rate == 1 / 8
    assert whole.tool_success == 4 / 5
    assert (whole.checks_open, whole.checks_over) == (2, 6)
    assert whole.deferred_completion == 3 / 6
    assert whole.first_token.counted == {99: 1, 1_200: 1, 120: 1}
    assert (whole.first_token.percentile(0.5), whole.first_token.percentile(0.95)) == (120, 1_200)
    assert (whole.hold.percentile(0.5), whole.hold.percentile(0.95)) == (40, 70)
    said = {tile.name: (tile.value, tile.over) for tile in tiles(whole)}
    assert said == {
        "Sessions": ("9", "1 under way"),
        "Blocked": ("25.0 %", "of 8 answered"),
        "Redacted": ("12.5 %", "of 8 answered"),
        "Would have blocked": ("25.0 %", "of 8 answered"),
        "Completed": ("75.0 %", "of 8 answered"),
        "Errors": ("12.5 %", "of 8 answered"),
        "Fallback": ("12.5 %", "of 8 answered"),
        "First token, p50": ("120 ms", "p95 1.2 s, of 3 measured"),
        "Longest hold, p50": ("40 ms", "p95 70 ms, of 3 measured"),
        "Tool success": ("80.0 %", "of 5 calls"),
        "Deferred completion": ("50.0 %", "of 6 over, 2 open"),
    }


@pytest.mark.parametrize(
    ("took", "counted"),
    [(0, 0), (7, 7), (99, 99), (100, 100), (109, 100), (999, 990), (1_099, 1_000), (12_999, 12_000),
     (123_456, 120_000), (999_999, 990_000), (1_234_567, 1_200_000)],
)  # fmt: skip
def test_times_are_counted_by_two_digits(took: int, counted: int) -> None:
    row(first_token_ms=took)
    assert report(WEEK).whole.first_token.counted == {counted: 1}


def test_a_rate_of_nothing_is_unknown_and_not_zero() -> None:
    nothing = Figures()
    for rate in (nothing.block_rate, nothing.completion_rate, nothing.tool_success, nothing.deferred_completion):
        assert rate is None
    assert nothing.first_token.percentile(0.5) is None
    assert {tile.value for tile in tiles(nothing)} == {"0", "–"}


def test_percentiles_are_nearest_ranks() -> None:
    spread = Spread()
    spread.counted.update(range(1, 101))
    assert [spread.percentile(share) for share in (0.01, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]
    spread.counted.clear()
    spread.counted.update({5: 19, 900: 1})
    assert (spread.percentile(0.95), spread.percentile(0.96)) == (5, 900)


def test_a_session_counts_on_the_day_that_it_began_in_utc_and_no_other() -> None:
    first = datetime(2026, 3, 4, tzinfo=UTC)
    row(first - timedelta(microseconds=1))
    row(first, outcome="blocked", first_token_ms=10, checks=("passed",))
    row(first + timedelta(hours=23, minutes=59), first_token_ms=30)
    row(datetime(2026, 3, 10, 23, 59, 59, tzinfo=UTC))
    row(datetime(2026, 3, 11, tzinfo=UTC))
    made = report(WEEK)
    days = {slot.day: (each.sessions, each.block_rate, each.hold.number) for slot, each in made.slots.items()}
    assert days == {4: (2, 0.5, 0), 5: (0, None, 0), 6: (0, None, 0), 7: (0, None, 0), 8: (0, None, 0),
                    9: (0, None, 0), 10: (1, 0.0, 0)}  # fmt: skip
    assert made.slots[first].first_token.percentile(0.5) == 10
    assert made.slots[first].deferred_completion == 1.0
    assert made.whole.sessions == 3


def test_today_is_drawn_by_the_hour() -> None:
    row(NOW, outcome="redacted")
    row(NOW - timedelta(days=1))
    made = report(Period.of("today", NOW))
    assert len(made.slots) == 24
    assert {slot.hour: each.redact_rate for slot, each in made.slots.items() if each.sessions} == {15: 1.0}
    assert [tick.words for tick in charts(made)[0].along] == ["00:00", "05:00", "10:00", "15:00", "20:00"]


@pytest.mark.parametrize(("key", "days"), [("today", 1), ("7", 7), ("30", 30), ("", 7), ("9999999", 7), ("'", 7)])
def test_a_period_ends_with_the_day_that_it_is(key: str, days: int) -> None:
    period = Period.of(key, NOW)
    assert period.end == datetime(2026, 3, 11, tzinfo=UTC)
    assert period.end - period.begin == timedelta(days=days)


def test_figures_of_versions_are_apart_and_those_of_a_policy_alone() -> None:
    row(outcome="blocked", first_token_ms=20, checks=("passed", "error"))
    row(policy_version=2, first_token_ms=50)
    row(policy_version=2, outcome="redacted")
    row(policy_name="other", policy_version=7, outcome="error", checks=("error",))
    row(policy_name="", policy_version=0)
    made = report(WEEK)
    assert {version: each.sessions for version, each in made.versions.items()} == {
        ("support", 1): 1, ("support", 2): 2, ("other", 7): 1, ("", 0): 1,
    }  # fmt: skip
    first = made.versions["support", 1]
    assert (first.block_rate, first.deferred_completion, first.first_token.percentile(0.5)) == (1.0, 0.5, 20)
    assert [each.name for each in versions(made)] == ["support v2", "no policy", "other v7", "support v1"]
    alone = report(WEEK, policy="support")
    assert (alone.whole.sessions, alone.whole.checks_over, set(alone.versions)) == (
        3,
        2,
        {("support", 1), ("support", 2)},
    )


def test_rarely_used_versions_are_counted_together() -> None:
    for number in range(1, 13):
        for _ in range(2 if number > 2 else 1):
            row(policy_version=number)
    shown = versions(report(WEEK))
    assert len(shown) == 11
    assert (shown[-1].name, shown[-1].cells[0]) == ("2 others", "2")


@pytest.mark.parametrize("many", [1, 40])
def test_it_takes_as_many_queries_whatever_there_is(many: int) -> None:
    for number in range(many):
        at = NOW - timedelta(hours=4 * number)
        row(at, policy_version=number % 5 + 1, checks=("passed",), first_token_ms=number * 37, hold_ms=number)
    with CaptureQueriesContext(connection) as caught:
        assert report(WEEK).whole.sessions == min(many, 40)
    assert len(caught) == QUERIES


@pytest.mark.parametrize("many", [1, 25])
def test_the_page_takes_as_many_queries_whatever_there_is(reviewer: Client, many: int) -> None:
    for number in range(many):
        row(timezone.now() - timedelta(hours=number), policy_version=number % 5 + 1, checks=("passed",))
    reviewer.get(reverse("admin:index"))
    with CaptureQueriesContext(connection) as caught:
        reviewer.get(reverse("admin:index"))
    asked = [query["sql"] for query in caught if "streaming_" in query["sql"]]
    assert len([sql for sql in asked if "streaming_auditsession" in sql]) == QUERIES
    assert len(caught) <= 14, asked


@pytest.mark.parametrize(
    ("group", "figures", "circuits"),
    [("Reviewer", True, True), ("Auditor", True, True), ("Operator", False, True), ("Author", False, False),
     ("Signer", False, False)],
)  # fmt: skip
def test_who_may_see_what(client: Client, group: str, figures: bool, circuits: bool) -> None:
    row(timezone.now())
    user = User.objects.create_user("somebody", is_staff=True)
    user.groups.add(Group.objects.get(name=group))
    client.force_login(user)
    with CaptureQueriesContext(connection) as caught:
        page = client.get(reverse("admin:index")).content.decode()
    assert ("board-title" in page, "board-circuits" in page) == (figures, circuits)
    assert any("streaming_auditsession" in query["sql"] for query in caught) is figures


def test_no_session_is_told_in_words(reviewer: Client) -> None:
    page = reviewer.get(reverse("admin:index"), {"period": "today"}).content.decode()
    assert "No session began in this time" in page
    assert "board-drawing" not in page


def test_an_open_circuit_is_told(reviewer: Client, store: redis.Redis) -> None:
    assert "Provider scripted: closed" in _words(reviewer)
    key = "sg:breaker:state:{provider:scripted}"
    store.hset(key, "state", "half_open")
    assert breakers.states_now(["provider:scripted"]) == {"provider:scripted": "half_open"}
    assert "▲ Provider scripted: half open" in _words(reviewer)
    Upstream.objects.create(name="house", dialect="openai", base_url="http://h/v1", model_names="m")
    store.hset("sg:breaker:state:{provider:house}", "state", "open")
    assert "Provider house: open" in _words(reviewer)


def _words(client: Client) -> str:
    page = client.get(reverse("admin:index")).content.decode()
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("board-circuits") :]).split())


def test_what_is_asked_for_is_not_written_back(reviewer: Client) -> None:
    row(timezone.now(), policy_name="<script>alert(1)</script>")
    page = reviewer.get(reverse("admin:index"), {"period": "<b>", "policy": "<script>x"}).content.decode()
    assert "<script>x" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; v1" in page


def test_a_line_has_gaps_where_nothing_was_measured() -> None:
    drawn = chart("x", "X", "", ["a", "b", "c", "d"], [Series("s", 1, [0.0, 0.5, None, 1.0])], percent, most=1)
    assert len(drawn.lines) == 1
    assert len(drawn.lines[0].points.split()) == 2
    assert [dot.says for dot in drawn.dots] == ["a: s 0 %", "b: s 50.0 %", "d: s 100 %"]
    assert [dot.y for dot in drawn.dots] == [BOTTOM, (TOP + BOTTOM) / 2, TOP]
    assert drawn.rows[2] == ("c", ["–"])


def test_columns_stand_on_one_another_and_end_where_their_sum_is() -> None:
    drawn = chart("x", "X", "", ["a"], [Series("s", 1, [30]), Series("t", 2, [10])], lambda v: f"{v}", stacked=True)
    below, above = drawn.columns
    assert below.y + below.height == BOTTOM
    assert above.y + above.height == below.y
    assert above.y == TOP
    assert below.height == pytest.approx(3 * above.height, abs=0.2)


def test_a_bar_is_as_long_as_its_share() -> None:
    assert [(mark.x, mark.width) for mark in bar([(1, 20), (2, 0), (3, 5)], 50)] == [(0, 40), (40, 10)]
    assert bar([(1, 0)], 0) == []


@pytest.mark.parametrize(
    ("value", "words"), [(None, "–"), (0.0, "0 %"), (1.0, "100 %"), (0.1234, "12.3 %"), (0.0004, "0.04 %")]
)
def test_a_rate_has_its_unit(value: float | None, words: str) -> None:
    assert percent(value) == words


def test_a_time_has_its_unit() -> None:
    assert [times(value) for value in (None, 0, 12, 1_200)] == ["–", "0 ms", "12 ms", "1.2 s"]


def test_who_signs_in_without_a_page_in_mind_comes_to_the_front_page(client: Client) -> None:
    User.objects.create_superuser("root", password="correct horse battery")
    form = {"username": "root", "password": "correct horse battery"}
    assert client.post(reverse("admin:login"), form)["Location"] == reverse("admin:index")
