"""Blocks and parts of an answer that are interrupted and go on, in requests with masked values and without."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from guardrails.findings import Verdict
from guardrails.policy import Policy, compile_policy
from streaming.core.gate import gate_text
from streaming.gateway.gates import widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import guarded
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_put_back import JUDGED, MAIL, asked, walker_of, whole
from tests.streaming.gateway.test_walkers import anthropic_block, openai

SSN = "536-22-8145"
SAID = f"no {SSN} ok."
START = SAID.index(SSN)
HIDES: Json = {"name": "answers", "kind": "pii", "action": "redact", "applies_to": ["response"]}
MASKS: Json = {"name": "pii", "kind": "pii", "action": "mask"}
POLICIES = {
    "masking": compile_policy({"policy": "m", "guardrails": [MASKS | {"applies_to": ["prompt"]}, HIDES]}),
    "planted": compile_policy({"policy": "p", "guardrails": [MASKS]}),
}
BEGIN, _, STOP_0, *END = anthropic_block({"type": "text", "text": ""}, [])


def start(index: int, text: str = "") -> Json:
    return {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": text}}


def delta(index: int, text: str) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}


def stop(index: int) -> Json:
    return {**STOP_0, "index": index}


def listed(*parts: Json, reason: str | None = None) -> Json:
    return openai({"content": [*parts]}, reason)


def text(said: str, **more: object) -> Json:
    return {"type": "text", **more, "text": said}


def thinking(said: object) -> Json:
    return {"type": "thinking", "thinking": said}


GOES_ON: dict[str, Callable[[str, str], list[Json]]] = {
    "anthropic": lambda a, b: [
        BEGIN, start(0), start(1), delta(0, a), delta(1, "x"), delta(0, b), delta(1, "y"), stop(0), stop(1), *END
    ],
    "anthropic, the later one ends first": lambda a, b: [
        BEGIN, start(0), start(1), delta(0, a), delta(1, "x"), stop(1), delta(0, b), stop(0), *END
    ],
    "openai": lambda a, b: [
        listed(text(a, index=0)), listed(text("x", index=1)), listed(text(b, index=0)), openai({}, "stop")
    ],
    "openai without numbers": lambda a, b: [
        listed(text(a)), listed({"type": "reference", "text": ""}, text("x ")), listed(text(b)), openai({}, "stop")
    ],
    "openai thinking between": lambda a, b: [
        listed(text(a)), listed(thinking("hm")), listed(text(b)), openai({}, "stop")
    ],
    "openai a list of thinking between": lambda a, b: [
        listed(text(a)), listed(thinking([text("hm")])), listed(text(b)), openai({}, "stop")
    ],
}  # fmt: skip
IS_OVER: dict[str, Callable[[str, str], list[Json]]] = {
    "anthropic": lambda a, b: [BEGIN, start(0, a), stop(0), start(0), delta(0, b), stop(0), *END],
    "anthropic, and another came": lambda a, b: [
        BEGIN, start(0, a), stop(0), start(1, "x"), stop(1), start(0, b), stop(0), *END
    ],
    "openai": lambda a, b: [listed(text(a, index=0), reason="stop"), listed(text(b, index=0))],
    "openai, and another came": lambda a, b: [
        listed(text(a, index=0)), listed(text("x", index=1), reason="stop"), listed(text(b, index=0))
    ],
}  # fmt: skip


def texts(sent: list[Json], name: str = "text") -> dict[object, str]:
    """What a client puts together: the text of each block, or of each part."""
    out: dict[object, str] = {}
    for chunk in sent:
        pieces: list[Json] = [
            {"index": chunk.get("index"), **(chunk.get(of) or {})}  # type: ignore[dict-item]
            for of in ("delta", "content_block")
            if str(chunk.get("type")).startswith("content_block")
        ]
        for choice in chunk.get("choices", []):  # type: ignore[attr-defined]
            pieces += [{"index": at, **part} for at, part in enumerate(choice["delta"].get("content") or [])]
        for piece in pieces:
            if isinstance(said := piece.get(name), str):
                out[piece["index"]] = out.get(piece["index"], "") + said
    return out


async def masks_of(policy: Policy, said: str, **body: object) -> Masks:
    asking: Json = {"model": "m", "messages": [{"role": "user", "content": said}], **body}
    masks = Masks(policy, asking, caller="c")
    await guarded(widened(policy), asking, media_allowed=False, mask=masks.mask, swept=masks.swept, hide=masks.hidden)
    return masks


def steps(dialect: str, chunks: list[Json], masks: Masks, policy: Policy) -> list[list[Json]]:
    """What is sent at each chunk, and at the end. Nothing waits: a relay would read no more of its upstream."""
    walker = walker_of(dialect, masks, policy)
    out: list[list[Json]] = []
    for chunk in chunks:
        walker.take(json.loads(json.dumps(chunk)))
        out.append(walker.drain())
        assert not walker.busy
    walker.finish()
    return [*out, walker.drain()]


def sent(dialect: str, chunks: list[Json], masks: Masks, policy: Policy) -> list[Json]:
    return [chunk for some in steps(dialect, chunks, masks, policy) for chunk in some]


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "nothing masked"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", GOES_ON)
async def test_it_works(shape: str, policy: str, masked: bool) -> None:
    """A value across the interruption is hidden whole, and no other text is lost."""
    masks = await masks_of(POLICIES[policy], f"I am {MAIL}" if masked else "hello")
    assert bool(masks.masked) is masked
    wanted = gate_text(POLICIES[policy], SAID).visible
    assert SSN not in wanted
    for at in range(START + 1, START + len(SSN)):
        out = sent(shape.split()[0].strip(","), GOES_ON[shape](SAID[:at], SAID[at:]), masks, POLICIES[policy])
        shown = texts(out)
        assert shown[0] == wanted, at
        assert shown.get(1, "x") in ("x", "x ", "xy")
        assert texts(out, "thinking").get(0, "hm") == "hm"


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "nothing masked"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", IS_OVER)
async def test_what_has_ended_does_not_go_on(shape: str, policy: str, masked: bool) -> None:
    masks = await masks_of(POLICIES[policy], f"I am {MAIL}" if masked else "hello")
    for at in range(START + 1, START + len(SSN)):
        out = sent(shape.split()[0].strip(","), IS_OVER[shape](SAID[:at], SAID[at:]), masks, POLICIES[policy])
        assert texts(out)[0] == gate_text(POLICIES[policy], SAID[:at]).visible, at


async def test_a_part_is_shown_while_it_comes_although_the_one_before_has_not_been_said_to_end() -> None:
    """And so are text and thinking that take turns, with the values that belong in them."""
    masks, placeholder = await asked()
    pieces = [f"to {placeholder} ", "by mail. ", f"and {placeholder} again "]
    values = [piece.replace(placeholder, MAIL) for piece in pieces]
    for former in ("As you said: ", "As you said", "in 2024", "42"):
        numbered = [text(former, index=0), *(text(piece, index=1) for piece in pieces)]
        turns = [thinking(former), text(pieces[0]), thinking(pieces[1]), text(pieces[2])]
        for parts in (numbered, turns):
            out = steps("openai", [*map(listed, parts), openai({}, "stop")], masks, POLICIES["planted"])
            shown = ["".join(texts(some, name).get(at, "") for name in ("text", "thinking") for at in (0, 1))
                     for some in out[1:4]]  # fmt: skip
            assert all(one.endswith(value) for one, value in zip(shown, values, strict=True)), former


ADDRESS = "see http://evil.example/?q="
NOT_BACK: dict[str, list[Json]] = {
    "begun by itself": [text(ADDRESS), thinking("hm "), text("~ now")],
    "begun by what came between": [text("So. ", index=0), text(ADDRESS, index=1), text("~ now", index=0)],
    "begun in between, and another came": [
        text("So. ", index=0), text("Hm. ", index=1), text(ADDRESS, index=0), text("x", index=2), text("~", index=1)
    ],
    "not clear": [
        text("So. ", index=0), text("<a href='x' ", index=1), text("y" * 129, index=2), text("~ now", index=0)
    ],
    "told with its end": [text("![x](http://evil.example/?q=~", index=0), text("~ b", index=1)],
    "begun by what is put in for a value": [
        text("!", index=0), text(SSN, index=0), text("(", index=1), text("~ )", index=1)
    ],
    "listed before": [
        text("", index=0), text("", index=1), text(ADDRESS, index=0), text("~", index=1)
    ],
    "listed before, and speaks late": [
        text(ADDRESS, index=0), text("", index=1), text(" so ", index=2), text("~", index=1)
    ],
}  # fmt: skip


@pytest.mark.parametrize("shape", NOT_BACK)
async def test_an_address_that_a_reader_may_see_before_it_takes_no_value_in(shape: str) -> None:
    masks, placeholder = await asked()
    chunks = [listed(json.loads(json.dumps(part).replace("~", placeholder))) for part in NOT_BACK[shape]]
    out = sent("openai", [*chunks, openai({}, "stop")], masks, POLICIES["planted"])
    assert MAIL not in json.dumps(out)
    assert placeholder in "".join(texts(out).values())


async def test_thoughts_that_end_with_a_value_hold_up_no_text_behind_them() -> None:
    masks, placeholder = await asked()
    parts = [thinking(f"I will mail {placeholder}."), *(text(f"{word} {placeholder} ") for word in ("To", "and", "or"))]
    out = steps("openai", [*map(listed, parts), openai({}, "stop")], masks, POLICIES["planted"])
    shown = [texts(some).get(1, texts(some).get(0, "")) for some in out[1:4]]
    assert shown == [f"{word} {MAIL} " for word in ("To", "and", "or")]


async def test_a_part_behind_one_whose_end_is_not_clear_comes_at_once_with_its_placeholders() -> None:
    masks, placeholder = await asked()
    parts = [text(f"you are {placeholder}.", index=0), text("this is ", index=1), text(f"{placeholder} ", index=1)]
    out = steps("openai", [*map(listed, parts), openai({}, "stop")], masks, POLICIES["planted"])
    assert "".join(texts(some).get(1, "") for some in out[1:3]) == f"this is {placeholder} "


async def test_very_many_parts_that_say_nothing_hold_up_nobody() -> None:
    """Each piece asked for its place behind all of them: half a minute for four thousand parts."""
    masks, _ = await asked()
    walker = walker_of("openai", masks, POLICIES["planted"])
    walker.take(listed(text("see docs.python.org", index=0)))
    many = range(1, 3_000)
    walker.take(openai({"content": [text("", index=at) for at in many]}))
    began = time.process_time()
    walker.take(openai({"content": [text("x. ", index=at) for at in reversed(many)]}))
    assert time.process_time() - began < 2.5
    walker.take(openai({}, "stop"))
    assert list(texts(walker.drain()).values())[1:] == ["x. "] * len(many)


async def test_where_what_is_held_may_open_something_the_next_part_waits_until_it_is_known() -> None:
    masks, placeholder = await asked(JUDGED)
    walker = walker_of("openai", masks, JUDGED)
    for part in (text("It is at http://a.example/?q=", index=0), text(f"{placeholder} and. ", index=1)):
        walker.take(listed(part))
        assert not "".join(texts(walker.drain()).values())
    walker.take(listed(text(" or so. That is it, ", index=0)))
    while walker.gates.questions:
        walker.gates.verdict(walker.gates.questions.pop(0), "judge", Verdict(hit=False, score=0.0))
    walker.take(openai({}, "stop"))
    while walker.gates.questions:
        walker.gates.verdict(walker.gates.questions.pop(0), "judge", Verdict(hit=False, score=0.0))
    shown = texts(walker.drain())
    assert shown[0] == "It is at http://a.example/?q= or so. That is it, "
    assert shown[1] == f"{MAIL} and. "


async def test_a_block_waits_for_one_that_goes_on_and_keeps_placeholders_where_it_ends_first() -> None:
    masks, placeholder = await asked()
    begun = [BEGIN, start(0), start(1), delta(0, "So. "), delta(1, f"to {placeholder} "), delta(0, "Yes. ")]
    for ends, wanted in (([stop(0), stop(1)], MAIL), ([stop(1), stop(0)], placeholder)):
        shown = texts(sent("anthropic", [*begun, *ends, *END], masks, POLICIES["planted"]))
        assert shown == {0: "So. Yes. ", 1: f"to {wanted} "}
    third = [start(2), stop(1), delta(2, f"and {placeholder}. "), stop(2), delta(0, "No."), stop(0)]
    shown = texts(sent("anthropic", [*begun, *third, *END], masks, POLICIES["planted"]))
    assert shown == {0: "So. Yes. No.", 1: f"to {placeholder} ", 2: f"and {placeholder}. "}


async def test_thinking_between_leaves_an_answer_in_json_what_it_is() -> None:
    policy = POLICIES["planted"]
    masks = await masks_of(policy, f"I am {MAIL}", response_format={"type": "json_object"})
    placeholder = masks.swept(MAIL)
    said = json.dumps({"to": f"mail {placeholder} now", "more": [1, 2]})
    for at in range(1, len(said)):
        parts = [thinking("hm "), text(said[:at]), thinking("so "), text(said[at:])]
        out = sent("openai", [*map(listed, parts), openai({}, "stop")], masks, policy)
        assert texts(out)[0] == said.replace(placeholder, MAIL), at


async def test_very_many_blocks_may_wait_for_one_verdict() -> None:
    masks, placeholder = await asked(JUDGED)
    walker = walker_of("anthropic", masks, JUDGED)
    walker.whole(whole(["It stands there.", *[f" {placeholder}"] * 1_500])["anthropic"])
    questions = list(walker.gates.questions)
    for question in reversed(questions):
        assert walker.drain() == []
        walker.gates.verdict(question, "judge", Verdict(hit=False, score=0.0))
    assert json.dumps(walker.drain()).count(MAIL) == 1_500
