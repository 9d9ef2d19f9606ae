"""The difference between two versions: counted over what it names, shown to those who may see it, changed by few."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from guardrails import selectors, services
from guardrails.findings import Action, Finding, Mode, Outcome, would_have
from guardrails.models import Policy, PolicyVersion, ShadowChange
from guardrails.policy import compile_policy
from streaming import sessions
from streaming.core.events import PolicyRef
from streaming.models import AuditSession, Message
from streaming.sessions import Ending, Visitor
from streaming.shadow import report as reports
from streaming.shadow.record import recorded
from streaming.shadow.report import report
from tests.conftest import Cast

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]
LIST = "admin:streaming_shadowedpolicy_changelist"
PAGE = "admin:streaming_shadowedpolicy_change"


def document(*words: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "block", "config": {"keywords": list(words)}}
    more = {**rule, "name": "more"}
    return {"policy": "support", "description": "d", "guardrails": [rule, more]}


@pytest.fixture
def shadow() -> PolicyVersion:
    services.install(document=document("acme"))
    version = services.sign(version=services.publish(policy=services.save_draft(document=document("acme", "b"))))
    services.set_shadow(version=version, note="is b worth it?")
    return version


def hit(guardrail: str, *, mode: Mode = Mode.BLOCK, n: int = 1) -> Finding:
    said = would_have(mode, Action.BLOCK)
    return Finding(guardrail, "keywords", "r", "", 0, 4, mode, Action.BLOCK, n=n, would_have=said)


def session(active: str = "", beside: str = "", **trouble: Any) -> str:
    """A session that has ended; ``active`` and ``beside`` name the guardrails that hit."""
    mine = [hit(name, n=n) for n, name in enumerate(active.split(), start=1)]
    policy = compile_policy(document("acme", "b"), version=2, digest="d2")
    record = recorded(
        version=2,
        digest="d2",
        policy=policy,
        active_acted=bool(mine),
        findings=[hit(name, mode=Mode.MONITOR) for name in beside.split()],
        ms=1.5,
        **trouble,
    )
    outcome = Outcome.BLOCKED if mine else Outcome.ALLOWED
    return sessions.record_check(
        visitor=Visitor(client="k"),
        policy=PolicyRef(name="support", version=1, digest="d1"),
        ending=Ending(outcome, Message.Status.COMPLETE, findings=mine, shadow=record),
        monitor=False,
        conversation_key="",
        correlation_id="",
    )


def found(name: str = "support") -> reports.Report:
    made = report(Policy.objects.get(name=name))
    assert made is not None
    return made


def test_it_works(shadow: PolicyVersion) -> None:
    session(), session()
    both = session("words", "words words")
    only_active = session("words")
    only_shadow = session(beside="more words")
    unknown = session(unanswered=2, failures={"more": 1})
    made = found()
    assert made.counts == {"both_clean": 2, "both_acted": 1, "only_active": 1, "only_shadow": 1, "unknown": 1}
    assert (made.sessions, made.without, made.looked, made.mean_ms) == (6, 0, 6, 1.5)
    assert (made.active, made.shadow, made.note, made.ended_at, made.error) == (1, 2, "is b worth it?", None, "")
    lines = {line.name: line for line in made.guardrails}
    words, more = lines["words"], lines["more"]
    assert (words.active_hits, words.active_sessions, words.shadow_hits, words.shadow_sessions) == (2, 2, 3, 2)
    assert (more.active_hits, more.shadow_hits, more.shadow_sessions) == (0, 1, 1)
    assert [example.session_id for example in made.examples["only_active"]] == [only_active]
    assert [example.session_id for example in made.examples["only_shadow"]] == [only_shadow]
    (one,) = made.examples["unknown"]
    assert (one.session_id, one.why) == (unknown, "2 texts got no verdict in time; “more” failed 1 times")
    assert both not in json.dumps(made.as_dict(), default=str)


def test_policy_that_never_had_a_shadow_has_no_report() -> None:
    services.install(document=document("acme"))
    assert report(Policy.objects.get()) is None


def test_sessions_of_another_shadow_policy_or_time_are_not_counted(shadow: PolicyVersion) -> None:
    session(beside="words")
    other = session(beside="words")
    AuditSession.objects.filter(pk=other).update(policy_name="other")
    before = session(beside="words")
    AuditSession.objects.filter(pk=before).update(started_at=timezone.now() - timedelta(days=1))
    older = session(beside="words")
    AuditSession.objects.filter(pk=older).update(shadow_version=7)
    assert (found().sessions, found().counts["only_shadow"]) == (1, 1)
    services.clear_shadow(policy=shadow.policy)
    services.set_shadow(version=shadow)
    assert found().sessions == 0, "it began anew"


def test_shadow_that_has_ended_can_still_be_read(shadow: PolicyVersion) -> None:
    session(beside="words")
    services.clear_shadow(policy=shadow.policy)
    made = found()
    assert (made.shadow, made.sessions) == (2, 1)
    assert made.ended_at is not None


def test_session_under_way_or_lost_is_not_called_clean(shadow: PolicyVersion) -> None:
    lost = session()
    AuditSession.objects.filter(pk=lost).update(shadow_comparison="", shadow={})
    made = found()
    assert (made.sessions, made.without, made.counts["both_clean"], made.mean_ms) == (1, 1, 0, None)


def test_figures_of_guardrails_name_how_many_sessions_they_cover(
    shadow: PolicyVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "NEWEST", 2)
    for _ in range(4):
        session("words", "words")
    made = found()
    assert (made.sessions, made.looked) == (4, 2)
    (line,) = made.guardrails
    assert (line.active_hits, line.shadow_hits) == (2, 2)


def test_sessions_of_several_active_versions_are_not_passed_off_as_one(shadow: PolicyVersion) -> None:
    session()
    AuditSession.objects.filter(pk=session()).update(policy_version=3)
    assert found().actives == [1, 3]


def test_guardrail_that_a_shadow_is_not_asked_for_is_no_guardrail_that_found_nothing(shadow: PolicyVersion) -> None:
    session("more", not_run=["more"])
    (line,) = found().guardrails
    assert (line.name, line.not_run, line.active_hits, line.shadow_hits) == ("more", True, 1, 0)
    assert found().counts["unknown"] == 1


# -- the page ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(shadow: PolicyVersion) -> str:
    return reverse(PAGE, args=[shadow.policy_id])


def test_page_shows_the_difference_to_whoever_sees_policies(cast: Cast, client: Client, page: str) -> None:
    different = session(beside="more")
    session("words", "words")
    client.force_login(cast.reviewer)
    told = client.get(page).content.decode()
    for words in ("Only the shadow would have acted", "is b worth it?", different):
        assert words in told
    for button in ("End the shadow", "Run as shadow", "Run this one instead"):
        assert button not in told
    assert reverse("admin:streaming_auditsession_change", args=[different]) not in told
    cast.reviewer.user_permissions.add(
        Permission.objects.get(content_type__app_label="streaming", codename="view_auditsession")
    )
    assert reverse("admin:streaming_auditsession_change", args=[different]) in client.get(page).content.decode()
    listed = client.get(reverse(LIST)).content.decode()
    assert "0 only active, 1 only shadow, of 2" in listed


def test_outsider_sees_no_comparison(cast: Cast, client: Client, page: str) -> None:
    client.force_login(cast.outsider)
    assert client.get(page).status_code == 302
    assert client.get(reverse(LIST)).status_code == 302


@pytest.mark.parametrize("verb", ["begin", "end", "paid"])
def test_shadow_is_changed_by_nobody_without_the_permission_and_by_no_link(
    cast: Cast, client: Client, shadow: PolicyVersion, verb: str
) -> None:
    address = reverse(f"admin:streaming_shadowedpolicy_{verb}", args=[shadow.policy_id])
    for who in (cast.author, cast.signer, cast.reviewer):
        client.force_login(who)
        assert client.post(address, {"version": shadow.pk}).status_code == 403
    client.force_login(cast.operator)
    assert client.get(address).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(cast.operator)
    assert strict.post(address, {"version": shadow.pk}).status_code == 403
    assert ShadowChange.objects.count() == 1


def test_operator_ends_and_begins_a_shadow_and_it_is_recorded(
    cast: Cast, client: Client, shadow: PolicyVersion, page: str
) -> None:
    client.force_login(cast.operator)
    assert "End the shadow" in client.get(page).content.decode()
    told = client.post(reverse("admin:streaming_shadowedpolicy_end", args=[shadow.policy_id]), follow=True)
    assert "has ended" in told.content.decode()
    assert Policy.objects.get().shadow_version is None
    form = {"version": shadow.pk, "note": "once more"}
    told = client.post(reverse("admin:streaming_shadowedpolicy_begin", args=[shadow.policy_id]), form, follow=True)
    assert "runs as shadow now" in told.content.decode()
    newest = ShadowChange.objects.first()
    assert newest is not None
    assert (newest.version, newest.changed_by, newest.note) == (shadow, cast.operator, "once more")


def test_operator_says_whether_paid_guardrails_are_asked(
    cast: Cast, client: Client, shadow: PolicyVersion, page: str
) -> None:
    def asked() -> bool:
        running = selectors.running_policy("support").shadow
        assert running is not None
        return running.paid

    client.force_login(cast.operator)
    begin, switch = (reverse(f"admin:streaming_shadowedpolicy_{verb}", args=[shadow.policy_id])
                     for verb in ("begin", "paid"))  # fmt: skip
    assert asked()
    assert "Stop asking paid guardrails" in client.get(page).content.decode()
    told = client.post(switch, {"asks_paid": "no"}, follow=True).content.decode()
    assert "does not ask paid guardrails from now on" in told
    assert "Its paid guardrails are not asked" in told
    assert not asked()
    newest = ShadowChange.objects.first()
    assert newest is not None
    assert (newest.version, newest.changed_by, newest.asks_paid) == (shadow, cast.operator, False)
    client.post(switch, {"asks_paid": "yes"})
    assert asked()
    services.clear_shadow(policy=shadow.policy)
    client.post(begin, {"version": shadow.pk, "note": ""})  # a box without its tick is not sent
    assert not asked()
    services.clear_shadow(policy=shadow.policy)
    client.post(begin, {"version": shadow.pk, "note": "", "asks_paid": "on"})
    assert asked()


def test_active_unsigned_or_foreign_version_is_no_choice(cast: Cast, client: Client, shadow: PolicyVersion) -> None:
    unsigned = services.publish(policy=services.save_draft(document=document("c")))
    foreign, _ = services.install(document={**document("acme"), "policy": "other"})
    active = shadow.policy.versions.get(number=1)
    client.force_login(cast.operator)
    for wrong in (unsigned, foreign, active):
        form = {"version": wrong.pk, "note": ""}
        told = client.post(reverse("admin:streaming_shadowedpolicy_begin", args=[shadow.policy_id]), form, follow=True)
        assert "Choose a signed version" in told.content.decode()
    assert Policy.objects.get(name="support").shadow_version == shadow


def test_note_cannot_break_out_of_the_page(cast: Cast, client: Client, shadow: PolicyVersion, page: str) -> None:
    ShadowChange.objects.update(note="<script>alert(1)</script>")
    client.force_login(cast.reviewer)
    assert "<script>alert(1)" not in client.get(page).content.decode()


def test_policy_and_version_pages_name_the_shadow_and_can_change_it(
    cast: Cast, client: Client, shadow: PolicyVersion, page: str
) -> None:
    client.force_login(cast.operator)
    assert page in client.get(reverse("admin:guardrails_policy_changelist")).content.decode()
    versions = reverse("admin:guardrails_policyversion_changelist")
    client.post(versions, {"action": "end_shadow", "_selected_action": [shadow.pk]})
    assert Policy.objects.get().shadow_version is None
    client.post(versions, {"action": "run_as_shadow", "_selected_action": [shadow.pk]})
    assert Policy.objects.get().shadow_version == shadow
    client.force_login(cast.signer)
    client.post(versions, {"action": "end_shadow", "_selected_action": [shadow.pk]})
    assert Policy.objects.get().shadow_version == shadow


def test_session_page_keeps_the_shadows_findings_apart(cast: Cast, client: Client, shadow: PolicyVersion) -> None:
    one = session("words", "more")
    cast.reviewer.user_permissions.add(
        *Permission.objects.filter(content_type__app_label="streaming", codename__startswith="view_")
    )
    client.force_login(cast.reviewer)
    told = client.get(reverse("admin:streaming_auditsession_change", args=[one])).content.decode()
    assert "version 2: more/r, text 0-4, would have blocked" in told


# -- the command ------------------------------------------------------------------------------------------------

Told = Callable[..., str]


@pytest.fixture
def told() -> Told:
    def run(*arguments: str) -> str:
        out = io.StringIO()
        call_command("shadow", *arguments, stdout=out, stderr=out)
        return out.getvalue()

    return run


def test_command_tells_the_difference(shadow: PolicyVersion, told: Told) -> None:
    different = session(beside="more")
    session()
    words = told("support")
    assert "2 sessions" in words
    assert "1  Only the shadow would have acted" in words
    assert "more: 0 in 0, 1 in 1" in words
    assert f"Only the shadow would have acted: {different}" in words
    data = json.loads(told("support", "--json"))
    assert data["counts"]["only_shadow"] == 1
    assert data["examples"]["only_shadow"][0]["session_id"] == different


def test_command_begins_and_ends_a_shadow(shadow: PolicyVersion, told: Told) -> None:
    assert "has ended" in told("support", "--off")
    assert "no shadow" in told("support", "--off")
    assert "version 2 runs as shadow" in told("support", "2", "--note", "again")
    assert "already" in told("support", "2")
    newest = ShadowChange.objects.first()
    assert newest is not None
    assert (newest.note, newest.asks_paid) == ("again", True)
    assert "version 2 runs as shadow" in told("support", "2", "--without-paid")
    assert "guardrails that go over the network are not asked" in told("support")


def test_command_refuses_what_the_services_refuse(shadow: PolicyVersion, told: Told) -> None:
    for arguments, words in (
        (("nobody",), "no policy"),
        (("support", "9"), "no version 9"),
        (("support", "1"), "is the active version"),
    ):
        with pytest.raises(CommandError, match=words) as refused:
            told(*arguments)
        assert refused.value.returncode == 1
    unsigned = services.publish(policy=services.save_draft(document=document("c")))
    with pytest.raises(CommandError, match="not signed"):
        told("support", str(unsigned.number))


def test_command_says_that_there_never_was_one(told: Told) -> None:
    services.install(document=document("acme"))
    assert "no shadow has ever run" in told("support")
    assert json.loads(told("support", "--json")) is None
