"""What ``/metrics`` says: counted once per answer, bounded, documented."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from channels.db import database_sync_to_async
from django.conf import settings
from django.db import OperationalError, connection
from django.db.backends.utils import CursorWrapper
from django.test import AsyncClient
from django.test.utils import CaptureQueriesContext
from prometheus_client import Metric
from structlog.testing import capture_logs

from guardrails import services
from guardrails.findings import Outcome
from guardrails.models import Activation, Policy
from guardrails.policy import compile_policy
from guardrails.selectors import PolicyInfo
from streaming import at_work, breakers, health, metrics
from streaming.core.events import ModelNamed, ProviderChosen, ProviderNotice, ProviderToolResult, Stopped, ToolCallDelta
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog
from streaming.metrics import REGISTRY, SAMPLES, Bounded, spread
from streaming.models import AuditSession, Upstream
from streaming.providers.base import ProviderTimeout, ProviderUnavailable
from streaming.shadow.record import recorded
from tests.streaming.pumping import Controlled, Time, Trial, trial

pytestmark = pytest.mark.django_db(transaction=True)
DOCS = Path(metrics.__file__).resolve().parent.parent / "docs" / "metrics.md"


@dataclass
class Growth:
    """What a sample has grown by since the test began."""

    before: dict[tuple[str, str], float]

    @classmethod
    def since_now(cls) -> Growth:
        return cls({(s.name, str(s.labels)): s.value for metric in REGISTRY.collect() for s in metric.samples})

    def of(self, name: str, **labels: str) -> float:
        found = [
            s.value - self.before.get((s.name, str(s.labels)), 0.0)
            for metric in REGISTRY.collect()
            for s in metric.samples
            if s.name == name and labels.items() <= s.labels.items()
        ]
        return sum(found)


async def run(*script: object, **how: object) -> Trial:
    session = await trial(script, **how)  # type: ignore[arg-type]
    await session.pump.run()
    return session


async def test_it_works() -> None:
    grown = Growth.since_now()
    await run(ProviderChosen("alpha", True), ModelNamed("m-1"), "hello ", "world", Stopped("stop"))
    who = {"provider": "alpha", "model": "m-1", "path": "streaming"}
    assert grown.of("sluicegate_answers_total", **who, outcome="allowed") == 1
    assert grown.of("sluicegate_answers_total") == 1
    assert grown.of("sluicegate_time_to_first_token_seconds_count", **who) == 1
    assert grown.of("sluicegate_time_to_completion_seconds_count", **who) == 1
    assert grown.of("sluicegate_chunk_latency_seconds_count", **who) == 6  # the five, and who was chosen at first
    assert grown.of("sluicegate_errors_total") == grown.of("sluicegate_fallbacks_total") == 0


async def test_an_answer_in_one_piece_counts_on_its_path_and_under_each_of_its_reasons() -> None:
    grown = Growth.since_now()
    await run(ProviderChosen("alpha", False, "request_type, provider_unavailable"), ModelNamed("m-1"), "hello")
    assert grown.of("sluicegate_answers_total", path="standard") == 1
    assert grown.of("sluicegate_answers_total", path="streaming") == 0
    for reason in ("request_type", "provider_unavailable"):
        assert grown.of("sluicegate_fallbacks_total", provider="alpha", model="m-1", reason=reason) == 1


async def test_a_provider_that_fails_is_counted_by_kind_and_a_time_out_as_one() -> None:
    grown = Growth.since_now()
    await run("hello", ProviderUnavailable("gone"))
    assert grown.of("sluicegate_errors_total", code="provider_unavailable") == 1
    assert grown.of("sluicegate_timeouts_total") == 0
    await run("hello", ProviderTimeout("late"))
    assert grown.of("sluicegate_errors_total", code="provider_timeout") == 1
    assert grown.of("sluicegate_timeouts_total") == 1
    assert grown.of("sluicegate_answers_total", outcome="error") == 2


async def test_a_retry_counts_for_the_provider_that_failed_not_for_the_one_that_answered() -> None:
    grown = Growth.since_now()
    again = ProviderNotice("retry", "trying again", 1, 1.0)
    await run(ProviderChosen("first", True), again, again, ProviderChosen("second", True, "provider_unavailable"), "hi")
    assert grown.of("sluicegate_provider_notices_total", provider="first", code="retry") == 2
    assert grown.of("sluicegate_provider_notices_total") == 2
    assert grown.of("sluicegate_answers_total", provider="second") == 1


async def test_errors_time_outs_notices_and_tools_are_told_by_provider_and_model() -> None:
    grown = Growth.since_now()
    who = {"provider": "alpha", "model": "m-7"}
    tools = (ProviderToolResult("a", "4"), ProviderToolResult("b", error="no"))
    notice = ProviderNotice("malformed_line", "skipped")
    await run(ProviderChosen("alpha", True), ModelNamed("m-7"), *tools, notice, "hello", ProviderTimeout("late"))
    for name, labels in (
        ("errors", {"code": "provider_timeout"}),
        ("timeouts", {}),
        ("provider_notices", {"code": "malformed_line"}),
        ("tool_calls", {"result": "ok"}),
        ("tool_calls", {"result": "error"}),
        ("answers", {"outcome": "error"}),
    ):
        assert grown.of(f"sluicegate_{name}_total", **who, **labels) == 1, name
        assert grown.of(f"sluicegate_{name}_total", **labels) == 1, name


async def test_time_outs_before_another_try_and_before_a_fallback_count_for_the_provider_that_was_late() -> None:
    """Two tries that were followed by another, the last one by a fallback: three, although the answer is well."""
    grown = Growth.since_now()
    late = ProviderNotice("provider_timeout", "trying again", 1, 1.0)
    there = ProviderChosen("second", True, "request_type, provider_timeout", after="provider_timeout")
    first = ProviderChosen("controlled", True, "request_type")
    session = await trial(
        [first, late, late, ProviderNotice("provider_fallback", "on"), there, ModelNamed("m-2"), "hi"]
    )
    session.provider.name = "controlled"  # type: ignore[misc]
    await session.pump.run()
    assert grown.of("sluicegate_timeouts_total", provider="controlled", model="controlled-1") == 3
    assert grown.of("sluicegate_timeouts_total") == 3
    assert grown.of("sluicegate_errors_total") == 0
    assert grown.of("sluicegate_answers_total", provider="second", model="m-2", outcome="allowed") == 1
    labels = {"provider": "controlled", "model": "controlled-1", "code": "provider_timeout"}
    assert grown.of("sluicegate_provider_notices_total", **labels) == 2


async def test_another_failure_before_a_fallback_is_no_time_out() -> None:
    grown = Growth.since_now()
    await run(ProviderChosen("first", True), ProviderChosen("second", True, "provider_unavailable"), "hi")
    assert grown.of("sluicegate_timeouts_total") == 0


async def test_tools_that_work_and_tools_that_fail_are_told_apart() -> None:
    grown = Growth.since_now()
    results = (ProviderToolResult("a", "4"), ProviderToolResult("b", "5"), ProviderToolResult("c", error="no"))
    await run(ProviderChosen("alpha", True), *results, "done")
    assert grown.of("sluicegate_tool_calls_total", provider="alpha", result="ok") == 2
    assert grown.of("sluicegate_tool_calls_total", provider="alpha", result="error") == 1


async def test_a_blocked_answer_counts_and_a_blocked_prompt_does_not() -> None:
    grown = Growth.since_now()
    await run("about blue heron")
    assert grown.of("sluicegate_answers_total", outcome="blocked") == 1
    await run("hi", prompt="about blue heron")
    assert grown.of("sluicegate_answers_total") == 1


class Stepping(Time):
    """A quarter of a second passes at every look."""

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


async def test_times_are_seconds_on_the_pumps_clock() -> None:
    grown = Growth.since_now()
    session = await trial(["one", "two", "three"], clock=Stepping())
    await session.pump.run()
    first = grown.of("sluicegate_time_to_first_token_seconds_sum")
    whole = grown.of("sluicegate_time_to_completion_seconds_sum")
    assert grown.of("sluicegate_chunk_gap_seconds_count") == 2
    assert 0.25 <= first < whole < 60
    assert 0.5 <= grown.of("sluicegate_chunk_gap_seconds_sum") < whole


async def test_a_tool_call_is_a_first_token_and_no_gap() -> None:
    grown = Growth.since_now()
    call = ToolCallDelta(0, "c", "find", "{}", ran_by_provider=True)
    await run(call, ToolCallDelta(1, "d", "find", "{}", ran_by_provider=True), Stopped("stop"))
    assert grown.of("sluicegate_time_to_first_token_seconds_count") == 1
    assert grown.of("sluicegate_chunk_gap_seconds_count") == 0


async def test_an_answer_without_any_text_has_no_first_token() -> None:
    grown = Growth.since_now()
    await run(ProviderUnavailable("gone"))
    assert grown.of("sluicegate_time_to_first_token_seconds_count") == 0
    assert grown.of("sluicegate_time_to_completion_seconds_count") == 1


async def test_a_figure_that_cannot_be_taken_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("full")

    monkeypatch.setattr(metrics, "_answered", broken)
    session = await run("hello")
    assert [event["outcome"] for event in await session.of("done")] == [Outcome.ALLOWED.value]


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_labels_are_bounded_in_number_and_form() -> None:
    label = Bounded(3)
    assert [label(name) for name in ("a", "b/c:1.5", "x" * 80, "late", "a")] == ["a", "b/c:1.5", "x" * 80, "other", "a"]
    for bad in ("", "x" * 81, "two words", 'quo"te', "new\nline", "-dash", "überall"):
        assert Bounded(10)(bad) == "other"


async def test_models_that_a_client_makes_up_use_up_no_label() -> None:
    grown = Growth.since_now()
    for n in range(60):
        session = await trial(["hi", ProviderUnavailable("no such model")])
        session.pump._request = asked = replace(session.pump._run.request, model=f"made-up-{n}")
        session.pump._run = replace(session.pump._run, request=asked)
        await session.pump.run()
    assert grown.of("sluicegate_answers_total", model="other") == 60
    assert not any("made-up" in str(s.labels) for metric in REGISTRY.collect() for s in metric.samples)
    await run("hi")
    assert grown.of("sluicegate_answers_total", model=Controlled().default_model) == 1


def test_a_long_answer_is_sampled_evenly() -> None:
    assert list(spread([1, 2, 3], 3)) == [1, 2, 3]
    taken = list(spread(range(5_000), SAMPLES))
    assert len(taken) == SAMPLES
    assert taken[0] == 0
    assert taken[-1] >= 4_950
    assert {after - before for before, after in pairwise(taken)} == {25}


# -- the page ----------------------------------------------------------------------------------------------------------


async def test_the_page_needs_no_key_and_is_never_kept() -> None:
    await run(ProviderChosen("alpha", True), ModelNamed("m-1"), "hello")
    response = await AsyncClient().get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert "no-store" in response["Cache-Control"]
    text = response.content.decode()
    assert re.search(r'^sluicegate_answers_total\{.*model="m-1".*\} [1-9]', text, re.M)
    assert re.search(r"^sluicegate_open_sessions 0", text, re.M)
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.M)
    assert (await AsyncClient().post("/metrics")).status_code == 405
    open_metrics = await AsyncClient().get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert open_metrics.content.endswith(b"# EOF\n")


async def test_an_open_breaker_shows_on_the_page_and_in_readiness() -> None:
    breaker = await breakers.breaker(breakers.PROVIDER + "scripted")
    text = (await AsyncClient().get("/metrics")).content.decode()
    assert 'sluicegate_breaker_state{provider="scripted",state="closed"} 1.0' in text
    for _ in range(breakers.THRESHOLD):
        await breaker.enter()
        await breaker.failed(ProviderUnavailable("gone"))
    text = (await AsyncClient().get("/metrics")).content.decode()
    assert 'sluicegate_breaker_state{provider="scripted",state="open"} 1.0' in text
    assert 'sluicegate_breaker_state{provider="scripted",state="closed"} 0.0' in text
    part = (await AsyncClient().get("/ready")).json()["parts"]["providers"]
    assert part == {"state": "degraded", "detail": "breakers are not closed: scripted: open"}


async def test_the_breaker_of_an_upstream_of_the_admin_shows_until_the_upstream_is_taken_away() -> None:
    row = await Upstream.objects.acreate(name="house", dialect="openai", base_url="http://h/v1", model_names="m")
    breaker = await breakers.breaker(breakers.PROVIDER + "house")
    for _ in range(breakers.THRESHOLD):
        await breaker.enter()
        await breaker.failed(ProviderUnavailable("gone"))
    assert (
        'sluicegate_breaker_state{provider="house",state="open"} 1.0'
        in (await AsyncClient().get("/metrics")).content.decode()
    )
    assert "house: open" in (await health._providers())["detail"]
    await row.adelete()
    assert 'provider="house"' not in (await AsyncClient().get("/metrics")).content.decode()


async def test_an_open_guardrails_breaker_shows_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = {"name": "harm", "kind": "ai_judge", "config": {"provider": "scripted", "rubric": "x"}}
    policy = compile_policy({"policy": "trial", "guardrails": [judge]})
    info = PolicyInfo("trial", "", 1, "d", signed=True, healthy=True)
    monkeypatch.setattr(at_work, "policy_choices", lambda: [info])
    monkeypatch.setattr(at_work, "active_policy", lambda _name: policy)
    (before,) = await at_work.guardrails_at_work()
    assert (before.policy, before.guardrail, before.breaker, before.trouble) == ("trial", "harm", "closed", "")
    breaker = await breakers.breaker(breakers.GUARDRAIL + policy.guardrail("harm").circuit)
    for _ in range(breakers.THRESHOLD):
        await breaker.enter()
        await breaker.failed(ProviderUnavailable("gone"))
    text = (await AsyncClient().get("/metrics")).content.decode()
    assert 'sluicegate_guardrail_breaker_state{guardrail="harm",policy="trial",state="open"} 1.0' in text


async def test_a_store_that_does_not_answer_takes_no_figure_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    grown = Growth.since_now()
    monkeypatch.setitem(metrics.PARTS, "breakers", metrics.Part(never))
    monkeypatch.setattr(health, "PART_LIMIT_S", 0.05)
    response = await AsyncClient().get("/metrics")
    assert response.status_code == 200
    assert b"sluicegate_open_sessions" in response.content
    assert grown.of("sluicegate_metrics_not_read_total", part="breakers") == 1


async def test_a_database_that_fails_costs_no_page_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object, **kwargs: object) -> None:
        raise OperationalError("the server closed the connection")

    metrics.GUARDRAIL_BREAKERS.labels("trial", "harm", "open").set(1)
    breaker = await breakers.breaker(breakers.PROVIDER + "scripted")
    for _ in range(breakers.THRESHOLD):
        await breaker.enter()
        await breaker.failed(ProviderUnavailable("gone"))
    with monkeypatch.context() as patched, capture_logs() as logged:
        patched.setattr(CursorWrapper, "execute", away)
        response = await AsyncClient().get("/metrics")
    assert response.status_code == 200
    text = response.content.decode()
    assert "sluicegate_open_sessions" in text
    assert 'sluicegate_breaker_state{provider="scripted",state="open"} 1.0' in text  # stands in the store
    assert 'sluicegate_guardrail_breaker_state{guardrail="harm",policy="trial",state="open"} 1.0' in text  # the last
    assert [(each["event"], each["error"]) for each in logged if each["event"] == "breakers_not_read"] == [
        ("breakers_not_read", "OperationalError")
    ]
    assert (await AsyncClient().get("/metrics")).status_code == 200
    assert ("trial", "harm", "open") not in metrics.GUARDRAIL_BREAKERS._metrics  # it is active no more


async def test_policy_whose_active_version_does_not_load_shows_on_the_page(
    forgetful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @database_sync_to_async
    def install() -> None:
        entry = {"name": "words", "kind": "keywords", "keywords": ["heron"]}
        for name in ("strict", "lax"):
            services.install(document={"policy": name, "description": "d", "guardrails": [entry]})

    async def unhealthy() -> dict[str, str]:
        text = (await AsyncClient().get("/metrics")).content.decode()
        return dict(re.findall(r'^sluicegate_policy_unhealthy\{policy="(\w+)"\} (\S+)$', text, re.M))

    await install()
    assert await unhealthy() == {"lax": "0.0", "strict": "0.0"}
    await Activation.objects.filter(version__policy__name="strict").aupdate(serial=99)
    assert await unhealthy() == {"lax": "0.0", "strict": "1.0"}
    await Policy.objects.filter(name="strict").aupdate(active_version=None, activation=None)
    assert await unhealthy() == {"lax": "0.0"}

    def away() -> object:
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(metrics, "policy_choices", away)
    assert await unhealthy() == {}  # an alarm must not rest on an old figure


# -- what all processes share ------------------------------------------------------------------------------------------


async def figures() -> dict[str, float]:
    """Samples of the page that tell of sessions and of the store."""
    text = (await AsyncClient().get("/metrics")).content.decode()
    found = re.findall(r"^(sluicegate_(?:sessions|store_\w+|metrics_not_read)\S*) (\S+)$", text, re.M)
    return {name: float(value) for name, value in found}


SESSIONS = {state: f'sluicegate_sessions{{state="{state}"}}' for state in ("ACTIVE", "MONITORING")}


async def test_open_sessions_are_counted_by_state_whoever_runs_them() -> None:
    found = await figures()
    assert [found[name] for name in SESSIONS.values()] == [0, 0], "a state that nothing is in is told as well"
    state = AuditSession.State
    rows = [AuditSession(state=each) for each in (*3 * [state.ACTIVE], *2 * [state.MONITORING], state.COMPLETE)]
    await AuditSession.objects.abulk_create(rows)
    found = await figures()
    assert [found[name] for name in SESSIONS.values()] == [3, 2]
    await AuditSession.objects.filter(state=state.ACTIVE).aupdate(state=state.COMPLETE)
    assert (await figures())[SESSIONS["ACTIVE"]] == 0


def test_counting_open_sessions_reads_an_index_and_no_table() -> None:
    with CaptureQueriesContext(connection) as queries:
        metrics._counted()
    (query,) = queries.captured_queries
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + query["sql"])
        plan = [str(row[-1]) for row in cursor.fetchall()]
    assert [step for step in plan if "COVERING INDEX" in step and "state=?" in step] == plan


async def test_the_stores_memory_and_keys_are_told_without_walking_through_it() -> None:
    with redis.Redis.from_url(settings.REDIS_URL) as store:
        before = await figures()
        store.set("a-large-one", b"x" * 3_000_000)
        store.config_resetstat()
        try:
            found = await figures()
            commands = {name.removeprefix("cmdstat_") for name in store.info("commandstats")}
        finally:
            store.delete("a-large-one")
    grown = found["sluicegate_store_memory_bytes"] - before["sluicegate_store_memory_bytes"]
    assert 3_000_000 <= grown < 9_000_000, "the value, and at most the buffers that it came through"
    assert found["sluicegate_store_keys"] > before["sluicegate_store_keys"] - 1
    assert {"dbsize", "info"} <= commands
    assert not commands & {"scan", "keys"}


async def test_a_store_that_is_away_costs_its_own_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_self: object) -> None:
        raise LogUnavailable("gone")

    before = await figures()
    monkeypatch.setattr(RedisLog, "usage", away)
    found = await figures()
    assert math.isnan(found["sluicegate_store_memory_bytes"])
    assert math.isnan(found["sluicegate_store_keys"])
    assert found[SESSIONS["ACTIVE"]] == 0
    failed = 'sluicegate_metrics_not_read_total{part="store"}'
    assert found[failed] == before[failed] + 1
    monkeypatch.undo()
    found = await figures()
    assert found["sluicegate_store_memory_bytes"] > 0
    assert found[failed] == before[failed] + 1


async def test_a_database_that_is_away_leaves_no_old_count_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object, **kwargs: object) -> None:
        raise OperationalError("the server closed the connection")

    before = await figures()
    with monkeypatch.context() as patched:
        patched.setattr(CursorWrapper, "execute", away)
        found = await figures()
    assert [math.isnan(found[name]) for name in SESSIONS.values()] == [True, True]
    assert found["sluicegate_store_memory_bytes"] > 0
    failed = 'sluicegate_metrics_not_read_total{part="sessions"}'
    assert found[failed] == before[failed] + 1
    assert (await figures())[SESSIONS["ACTIVE"]] == 0


async def test_the_documentation_and_the_registry_agree() -> None:
    await run(ProviderChosen("alpha", False, "request_type"), ProviderNotice("retry", "again"), ModelNamed("m-1"), "hi")
    await run("one", ProviderToolResult("a", "4"), "two", ProviderTimeout("late"))
    metrics.shadowed("trial", recorded(version=2, digest="d2", policy=None, active_acted=False, error="away"))
    row = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]*)\| (\w+) \| ([^|]+) \|$", re.M)
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in
                  row.findall(DOCS.read_text("utf-8"))}  # fmt: skip
    await metrics.read_shared(30)
    metrics.GUARDRAIL_BREAKERS.labels("trial", "harm", "closed").set(1)
    metrics.GUARDRAIL_DEMOTED.labels("trial", "tone", "DEFERRED").set(1)
    metrics.GUARDRAIL_SLOW.labels("trial", "tone", "MONITOR").set(1)
    metrics.ROLLOUTS.labels("trial", "running").set(1)
    metrics.POLICY_UNHEALTHY.labels("trial").set(0)
    metrics.FAILURES.labels("harm", "error")
    metrics.NOT_REPAIRED.labels("streams").set(0)
    metrics.SHADOW_CHECKS.labels("harm", "waiting").set(1)
    metrics.asked_of_gateway("openai", "", 400)
    metrics.fell_back("openai", "ollama", "provider_timeout")
    for counter in (metrics.GATEWAY_MASKED, metrics.GATEWAY_RESTORED, metrics.GATEWAY_HEARTBEATS):
        counter.labels("openai")
    found = {metric.name: (metric.type, labels_of(metric)) for metric in REGISTRY.collect()}
    assert documented == found


def labels_of(metric: Metric) -> frozenset[str]:
    assert metric.samples, f"{metric.name} has no sample to read labels from"
    return frozenset(name for sample in metric.samples for name in sample.labels) - {"le"}
