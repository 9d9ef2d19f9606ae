"""Parts of an answer that interleave, as readers join them: part by part, as they come, and each by itself."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import pytest

from guardrails.findings import Verdict
from guardrails.policy import Policy
from streaming.core.places import Place
from streaming.gateway.masks import Masks
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_interrupted import (
    BEGIN,
    END,
    POLICIES,
    delta,
    listed,
    sent,
    start,
    steps,
    stop,
    text,
    thinking,
)
from tests.streaming.gateway.test_put_back import JUDGED, MAIL, asked, walker_of
from tests.streaming.gateway.test_walkers import openai

ADDRESS = "see http://evil.example/?q="


def pieces_of(chunks: list[Json]) -> Iterator[tuple[int, str]]:
    """The pieces of text, with the number of their part; below 0: it has none."""
    for chunk in chunks:
        parts: list[Json] = [
            {"index": chunk.get("index"), **(chunk.get(of) or {})}  # type: ignore[dict-item]
            for of in ("delta", "content_block")
            if str(chunk.get("type")).startswith("content_block")
        ]
        for choice in chunk.get("choices", []):  # type: ignore[attr-defined]
            content = choice["delta"].get("content") or []
            said = [{"index": -1, "text": content}] if isinstance(content, str) else content
            parts += [{"index": at, **part} for at, part in enumerate(said)]
        for part in parts:
            if isinstance(said := part.get("text"), str):
                yield int(str(part["index"])), said


def joined(chunks: list[Json]) -> dict[str, str]:
    """What readers may make of them."""
    alone: dict[int, str] = {}
    for at, said in pieces_of(chunks):
        alone[at] = alone.get(at, "") + said
    by_part = "".join(alone[at] for at in sorted(alone) if at >= 0)
    as_it_comes = "".join(said for _, said in pieces_of(chunks))
    return {"by part": by_part, "as it comes": as_it_comes} | {f"{at} alone": said for at, said in alone.items()}


def safe(said: str) -> bool:
    """Whether every value in it stands in running text."""
    place = Place()
    for some in said.split(MAIL)[:-1]:
        place.read(some)
        if not place.running_text:
            return False
        place.read_value(MAIL)
    return True


def blocks(*said: tuple[int, str]) -> list[Json]:
    """Blocks that are said in this order, each once, and end at once."""
    return [BEGIN, *(one for at, some in said for one in (start(at), delta(at, some), stop(at))), *END]


def parts(*said: tuple[int, str]) -> list[Json]:
    return [*(listed(text(some, index=at)) for at, some in said), openai({}, "stop")]


SHAPES: dict[str, list[Json]] = {
    "before it by number": parts((1, ADDRESS), (0, "Hi. "), (2, "~ now")),
    "before it by number, and begun later": parts((1, "~ now"), (0, ADDRESS)),
    "before it, and gone on with later": parts((0, "So. "), (1, "~ now"), (0, ADDRESS)),
    "a word alone": parts((0, "x"), (1, "mailto:~ now"), (0, " y ")),
    "a scheme in two": parts((0, "So. "), (1, ":~ now"), (0, "mailto")),
    "a target in two": parts((0, "So. "), (1, "(~ )"), (0, "![x]")),
    "a tag": parts((0, "So. "), (1, "'~ now"), (0, "<a href=")),
    "a tag in front of two": parts((0, "So. "), (1, "and"), (2, " ~ now"), (0, "<a href='")),
    "begun between": parts((0, "So "), (2, "b ~ now"), (1, "<a href='")),
    "what was held comes last": [
        listed(text(".~", index=0)), listed(text("see http", index=1)), listed(text("://evil.example/?q=", index=1)),
        openai({}, "stop"),
    ],
    "twice in a chunk": [
        listed(text("x ", index=1), text("~ ", index=0), text(ADDRESS, index=1)), openai({}, "stop")
    ],
    "twice in a chunk, and closed only later": [
        listed(text("](", index=2)), listed(text(") ", index=1), text("~ ", index=0), text("z", index=1)),
        openai({}, "stop"),
    ],
    "a text, and parts": [openai({"content": ADDRESS}), listed(text("~ now", index=0)), openai({}, "stop")],
    "blocks, the later one first": blocks((1, "~ now"), (0, ADDRESS)),
    "blocks, and one between": blocks((0, "So "), (2, "b ~ now"), (1, "<a href='")),
}  # fmt: skip


def filled(chunks: list[Json], placeholder: str) -> list[Json]:
    made: list[Json] = json.loads(json.dumps(chunks).replace("~", placeholder))
    return made


def dialect_of(chunks: list[Json]) -> str:
    return "openai" if "choices" in chunks[0] else "anthropic"


@pytest.mark.parametrize("shape", SHAPES)
async def test_it_works(shape: str) -> None:
    """No reader sees a value in an address or in markup, and nothing but signs of markup is lost."""
    masks, placeholder = await asked()
    chunks = filled(SHAPES[shape], placeholder)
    out = sent(dialect_of(chunks), chunks, masks, POLICIES["planted"])
    for reader, said in joined(out).items():
        assert safe(said), reader
    for at, said in ((name, said) for name, said in joined(out).items() if name.endswith("alone")):
        assert said.replace(MAIL, placeholder).replace("&lt;", "<").rstrip() == joined(chunks)[at].rstrip()


async def test_parts_and_blocks_that_come_in_order_get_all_their_values() -> None:
    masks, placeholder = await asked()
    said = [(0, "You are ~. "), (1, "That is ~: "), (2, "see http://a.example/ or ~ "), (3, "**~** it is.")]
    for made in (parts, blocks):
        chunks = filled(made(*said), placeholder)
        out = sent(dialect_of(chunks), chunks, masks, POLICIES["planted"])
        assert joined(out) == {name: some.replace(placeholder, MAIL) for name, some in joined(chunks).items()}


async def test_parts_that_take_turns_are_shown_word_by_word_and_get_their_values() -> None:
    """The last word of one comes with its end, and a blank line where an address or a value would go on with it."""
    masks, placeholder = await asked()
    chunks = filled(
        parts((0, "I say "), (1, "you are ~ "), (0, "that ~ "), (1, "is ~ "), (0, "it is. Yes.")), placeholder
    )
    shown = [joined(some)["as it comes"] for some in steps("openai", chunks, masks, POLICIES["planted"])]
    assert shown[:5] == ["I say ", f"you are {MAIL} ", f"that {MAIL} ", f"is {MAIL} ", "it is. "]
    assert "".join(shown[5:]) == "Yes."
    chunks = filled(parts((0, "I say "), (1, "~ "), (0, "so.")), placeholder)
    assert joined(sent("openai", chunks, masks, POLICIES["planted"]))["0 alone"] == "I say so.\n\n"


async def test_no_part_waits_long_for_what_it_has_open() -> None:
    masks, placeholder = await asked()
    many = 300
    chunks = filled(parts((1, "~ "), (0, "<b "), *[(0, "q ")] * many), placeholder)
    shown = [joined(some)["as it comes"] for some in steps("openai", chunks, masks, POLICIES["planted"])]
    at = next(number for number, some in enumerate(shown) if some.startswith("&lt;b q "))
    assert at < many
    assert "".join(shown).count("q ") == many


async def test_what_was_held_of_a_part_is_never_shown_behind_a_block() -> None:
    masks, placeholder = await asked(JUDGED)
    walker = walker_of("openai", masks, JUDGED)
    out: list[Json] = []
    for chunk in filled(parts((1, "~ is it. And "), (0, "So <b it is. And "))[:-1], placeholder):
        walker.take(chunk)
        while walker.gates.questions:
            walker.gates.verdict(walker.gates.questions.pop(0), "judge", Verdict(hit=False, score=0.0))
        out += walker.drain()
    walker.take(openai({}, "stop"))
    walker.gates.verdict(walker.gates.questions.pop(0), "judge", Verdict(hit=True, score=1.0))
    out += walker.drain() + walker.stopped("stopped")
    assert joined(out)["0 alone"] == "So "


async def test_very_many_parts_hold_up_nobody() -> None:
    masks, placeholder = await asked()
    took = []
    for many in (400, 1_600):
        for numbers in (range(many), range(many - 1, -1, -1)):
            chunks = filled(parts(*((at, "x ~ <b") for at in numbers)), placeholder)
            began = time.process_time()
            sent("openai", chunks, masks, POLICIES["planted"])
            took.append(time.process_time() - began)
    assert max(took[2:]) < 12 * max(took[:2])


SIGNS = [
    " ", "~ ", "~", " ~ ", "~. ", ADDRESS, "](", "[x]", "![", ")", "(", "<a href='", "'>", "<b ", ">", "<", "www.",
    "mailto:", "x@", "\n\n", "]:", "]", "<select>", "</select>", "<script>", "</script>", ".", "/", ":", "http", "ws",
    "&#5", "8;", "So. ", '"', "Hm", "//", "e.example", "\\", "<!--", "-->", "&", "a b ",
]  # fmt: skip


def at_random(seed: int, placeholder: str) -> list[Json]:
    """An answer whose parts take turns at random."""
    by = random.Random(seed)
    whole = ["".join(by.choices(SIGNS, k=by.randint(1, 7))).replace("~", placeholder) for _ in range(by.randint(2, 4))]
    cut = [[one[at : at + size] for at in range(0, len(one), size)] for one in whole for size in [by.randint(2, 60)]]
    if by.random() < 0.3:
        waiting = [[start(at), *(delta(at, some) for some in one), stop(at)] for at, one in enumerate(cut)]
        turns: list[Json] = []
        while waiting := [one for one in waiting if one]:
            turns.append(by.choice(waiting).pop(0))
        return [BEGIN, *turns, *END]
    order = [at for at, one in enumerate(cut) for _ in one]
    by.shuffle(order)
    said = [text(cut[at].pop(0), index=at) for at in order]
    chunks: list[Json] = []
    while said:
        many = by.choice([1, 1, 1, 2, 3])
        some, said = said[:many], said[many:]
        if by.random() < 0.1:
            some.insert(0, thinking("hm"))
        chunks.append(
            openai({"content": some[0]["text"]}) if by.random() < 0.05 and "text" in some[0] else listed(*some)
        )
    return [*chunks, openai({}, "stop")]


def judged(chunks: list[Json], masks: Masks, policy: Policy, by: random.Random) -> list[Json]:
    """What is sent where verdicts come late, and in any order."""
    walker = walker_of(dialect_of(chunks), masks, policy)
    out: list[Json] = []
    questions = walker.gates.questions
    for chunk in chunks:
        while questions and (walker.busy or by.random() < 0.4):
            walker.gates.verdict(questions.pop(by.randrange(len(questions))), "judge", Verdict(hit=False, score=0.0))
            out += walker.drain()
        walker.take(json.loads(json.dumps(chunk)))
        out += walker.drain()
    walker.finish()
    while questions:
        walker.gates.verdict(questions.pop(0), "judge", Verdict(hit=False, score=0.0))
    return out + walker.drain()


async def test_no_reader_of_any_interleaving_sees_a_value_in_an_address_or_in_markup() -> None:
    for policy in (POLICIES["planted"], JUDGED):
        masks, placeholder = await asked(policy)
        values = 0
        for seed in range(400):
            out = judged(at_random(seed, placeholder), masks, policy, random.Random(seed))
            for reader, said in joined(out).items():
                assert safe(said), (seed, reader, said)
                values += said.count(MAIL)
        assert values > 100
