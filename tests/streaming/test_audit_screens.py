"""The audit pages: who may open them, what they narrow to, that a text is hidden until somebody says why they look."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import Group, User
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from guardrails import loading
from guardrails.findings import Outcome
from guardrails.models import Policy, PolicyVersion
from guardrails.policy import compile_policy
from guardrails.services import Refused, install, publish
from streaming import sessions
from streaming.audit.people import record_review
from streaming.audit.retention import purge
from streaming.audit.screens import detail, export, filters, views
from streaming.audit.screens.filters import Cursor
from streaming.audit.screens.urls import urlpatterns
from streaming.audit.verify import log_faults
from streaming.core.events import PolicyRef
from streaming.core.gate import gate_text
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, Message, Review
from streaming.sessions import Ending, NewSession, Visitor

from .audit_people import People, people
from .test_audit_chain import HIT, alter, session

pytestmark = pytest.mark.django_db
LIST = "/audit/"
HTMX = {"HX-Request": "true"}
EVIL = "<script>alert(1)</script>\u202e\u200b"


@pytest.fixture
def crowd(db: None) -> People:
    return people()


@pytest.fixture
def reviewer(crowd: People, client: Client) -> Client:
    client.force_login(crowd.reviewer)
    return client


@pytest.fixture
def auditor(crowd: People, client: Client) -> Client:
    client.force_login(crowd.auditor)
    return client


def many(number: int, **columns: object) -> list[AuditSession]:
    """Finished sessions, a second apart, the first one the oldest."""
    began = datetime(2026, 3, 1, tzinfo=UTC)
    made = [
        AuditSession(
            **{
                "state": "COMPLETE", "outcome": "allowed", "policy_name": "p", "policy_version": 1,
                "provider": "scripted", "started_at": began + timedelta(seconds=i),
                "correlation_id": f"order-{i:04}", **columns,
            }
        )
        for i in range(number)
    ]  # fmt: skip
    return AuditSession.objects.bulk_create(made)


def find(one: AuditSession, guardrail: str = "pii", n: int = 1, **columns: object) -> Finding:
    values = {"kind": "pii", "rule": "ssn", "channel": "text", "start": 0, "end": 1, "mode": "BLOCK", "action": "warn"}
    return Finding.objects.create(session=one, n=n, guardrail=guardrail, **{**values, **columns})


def listed(client: Client, query: dict[str, str]) -> list[str]:
    response = client.get(LIST, query)
    assert response.status_code == 200
    return [str(line.session.correlation_id) for line in response.context["lines"]]


def test_it_works(reviewer: Client) -> None:
    key = session("the <b>answer")
    page = reviewer.get(LIST)
    assert page.status_code == 200
    assert key in page.content.decode()
    assert "pii" in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    detail = reviewer.get(reverse("audit:session", args=[key]))
    assert detail.status_code == 200
    assert b'data-chain="good"' in detail.content


# -- who may ---------------------------------------------------------------------------------------------------------

OPEN, LOGIN, NO = 200, 302, 403
WHO = ("author", "operator", "reviewer", "auditor", "outsider", "nobody")
TABLE: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "list": ("GET", "/audit/", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "csv": ("GET", "/audit/export.csv", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "jsonl": ("GET", "/audit/export.jsonl", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "session": ("GET", "/audit/sessions/{session}/", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "reveal": ("POST", "/audit/sessions/{session}/reveal", (NO, NO, OPEN, NO, NO, LOGIN)),
    "queue": ("GET", "/audit/review/", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "review": ("POST", "/audit/findings/{finding}/review", (NO, NO, 302, NO, NO, LOGIN)),
    "example": ("GET", "/audit/findings/{finding}/example", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "add example": ("POST", "/audit/findings/{finding}/example", (NO, NO, NO, NO, NO, LOGIN)),
    "precision": ("GET", "/audit/precision/", (NO, NO, OPEN, OPEN, NO, LOGIN)),
    "chain": ("GET", "/audit/chain/", (NO, NO, NO, OPEN, NO, LOGIN)),
    "verify": ("POST", "/audit/chain/", (NO, NO, NO, 302, NO, LOGIN)),
}
FORM = {"reason": "complaint 17", "label": "unclear", "note": "", "seen": "0", "text": "a part number"}
STEPS = ("reveal", "review", "add example", "verify")


def ask(client: Client, row: str, key: str, **more: object) -> tuple[int, str]:
    method, path, _ = TABLE[row]
    path = path.replace("{session}", key).replace("{finding}", str(Finding.objects.get(session_id=key).pk))
    response = client.get(path, **more) if method == "GET" else client.post(path, FORM, **more)  # type: ignore[arg-type]
    body = "" if response.streaming else response.content.decode()
    return response.status_code, body + response.get("Location", "")


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators")
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("row", TABLE)
def test_who_may_open_what(client: Client, crowd: People, row: str, who: str) -> None:
    key = session()
    before = AuditEntry.objects.count()
    if who != "nobody":
        client.force_login(getattr(crowd, who))
    status, said = ask(client, row, key)
    wanted = TABLE[row][2][WHO.index(who)]
    assert status == wanted
    if who == "nobody":
        assert "/admin/login/?next=/audit/" in said
    if wanted == NO:
        assert key not in said
        assert "the answer" not in said
    allowed = wanted not in (NO, LOGIN) or (wanted == LOGIN and who != "nobody")
    wrote = row in ("reveal", "review") and allowed
    assert AuditEntry.objects.count() == before + wrote


def test_every_page_has_its_row() -> None:
    named = {str(pattern.pattern) for pattern in urlpatterns}
    asked = {
        path.removeprefix("/audit/").replace("{session}", "<uuid:session_id>").replace("{finding}", "<int:finding_id>")
        for _, path, _ in TABLE.values()
    }
    assert named == asked


@pytest.mark.parametrize("row", STEPS)
def test_a_forged_post_changes_nothing(crowd: People, row: str) -> None:
    key = session()
    before = AuditEntry.objects.count()
    strict = Client(enforce_csrf_checks=True)
    root = User.objects.create_superuser("root", password="x" * 12)
    strict.force_login(root)
    assert ask(strict, row, key)[0] == 403
    assert ask(strict, row, key, headers={"Origin": "https://evil.example"})[0] == 403
    assert AuditEntry.objects.count() == before


@pytest.mark.parametrize("row", STEPS)
def test_a_step_cannot_be_taken_by_a_link(reviewer: Client, auditor: Client, row: str) -> None:
    key = session()
    before = AuditEntry.objects.count()
    _, path, _ = TABLE[row]
    path = path.replace("{session}", key).replace("{finding}", str(Finding.objects.get(session_id=key).pk))
    assert reviewer.get(path, FORM).status_code in (200, 405)
    assert reviewer.put(path, FORM).status_code in (403, 405)
    assert AuditEntry.objects.count() == before
    assert not Review.objects.exists()


def test_who_is_signed_out_meanwhile_reloads_the_page_and_gets_no_login_form_in_the_list(client: Client) -> None:
    response = client.get(LIST, headers=HTMX)
    assert response["HX-Refresh"] == "true"
    assert b"password" not in response.content


# -- the list --------------------------------------------------------------------------------------------------------


def test_each_filter_finds_its_own(reviewer: Client, crowd: People) -> None:
    first, second, third = many(3)
    AuditSession.objects.filter(pk=first.pk).update(
        state="ACTIVE", outcome="", provider="openai", policy_name="support", policy_version=3, client="sg_abc",
        started_at=datetime(2026, 2, 1, 23, 59, tzinfo=UTC),
    )  # fmt: skip
    AuditSession.objects.filter(pk=second.pk).update(outcome="blocked", would_have="redacted", policy_name="support")
    find(second, "codenames")
    record_review(finding=find(third), label=Review.Label.UNCLEAR, note="", by=crowd.reviewer, seen=0)
    a, b, c = "order-0000", "order-0001", "order-0002"
    for query, wanted in (
        ({}, [c, b, a]),
        ({"state": "ACTIVE"}, [a]),
        ({"outcome": "blocked"}, [b]),
        ({"would_have": "any"}, [b]),
        ({"would_have": "redacted"}, [b]),
        ({"would_have": "blocked"}, []),
        ({"policy": "support"}, [b, a]),
        ({"policy": "support v3"}, [a]),
        ({"policy": "support v4"}, []),
        ({"guardrail": "codenames"}, [b]),
        ({"provider": "openai"}, [a]),
        ({"client": "sg_abc"}, [a]),
        ({"since": "2026-03-01"}, [c, b]),
        ({"until": "2026-02-01"}, [a]),
        ({"until": "2026-01-31"}, []),
        ({"unreviewed": "on"}, [b]),
        ({"unreviewed": "on", "guardrail": "pii"}, []),
        ({"q": "order-0002"}, [c]),
        ({"q": "order-"}, [c, b, a]),
        ({"q": str(second.pk)}, [b]),
        ({"q": "rder"}, []),
        ({"policy": "support", "state": "COMPLETE"}, [b]),
    ):
        assert listed(reviewer, query) == wanted, query


def test_pages_follow_each_other_without_a_gap_whatever_begins_meanwhile(
    reviewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE", 4)
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    made = {str(one.pk) for one in many(10, started_at=moment)}  # all at one moment: the key decides
    seen: list[str] = []
    address: str | None = LIST
    while address:
        response = reviewer.get(address, headers=HTMX if seen else {})
        said = response.content.decode()
        seen += re.findall(r'data-session="([^"]+)"', said)
        assert ("<html" in said) == (address == LIST)
        links = set(re.findall(r'(?:href|hx-get)="(/audit/\?[^"]*cursor=[^"]+)"', said))
        assert len(links) == 1 or "That is all of them." in said
        address = html.unescape(links.pop()) if links else None
        AuditSession.objects.create(started_at=timezone.now())
    assert len(seen) == 10
    assert set(seen) == made


@pytest.mark.parametrize("query", ["guardrail=old", "unreviewed=on", "guardrail=old&unreviewed=on"])
@pytest.mark.parametrize("walked", [1, 3, 7, 100])
def test_what_was_found_long_ago_is_found_in_bounded_steps(
    reviewer: Client, monkeypatch: pytest.MonkeyPatch, query: str, walked: int
) -> None:
    monkeypatch.setattr(views, "PAGE", 4)
    monkeypatch.setattr(filters, "WALKED", walked)
    made = many(40, started_at=timezone.now())  # all at one moment: the key decides
    wanted = [str(one.pk) for one in AuditSession.objects.filter(pk__in=[one.pk for one in made[::5]])]
    for one in made:
        found = find(one, "old" if str(one.pk) in wanted else "new")
        if str(one.pk) not in wanted:
            Review.objects.create(finding=found, version=1, label="unclear", by="r")
    seen: list[str] = []
    address, pages = f"{LIST}?{query}", 0
    while address:
        with CaptureQueriesContext(connection) as few:
            said = reviewer.get(address, headers=HTMX).content.decode()
        assert len(few) <= 9
        seen += re.findall(r'data-session="([^"]+)"', said)
        links = set(re.findall(r'(?:href|hx-get)="(/audit/\?[^"]*cursor=[^"]+)"', said))
        address, pages = html.unescape(links.pop()) if links else "", pages + 1
        assert pages <= 60
    assert sorted(seen) == sorted(wanted)
    assert len(seen) == len(set(seen))
    assert "That is all of them." in said


def test_a_first_page_without_lines_goes_on(reviewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "WALKED", 2)
    find(many(9)[0])
    page = reviewer.get(LIST, {"unreviewed": "on"}).content
    assert b"Searched back to" in page
    assert b"No session fits" not in page


def test_a_page_costs_the_same_queries_however_much_it_shows(reviewer: Client, crowd: People) -> None:
    def queries(address: str, **headers: str) -> int:
        with CaptureQueriesContext(
            connection,
        ) as caught:
            assert reviewer.get(address, headers=headers).status_code == 200
        return len(caught)

    one = find(many(1)[0])
    whole, part = queries(LIST), queries(LIST, **HTMX)
    for other in many(60):
        for n in range(1, 6):
            found = find(other, f"g{n}", n)
        if n % 2:
            Review.objects.create(finding=found, version=1, label="unclear", by="r")
    assert one.pk
    assert queries(LIST) == whole <= 10
    assert queries(LIST, **HTMX) == part <= 7
    cursor = str(Cursor.of(AuditSession.objects.all()[50])).replace("+", "%2B")
    assert queries(f"{LIST}?cursor={cursor}", **HTMX) == part


def test_one_session_and_the_queue_cost_the_same_queries_with_five_findings_and_with_fifty(reviewer: Client) -> None:
    key = session()
    one = AuditSession.objects.get(pk=key)
    addresses = [reverse("audit:session", args=[key]), "/audit/review/", "/audit/review/?show=all", "/audit/precision/"]

    def queries(findings: int) -> list[int]:
        for n in range(one.findings.count() + 1, findings + 1):
            found = find(one, f"g{n % 3}", n, start=n * 10, end=n * 10 + 5)
            if n % 2:
                Review.objects.create(finding=found, version=1, label="unclear", by="r")
            DeferredCheck.objects.create(session=one, guardrail=f"g{n}", applies_to="response", state="passed")
        assert one.findings.count() == findings
        taken = []
        for address in addresses:
            with CaptureQueriesContext(connection) as caught:
                assert reviewer.get(address).status_code == 200
            taken.append(len(caught.captured_queries))
        return taken

    queries(5)
    few = queries(5)
    assert queries(50) == few
    assert max(few) <= 25, dict(zip(addresses, few, strict=True))


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "nonsense"}, {"cursor": "2026-01-01_x"}, {"cursor": "2026-01-01T00:00:00_" + str(UUID(int=1))},
        {"cursor": "0001-01-01T00:00:00+23:59_" + str(UUID(int=1))}, {"state": "SLEEPING"}, {"outcome": "'; DROP"},
        {"since": "yesterday"}, {"until": "9999-12-31"}, {"since": "0001-01-01"}, {"policy": "support v99999999999999"},
        {"q": "x" * 201}, {"q": "a\0b"}, {"would_have": "laughed"}, {"guardrail": "g\0"},
    ],
    ids=["cursor", "cursor id", "cursor zone", "cursor before time", "state", "outcome", "day", "late day", "early day",
         "version", "long", "nul", "would have", "nul in name"],
)  # fmt: skip
def test_what_was_asked_in_no_form_is_refused_with_its_name(reviewer: Client, query: dict[str, str]) -> None:
    many(1)
    response = reviewer.get(LIST, query)
    assert response.status_code == 400
    assert b'role="alert"' in response.content or b"no such page" in response.content
    assert not response.context["lines"]


def test_an_empty_list_says_why(reviewer: Client) -> None:
    assert b"No session has been recorded yet" in reviewer.get(LIST).content
    many(1)
    assert b"No session fits" in reviewer.get(LIST, {"outcome": "blocked"}).content


def test_names_from_anywhere_are_shown_as_text(reviewer: Client) -> None:
    (one,) = many(1, policy_name=EVIL, provider=EVIL, client=EVIL, correlation_id=EVIL, error_code=EVIL, fallback=EVIL)
    finding = find(one, EVIL, rule=EVIL, category=EVIL)
    record = Review.objects.create(finding=finding, version=1, label="false_positive", note=EVIL, by=EVIL)
    assert record.pk
    for path in (
        LIST,
        f"{LIST}?q={'%3Cscript%3E'}&state=%3Cscript%3E",
        reverse("audit:session", args=[one.pk]),
        f"/audit/review/?show=all&guardrail=&at={finding.pk}",
        "/audit/review/?show=all&rule=%3Cscript%3E",
        reverse("audit:example", args=[finding.pk]),
        reverse("audit:precision"),
    ):
        said = reviewer.get(path).content.decode()
        assert "<script>alert" not in said, path
        assert "<script>&" not in said
        assert "\u202e" not in said, f"{path}: it turns round what follows"


# -- export ----------------------------------------------------------------------------------------------------------


async def exported(user: User, path: str) -> str:
    client = AsyncClient()
    await client.aforce_login(user)
    response = cast("StreamingHttpResponse", await client.get(path))
    assert response.status_code == 200
    assert "attachment" in response["Content-Disposition"]
    return "".join([part.decode() async for part in response.streaming_content])  # type: ignore[union-attr]


def fill() -> None:
    rows = many(7)
    for one in rows[:3]:
        find(one, n=1)
        find(one, "words", n=2)
    Review.objects.create(finding=find(rows[3]), version=1, label="unclear", by="somebody", note="a secret note")


@pytest.mark.django_db(transaction=True)
async def test_an_export_holds_what_the_list_shows_and_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "AT_ONCE", 3)
    crowd = await database_sync_to_async(people)()
    await database_sync_to_async(fill)()
    key = await database_sync_to_async(session)("a text that nobody exports")
    lines = (await exported(crowd.auditor, "/audit/export.jsonl")).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["correlation_id"] for row in rows[1:]] == [f"order-{i:04}" for i in reversed(range(7))]
    assert rows[0]["id"] == key
    assert [len(row["findings"]) for row in rows] == [1, 0, 0, 0, 1, 2, 2, 2]
    assert rows[4]["findings"][0]["review"]["label"] == "unclear"
    assert "nobody exports" not in str(lines)
    assert "secret note" not in str(lines)
    sheet = list(csv.DictReader(io.StringIO(await exported(crowd.auditor, "/audit/export.csv?outcome=allowed"))))
    assert [row["findings"] for row in sheet] == ["0", "0", "0", "1", "2", "2", "2"]
    assert sheet[4]["guardrails"] == "pii words"
    assert sheet[3]["judged"] == "1"


@pytest.mark.django_db(transaction=True)
async def test_an_export_is_read_page_by_page_as_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "AT_ONCE", 2)
    crowd = await database_sync_to_async(people)()
    await database_sync_to_async(fill)()
    read: list[int] = []
    some = export._some

    def counted(*args: object) -> list[AuditSession]:
        found = some(*args)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    monkeypatch.setattr(export, "_some", counted)
    client = AsyncClient()
    await client.aforce_login(crowd.auditor)
    response = cast("StreamingHttpResponse", await client.get("/audit/export.jsonl"))
    pieces = aiter(response.streaming_content)  # type: ignore[arg-type]
    await anext(pieces)
    assert read == [2], "nothing was read ahead"
    await anext(pieces)
    assert read == [2, 2]
    async for _ in pieces:
        pass
    assert read == [2, 2, 2, 1]


@pytest.mark.django_db(transaction=True)
async def test_an_export_reads_the_findings_of_a_session_page_by_page_too(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = await database_sync_to_async(people)()
    await database_sync_to_async(fill)()
    files = ["/audit/export.jsonl", "/audit/export.csv"]
    whole = [await exported(crowd.auditor, one) for one in files]
    monkeypatch.setattr(export, "FINDINGS_AT_ONCE", 1)
    read: list[int] = []

    def counted(name: str) -> None:
        real = getattr(export, name)

        def asked(*args: object) -> object:
            found = real(*args)
            read.append(len(found) if isinstance(found, list) else sum(map(len, found.values())))
            return found

        monkeypatch.setattr(export, name, asked)

    counted("_next")
    counted("_findings")
    assert [await exported(crowd.auditor, one) for one in files] == whole
    assert max(read) == 1
    assert sum(read) == 14


def row_of(session: AuditSession) -> str:
    lines = export.CsvLines()
    return lines.begin(session) + lines.more([]) + lines.end()


@pytest.mark.parametrize(
    "said", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =cmd|' /C calc'!A0", "＝1", "|x", "%x", "'=1"]
)
def test_no_cell_is_a_formula(said: str) -> None:
    (one,) = many(1, correlation_id=said)
    read = next(csv.DictReader(io.StringIO(export.csv_head() + row_of(one))))
    assert read["correlation_id"] == "'" + said


def test_a_plain_cell_is_left_as_it_is() -> None:
    (one,) = many(1, correlation_id='a,"b"\nc')
    read = next(csv.DictReader(io.StringIO(export.csv_head() + row_of(one))))
    assert (read["correlation_id"], read["released"]) == ('a,"b"\nc', "0")


# -- one session -----------------------------------------------------------------------------------------------------


def test_texts_are_hidden_until_somebody_says_why_and_that_is_an_entry(reviewer: Client) -> None:
    key = session("quite <b>particular words")
    address, step = reverse("audit:session", args=[key]), reverse("audit:reveal", args=[key])
    for response in (
        reviewer.get(address),
        reviewer.post(step, {"reason": " "}),
        reviewer.post(step, {"reason": "x" * 301}),
    ):
        assert b"particular" not in response.content
        assert b"quite" not in response.content.partition(b"data-text")[2].partition(b"</section>")[0]
        assert b"the prompt" not in response.content
        assert b'data-shown="no"' in response.content
    assert response.status_code == 422
    assert not AuditEntry.objects.filter(kind="reveal").exists()
    shown = reviewer.post(step, {"reason": "complaint 17"})
    assert b"the prompt" in shown.content
    text = re.search(r'data-text="answer".*?>(.*?)</p>', shown.content.decode(), re.DOTALL)
    assert text
    assert html.unescape(re.sub(r"<sup.*?</sup>|<[^>]*>", "", text[1])) == "quite <b>particular words"
    assert "no-store" in shown["Cache-Control"]
    assert AuditEntry.objects.get(kind="reveal").body["reason"] == "complaint 17"
    assert b"the prompt" not in reviewer.get(address).content
    assert list(log_faults()) == []


def test_a_purged_text_is_said_to_be_gone(reviewer: Client) -> None:
    key = session()
    purge([key])
    page = reviewer.get(reverse("audit:session", args=[key])).content
    assert page.count(b"No text is stored.") == 2
    assert b'data-chain="good"' in page


@pytest.mark.parametrize(
    ("sql", "fault", "also"),
    [
        ("UPDATE streaming_auditsession SET outcome = 'allowed' WHERE id = %s", "session_altered", ""),
        ("UPDATE streaming_finding SET score = 0.1 WHERE session_id = %s", "findings_altered", "✕ altered"),
        ("DELETE FROM streaming_finding WHERE session_id = %s", "findings_altered", ""),
        ("DELETE FROM streaming_auditentry WHERE kind = 'opened' AND session = %s", "entry_missing", ""),
        ("DELETE FROM streaming_auditentry WHERE kind = 'sealed' AND session = %s", "entry_missing", ""),
    ],
    ids=["session", "finding", "finding gone", "opened gone", "sealed gone"],
)
def test_a_tampered_row_is_pointed_at(reviewer: Client, sql: str, fault: str, also: str) -> None:
    session()
    key = session()
    session()
    word = UUID(key).hex if connection.vendor == "sqlite" and "auditentry" not in sql else key
    alter(sql, word)
    page = reviewer.get(reverse("audit:session", args=[key])).content.decode()
    assert f'data-fault="{fault}"' in page
    assert 'data-chain="faulty"' in page
    assert also in page


def test_an_altered_entry_is_pointed_at_by_its_session_and_its_neighbours(reviewer: Client) -> None:
    keys = [session() for _ in range(3)]
    alter("DROP TRIGGER streaming_auditentry_stays")
    alter("UPDATE streaming_auditentry SET hash = %s WHERE seq = 2", "0" * 64)
    pages = [reviewer.get(reverse("audit:session", args=[key])).content.decode() for key in keys]
    assert 'data-fault="altered"' in pages[0]
    assert 'data-fault="broken"' in pages[0]
    assert 'data-fault="broken"' in pages[1], "its first entry follows another than it names"
    assert 'data-chain="good"' in pages[2]


def test_a_missing_version_is_said(reviewer: Client) -> None:
    key = session()
    page = reviewer.get(reverse("audit:session", args=[key])).content
    assert b"No version with this digest is stored." in page
    assert b'data-signed="no"' in page


@pytest.mark.usefixtures("demo_policy")
def test_the_version_is_verified_when_the_page_is_read(reviewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    version = PolicyVersion.objects.select_related("policy").get(policy__name="demo")
    key = session()
    AuditSession.objects.filter(pk=key).update(
        policy_name="demo", policy_version=version.number, policy_digest=version.digest
    )
    address = reverse("audit:session", args=[key])
    assert b'data-signed="yes"' in reviewer.get(address).content
    AuditSession.objects.filter(pk=key).update(policy_version=7)
    assert b"which is another one" in reviewer.get(address).content
    AuditSession.objects.filter(pk=key).update(policy_version=version.number)
    with monkeypatch.context() as later:  # its key is trusted no more
        later.setattr(loading, "trusted_keys", lambda _: {})
        page = reviewer.get(address).content
    assert b'data-signed="no"' in page
    assert b"is not trusted" in page


@pytest.mark.parametrize("path", ["/audit/sessions/00000000-0000-0000-0000-000000000000/", "/audit/sessions/x/"])
def test_a_session_that_is_not_there(reviewer: Client, path: str) -> None:
    assert reviewer.get(path).status_code == 404


def test_a_million_character_word_and_two_hundred_findings(reviewer: Client) -> None:
    key = session("x" * 1_000_000)
    for n in range(2, 202):
        find(AuditSession.objects.get(pk=key), n=n, start=n * 10, end=n * 10 + 5)
    address = reverse("audit:session", args=[key])
    with CaptureQueriesContext(connection) as few:
        assert reviewer.get(address).status_code == 200
    assert len(few) <= 25
    shown = reviewer.post(reverse("audit:reveal", args=[key]), {"reason": "long"})
    assert shown.content.count(b"x") > 900_000


def test_the_page_of_a_session_tells_its_times_its_costs_and_what_came_late(reviewer: Client) -> None:
    version = PolicyRef(name="p", version=1, digest="sha256:x")
    started = sessions.start_session(NewSession(Visitor(client="sg_a"), "the prompt", version, "scripted", "m"))
    timing: dict[str, object] = {
        "arrivals": [[120, 4], [400, 30]], "releases": [[130, 4], [900, 30]],
        "calls": 2, "audit_rows": 5, "naive_calls": 9,
        "guardrails": {
            "injection": {"checks": 4, "hits": 1, "errors": 0, "ms": 8.0},
            "harm": {"checks": 2, "hits": 0, "errors": 1, "ms": 3_000.0},
        },
    }  # fmt: skip
    ending = Ending(
        Outcome.ERROR, Message.Status.ERROR, content="the answer", timing=timing, chars_in=34, released=34,
        error_code="provider_timeout", fallback="provider_fallback",
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    DeferredCheck.objects.create(
        session_id=started.session_id, guardrail="judge", state=DeferredCheck.State.WOULD_BLOCK, attempts=3,
        finished_at=datetime(2026, 3, 1, 12, 30, 45, tzinfo=UTC), error="The second try took too long.", digest="d",
    )  # fmt: skip
    page = reviewer.get(reverse("audit:session", args=[started.session_id])).content.decode()
    drawn = [re.findall(rf'class="{line}" d="([^"]*)"', page)[0].count("M") for line in ("arrival", "release")]
    assert drawn == [2, 2]
    said = html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))
    for line in (
        "first chunk arrived 120 ms first release 130 ms total 900 ms most held 30 characters",
        "API calls 2 (per-chunk checking: 9) audit rows 5 (per-chunk checking: 9)",
        "harm 1 failed 2 0 1.5 s 3.0 s",
        "injection 4 1 2.0 ms 8.0 ms",
        "judge would block, 12:30:45 UTC · 3 tries The second try took too long.",
        "Fallback provider_fallback",
        "Error provider_timeout",
    ):
        assert line in said


def test_the_page_of_a_session_without_times_says_so(reviewer: Client) -> None:
    (one,) = many(1)
    page = reviewer.get(reverse("audit:session", args=[one.pk])).content.decode()
    assert "No guardrail was asked by itself." in page
    for part in ('class="arrival"', "<dt>Fallback</dt>", "<dt>Error</dt>"):
        assert part not in page


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "before it is sealed"])
def test_more_findings_than_a_page_shows_are_a_page(
    reviewer: Client, monkeypatch: pytest.MonkeyPatch, *, sealed: bool
) -> None:
    monkeypatch.setattr(detail, "FINDINGS_SHOWN", 3)
    one = AuditSession.objects.get(pk=session()) if sealed else many(1, state="MONITORING")[0]
    for n in range(2, 7):
        find(one, n=n)
    page = reviewer.get(reverse("audit:session", args=[one.pk]))
    assert page.status_code == 200
    view = page.context["view"]
    assert (len(view.findings), view.more_findings) == (3, one.findings.count() - 3)
    assert [item.altered for item in view.findings] == ([False, True, True] if sealed else [False] * 3)


def test_a_row_is_altered_or_not_whatever_was_deleted_or_added_beside_it(reviewer: Client) -> None:
    version = PolicyRef(name="p", version=1, digest="sha256:x")
    started = sessions.start_session(NewSession(Visitor(client="sg_a"), "the prompt", version, "scripted", "m"))
    hits = tuple(replace(HIT, n=n) for n in range(1, 6))
    ending = Ending(Outcome.REDACTED, Message.Status.COMPLETE, content="the answer", findings=hits)
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    rows = Finding.objects.filter(session_id=started.session_id)
    rows.get(n=2).delete()
    rows.filter(n=4).update(score=0.1)
    find(AuditSession.objects.get(pk=started.session_id), n=9)
    view = reviewer.get(reverse("audit:session", args=[started.session_id])).context["view"]
    assert [(item.finding.n, item.altered) for item in view.findings] == [
        (1, False), (3, False), (4, True), (5, False), (9, True),
    ]  # fmt: skip


def test_a_prompt_that_was_checked_for_a_client_is_called_one_and_marked(reviewer: Client) -> None:
    hit = replace(HIT, channel="prompt", start=5, end=16)
    redacted: dict[str, object] = {"redactions": [[5, "[SSN]"]]}
    ending = Ending(
        Outcome.REDACTED, Message.Status.COMPLETE, content="I am [SSN]!", findings=(hit,), metadata=redacted
    )
    key = sessions.record_check(
        visitor=Visitor(client="sg_a"), policy={"name": "p", "version": 1, "digest": "sha256:x"}, ending=ending,
        monitor=False, conversation_key="c", correlation_id="", role=Message.Role.USER,
    )  # fmt: skip
    (text,) = reviewer.get(reverse("audit:session", args=[key])).context["view"].texts
    assert text.name == "prompt"
    assert [(run.text, run.numbers) for run in text.over.segments] == [("I am ", ()), ("[SSN]", (1,)), ("!", ())]
    shown = reviewer.post(reverse("audit:reveal", args=[key]), {"reason": "complaint 17"})
    assert [one.shown for one in shown.context["view"].texts] == [True]


# -- the queue -------------------------------------------------------------------------------------------------------


@pytest.fixture
def findings(db: None) -> list[Finding]:
    """Five, newest first."""
    return [Finding.objects.get(session_id=session()) for _ in range(5)][::-1]


def at(response: HttpResponse) -> int | None:
    found = re.search(r'id="card" data-at="(\d*)"', response.content.decode())
    assert found
    return int(found[1]) if found[1] else None


def judge(
    client: Client, finding: Finding, label: str = "unclear", seen: int = 0, note: str = "", **more: object
) -> object:
    address = reverse("audit:review", args=[finding.pk])
    return client.post(address, {"label": label, "note": note, "seen": seen}, headers=HTMX, **more)  # type: ignore[arg-type]


def test_five_findings_one_after_the_other(reviewer: Client, findings: list[Finding]) -> None:
    assert at(reviewer.get("/audit/review/")) == findings[0].pk
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        response = judge(reviewer, finding, "true_positive", note="<i>yes")
        assert at(response) == (following.pk if following else None)
    assert b"That was the last one." in response.content
    assert Review.objects.filter(label="true_positive", by="reviewer").count() == 5
    assert [review.note for review in Review.objects.all()] == ["<i>yes"] * 5
    assert b"No finding waits here" in reviewer.get("/audit/review/").content
    assert list(log_faults()) == []


def test_to_and_fro(reviewer: Client, findings: list[Finding]) -> None:
    def go(finding: Finding, where: str) -> int | None:
        return at(reviewer.get("/audit/review/", {"at": finding.pk, "go": where}))

    assert go(findings[0], "next") == findings[1].pk
    assert go(findings[1], "back") == findings[0].pk
    assert go(findings[0], "back") == findings[0].pk
    assert go(findings[4], "next") == findings[4].pk


def test_the_second_of_two_reviewers_is_told_of_the_first_and_stores_nothing(
    reviewer: Client, findings: list[Finding], crowd: People
) -> None:
    record_review(finding=findings[0], label=Review.Label.TRUE_POSITIVE, note="", by=crowd.operator, seen=0)
    told = judge(reviewer, findings[0], "false_positive", note="I <b>think")
    assert told.status_code == 409
    said = told.content.decode()
    assert "operator has judged this finding in the meantime (true positive)" in said
    assert "I &lt;b&gt;think" in said, "what was written is not lost"
    assert 'name="seen" value="1"' in said
    assert findings[0].reviews.count() == 1
    assert AuditEntry.objects.filter(kind="review").count() == 1
    assert judge(reviewer, findings[0], "false_positive", seen=1).status_code == 200
    assert [(one.version, one.by) for one in findings[0].reviews.all()] == [(1, "operator"), (2, "reviewer")]


def test_without_a_script_the_queue_works_as_well(reviewer: Client, findings: list[Finding]) -> None:
    address = reverse("audit:review", args=[findings[0].pk])
    response = reviewer.post(address, {"label": "false_positive", "note": "", "seen": 0}, follow=True)
    assert at(response) == findings[1].pk
    assert b"Stored: false positive." in response.content
    assert reverse("audit:example", args=[findings[0].pk]).encode() in response.content


@pytest.mark.parametrize(
    "form",
    [{"label": "great", "seen": 0}, {"seen": 0}, {"label": "unclear", "seen": -1}, {"label": "unclear"},
     {"label": "unclear", "seen": 2**40}, {"label": "unclear", "seen": 0, "note": "x" * 2_001}],
    ids=["unknown", "none", "negative", "no version", "huge", "long note"],
)  # fmt: skip
def test_a_verdict_of_no_form_is_refused(reviewer: Client, findings: list[Finding], form: dict[str, object]) -> None:
    response = reviewer.post(reverse("audit:review", args=[findings[0].pk]), form, headers=HTMX)
    assert response.status_code == 422
    assert b"Nothing was stored" in response.content
    assert not Review.objects.exists()


@pytest.mark.parametrize(
    "query", ["at=0", "at=x", f"at={10**30}", "version=-1", "show=nothing", "stored=9999999999999999999", "stored=x"]
)
def test_a_place_of_no_form_is_the_first_one(reviewer: Client, findings: list[Finding], query: str) -> None:
    assert at(reviewer.get(f"/audit/review/?{query}")) == findings[0].pk


def test_a_finding_that_is_not_there(reviewer: Client, findings: list[Finding]) -> None:
    assert reviewer.get("/audit/review/?at=999999999").status_code == 404
    assert judge(reviewer, Finding(pk=999_999_999)).status_code == 404
    assert judge(reviewer, Finding(pk=10**25)).status_code == 404


def test_a_second_opinion_is_of_what_another_has_judged(
    reviewer: Client, findings: list[Finding], crowd: People
) -> None:
    record_review(finding=findings[2], label=Review.Label.UNCLEAR, note="", by=crowd.operator, seen=0)
    record_review(finding=findings[3], label=Review.Label.UNCLEAR, note="", by=crowd.reviewer, seen=0)
    assert at(reviewer.get("/audit/review/?show=second")) == findings[2].pk
    assert at(reviewer.get("/audit/review/?show=second&guardrail=other")) is None


def test_precision_and_agreement(reviewer: Client, findings: list[Finding], crowd: People) -> None:
    def say(number: int, label: str, by: User, seen: int) -> None:
        record_review(finding=findings[number], label=Review.Label(label), note="", by=by, seen=seen)

    say(0, "true_positive", crowd.reviewer, 0)
    say(1, "true_positive", crowd.reviewer, 0)
    say(1, "true_positive", crowd.operator, 1)  # agreed
    say(2, "false_positive", crowd.reviewer, 0)
    say(2, "true_positive", crowd.reviewer, 1)  # changed their mind: one opinion, and the newest counts
    say(3, "true_positive", crowd.reviewer, 0)
    say(3, "false_positive", crowd.operator, 1)  # disagreed
    say(4, "unclear", crowd.reviewer, 0)
    with CaptureQueriesContext(connection) as few:
        page = reviewer.get("/audit/precision/")
    (record,) = page.context["records"]
    assert (record.right, record.wrong, record.unclear, record.judged) == (3, 1, 1, 5)
    assert (record.policy, record.version, record.guardrail, record.rule) == ("p", 1, "pii", "ssn")
    assert record.precision_words == "75% (30%–95%)"
    assert record.agreement_words == "50% of 2"
    assert len(few) <= 8
    AuditSession.objects.filter(pk=findings[0].session_id).update(policy_version=2)
    newest, older = reviewer.get("/audit/precision/").context["records"]
    assert (newest.version, newest.right, older.version, older.right) == (2, 1, 1, 2)


def test_nobody_has_judged_yet(reviewer: Client) -> None:
    assert b"Nobody has judged a finding yet." in reviewer.get("/audit/precision/").content


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.fixture
def heron(demo_policy: None) -> Finding:
    """A hit of the demo policy's own regex rule."""
    key = session()
    AuditSession.objects.filter(pk=key).update(policy_name="demo")
    Finding.objects.filter(session_id=key).update(guardrail="codenames", kind="regex", rule="heron")
    return Finding.objects.get(session_id=key)


@pytest.fixture
def both(crowd: People, client: Client) -> Client:
    """Somebody who reviews and writes policies."""
    crowd.author.groups.add(Group.objects.get(name="Reviewer"))
    client.force_login(crowd.author)
    return client


def draft_of(name: str) -> dict[str, object] | None:
    return Policy.objects.get(name=name).draft


def examples_in(name: str) -> list[str]:
    draft = cast("dict[str, list[dict[str, dict[str, list[dict[str, list[str]]]]]]]", draft_of(name))
    rules = next(one for one in draft["guardrails"] if one["name"] == "codenames")["config"]["rules"]  # type: ignore[comparison-overlap]
    return rules[0]["must_not_match"]


def test_a_false_positive_becomes_an_example_in_a_draft(both: Client, heron: Finding, crowd: People) -> None:
    address = reverse("audit:example", args=[heron.pk])
    assert b"<textarea" in both.get(address).content
    assert draft_of("demo") is None
    added = both.post(address, {"text": " the blue <heron>s "})
    assert b"data-added" in added.content
    assert examples_in("demo")[-1] == " the blue <heron>s "
    assert len(examples_in("demo")) == 3, "the ones that were there stay"
    both.post(address, {"text": "another one"})
    assert examples_in("demo")[-2:] == [" the blue <heron>s ", "another one"], "it goes into the draft that is there"
    again = both.post(address, {"text": "another one"})
    assert again.status_code == 422
    assert b"has this example already" in again.content
    assert Policy.objects.get(name="demo").draft_by == crowd.author


def test_an_example_goes_to_a_pattern_of_the_short_form_and_nothing_else_changes(both: Client, heron: Finding) -> None:
    written = {"id": "w", "pattern": "egret"}
    config = {"rules": [written], "patterns": ["blue", "heron"], "case_sensitive": False, "placeholder": "[BIRD]"}
    document = {"policy": "short", "guardrails": [{"name": "codenames", "kind": "regex", "config": config}]}
    install(document=document)
    AuditSession.objects.update(policy_name="short")
    Finding.objects.filter(pk=heron.pk).update(rule="pattern-2")
    added = both.post(reverse("audit:example", args=[heron.pk]), {"text": "a grey one"})
    assert b"data-added" in added.content
    draft = draft_of("short")
    assert draft is not None
    found = draft["guardrails"][0]["config"]  # type: ignore[index]
    named = {one["id"]: (one["pattern"], one["must_not_match"]) for one in found["rules"]}
    assert named == {"w": ("egret", []), "pattern-1": ("blue", []), "pattern-2": ("heron", ["a grey one"])}
    assert found["patterns"] == []
    again, before = (compile_policy(one, version=1, digest="sha256:x") for one in (draft, document))
    assert [gate_text(one, "Blue Heron").visible for one in (again, before)] == ["[BIRD] [BIRD]"] * 2


def test_an_example_that_the_rule_still_matches_stops_publication(both: Client, heron: Finding) -> None:
    both.post(reverse("audit:example", args=[heron.pk]), {"text": "a project blue heron"})
    with pytest.raises(Refused, match="heron"):
        publish(policy=Policy.objects.get(name="demo"))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("rule", "gone", "has no rule gone any more"),
        ("guardrail", "gone", "has no guardrail gone any more"),
        ("guardrail", "secrets", "carry no examples"),
    ],
)
def test_where_an_example_cannot_go_is_said(both: Client, heron: Finding, column: str, value: str, words: str) -> None:
    Finding.objects.filter(pk=heron.pk).update(**{column: value})
    response = both.post(reverse("audit:example", args=[heron.pk]), {"text": "x"})
    assert response.status_code == 422
    assert words in response.content.decode()
    assert draft_of("demo") is None


def test_a_kind_without_examples_and_a_policy_that_is_gone(both: Client, heron: Finding) -> None:
    address = reverse("audit:example", args=[heron.pk])
    AuditSession.objects.update(policy_name="never was")
    assert b"there is no policy never was any more" in both.post(address, {"text": "x"}).content
    Finding.objects.filter(pk=heron.pk).update(kind="pii")
    assert b"data-refused" in both.get(address).content


@pytest.mark.parametrize("text", ["", " \n ", "x" * 2_001, "a\0b"], ids=["empty", "space", "long", "nul"])
def test_an_example_of_no_form_is_refused(both: Client, heron: Finding, text: str) -> None:
    assert both.post(reverse("audit:example", args=[heron.pk]), {"text": text}).status_code == 422
    assert draft_of("demo") is None


def test_a_reviewer_who_may_not_write_policies_is_told_so(reviewer: Client, heron: Finding) -> None:
    address = reverse("audit:example", args=[heron.pk])
    assert b"data-refused" in reviewer.get(address).content
    response = reviewer.post(address, {"text": "x"})
    assert response.status_code == 403
    assert b"an Author" in response.content
    assert draft_of("demo") is None


# -- left over -------------------------------------------------------------------------------------------------------


def test_messages_of_a_session_are_not_in_the_list(reviewer: Client) -> None:
    session("a very particular answer")
    assert Message.objects.exists()
    for path in (LIST, "/audit/review/", "/audit/precision/"):
        assert b"particular" not in reviewer.get(path).content
