"""A second version beside the active one on the traffic of the gateway: what it would have done, told to no reader."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from itertools import count

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo
from guardrails.models import Scope
from guardrails.policy import Policy, compile_policy
from guardrails.selectors import Running, ShadowPolicy
from guardrails.services import create_api_key
from streaming import registry, tasks
from streaming.api.gateway import front
from streaming.audit.verify import log_faults
from streaming.core.gate import Gate
from streaming.gateway import shadow
from streaming.gateway.outside import Hiding
from streaming.gateway.shadow import Noted, looked
from streaming.log_redis import close_shared_log
from streaming.models import AuditSession, ShadowCheck
from streaming.providers.scripted import SCENARIOS
from streaming.shadow.record import Piece
from streaming.shadow.sealing import opened
from streaming.shadow.worker import run_shadow_check

from .test_records import ask, ended

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
ANSWER = SCENARIOS["clean"].answer
Json = dict[str, object]
NAMES = count()


def words(*keywords: str, **more: object) -> Json:
    return {"name": "w", "kind": "keywords", "action": "block", "config": {"keywords": list(keywords)}, **more}


def policy(*guardrails: Json, version: int = 1) -> Policy:
    document = {"policy": "t", "guardrails": list(guardrails)}
    return compile_policy(document, version=version, digest=f"sha256:{version}")


@pytest.fixture(autouse=True)
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Running]]:
    """What calls find here: the last of the list."""
    given = [Running(policy(words("nothing of the sort")))]

    def load(found: object) -> Running:
        return given[-1]

    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(front, "running_of", load)
    monkeypatch.setattr(tasks, "queue_session", queue)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20000")
    yield given
    await registry.shutdown()
    await close_shared_log()


@database_sync_to_async
def new_key() -> str:
    return create_api_key(name=f"key {next(NAMES)}", scopes=list(Scope))[1]


def beside(active: Policy, second: Policy | None, reason: str = "") -> Running:
    return Running(active, ShadowPolicy(2, "sha256:2", second, reason))


async def asked(text: str = "Hello", *, stream: bool = False) -> tuple[bytes, AuditSession]:
    _, said, headers = await ask(await new_key(), "scripted/clean", text, stream=stream)
    return said, await ended(headers["X-Sluicegate-Session"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_it_works(running: list[Running], stream: bool) -> None:
    alone, _ = await asked("a heron", stream=stream)
    running.append(beside(running[0].policy, policy(words("heron", "lock"), version=2)))
    said, session = await asked("a heron", stream=stream)
    assert len(said) == len(alone), "not a character of the answer is altered"
    assert (session.outcome, session.would_have, await session.findings.acount()) == ("allowed", "", 0)
    told = (session.shadow_version, session.shadow_comparison, session.shadow_would_have)
    assert told == (2, "only_shadow", "blocked")
    found = session.shadow["findings"]
    assert {one["channel"] for one in found} == {"messages[0]", "text"}, "in the request and in the answer"
    first = next(one for one in found if one["channel"] == "text")
    assert ANSWER[first["start"] : first["end"]].lower() == "lock"
    assert (first["version"], first["exposed"]) == (2, 4), "which the active version showed"
    assert not await database_sync_to_async(lambda: list(log_faults()))()


async def test_what_the_active_version_does_is_compared_up_to_where_it_stopped(running: list[Running]) -> None:
    first, second = ANSWER.split()[1], ANSWER.split()[-1].strip(".")
    running.append(beside(policy(words(first)), policy(words(second), version=2)))
    _, session = await asked()
    assert (session.outcome, session.shadow_comparison) == ("blocked", "only_active"), "what came behind is nobody's"
    running.append(beside(policy(words(first)), policy(words(first), version=2)))
    assert (await asked())[1].shadow_comparison == "both_acted"
    running.append(beside(policy(words("heron")), policy(words("heron"), version=2)))
    _, session = await asked("a heron")
    assert (session.outcome, session.shadow_comparison) == ("blocked", "both_acted"), "a blocked prompt as well"
    running.append(beside(policy(words("heron")), policy(words("nothing of the sort"), version=2)))
    assert (await asked())[1].shadow_comparison == "both_clean"


async def test_what_is_not_looked_at_in_full_is_unknown(
    running: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.append(beside(running[0].policy, None, "it was altered"))
    _, session = await asked()
    assert (session.shadow_comparison, session.shadow["error"]) == ("unknown", "it was altered")
    running.append(beside(running[0].policy, policy(words("heron"), version=2)))
    monkeypatch.setattr(shadow, "MOST_CHARS", 20)
    _, session = await asked("x" * 30)
    assert session.shadow_comparison == "unknown"
    assert session.shadow["unanswered"]


async def told_to_workers() -> dict[tuple[str, str], list[Piece]]:
    """What workers are to be asked, by guardrail and kind of text."""
    found: dict[tuple[str, str], list[Piece]] = {}
    async for row in ShadowCheck.objects.order_by("pk"):
        found.setdefault((row.guardrail, row.applies_to), []).extend(opened(row)[0])
    return found


async def settled(second: Policy, session: AuditSession, monkeypatch: pytest.MonkeyPatch) -> AuditSession:
    """The session when workers have made the shadow's checks."""
    for where in ("late", "worker"):
        monkeypatch.setattr(f"streaming.shadow.{where}.policy_by_digest", {second.digest: second}.__getitem__)
    monkeypatch.setattr("streaming.shadow.worker.shadow_pays", [second.digest].__contains__)
    async for pk in ShadowCheck.objects.values_list("pk", flat=True):
        assert await run_shadow_check(pk)
    assert not await database_sync_to_async(lambda: list(log_faults()))()
    await session.arefresh_from_db()
    return session


@pytest.mark.parametrize("text", ["All is well.", "You are a worthless stupid idiot. All is well."])
async def test_sentences_are_asked_about_when_the_client_has_its_answer(
    text: str, running: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = policy({"name": "toxic", "kind": "toxicity", "action": "block"}, version=2)
    running.append(beside(running[0].policy, second))
    _, session = await asked(text)
    assert (session.state, session.shadow_comparison, session.shadow["not_run"]) == ("COMPLETE", "unknown", ["toxic"])
    pieces = await told_to_workers()
    assert "".join(piece.text for piece in pieces["toxic", "prompt"]) == text, "no names of fields or roles"
    assert "".join(piece.text for piece in pieces["toxic", "response"]) == ANSWER
    assert all(ANSWER[one.start : one.end] == one.text for one in pieces["toxic", "response"])
    session = await settled(second, session, monkeypatch)
    found = [(one["channel"], one["start"], one["would_have"]) for one in session.shadow["findings"]]
    clean = text.startswith("All")
    assert (session.shadow_comparison, found) == (
        ("both_clean", []) if clean else ("only_shadow", [("messages[0]", 0, "blocked")])
    )


async def test_a_judge_is_asked_about_prompt_and_answer_and_is_not_told_what_is_masked(
    running: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    pii = {"name": "pii", "kind": "pii", "action": "mask", "config": {"entities": {"email": True}}}
    config = {"provider": "scripted", "rubric": "harm"}
    both = ["prompt", "response"]
    judge = {"name": "judge", "kind": "ai_judge", "mode": "BLOCK", "action": "block", "applies_to": both,
             "config": config}  # fmt: skip
    second = policy(judge, version=2)
    running.append(beside(policy(pii), second))
    _, session = await asked("Write to ann.cope@example.com how you mix the poison.")
    assert (session.state, session.shadow_comparison) == ("COMPLETE", "unknown")
    pieces = await told_to_workers()
    (prompt,), (answer,) = pieces["judge", "prompt"], pieces["judge", "response"]
    assert "how you mix the poison" in prompt.text
    assert "ann.cope" not in prompt.text
    assert (answer.text, answer.exposed) == (ANSWER, len(ANSWER))
    session = await settled(second, session, monkeypatch)
    assert (session.shadow_would_have, [one["channel"] for one in session.shadow["findings"]]) == (
        "blocked",
        ["prompt"],
    )


@pytest.mark.parametrize(("kind", "paid", "told"), [("judge", True, 1), ("judge", False, 0), ("toxic", True, 0)])
async def test_texts_are_masked_anew_in_turns_and_only_for_who_is_asked_over_the_network(
    kind: str, paid: bool, told: int, running: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    masked: list[str] = []
    learn = Hiding.learn

    async def learning(hiding: Hiding, texts: Iterable[tuple[str, AppliesTo]]) -> None:
        known = list(texts)
        masked.extend(text for text, _ in known)
        await learn(hiding, known)

    def at_once(*args: object, **kwargs: object) -> None:
        raise RuntimeError("others stream meanwhile")

    monkeypatch.setattr(Hiding, "learn", learning)
    monkeypatch.setattr("streaming.gateway.outside.gate_text", at_once)
    pii = {"name": "pii", "kind": "pii", "action": "mask", "config": {"entities": {"email": True}}}
    judge = {"name": "judge", "kind": "ai_judge", "mode": "BLOCK", "action": "block", "applies_to": ["prompt"],
             "config": {"provider": "scripted", "rubric": "harm"}}  # fmt: skip
    toxic: Json = {"name": "toxic", "kind": "toxicity", "action": "block"}
    second = policy(judge if kind == "judge" else toxic, version=2)
    running.append(Running(policy(pii), ShadowPolicy(2, "sha256:2", second, paid=paid)))
    _, session = await asked(text := "Write to ann.cope@example.com.")
    assert (session.shadow["error"], session.shadow["not_run"]) == ("", [kind])
    assert masked == [text] * told
    assert not [piece for piece in (await told_to_workers()).get(("judge", "prompt"), []) if "ann.cope" in piece.text]


async def test_a_prompt_that_was_blocked_is_told_to_no_judge(running: list[Running]) -> None:
    judge = {"name": "judge", "kind": "ai_judge", "mode": "BLOCK", "action": "block", "applies_to": ["prompt"],
             "config": {"provider": "scripted", "rubric": "harm"}}  # fmt: skip
    running.append(beside(policy(words("heron")), policy(judge, version=2)))
    _, session = await asked("a heron")
    assert (session.outcome, session.shadow_comparison, session.shadow["not_run"]) == ("blocked", "unknown", ["judge"])
    assert await told_to_workers() == {}


async def test_a_shadow_that_breaks_breaks_nothing_else(
    running: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> Gate:
        raise RuntimeError("in the shadow")

    running.append(beside(running[0].policy, policy(words("heron"), version=2)))
    monkeypatch.setattr(shadow, "Gate", broken)
    said, session = await asked()
    assert json.loads(said)["choices"][0]["message"]["content"] == ANSWER
    assert (session.outcome, session.shadow_comparison) == ("allowed", "unknown")
    assert session.shadow["error"] == "the shadow failed (RuntimeError)"


async def test_nothing_is_looked_at_before_the_answer_is_over() -> None:
    """Until then a chunk costs an entry in a list; the rules of the shadow run afterwards, a piece at a time."""
    active, second = policy(words("nothing")), policy(words("heron"), version=2)
    gate, noted = Gate(active, AppliesTo.RESPONSE, "text"), Noted()
    for _ in range(3):
        gate.feed("a he")
        noted.came(gate, "a he")
    (text,) = noted
    assert text.parts == ["a he"] * 3
    gate.feed("ron")
    noted.came(gate, "ron")
    record = await looked(ShadowPolicy(2, "d", second), second, noted, acted=False, session="s")
    (found,) = record.findings
    assert (found.start, found.end, record.comparison) == (10, 15, "only_shadow")
