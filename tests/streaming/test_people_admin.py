"""Texts are masked until somebody says why they look; a verdict is stored once, with a name, in the log."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from guardrails.findings import Outcome
from streaming import sessions
from streaming.audit import people
from streaming.audit.verify import log_faults
from streaming.models import AuditEntry, AuditSession, Conversation, Finding, Message, Review
from streaming.sessions import Ending, Visitor
from tests.conftest import Cast

from .test_audit_chain import session

pytestmark = pytest.mark.django_db
PROMPT, ANSWER = b"the prompt", b"the <b>answer"


def allow(user: User, *codenames: str) -> None:
    found = Permission.objects.filter(content_type__app_label="streaming", codename__in=codenames)
    assert len(found) == len(codenames)
    user.user_permissions.add(*found)


@pytest.fixture
def session_id() -> str:
    return session("the <b>answer")


@pytest.fixture
def finding(session_id: str) -> Finding:
    return Finding.objects.get(session_id=session_id)


@pytest.fixture
def reveal_page(session_id: str) -> str:
    return reverse("admin:streaming_auditsession_reveal", args=[session_id])


@pytest.fixture
def review_page(finding: Finding) -> str:
    return reverse("admin:streaming_finding_review", args=[finding.pk])


@pytest.fixture
def reviewer(cast: Cast, client: Client) -> Client:
    see = ("view_auditsession", "view_finding", "view_conversation")
    allow(cast.reviewer, *see, "reveal_text", "add_review")
    allow(cast.operator, *see)
    client.force_login(cast.reviewer)
    return client


def test_it_works(reviewer: Client, reveal_page: str, review_page: str, finding: Finding) -> None:
    asked = reviewer.get(reveal_page)
    assert b"13 characters, hidden" in asked.content
    assert not AuditEntry.objects.filter(kind="reveal").exists(), "to be asked is not to look"
    shown = reviewer.post(reveal_page, {"reason": "complaint 17"})
    assert PROMPT in shown.content
    assert b"the &lt;b&gt;answer" in shown.content
    assert "no-store" in shown["Cache-Control"]
    entry = AuditEntry.objects.get(kind="reveal")
    assert (entry.body["by"], entry.body["reason"]) == ("reviewer", "complaint 17")

    done = reviewer.post(review_page, {"label": "false_positive", "note": "a part <no>", "seen": 0}, follow=True)
    assert b"Stored: false positive." in done.content
    assert b"False positive, reviewer" in done.content
    review = finding.reviews.get()
    assert (review.label, review.note, review.by) == ("false_positive", "a part <no>", "reviewer")
    assert b"a part &lt;no&gt;" in reviewer.get(review_page).content
    assert list(log_faults()) == []


def test_a_prompt_that_was_checked_for_a_client_is_called_one(reviewer: Client) -> None:
    ending = Ending(Outcome.ALLOWED, Message.Status.COMPLETE, content="Is it you?")
    key = sessions.record_check(
        visitor=Visitor(client="sg_a"), policy={"name": "p", "version": 1, "digest": "sha256:x"}, ending=ending,
        monitor=False, conversation_key="c", correlation_id="", role=Message.Role.USER,
    )  # fmt: skip
    page = reverse("admin:streaming_auditsession_reveal", args=[key])
    for shown in (reviewer.get(page), reviewer.post(page, {"reason": "complaint 17"})):
        assert b"Prompt" in shown.content
        assert b"Answer" not in shown.content
    assert b"Is it you?" in shown.content


def test_texts_are_masked_on_every_page(reviewer: Client, session_id: str, finding: Finding, cast: Cast) -> None:
    row = AuditSession.objects.get(pk=session_id)
    pages = [
        reverse("admin:streaming_auditsession_change", args=[session_id]),
        reverse("admin:streaming_finding_change", args=[finding.pk]),
        reverse("admin:streaming_conversation_change", args=[row.conversation_id]),
        reverse("admin:streaming_auditsession_reveal", args=[session_id]),
        reverse("admin:streaming_finding_review", args=[finding.pk]),
        *(reverse(f"admin:streaming_{name}_changelist") for name in ("auditsession", "finding", "conversation")),
    ]
    assert Conversation.objects.filter(pk=row.conversation_id).exists()
    reviewer.force_login(User.objects.create_superuser("root", password="x" * 12))
    for page in pages:
        response = reviewer.get(page)
        assert response.status_code == 200, page
        for text in (PROMPT, b"answer</b>", b"&lt;b&gt;", ANSWER):
            assert text not in response.content, page
    assert not AuditEntry.objects.filter(kind="reveal").exists()


def test_who_may_not_is_not_asked_and_gets_nothing(
    reviewer: Client, reveal_page: str, review_page: str, session_id: str, cast: Cast
) -> None:
    detail = reverse("admin:streaming_auditsession_change", args=[session_id])
    assert reveal_page.encode() in reviewer.get(detail).content
    for who, status in ((cast.operator, 403), (cast.outsider, 302)):
        reviewer.force_login(who)
        for page, form in (
            (reveal_page, {"reason": "curious"}),
            (review_page, {"label": "unclear", "note": "", "seen": 0}),
        ):
            for response in (reviewer.get(page), reviewer.post(page, form)):
                assert response.status_code == status
                assert PROMPT not in response.content
    reviewer.force_login(cast.operator)
    assert reveal_page.encode() not in reviewer.get(detail).content
    only_this = User.objects.create_user("only", password="x" * 12, is_staff=True)
    allow(only_this, "reveal_text", "add_review")
    reviewer.force_login(only_this)
    assert reviewer.post(reveal_page, {"reason": "may reveal, but sees no sessions"}).status_code == 403
    assert reviewer.post(review_page, {"label": "unclear", "seen": 0}).status_code == 403
    assert not AuditEntry.objects.filter(kind__in=["reveal", "review"]).exists()


@pytest.mark.parametrize("reason", ["", "   ", "x" * 301], ids=["none", "spaces", "long"])
def test_without_a_reason_nothing_is_shown(reviewer: Client, reveal_page: str, reason: str) -> None:
    response = reviewer.post(reveal_page, {"reason": reason})
    assert b'role="alert"' in response.content
    assert PROMPT not in response.content
    assert not AuditEntry.objects.filter(kind="reveal").exists()


def test_what_cannot_be_written_down_is_not_shown(
    reviewer: Client, reveal_page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(people, "append", full)
    with pytest.raises(OSError, match="no space"):
        reviewer.post(reveal_page, {"reason": "complaint 17"})


def test_the_second_reviewer_sees_the_first_and_sends_again(
    reviewer: Client, review_page: str, finding: Finding, cast: Cast
) -> None:
    people.record_review(finding=finding, label=Review.Label.TRUE_POSITIVE, note="n", by=cast.operator, seen=0)
    mine = {"label": "unclear", "note": "not <sure>", "seen": 0}
    told = reviewer.post(review_page, mine)
    assert b"operator has judged this finding in the meantime (true positive)" in told.content
    assert b"not &lt;sure&gt;" in told.content, "what was written is not lost"
    assert b'name="seen" value="1"' in told.content
    assert finding.reviews.count() == 1
    reviewer.post(review_page, {**mine, "seen": 1})
    assert [(review.version, review.by) for review in finding.reviews.all()] == [(1, "operator"), (2, "reviewer")]


@pytest.mark.parametrize(
    "form", [{"label": "great", "seen": 0}, {"seen": 0}, {"label": "unclear", "seen": -1}, {"label": "unclear"},
             {"label": "unclear", "seen": 0, "note": "x" * 2_001}],
    ids=["unknown verdict", "none", "impossible version", "no version", "long note"],
)  # fmt: skip
def test_a_verdict_of_no_form_is_refused(
    reviewer: Client, review_page: str, finding: Finding, form: dict[str, object]
) -> None:
    assert reviewer.post(review_page, form).status_code == 200
    assert not finding.reviews.exists()


@pytest.mark.parametrize("name", ["auditsession_reveal", "finding_review"])
@pytest.mark.parametrize("key", ["nothing", "7777777", "00000000-0000-0000-0000-000000000000"])
def test_a_page_of_what_is_not_there(reviewer: Client, name: str, key: str) -> None:
    assert reviewer.get(reverse(f"admin:streaming_{name}", args=[key])).status_code == 404


def test_the_newest_verdict_counts_in_the_list(reviewer: Client, finding: Finding, cast: Cast) -> None:
    other = Finding.objects.get(session_id=session())
    for seen, label in enumerate((Review.Label.TRUE_POSITIVE, Review.Label.UNCLEAR)):
        people.record_review(finding=finding, label=label, note="", by=cast.reviewer, seen=seen)
    page = reverse("admin:streaming_finding_changelist")

    def listed(choice: str) -> set[int]:
        return {row.pk for row in reviewer.get(page, {"judged": choice}).context["cl"].queryset}

    assert (listed("no"), listed("unclear"), listed("true_positive")) == ({other.pk}, {finding.pk}, set())


def test_a_purged_session_says_that_nothing_is_stored(reviewer: Client, reveal_page: str) -> None:
    Message.objects.update(content="", salt="")
    assert reviewer.get(reveal_page).content.count(b"none stored") == 2
    assert b"No text of this session is stored any more." in reviewer.post(reveal_page, {"reason": "late"}).content
