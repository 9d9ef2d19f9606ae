"""What stands in the place of a name in a stream of the Messages dialect, and arguments that are said twice."""

from __future__ import annotations

import json

import pytest

from streaming.gateway.walker import Json
from tests.streaming.gateway.test_walkers import anthropic_block
from tests.streaming.gateway.walked import OPEN, REDACTING, strings, walk

SSN = "536-22-8145"
TOOL: Json = {"type": "tool_use", "id": "t", "name": "f"}
CUTS = range(1, len(SSN))


def pieces(chunks: list[Json], at: str) -> list[object]:
    return [chunk["delta"][at] for chunk in chunks if at in chunk.get("delta", {})]  # type: ignore[attr-defined,index]


@pytest.mark.parametrize("at", CUTS)
def test_it_works(at: int) -> None:
    """The kind of a piece is not said in pieces."""
    kinds = [f"x {SSN[:at]}", SSN[at:]]
    sent, _ = walk("anthropic", anthropic_block({"type": "text", "text": ""}, [{"type": kind} for kind in kinds]))
    assert pieces(sent, "type") == [kinds[0]] * 2


@pytest.mark.parametrize("at", CUTS)
def test_nor_is_the_kind_of_an_event(at: int) -> None:
    start, *_, end, stop = anthropic_block({"type": "text", "text": ""}, [])
    sent, _ = walk("anthropic", [start, {"type": SSN[:at]}, {"type": SSN[at:]}, end, stop])
    assert [chunk["type"] for chunk in sent[1:3]] == [SSN[:at]] * 2


def test_fields_of_events_that_are_told_as_one_kind_are_one_text() -> None:
    start, *_, end, stop = anthropic_block({"type": "text", "text": ""}, [])
    events: list[Json] = [{"type": "one", "said": f"x {SSN[:5]}"}, {"type": "two", "said": f"{SSN[5:]} y"}]
    sent, _ = walk("anthropic", [start, *events, end, stop])
    said = "".join(str(chunk.get("said", "")) for chunk in sent)
    assert said == "x [SSN] y"


def test_kinds_that_are_known_take_turns_and_so_do_all_where_nothing_decides() -> None:
    deltas: list[Json] = [{"type": "text_delta", "text": "a. "}, {"type": "new_delta", "said": 1}] * 2
    deltas.append({"type": "citations_delta", "citation": {"type": "c", "cited_text": "b"}})
    chunks = anthropic_block({"type": "text", "text": ""}, deltas)
    assert [piece for piece in pieces(walk("anthropic", chunks)[0], "type")] == [one["type"] for one in deltas]
    other = anthropic_block({"type": "text", "text": ""}, [{"type": "one", "n": 1}, {"type": "two", "n": 1}])
    assert walk("anthropic", other, OPEN)[0] == other


@pytest.mark.parametrize("at", CUTS)
def test_arguments_that_were_there_at_once_do_not_go_on_in_pieces(at: int) -> None:
    chunks = anthropic_block(
        TOOL | {"input": {"a": SSN[:at]}}, [{"type": "input_json_delta", "partial_json": SSN[at:]}]
    )
    sent, _ = walk("anthropic", chunks, REDACTING)
    assert json.dumps(sent[1]).count(SSN[:at])
    assert pieces(sent, "partial_json") == []
    assert walk("anthropic", chunks, OPEN)[0] == chunks


def test_arguments_in_pieces_are_those_of_the_block_that_has_none_yet() -> None:
    first, second = (
        anthropic_block(TOOL | {"input": given}, [{"type": "input_json_delta", "partial_json": json.dumps({"b": "c"})}])
        for given in ({"a": "d"}, {})
    )
    sent, _ = walk("anthropic", [*first[:-2], *second[1:]])
    assert [json.loads(str(piece)) for piece in pieces(sent, "partial_json")] == [{"b": "c"}]
    assert "d" in strings(sent)
