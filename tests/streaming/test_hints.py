"""How much a client may collect: every value, when it is said, and that a client's word alone delays nobody's text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo
from guardrails.policy import compile_policy
from guardrails.selectors import active_policy
from guardrails.services import install
from streaming.guarded.hints import AT_THE_END, COVERED, USUAL, Hints, hints
from tests.streaming.test_stream_api import Client, Json, closing, new_key

pytestmark = [pytest.mark.usefixtures("valkey_url")]
database = pytest.mark.django_db(transaction=True)
RULES: Json = {"name": "pii", "kind": "pii", "action": "redact", "client": True, "config": {"entities": {"ssn": True}}}
OWN: Json = {"name": "words", "kind": "keywords", "action": "block", "config": {"keywords": ["heron"]}}
SENTENCES: Json = {"name": "tone", "kind": "toxicity", "action": "block", "mode": "BLOCK"}
JUDGE: Json = {"name": "judge", "kind": "ai_judge", "action": "block",
               "config": {"provider": "scripted", "rubric": "Harm.", "threshold": 0.5}}  # fmt: skip
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def said(*guardrails: Json, covered: bool, kind: AppliesTo = AppliesTo.RESPONSE) -> Hints:
    policy = compile_policy({"policy": "t", "guardrails": list(guardrails)}, version=1, digest="sha256:t")
    return hints(policy, kind, covered=covered)


def document(*guardrails: Json) -> dict[str, object]:
    return {"policy": "hinted", "guardrails": list(guardrails)}


@pytest.fixture
async def client(demo_policy: None) -> Client:
    return Client(await new_key())


@database
@pytest.mark.usefixtures(closing.__name__)
async def test_it_works(client: Client) -> None:
    """Both calls that go on say it, and the client's version is told in the first one alone."""
    await database_sync_to_async(install)(document=document(RULES))
    active = await database_sync_to_async(active_policy)("hinted")
    for version, wanted in (
        ("", USUAL),
        (active.digest, COVERED),
        (str(active.version), COVERED),
        (str(active.version + 1), USUAL),
        ("sha256:another", USUAL),
        (active.digest[:-1], USUAL),
    ):
        began = await client.start(policy="hinted", delta="One ", client={"rules_version": version})
        status, went_on = await client.update(began["session_id"], 2, "two ")
        assert (began["hints"], status, went_on["hints"]) == (wanted, 200, wanted), version or "none told"
        await client.finish(began["session_id"])


@database
@pytest.mark.usefixtures(closing.__name__)
async def test_a_version_that_was_replaced_is_a_wrong_one(client: Client) -> None:
    await database_sync_to_async(install)(document=document(RULES))
    before = await database_sync_to_async(active_policy)("hinted")
    await database_sync_to_async(install)(document=document({**RULES, "action": "block"}))
    began = await client.start(policy="hinted", client={"rules_version": before.digest})
    assert began["hints"] == USUAL
    assert began["policy"] != {"name": "hinted", "version": before.version, "digest": before.digest}
    await client.finish(began["session_id"])


@pytest.mark.parametrize("covered", [False, True], ids=["alone", "with rules"])
def test_text_that_the_whole_answer_is_judged_for_is_collected_to_the_end(covered: bool) -> None:
    blocks = {**JUDGE, "mode": "BLOCK"}
    assert said(RULES, blocks, covered=covered) == AT_THE_END
    assert said(RULES, {**blocks, "applies_to": ["prompt"]}, covered=covered) == (COVERED if covered else USUAL)
    assert said(RULES, {**blocks, "applies_to": ["prompt"]}, covered=covered, kind=AppliesTo.PROMPT) == AT_THE_END


@pytest.mark.parametrize(
    ("besides", "covered"),
    [
        ([], COVERED),
        ([{**OWN, "client": True}], COVERED),
        ([{**OWN, "action": "warn"}], COVERED),
        ([{**OWN, "mode": "MONITOR"}], COVERED),
        ([{**JUDGE, "mode": "MONITOR"}], COVERED),
        ([OWN], USUAL),
        ([SENTENCES], USUAL),
    ],
    ids=["nothing", "also given", "warns", "monitors", "judge monitors", "kept here", "sentences"],
)
def test_a_clients_word_counts_where_its_rules_can_be_all_that_decides(besides: list[Json], covered: Hints) -> None:
    assert said(RULES, *besides, covered=True) == covered
    assert said(RULES, *besides, covered=False) == USUAL


def test_no_text_waits_longer_than_promised() -> None:
    """A second with its call where only the server shows text; where the client does, or nothing is shown, the server
    may wait.
    """
    assert USUAL["flush_ms"] <= 800
    assert 600 / 3 * USUAL["flush_ms"] / 1_000 < USUAL["max_delta_chars"], "time decides, not size"
    assert 2 + 3_000 // (0.95 * USUAL["flush_ms"]) <= 6, "an answer of three seconds: start, updates, finish"
    for more in (COVERED, AT_THE_END):
        assert more["flush_ms"] <= 5_000 < 10_000, "far from the end of a stream that nobody calls"
        assert more["max_delta_chars"] > USUAL["max_delta_chars"]


def test_the_guide_says_the_values_that_are_answered() -> None:
    rows = re.findall(r"^  \| ([\d,]+) characters, ([\d,]+) ms \|", PAGE.read_text("utf-8"), re.MULTILINE)
    told = [Hints(max_delta_chars=int(chars.replace(",", "")), flush_ms=int(ms.replace(",", ""))) for chars, ms in rows]
    assert told == [USUAL, COVERED, AT_THE_END]
