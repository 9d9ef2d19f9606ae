"""Answers that do not end: what is kept of them is counted while it comes, and nothing is looked at only at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest

from guardrails.policy import Policy
from streaming import endless
from streaming.gateway import measure, upstream
from streaming.gateway.gates import Gates
from streaming.gateway.measure import Endless
from streaming.gateway.relay import Failed
from streaming.gateway.walker import MAX_ARGUMENTS, Json, Walker
from streaming.providers import bodies
from streaming.providers.base import ProviderProtocolError, StreamCutOff, TimeLimits
from streaming.providers.reading import MAX_CHOICES
from streaming.providers.waits import Waits
from tests.streaming.gateway.test_goes_away import told
from tests.streaming.gateway.test_walkers import anthropic_block, openai
from tests.streaming.gateway.walked import OPEN, REDACTING, WALKERS

WORDS = "to and fro "


def openai_arguments(text: str, number: int = 0) -> Json:
    return openai({"tool_calls": [{"index": number, "function": {"arguments": text}}]})


def openai_function(text: str) -> Json:
    return openai({"function_call": {"arguments": text}})


def anthropic_delta(kind: str, field: str, text: str) -> Json:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: text}}


def of_a_block(block: Json) -> list[Json]:
    return anthropic_block(block, [])[:2]


TEXT, TOOL = {"type": "text", "text": ""}, {"type": "tool_use", "id": "t", "name": "pay", "input": {}}
SAYS: dict[str, tuple[list[Json], Callable[[str], Json]]] = {
    "openai text": ([], lambda text: openai({"content": text})),
    "openai thinking": ([], lambda text: openai({"reasoning_content": text})),
    "openai unknown": ([], lambda text: openai({"brand_new": [{"so": text}]})),
    "openai arguments": ([], openai_arguments),
    "openai function": ([], openai_function),
    "anthropic text": (of_a_block(TEXT), lambda text: anthropic_delta("text_delta", "text", text)),
    "anthropic arguments": (of_a_block(TOOL), lambda text: anthropic_delta("input_json_delta", "partial_json", text)),
    "anthropic signature": (
        of_a_block({"type": "thinking", "thinking": ""}),
        lambda text: anthropic_delta("signature_delta", "signature", text),
    ),
    "ollama text": ([], lambda text: {"message": {"role": "assistant", "content": text}, "done": False}),
    "ollama arguments": ([], lambda text: {"message": {"role": "assistant", "tool_calls": [
        {"function": {"name": "pay", "arguments": {"to": text}}}]}, "done": False}),
}  # fmt: skip


def said(walker: Walker, chunks: list[Json]) -> None:
    for chunk in chunks:
        walker.take(chunk)
        walker.drain()


@pytest.mark.parametrize("policy", [REDACTING, OPEN], ids=["guarded", "open"])
@pytest.mark.parametrize("shape", SAYS)
def test_it_works(shape: str, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that repeats itself for ever is over once it has said as much as one may."""
    monkeypatch.setattr(endless, "MAX_ANSWER_CHARS", 20 * len(WORDS))
    first, says = SAYS[shape]
    walker = WALKERS[shape.split()[0]](Gates(policy))
    # Ollama's arguments are objects: their names and signs count as well.
    said(walker, [*first, *(says(WORDS if "ollama arg" not in shape else WORDS[:2]) for _ in range(15))])
    if shape == "anthropic signature" and policy is OPEN:
        return  # passes as it comes, and nothing of it is kept
    with pytest.raises(Endless, match="more than 220 characters"):
        said(walker, [says(WORDS) for _ in range(6)])


@pytest.mark.parametrize("shape", ["openai arguments", "openai function", "anthropic arguments"])
def test_arguments_that_are_too_long_stop_the_answer_while_they_come(shape: str) -> None:
    first, says = SAYS[shape]
    walker = WALKERS[shape.split()[0]](Gates(REDACTING))
    for chunk in [*first, says("x" * MAX_ARGUMENTS)]:
        walker.take(chunk)
    assert walker.gates.blocked is None
    walker.take(says("x"))
    assert walker.gates.blocked is not None
    assert walker.gates.blocked.rule == "over_long_arguments"
    assert "xxx" not in json.dumps([*walker.drain(), *walker.stopped("stopped")])


def test_arguments_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while they come and again when they are complete."""
    monkeypatch.setattr(endless, "MAX_ANSWER_CHARS", 30)
    walker = WALKERS["openai"](Gates(REDACTING))
    for chunk in (openai_arguments('{"to": "a'), openai_arguments('nybody"}'), openai({}, "tool_calls")):
        walker.take(chunk)
    assert '{\\"to\\": \\"anybody\\"}' in json.dumps(walker.drain())


def test_calls_are_not_begun_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_CALLS", 20)
    for shape, chunks in {
        "openai": [openai_arguments("{}", number) for number in range(21)],
        "anthropic": [of_a_block(TOOL)[1] | {"index": number} for number in range(21)],
        "ollama": [SAYS["ollama arguments"][1]("x") for _ in range(21)],
    }.items():
        walker = WALKERS[shape](Gates(REDACTING))
        for chunk in chunks[:-1]:
            walker.take(chunk)
        with pytest.raises(Endless, match="tool calls"):
            walker.take(chunks[-1])


def test_a_choice_that_nobody_can_have_asked_for_is_none() -> None:
    message = {"role": "assistant", "content": "x"}
    for index in (MAX_CHOICES, 10**9):
        with pytest.raises(Endless, match="more than 128 choices"):
            WALKERS["openai"](Gates(OPEN)).take(openai({"content": "x"}, index=index))
        with pytest.raises(Endless, match="more than 128 choices"):
            WALKERS["openai"](Gates(OPEN)).whole({"choices": [{"index": index, "message": message}]})
    WALKERS["openai"](Gates(OPEN)).take(openai({"content": "x"}, index=MAX_CHOICES - 1))


def test_texts_with_a_gate_each_are_not_begun_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_CHANNELS", 20)
    walker = WALKERS["openai"](Gates(REDACTING))
    with pytest.raises(Endless, match="texts"):
        said(walker, [openai({f"field_{number}": "x"}) for number in range(21)])


async def test_what_was_said_until_then_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless, "MAX_ANSWER_CHARS", 3 * len(WORDS))
    found, record = await told("openai text", OPEN, [openai({"content": WORDS}) for _ in range(9)], StreamCutOff(""))
    *chunks, failed = found
    assert len(chunks) == 3
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ProviderProtocolError)
    assert record.errors == ["the answer has more than 33 characters"]


class _Endless(httpx.AsyncByteStream):
    def __init__(self, line: bytes) -> None:
        self._line, self.sent = line, 0

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for _ in range(1_000):
            self.sent += len(self._line)
            yield self._line


@pytest.mark.parametrize("line", [b": nothing\n\n", b'data: {"a": 1}\n\n', b'{"a": 1}\n', b"\n"])
async def test_bytes_without_end_are_not_read_on(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep-alives and fields that are no text, too."""
    monkeypatch.setattr(bodies, "MAX_STREAM_BYTES", 200)
    reader = upstream._events if line.endswith(b"\n\n") else upstream._lines
    body = _Endless(line)
    with pytest.raises(ProviderProtocolError, match="larger than 200 bytes"):
        async for _ in reader(httpx.Response(200, stream=body), Waits(TimeLimits(), "there")):
            pass
    assert body.sent <= 200 + len(line)
