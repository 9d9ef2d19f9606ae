"""Where findings stand in what is stored of a request and of its answer: a mark on a text never lies."""

from __future__ import annotations

import pytest

from guardrails.findings import Action, Finding, Mode, Verdict
from guardrails.policy import Policy, compile_policy
from streaming.audit.screens.overlay import Hit, Overlay, overlay
from streaming.checks import Checked
from streaming.gateway.gates import Gates, widened
from streaming.gateway.laid import answered
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import Prompted, guarded
from streaming.gateway.record import text_of
from streaming.gateway.walk_anthropic import AnthropicWalker
from streaming.gateway.walk_openai import OpenAIWalker
from streaming.gateway.walker import Json

HERON = {"name": "w", "kind": "keywords", "action": "warn", "config": {"keywords": ["heron"]}}
LAST = "mail x@b.example, heron"
MAIL = "x@b.example"


def policy(action: str = "redact", *more: Json) -> Policy:
    guardrails = [{"name": "pii", "kind": "pii", "action": action}, HERON, *more]
    return widened(compile_policy({"policy": "p", "guardrails": guardrails}))


async def passed(messages: list[Json], action: str = "redact", **more: object) -> Prompted:
    body: Json = {"model": "m", "messages": messages, **more}
    masks = Masks(policy(action), body, caller="c")
    return await guarded(policy(action), body, media_allowed=False, mask=masks.mask, swept=masks.swept)


def user(*texts: str) -> Json:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def marked(text: str, redactions: list[tuple[int, str]], findings: list[Finding], channel: str) -> dict[str, bool]:
    """What is marked of a text, and whether that is a placeholder."""
    hits = [
        Hit(n, one.start, one.end, one.mode is Mode.BLOCK and one.action in (Action.REDACT, Action.MASK))
        for n, one in enumerate(findings)
        if one.channel == channel
    ]
    over: Overlay = overlay(text, redactions, hits)
    assert over.placed
    return {run.text: run.chip for run in over.segments if run.numbers}


async def test_it_works() -> None:
    found = await passed([{"role": "user", "content": LAST}])
    assert marked(found.shown, found.redactions, found.findings, "prompt") == {"[EMAIL]": True, "heron": False}


async def test_what_was_found_elsewhere_is_not_said_to_be_in_the_prompt() -> None:
    found = await passed(
        [user("heron"), {"role": "assistant", "content": "A heron."}, user("What is the weather like?")],
        system="Codename heron", tools=[{"name": "t", "description": "heron"}], heron=1, brand_new="heron",
    )  # fmt: skip
    channels = sorted(one.channel for one in found.findings)
    assert channels == ["messages[0]", "messages[1]", "names", "request", "system", "tools"]


@pytest.mark.parametrize("action", ["redact", "mask"])
async def test_a_prompt_of_several_parts_is_marked_where_its_parts_are_hit(action: str) -> None:
    found = await passed([user("a heron\nflies", LAST, "and y@b.example twice: y@b.example")], action)
    assert len(found.redactions) == 3
    assert all(found.shown.startswith(label, at) for at, label in found.redactions)
    assert set(marked(found.shown, found.redactions, found.findings, "prompt").values()) == {True, False}
    raw = [found.raw[one.start : one.end] for one in found.findings]
    assert raw == ["heron", MAIL, "heron", "y@b.example", "y@b.example"]


@pytest.mark.parametrize(
    ("messages", "action"),
    [
        ([user(LAST, "a part behind the one that was blocked")], "block"),
        ([user('{"note": "mail x@b.example, heron"}')], "redact"),
        ([user("account 12345678 is mine", "I say 12345678, heron")], "mask"),
    ],
    ids=["blocked before its end", "JSON", "masked again elsewhere"],
)
async def test_where_the_stored_prompt_is_not_what_its_parts_came_to_nothing_is_marked(
    messages: list[Json], action: str
) -> None:
    found = await passed(messages, action)
    if found.shown == found.raw:
        pytest.fail("nothing was hidden")
    assert found.redactions == []
    assert {one.channel for one in found.findings} == {"messages[0]"}


async def test_who_answers_later_speaks_of_the_same_place() -> None:
    asked = policy("redact", {"name": "j", "kind": "prompt_injection", "mode": "MONITOR"})
    found = await guarded(asked, {"model": "m", "messages": [user("Hello", LAST)]}, media_allowed=False)
    verdict = Checked(Verdict(hit=True), 1.0)
    late = [one for later in found.later for one in later.findings(verdict)]
    assert [(one.channel, found.raw[one.start : one.end]) for one in late] == [("prompt", "Hello"), ("prompt", LAST)]


def block(index: int, *parts: str, ends: bool = True) -> list[Json]:
    start: Json = {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
    deltas: list[Json] = [
        {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": part}} for part in parts
    ]
    return [start, *deltas, *([{"type": "content_block_stop", "index": index}] if ends else [])]


def walked(*blocks: list[Json]) -> Gates:
    walker = AnthropicWalker(Gates(policy()))
    for chunk in ({"type": "message_start", "message": {}}, *(one for some in blocks for one in some)):
        walker.take(chunk)
        walker.drain()
    return walker.gates


def test_the_blocks_of_an_answer_are_marked_where_they_stand_in_all_of_it() -> None:
    gates = walked(block(0, "A heron, a ", "@b.exam", "ple! "), block(1, "Write to x@b", ".example or the heron"))
    findings, redactions = answered(gates)
    assert text_of(gates) == "A heron, a @b.example! Write to [EMAIL] or the heron"
    assert marked(text_of(gates), redactions, findings, "text") == {"heron": False, "[EMAIL]": True}
    assert len([one for one in findings if one.start > 20]) == 2


def test_behind_a_block_of_which_not_all_is_shown_places_are_those_of_the_blocks() -> None:
    gates = walked(block(0, "x@b.example and y@", ends=False), block(1, "heron x@b.example"))
    findings, redactions = answered(gates)
    assert {one.channel for one in findings} == {"blocks[0]", "blocks[1]"}
    assert redactions == []


def test_what_is_found_in_another_choice_is_not_laid_over_the_first() -> None:
    walker = OpenAIWalker(Gates(policy()))
    message = {"role": "assistant", "content": "A heron."}
    walker.whole({"choices": [{"index": n, "message": message, "finish_reason": "stop"} for n in (0, 1)]})
    assert sorted(one.channel for one in answered(walker.gates)[0]) == ["choices[1]", "text"]


def test_fields_without_a_channel_keep_their_name() -> None:
    walker = OpenAIWalker(Gates(policy()))
    walker.whole({"choices": [{"index": 0, "message": {"content": "Hello"}}], "brand_new": "heron"})
    assert [one.channel for one in answered(walker.gates)[0]] == ["field"]
