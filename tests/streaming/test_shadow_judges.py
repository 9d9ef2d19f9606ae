"""A judge that both versions have is asked once; its verdict counts in the comparison as the shadow would have it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from channels.db import database_sync_to_async

from guardrails.policy import Policy
from guardrails.selectors import ShadowPolicy
from streaming.audit.verify import log_faults
from streaming.deferred import run_deferred
from streaming.log import MemoryLog
from streaming.models import AuditSession, DeferredCheck, Finding, ShadowCheck
from streaming.shadow.record import ShadowRecord
from tests.streaming.pumping import Trial, trial
from tests.streaming.test_shadow import policy

pytestmark = pytest.mark.django_db(transaction=True)
HARM = "First you mix the poison."
CONFIG = {"provider": "scripted", "rubric": "harm"}


def judge(mode: str = "MONITOR", **more: object) -> dict[str, object]:
    asked = {"name": "judge", "kind": "ai_judge", "applies_to": ["response"], "config": CONFIG}
    return {**asked, "mode": mode, "action": "block", **more}


async def judged(
    active: Policy, second: Policy, monkeypatch: pytest.MonkeyPatch, text: str = HARM, *, monitor: bool = False
) -> tuple[Trial, AuditSession]:
    """A session with that shadow, whose deferred checks have been made."""
    known: Mapping[str, Policy] = {active.digest: active, second.digest: second}
    monkeypatch.setattr("streaming.deferred.policy_by_digest", known.__getitem__)
    monkeypatch.setattr("streaming.shadow.late.policy_by_digest", known.__getitem__)
    case = await trial([text], policy=active, shadow=ShadowPolicy(4, second.digest, second), monitor=monitor)
    await case.pump.run()
    row = await AuditSession.objects.aget(pk=case.session_id)
    assert row.shadow_comparison in ("unknown", "both_clean")
    async for check in DeferredCheck.objects.filter(session=row).values_list("pk", flat=True):
        assert await run_deferred(check, MemoryLog())
    await row.arefresh_from_db()
    assert row.state == "COMPLETE"
    assert not await database_sync_to_async(lambda: list(log_faults()))(), "sealed as it stands then"
    return case, row


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that the next version lets decide: what would it have stopped?"""
    case, row = await judged(policy(judge()), policy(judge("BLOCK"), version=4), monkeypatch)
    assert await DeferredCheck.objects.acount() == 1, "nobody is paid twice"
    assert (row.shadow_comparison, row.shadow_would_have, row.shadow["not_run"]) == ("only_shadow", "blocked", [])
    (found,) = row.shadow["findings"]
    assert (found["guardrail"], found["version"], found["n"]) == ("judge", 4, 1)
    assert (found["mode"], found["would_have"]) == ("MONITOR", "blocked")
    assert (found["start"], found["end"], found["exposed"]) == (0, len(HARM), len(HARM))
    assert row.would_have == "blocked", "the active version's own judge says so too"
    assert await Finding.objects.filter(session=row).acount() == 1, "and that finding is the session's only one"
    assert len(await case.of("finding")) == 0, "which workers tell"


async def test_what_passes_makes_the_session_one_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await judged(policy(judge()), policy(judge("BLOCK"), version=4), monkeypatch, "All is well.")
    assert (row.shadow_comparison, row.shadow_would_have, row.shadow["not_run"]) == ("both_clean", "", [])


async def test_a_judge_that_only_records_in_the_shadow_acts_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = await judged(policy(judge()), policy(judge(), version=4), monkeypatch)
    assert (row.shadow_comparison, row.shadow_would_have) == ("both_clean", "")
    assert [found["would_have"] for found in row.shadow["findings"]] == [None]


@pytest.mark.parametrize(
    "other",
    [{"config": {**CONFIG, "threshold": 0.9}}, {"applies_to": ["prompt", "response"]}, {"name": "another"}],
    ids=["other parameters", "other texts", "another name"],
)
async def test_a_judge_that_is_another_one_is_asked_for_itself(
    other: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = policy(judge("BLOCK", **other), version=4)
    _, row = await judged(policy(judge()), second, monkeypatch)
    assert (row.shadow_comparison, row.shadow_would_have, row.shadow["findings"]) == ("unknown", "", [])
    assert row.shadow["not_run"] == [str(other.get("name", "judge"))]
    mine = [check async for check in ShadowCheck.objects.filter(session=row)]
    assert {check.guardrail for check in mine} == {str(other.get("name", "judge"))}
    assert {check.applies_to for check in mine} == set(other.get("applies_to", ["response"]))  # type: ignore[call-overload]


async def test_a_verdict_that_failed_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**CONFIG, "provider": "nobody of this name"}
    active, second = policy(judge(config=broken)), policy(judge("BLOCK", config=broken), version=4)
    _, row = await judged(active, second, monkeypatch)
    assert (row.shadow_comparison, row.shadow["not_run"]) == ("unknown", ["judge"])


@pytest.mark.parametrize(
    ("beside", "comparison"),
    [(judge("BLOCK"), "both_acted"), (judge("MONITOR"), "only_active"), (None, "only_active")],
    ids=["the same judge", "the shadow's only records", "the shadow has none"],
)
async def test_in_a_session_wholly_in_monitor_a_judge_that_decides_counts_as_what_the_active_version_would_have_done(
    beside: dict[str, object] | None, comparison: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = policy(*([beside] if beside else [judge("BLOCK", name="another", applies_to=["thinking"])]), version=4)
    _, row = await judged(policy(judge("BLOCK")), second, monkeypatch, monitor=True)
    assert (row.shadow_comparison, row.shadow["acted"]) == (comparison, True)
    assert row.shadow_would_have == ("blocked" if comparison == "both_acted" else "")


async def test_in_a_session_wholly_in_monitor_a_judge_that_only_records_has_not_acted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, row = await judged(policy(judge()), policy(judge("BLOCK"), version=4), monkeypatch, monitor=True)
    assert (row.shadow_comparison, row.shadow["acted"]) == ("only_shadow", False)


async def test_a_comparison_stored_before_it_was_known_what_the_active_version_did_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    details = ShadowRecord.details

    def before(record: ShadowRecord) -> dict[str, object]:
        return {name: value for name, value in details(record).items() if name != "acted"}

    monkeypatch.setattr(ShadowRecord, "details", before)
    _, row = await judged(policy(judge()), policy(judge("BLOCK"), version=4), monkeypatch)
    assert (row.shadow_comparison, row.shadow_would_have, row.shadow["not_run"]) == ("unknown", "", ["judge"])
    assert "acted" not in row.shadow
