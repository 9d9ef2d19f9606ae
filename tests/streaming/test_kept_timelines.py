"""When text came and when it was let go is kept with every message, whoever streamed it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo
from guardrails.policy import compile_policy
from guardrails.services import install
from streaming.gateway.gates import Gates
from streaming.guarded.record import POINTS, Record, unsealed
from streaming.models import AuditSession
from streaming.pace import Pace, Timeline, points
from streaming.timeline import TimelineView

from .gateway.test_records import ask, closing, ended
from .gateway.test_records import new_key as gateway_key
from .test_stream_api import TEXT, Client, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
__all__ = ["closing"]


def kept(session: AuditSession) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What came and what was let go, each in order of time."""
    arrivals, releases = points(session.timing["arrivals"]), points(session.timing["releases"])
    for line in (arrivals, releases):
        assert all(before[0] <= after[0] for before, after in pairwise(line))
        assert all(ms >= 0 and chars > 0 for ms, chars in line)
    return arrivals, releases


def chars(line: list[tuple[int, int]]) -> int:
    return sum(number for _, number in line)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_it_works(stream: bool) -> None:
    _, _, headers = await ask(await gateway_key(), "scripted/pii", "hello", stream=stream)
    session = await ended(headers["X-Sluicegate-Session"])
    arrivals, releases = kept(session)
    assert chars(arrivals) == chars(releases) > 100
    assert (len(arrivals) > 1) is stream
    assert (session.first_token_ms, session.hold_ms) == (None, None), "the figures of the admin are of our own pages"
    assert not TimelineView.of(session.timing).empty, "the session's page draws it"


STOPS = {"policy": "no", "guardrails": [{"name": "w", "kind": "keywords", "config": {"keywords": ["sluices"]}}]}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_is_held_when_a_gateway_answer_is_blocked_was_never_let_go(stream: bool) -> None:
    await database_sync_to_async(install)(document=STOPS)
    _, _, headers = await ask(await gateway_key("no"), "scripted/clean", "hello", stream=stream)
    session = await ended(headers["X-Sluicegate-Session"])
    assert session.outcome == "blocked"
    arrivals, releases = kept(session)
    assert chars(releases) < chars(arrivals)
    assert stream is bool(releases), "of a whole answer nothing was let go before it was stopped"


async def test_a_stream_that_its_client_owns_keeps_when_its_deltas_came() -> None:
    client = Client(await new_key())
    began = await client.start(delta=TEXT[:40])
    for seq, at in enumerate(range(40, len(TEXT), 40), start=2):
        await client.update(began["session_id"], seq, TEXT[at : at + 40])
    status, said = await client.finish(began["session_id"])
    assert status == 200
    assert "arrivals" not in json.dumps(said), "it is on record; the client was there"
    session = await AuditSession.objects.aget(pk=began["session_id"])
    arrivals, releases = kept(session)
    assert chars(arrivals) == chars(releases) == len(TEXT)
    assert releases[-1][0] >= arrivals[-1][0]
    assert (session.first_token_ms, session.hold_ms) == (None, None), "a client's pauses are no figures of ours"
    assert not TimelineView.of(session.timing).empty


async def test_of_a_client_owned_stream_that_is_blocked_the_rest_was_never_let_go() -> None:
    await database_sync_to_async(install)(document=STOPS)
    client = Client(await new_key("two", "no"))
    began = await client.start(delta="Small gates are opened. ", kind="response")
    await client.update(began["session_id"], 2, "Then small sluices open")
    await client.finish(began["session_id"])
    session = await AuditSession.objects.aget(pk=began["session_id"])
    assert session.outcome == "blocked"
    arrivals, releases = kept(session)
    assert chars(arrivals) == session.chars_in
    assert 0 < chars(releases) < chars(arrivals)


def record() -> Record:
    return Record(
        session_id="s", client="", policy="p", version=1, policy_digest="", kind="response", conversation_id="",
        message_id="", started_at="2026-01-01T00:00:00+00:00", start_digest="",
    )  # fmt: skip


def test_a_long_stream_stays_small_and_loses_no_character() -> None:
    made = record()
    made.started_at = "2100-01-01T00:00:00+00:00"  # by the clock of another machine, which is fast
    for number in range(5 * POINTS):
        made.came(3)
        made.settle(3 * number)
    assert chars(made.arrivals) == 15 * POINTS
    assert chars(made.releases) == 3 * (5 * POINTS - 1)
    assert {ms for ms, _ in made.arrivals} == {0}, "nothing came before the start"
    line = Timeline(most=POINTS)
    for number in range(5 * POINTS):
        line.add(number, 3)
    assert len(line.points) <= POINTS
    assert chars(line.points) == 15 * POINTS


def test_a_stored_record_has_its_timeline_again_and_one_from_before_has_none() -> None:
    made = record()
    made.came(5)
    made.settle(2)
    again = unsealed(made.seal(), "s")
    assert (again.arrivals, again.releases, again.settled) == (made.arrivals, made.releases, 2)
    assert [len(again.arrivals), len(again.releases)] == [1, 1]
    assert Pace.of({"arrivals": made.arrivals, "releases": made.releases}).first_token_ms is not None


def test_only_the_first_choice_of_a_gateway_answer_is_counted() -> None:
    """The message is its text, and the timeline is the message's."""
    words = {"name": "w", "kind": "keywords", "action": "redact", "config": {"keywords": ["heron"]}}
    gates = Gates(compile_policy({"policy": "t", "guardrails": [words]}))
    first = gates.channel((0, "content"), AppliesTo.RESPONSE, "text", kept=True)
    gates.channel((1, "content"), AppliesTo.RESPONSE, "text", kept=True)
    gates.feed(first, "a her")
    came, settled = gates.came_and_settled()
    assert came == 5
    assert settled < 5
    gates.feed(first, "d of cows")
    assert gates.came_and_settled()[0] == 14
    assert gates.came_and_settled()[1] > settled
