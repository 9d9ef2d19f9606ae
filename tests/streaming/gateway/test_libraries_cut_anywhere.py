"""The official libraries over a real server: of a value that the upstream's answer alone has, cut at every place within
it, not one character reaches the program, in text, in thoughts, in a tool's arguments and in a second choice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.streaming.gateway import test_anthropic_sdk as anthropic
from tests.streaming.gateway import test_ollama_sdk as ollama
from tests.streaming.gateway import test_openai_sdk as openai
from tests.streaming.gateway.fake import NDJSON, SSE, Answer, sse
from tests.streaming.gateway.served import Gateway

CARD = "4111 1111 1111 1111"
SAID = f"Use {CARD} now."
CUTS = range(SAID.index(CARD) + 1, SAID.index(CARD) + len(CARD))
SHOWN = "Use [CREDIT_CARD] now."
ARGUMENTS = json.dumps({"note": SAID})
Said = list[str]


def pieces(at: int) -> tuple[list[str], list[str]]:
    """The sentence, and arguments that say it, cut at this place of the sentence."""
    within = ARGUMENTS.index(SAID) + at
    return [SAID[:at], SAID[at:]], [ARGUMENTS[:within], ARGUMENTS[within:]]


def by_openai(served: Gateway, at: int) -> Said:
    parts, arguments = pieces(at)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "pay", "arguments": ""}}
    deltas = [
        *(openai.chunk({"reasoning_content": part}) for part in parts),
        *(openai.chunk({"content": part}, index=index) for part in parts for index in (0, 1)),
        openai.chunk({"tool_calls": [call]}),
        *(openai.chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in arguments),
    ]
    served.fake.answers["cut"] = Answer(sse(*deltas, openai.chunk({}, "stop"), openai.chunk({}, "stop", 1)), SSE)
    said = dict.fromkeys(("thoughts", "first", "second", "arguments"), "")
    of = openai.client(served, "strict")
    for chunk in of.chat.completions.create(model="cut", messages=openai.HELLO, n=2, stream=True):  # type: ignore[call-overload]
        for choice in chunk.choices:
            said["thoughts"] += getattr(choice.delta, "reasoning_content", None) or ""
            said["second" if choice.index else "first"] += choice.delta.content or ""
            for made in choice.delta.tool_calls or ():
                said["arguments"] += made.function.arguments or ""
    return [said["thoughts"], said["first"], said["second"], json.loads(said["arguments"])["note"]]


def by_anthropic(served: Gateway, at: int) -> Said:
    parts, arguments = pieces(at)
    thoughts = anthropic.block(0, {"type": "thinking", "thinking": "", "signature": ""},
                               *({"type": "thinking_delta", "thinking": part} for part in parts))  # fmt: skip
    call = anthropic.block(2, {"type": "tool_use", "id": "t", "name": "pay", "input": {}},
                           *({"type": "input_json_delta", "partial_json": part} for part in arguments))  # fmt: skip
    told = anthropic.message(thoughts, anthropic.text(*parts, index=1), call, reason="tool_use")
    served.fake.answers["cut"] = Answer(told, SSE)
    with anthropic.client(served, "strict").messages.stream(model="cut", **anthropic.ASKED) as stream:  # type: ignore[arg-type]
        message = stream.get_final_message()
    first, second, third = message.content
    return [first.thinking, second.text, third.input["note"]]  # type: ignore[union-attr,index]


def by_ollama(served: Gateway, at: int) -> Said:
    parts, _ = pieces(at)
    call = {"function": {"name": "pay", "arguments": {"note": SAID}}}
    lines = [
        *(ollama.line({"content": "", "thinking": part}) for part in parts),
        *(ollama.line({"content": part}) for part in parts),
        ollama.line({"content": "", "tool_calls": [call]}),
    ]
    served.fake.answers["cut"] = Answer([*lines, ollama.LAST], NDJSON)
    got = list(ollama.client(served, "strict").chat(model="cut", messages=ollama.HELLO, stream=True))
    notes = [str(made.function.arguments["note"]) for one in got for made in one.message.tool_calls or ()]
    thoughts = "".join(one.message.thinking or "" for one in got)
    return [thoughts, "".join(one.message.content or "" for one in got), *notes]


LIBRARIES: dict[str, tuple[Callable[[Gateway, int], Said], int]] = {
    "openai": (by_openai, 4), "anthropic": (by_anthropic, 3), "ollama": (by_ollama, 3),
}  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_works(served: Gateway, library: str) -> None:
    read, texts = LIBRARIES[library]
    for at in CUTS:
        said = read(served, at)
        assert said == [SHOWN] * texts, at
        assert not re.search(r"\d", "".join(said)), at
