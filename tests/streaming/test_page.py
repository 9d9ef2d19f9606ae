"""The demo page as it is served: who gets it, under which policy, and what of a conversation it tells whom."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django.fixtures import Settings

from guardrails import selectors
from guardrails.findings import Action, Finding, Mode, Outcome
from streaming import listing, sessions
from streaming.core.events import GuardrailStatus, PolicyRef
from streaming.models import DeferredCheck, Message
from streaming.sessions import DeferredText, Ending, NewSession, Started, Visitor

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("demo_policy")]


@pytest.fixture(autouse=True)
def _open_page(settings: Settings) -> None:
    settings.SLUICEGATE_DEMO = True


def page(client: Client, query: str = "", **headers: str) -> str:
    response = client.get(f"/{query}", headers=headers)
    assert response.status_code == 200
    return response.content.decode()


def stored(client: Client, prompt: str = "Who is it?", ending: Ending | None = None) -> Started:
    """A conversation of this client's browser session, its answer ended as said."""
    page(client)
    started = sessions.start_session(
        NewSession(
            visitor=Visitor(session_key=client.session.session_key or ""),
            prompt=prompt,
            policy=PolicyRef(name="demo", version=1, digest="sha256:00"),
            provider="scripted",
            model="scripted-1",
        )
    )
    if ending is not None:
        sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return started


REDACTED = Ending(
    outcome=Outcome.REDACTED,
    status=Message.Status.COMPLETE,
    content="It is [SSN] <b>.",
    metadata={"redactions": [[6, "[SSN]"]], "in_reply_to": "x"},
    findings=[Finding("pii", "pii", "ssn", "ssn", 6, 17, Mode.BLOCK, Action.REDACT, n=1)],
)


def test_it_works(client: Client) -> None:
    body = page(client)
    assert 'ws-connect="/ws/chat/"' in body
    assert "Guard my own text" in body


def test_outside_of_demo_mode_a_stranger_is_sent_to_the_login(client: Client, settings: Settings) -> None:
    settings.SLUICEGATE_DEMO = False
    response = client.get("/?policy=basic")
    assert response.status_code == 302
    assert "login" in response["Location"]
    client.force_login(User.objects.create_user("operator"))
    assert client.get("/").status_code == 200


def test_a_part_of_the_page_sends_who_is_signed_out_to_the_login_as_a_page(client: Client, settings: Settings) -> None:
    settings.SLUICEGATE_DEMO = False
    for query in ("policy=basic", "provider=scripted"):
        response = client.get(f"/?{query}", headers={"HX-Request": "true"})
        assert (response.status_code, response["HX-Refresh"], response.content) == (200, "true", b"")


def test_the_lanes_of_another_policy_are_a_fragment_of_the_same_page(client: Client) -> None:
    fragment = page(client, "?policy=basic", **{"HX-Request": "true"})
    assert "<html" not in fragment
    assert fragment.count('id="lanes"') == 1
    assert "codenames" not in fragment
    assert "codenames" in page(client, "?policy=demo", **{"HX-Request": "true"})


def test_an_unknown_policy_shows_the_first_one(client: Client) -> None:
    assert '<option value="demo" selected' in page(client, "?policy=nonesuch")


def test_an_altered_policy_is_named_as_unusable(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(name: str) -> object:
        raise selectors.PolicyUnavailable(name, "its signature does not verify")

    monkeypatch.setattr(selectors, "active_policy", unavailable)
    body = page(client)
    assert "This policy cannot be used" in body
    assert "its signature does not verify" in body


def test_a_stored_answer_has_its_chip_its_findings_and_no_live_markup(client: Client) -> None:
    started = stored(client, ending=REDACTED)
    body = page(client, f"?conversation={started.conversation_id}")
    assert 'It is <mark class="chip" data-chip' in body
    assert "&lt;b&gt;." in body
    assert "redacted <span" in body
    assert 'data-live=""' in body
    assert '<span data-hits-of="pii">1</span>' in " ".join(body.split())


def test_the_panel_stands_as_it_stood_when_the_answer_and_its_checks_were_over(client: Client) -> None:
    told = [
        GuardrailStatus("pii", "IMMEDIATE", "hit", 0.25, 1.5),
        GuardrailStatus("tone", "BATCHED", "circuit_open", 0.0, 812.0, "not asked: <the circuit is open>"),
        GuardrailStatus("words", "IMMEDIATE", "slower_than_declared", 0.25, 1.5),
    ]
    lines = {line.guardrail: line.payload() for line in told}
    ending = replace(
        REDACTED, timing={"lines": lines}, deferred=(DeferredText("harm", "response", "It is no number."),)
    )
    started = stored(client, ending=ending)
    DeferredCheck.objects.update(
        state="timeout", error="no verdict in time", finished_at=timezone.now(), result={"took_ms": 12_400.0}
    )
    body = page(client, f"?conversation={started.conversation_id}")
    rows = re.findall(r'<tr id="g-(\w+)".*?</th>(.*?)</tr>', body, re.DOTALL)
    shown = {name: " ".join(re.sub(r"<[^>]*>", " ", cells).split()) for name, cells in rows}
    assert shown["pii"] == "● hit 0.2 ms 1.5 ms 1"
    assert shown["tone"] == "✕ circuit open not asked: &lt;the circuit is open&gt; 0 µs 812 ms 0"
    assert shown["words"] == "◔ slower than declared 0.2 ms 1.5 ms 0"
    assert shown["harm"] == "✕ timed out no verdict in time 12 s 12 s 0"
    assert shown["secrets"] == "○ idle – – 0"


def test_a_session_that_has_not_ended_is_named_for_resuming(client: Client) -> None:
    started = stored(client)
    assert f'data-live="{started.session_id}"' in page(client, f"?conversation={started.conversation_id}")


def test_a_stored_block_says_why_and_how_much(client: Client) -> None:
    metadata = {"blocked": {"reason": "It names a <project>.", "withheld_chars": 18}}
    hit = Finding("codenames", "regex", "heron", "codename", 3, 21, Mode.BLOCK, Action.BLOCK, n=1)
    ending = Ending(Outcome.BLOCKED, Message.Status.BLOCKED, "It ", metadata, [hit], withheld=90)
    body = page(client, f"?conversation={stored(client, ending=ending).conversation_id}")
    assert "It names a &lt;project&gt;." in body
    assert "<b>18</b> characters withheld" in body


def test_a_stranger_learns_nothing_of_a_conversation_not_even_that_it_exists(client: Client) -> None:
    started = stored(client, prompt="A very private question", ending=REDACTED)
    stranger = Client()
    foreign = page(stranger, f"?conversation={started.conversation_id}")
    nowhere = page(stranger, f"?conversation={uuid.uuid4()}")
    assert "private question" not in foreign
    assert "no such conversation" in foreign
    assert foreign == nowhere == page(stranger, "?conversation=%00not-an-id")


def test_of_many_findings_the_first_are_listed_and_the_others_counted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SHOWN", 2)
    block = replace(REDACTED.findings[0], guardrail="codenames", action=Action.BLOCK, n=5)
    hits = [*(replace(REDACTED.findings[0], n=n) for n in range(1, 5)), block]
    started = stored(client, ending=replace(REDACTED, findings=hits, status=Message.Status.BLOCKED))
    body = page(client, f"?conversation={started.conversation_id}")
    assert re.findall(r'class="finding" data-guardrail="([^"]+)" data-n="(\d)"', body) == [
        ("pii", "1"), ("pii", "2"), ("codenames", "5"),
    ]  # fmt: skip
    assert re.findall(r'data-more-of="([^"]+)" data-more="(\d)"', body) == [("pii", "2")]
    hits_of = dict(re.findall(r'data-hits-of="([^"]+)">(\d)', body))
    assert (hits_of["codenames"], hits_of["pii"]) == ("1", "4")
    assert "stopped by the guardrail “codenames”" in body


def test_serving_a_long_conversation_costs_a_fixed_number_of_queries(client: Client) -> None:
    started = stored(client, ending=REDACTED)
    visitor = Visitor(session_key=client.session.session_key or "")
    policy = PolicyRef(name="demo", version=1, digest="sha256:00")

    def queries(answers: int) -> int:
        """Of a page whose flags and policies another one has just looked up; those are kept for a second or so."""
        counted: list[int] = []
        for _ in range(3):
            with CaptureQueriesContext(connection) as captured:
                shown = page(client, f"?conversation={started.conversation_id}")
            assert shown.count("data-chip") == answers
            counted.append(len(captured))
        return min(counted)

    few = queries(1)
    for _ in range(5):
        more = sessions.start_session(
            NewSession(visitor, "Again?", policy, "scripted", "scripted-1", conversation_id=started.conversation_id)
        )
        sessions.finish_streaming(session_id=more.session_id, ending=REDACTED)
    assert queries(6) <= few
