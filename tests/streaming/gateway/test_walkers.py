"""Answers walked: what a model wrote is gated wherever it stands, and everything else stays as it came."""

from __future__ import annotations

import json

import pytest
from openai.lib.streaming._deltas import accumulate_delta

from guardrails.findings import Verdict
from guardrails.policy import Policy, compile_policy
from streaming.gateway.gates import Gates
from streaming.gateway.walker import Json, WrongDialect
from tests.streaming.gateway.walked import BLOCKING, OPEN, REDACTING, WALKERS, walk, walk_whole

CARD = "4111111111111111"
SAID = f"pay with {CARD} now, please"
START, END = SAID.index(CARD), SAID.index(CARD) + len(CARD)


def openai(delta: object, reason: str | None = None, index: int = 0) -> Json:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def cut(text: str, at: int) -> list[str]:
    return [text[:at], text[at:]] if at else list(text)


def openai_text(parts: list[str], field: str = "content") -> list[Json]:
    return [openai({"role": "assistant"}), *(openai({field: p}) for p in parts), openai({}, "stop")]


def openai_call(parts: list[str]) -> list[Json]:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "pay", "arguments": ""}}
    pieces = [openai({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in parts]
    return [openai({"role": "assistant", "tool_calls": [first]}), *pieces, openai({}, "tool_calls")]


def openai_two(parts: list[str]) -> list[Json]:
    other = [openai({"content": word}, index=1) for word in ("all ", "well")]
    mixed = [chunk for pair in zip([openai({"content": p}) for p in parts], other, strict=False) for chunk in pair]
    mixed += [openai({"content": p}) for p in parts[len(other) :]]
    return [*mixed, openai({}, "stop", 1), openai({}, "stop", 0)]


def openai_second(parts: list[str]) -> list[Json]:
    first = [openai({"role": "assistant", "content": word}) for word in ("all ", "well")]
    return [*first, *(openai({"content": part}, index=1) for part in parts), openai({}, "stop"), openai({}, "stop", 1)]


def openai_unknown(parts: list[str]) -> list[Json]:
    details = [openai({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": p}]}) for p in parts]
    return [openai({"role": "assistant"}), *details, openai({}, "stop")]


def openai_beside(parts: list[str]) -> list[Json]:
    return [*({**openai({"content": ""}), "said": [{"so": p}]} for p in parts), openai({}, "stop")]


def openai_beside_delta(parts: list[str]) -> list[Json]:
    chunks = [openai({"content": ""}) for _ in parts]
    for chunk, part in zip(chunks, parts, strict=True):
        chunk["choices"][0]["said"] = {"so": part}  # type: ignore[index]
    return [*chunks, openai({}, "stop")]


def openai_id(parts: list[str]) -> list[Json]:
    details = [openai({"reasoning_details": [{"type": "reasoning.text", "index": 0, "id": p}]}) for p in parts]
    return [*details, openai({}, "stop")]


def anthropic_event(parts: list[str]) -> list[Json]:
    first, *rest = anthropic_block({"type": "text", "text": ""}, [])
    return [first, *({"type": "new_event", "said": {"so": p}} for p in parts), *rest]


def anthropic_block(block: Json, deltas: list[Json]) -> list[Json]:
    message: Json = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m",
                     "stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


def arguments(said: str) -> str:
    return json.dumps({"note": said, "to": ["x"]})


def escaped(said: str) -> str:
    """The same with one letter written as an escape."""
    return json.dumps({"note": said}).replace("4", "\\u0034", 1)


def ollama(message: Json, **more: object) -> Json:
    return {"model": "m", "created_at": "t", "message": {"role": "assistant", **message}, "done": False, **more}


def ollama_text(parts: list[str], field: str = "content") -> list[Json]:
    lines = [ollama({"content": "", field: part}) for part in parts]
    return [*lines, ollama({"content": ""}, done=True, done_reason="stop", eval_count=4)]


def ollama_call(said: object) -> list[Json]:
    call = {"function": {"name": "pay", "arguments": said}}
    return [ollama({"content": "", "tool_calls": [call]}), ollama({"content": ""}, done=True, done_reason="stop")]


ARGUMENTS = json.dumps({"note": SAID, "to": ["x"]})
SHAPES = {
    "openai text": lambda at, said=SAID: ("openai", openai_text(cut(said, at))),
    "openai refusal": lambda at, said=SAID: ("openai", openai_text(cut(said, at), "refusal")),
    "openai thinking": lambda at, said=SAID: ("openai", openai_text(cut(said, at), "reasoning_content")),
    "openai second choice alone": lambda at, said=SAID: ("openai", openai_second(cut(said, at))),
    "openai field nobody knows": lambda at, said=SAID: ("openai", openai_text(cut(said, at), "brand_new")),
    "openai list nobody knows": lambda at, said=SAID: ("openai", openai_unknown(cut(said, at))),
    "openai two choices": lambda at, said=SAID: ("openai", openai_two(cut(said, at))),
    "openai arguments": lambda at, said=SAID: ("openai", openai_call(cut(arguments(said), at and at + 10))),
    "openai escaped arguments": lambda at, said=SAID: ("openai", openai_call(cut(escaped(said), at and at + 10))),
    "anthropic text": lambda at, said=SAID: (
        "anthropic",
        anthropic_block({"type": "text", "text": ""}, [{"type": "text_delta", "text": p} for p in cut(said, at)]),
    ),
    "anthropic thinking": lambda at, said=SAID: (
        "anthropic",
        anthropic_block(
            {"type": "thinking", "thinking": ""}, [{"type": "thinking_delta", "thinking": p} for p in cut(said, at)]
        ),
    ),
    "anthropic input": lambda at, said=SAID: (
        "anthropic",
        anthropic_block(
            {"type": "tool_use", "id": "t", "name": "pay", "input": {}},
            [{"type": "input_json_delta", "partial_json": p} for p in cut(arguments(said), at and at + 10)],
        ),
    ),
    "anthropic escaped input": lambda at, said=SAID: (
        "anthropic",
        anthropic_block(
            {"type": "tool_use", "id": "t", "name": "pay", "input": {}},
            [{"type": "input_json_delta", "partial_json": p} for p in cut(escaped(said), at and at + 10)],
        ),
    ),
    "anthropic input that is there at once": lambda at, said=SAID: (
        "anthropic",
        anthropic_block({"type": "tool_use", "id": "t", "name": "pay", "input": {"note": said}}, []),
    ),
    "anthropic delta nobody knows": lambda at, said=SAID: (
        "anthropic",
        anthropic_block({"type": "new", "said": ""}, [{"type": "new_delta", "said": p} for p in cut(said, at)]),
    ),
    "openai field beside the choices": lambda at, said=SAID: ("openai", openai_beside(cut(said, at))),
    "openai field beside the delta": lambda at, said=SAID: ("openai", openai_beside_delta(cut(said, at))),
    "openai name in a list": lambda at, said=SAID: ("openai", openai_id(cut(said, at))),
    "anthropic object in a delta": lambda at, said=SAID: (
        "anthropic",
        anthropic_block({"type": "new"}, [{"type": "new_delta", "said": {"so": [p]}} for p in cut(said, at)]),
    ),
    "anthropic event nobody knows": lambda at, said=SAID: ("anthropic", anthropic_event(cut(said, at))),
    "ollama object nobody knows": lambda at, said=SAID: (
        "ollama",
        [*(ollama({"content": "", "said": {"so": [p]}}) for p in cut(said, at)), ollama({"content": ""}, done=True)],
    ),
    "ollama field beside the message": lambda at, said=SAID: (
        "ollama",
        [*(ollama({"content": ""}, said={"so": p}) for p in cut(said, at)), ollama({"content": ""}, done=True)],
    ),
    "ollama text": lambda at, said=SAID: ("ollama", ollama_text(cut(said, at))),
    "ollama thinking": lambda at, said=SAID: ("ollama", ollama_text(cut(said, at), "thinking")),
    "ollama arguments": lambda at, said=SAID: ("ollama", ollama_call({"note": said})),
    "ollama escaped arguments": lambda at, said=SAID: ("ollama", ollama_call(escaped(said))),
    "ollama field nobody knows": lambda at, said=SAID: ("ollama", ollama_text(cut(said, at), "brand_new")),
}


def test_it_works() -> None:
    sent, walker = walk("openai", openai_text(cut(SAID, START + 5)))
    said = "".join(str(one["choices"][0]["delta"].get("content", "")) for one in sent)  # type: ignore[index]
    assert said == "pay with [CREDIT_CARD] now, please"
    assert sent[-1]["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
    assert [finding.category for finding in walker.gates.findings] == ["credit_card"]


@pytest.mark.parametrize("policy", [REDACTING, BLOCKING], ids=["redact", "block"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_card_cut_anywhere_is_never_partly_sent(shape: str, policy: object) -> None:
    fours = set()
    for at in (0, *range(START + 1, END)):
        dialect, chunks = SHAPES[shape](at)
        sent, walker = walk(dialect, chunks, policy)  # type: ignore[arg-type]
        assert walker.gates.findings, f"{shape} cut at {at}: nobody looked"
        assert "411" not in json.dumps(sent), f"{shape} cut at {at}"
        fours.add(json.dumps(sent).count("4"))
        assert "1111" not in json.dumps(sent), f"{shape} cut at {at}"
    assert len(fours) == 1, f"{shape}: the first digit shows after some cut and not after others"


@pytest.mark.parametrize("shape", SHAPES)
def test_without_guardrails_every_chunk_passes_as_it_came(shape: str) -> None:
    dialect, chunks = SHAPES[shape](START + 3)
    assert walk(dialect, chunks, OPEN)[0] == chunks


def test_what_a_block_leaves_is_ended_as_the_dialect_ends_it() -> None:
    for shape in SHAPES:
        dialect, chunks = SHAPES[shape](START + 3)
        sent, _ = walk(dialect, chunks, BLOCKING)
        last = json.dumps(sent[-2:])
        wanted = {"openai": '"content_filter"', "anthropic": '"refusal"', "ollama": '"content_filter"'}[dialect]
        assert wanted in last, shape
        if dialect == "anthropic":
            opened = sum(one["type"] == "content_block_start" for one in sent)
            assert opened == sum(one["type"] == "content_block_stop" for one in sent)


def test_a_number_that_had_to_be_redacted_is_a_string() -> None:
    sent, _ = walk("openai", openai_call(['{"card": ', CARD, ', "n": 3}']))
    (call,) = [c for one in sent for c in one["choices"][0]["delta"].get("tool_calls", ())]  # type: ignore[index]
    arguments = json.loads(call["function"]["arguments"])
    assert isinstance(arguments["card"], str)
    assert arguments["n"] == 3
    assert (call["id"], call["function"]["name"]) == ("call_1", "pay")


def test_log_probabilities_spell_nothing_that_is_held() -> None:
    chunk = openai({"content": SAID}, "stop")
    chunk["choices"][0]["logprobs"] = {"content": [{"token": CARD}]}  # type: ignore[index]
    assert CARD not in json.dumps(walk("openai", [chunk])[0])
    assert walk("openai", [chunk], OPEN)[0] == [chunk]


@pytest.mark.parametrize("policy", [REDACTING, BLOCKING], ids=["redact", "block"])
def test_whole_answers_are_walked_as_streams_are(policy: object) -> None:
    function = {"name": "pay", "arguments": ARGUMENTS}
    message = {"role": "assistant", "content": SAID, "refusal": None, "reasoning_content": SAID,
               "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}  # fmt: skip
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    other = {"index": 1, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
    blocks = [{"type": "thinking", "thinking": SAID}, {"type": "text", "text": SAID},
              {"type": "tool_use", "id": "t", "name": "pay", "input": {"note": SAID, "card": int(CARD)}}]  # fmt: skip
    said = {"role": "assistant", "content": SAID, "thinking": SAID,
            "tool_calls": [{"function": {"name": "pay", "arguments": {"note": SAID}}}]}  # fmt: skip
    documents: dict[str, Json] = {
        "openai": {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice, other]},
        "anthropic": {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": blocks},
        "ollama": {"model": "m", "message": said, "done": True},
    }
    for dialect, document in documents.items():
        assert walk_whole(dialect, document, OPEN) == document
        assert "411" not in json.dumps(walk_whole(dialect, document, policy))  # type: ignore[arg-type]


def cited(title: str, url: str) -> Json:
    citation = {"start_index": 0, "end_index": 5, "title": title, "url": url}
    return {"type": "url_citation", "url_citation": citation}


@pytest.mark.parametrize("policy", [REDACTING, OPEN], ids=["guarded", "open"])
def test_the_library_puts_together_the_annotations_of_a_stream(policy: Policy) -> None:
    """They are complete in the chunk that has them; what a gate would hold of one no second chunk could say."""
    said = [cited("About the desk of joe", "https://a.example/joe.doe"), cited(f"It is {CARD}", "https://b.example/41")]
    chunks = [*openai_text(["Hello"])[:-1], openai({"annotations": said}), openai({"content": " there."}, "stop")]
    sent, _ = walk("openai", chunks, policy)
    found: dict[object, object] = {}
    for chunk in sent:
        for choice in chunk["choices"]:  # type: ignore[attr-defined]
            found = accumulate_delta(found, choice["delta"])
    card = CARD if policy is OPEN else "[CREDIT_CARD]"
    assert found["annotations"] == [said[0], cited(f"It is {card}", "https://b.example/41")]
    assert found["content"] == "Hello there."


PIECES: list[list[list[object]]] = [
    [[0], [0]], [[0, 0]], [[None], [0]], [[5], [0]], [[None], [-1]], [[True], [1]], [[0], [False]], [["0"], ["0"]],
    [[0.0], [0]], [["lc_1"], ["lc_1"]], [[0], [7], [1]], [[3], ["3"]],
]  # fmt: skip
"""What annotations call themselves, list by list: a library joins two of them, by that or by their place."""


@pytest.mark.parametrize("lists", PIECES)
def test_what_a_library_would_join_with_an_annotation_before_is_not_sent(lists: list[list[object]]) -> None:
    titles = iter(["Card 4111 1111 ", *["or"] * (sum(map(len, lists)) - 2), "1111 1111 ok"])
    made = [
        [({} if at is None else {"index": at}) | {"url_citation": {"title": next(titles)}} for at in one]
        for one in lists
    ]
    sent, _ = walk("openai", [*(openai({"annotations": one}) for one in made), openai({}, "stop")])
    assert "4111 1111" in json.dumps(sent)
    assert "1111 1111" not in json.dumps(sent).replace("4111 1111", "", 1)
    passed, _ = walk("openai", [openai({"annotations": one}) for one in made], OPEN)
    assert [chunk["choices"][0]["delta"]["annotations"] for chunk in passed] == made  # type: ignore[index]


def test_annotations_that_are_numbered_come_one_by_one() -> None:
    made = [[cited(str(n), "https://a.example/") | {"index": n}] for n in range(3)]
    chunks = [openai({"annotations": one}, index=choice) for choice in (0, 1) for one in made]
    sent, _ = walk("openai", chunks)
    assert sent == chunks


def test_annotations_that_are_no_list_are_read_as_what_libraries_join() -> None:
    for first, second in (("4111 1111 ", "1111 1111 "), ({"title": "4111 1111 "}, {"title": "1111 1111 "})):
        sent, _ = walk("openai", [openai({"annotations": first}), openai({"annotations": second}), openai({}, "stop")])
        assert "1111" not in json.dumps(sent)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
def test_what_is_another_dialect_is_not_passed_on(dialect: str) -> None:
    for chunk in ({"text": SAID}, {"choices": "x"}, {"type": "new"}, {"message": SAID}, {"type": 3}):
        with pytest.raises(WrongDialect):
            walk(dialect, [chunk])
        if dialect != "anthropic":
            with pytest.raises(WrongDialect):
                walk_whole(dialect, chunk)


@pytest.mark.parametrize("hit", [False, True], ids=["passes", "hits"])
@pytest.mark.parametrize(
    "shape",
    [
        "openai text",
        "openai arguments",
        "anthropic text",
        "anthropic input",
        "anthropic input that is there at once",
        "ollama text",
        "ollama arguments",
    ],
)
def test_what_a_guardrail_has_to_be_asked_about_waits_and_so_does_the_end(shape: str, hit: bool) -> None:
    """The chunk that ends the answer comes behind the verdict about what was said before it, or not at all."""
    judged = {"name": "judge", "kind": "toxicity", "action": "block"}
    walker = WALKERS[shape.split()[0]](Gates(compile_policy({"policy": "j", "guardrails": [judged]})))
    dialect, chunks = SHAPES[shape](START + 3)
    early: list[Json] = []
    late: list[Json] = []
    waiting = []
    for chunk in chunks:
        if walker.busy:
            waiting.append(chunk)
            continue
        walker.take(json.loads(json.dumps(chunk)))
        early += walker.drain()
    assert walker.busy
    assert "411" not in json.dumps(early)
    assert "please" not in json.dumps(early)
    for question in list(walker.gates.questions):
        walker.gates.verdict(question, "judge", Verdict(hit=hit, score=0.9))
    for chunk in waiting:
        late += walker.drain()
        if not walker.gates.blocked:
            walker.take(chunk)
    late += walker.drain()
    assert not walker.busy
    if hit:
        assert "411" not in json.dumps(late)
        return
    ended = {"openai": '"finish_reason": "', "anthropic": '"message_stop"', "ollama": '"done": true'}[dialect]
    said = json.dumps([*early, *late])
    assert said.count(CARD) == 1
    assert said.rindex(ended) > said.index(CARD)


@pytest.mark.parametrize("policy", [OPEN, REDACTING], ids=["open", "guarded"])
def test_calls_of_an_answer_in_one_piece_stay_as_many_as_it_lists(policy: Policy) -> None:
    calls = [{"index": 0, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": calls}, "finish_reason": "tool_calls"}
    document: Json = {"choices": [choice]}
    assert walk_whole("openai", document, policy) == document


PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" * 8
IMAGE: Json = {"type": "image_url", "index": 0, "image_url": {"url": f"data:image/png;base64,{PIXELS}"}}


@pytest.mark.parametrize("policy", [REDACTING, OPEN], ids=["guarded", "open"])
@pytest.mark.parametrize("beside", [True, False], ids=["images", "parts"])
def test_pictures_in_an_answer_pass_only_where_nothing_decides(policy: Policy, beside: bool) -> None:
    """Said beside the text, or among the parts of it; the words around them are there either way."""
    parts: list[Json] = [{"type": "text", "text": "A heron: "}, dict(IMAGE), {"image_url": {"url": PIXELS}}]
    last: Json = {"type": "text", "text": "there."}
    said: Json = {"content": "A heron: there.", "images": [IMAGE]} if beside else {"content": [*parts, last]}
    message = {"role": "assistant"} | said
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    stream: list[Json] = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    for sent in (walk_whole("openai", whole, policy), walk("openai", stream, policy)[0]):
        text = json.dumps(sent)
        assert (PIXELS in text) is (policy is OPEN)
        assert "A heron" in text
        assert "there." in text


SOURCE = {"type": "base64", "media_type": "image/png", "data": PIXELS}
PAGE = {"type": "document", "title": "A page", "source": SOURCE}
NOTE = {"type": "text", "text": "A note."}
TEXT_PAGE = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A note."}}


@pytest.mark.parametrize(
    ("block", "left"),
    [
        ({"type": "image", "source": SOURCE}, {"type": "text", "text": ""}),
        ({"type": "brand_new", "of": [PIXELS]}, {"type": "text", "text": ""}),
        (
            {"type": "mcp_tool_result", "tool_use_id": "t", "content": [NOTE, {"type": "image", "source": SOURCE}]},
            {"type": "mcp_tool_result", "tool_use_id": "t", "content": [NOTE, {"type": "text", "text": ""}]},
        ),
        (
            {"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "url": "u", "content": PAGE}},
            {"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "url": "u", "content": {
                "type": "document", "title": "A page",
                "source": {"type": "text", "media_type": "text/plain", "data": ""}}}},
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [NOTE, {"type": "image", "source": SOURCE}]}},
            {"type": "document", "source": {"type": "content", "content": [NOTE, {"type": "text", "text": ""}]}},
        ),
        (
            {"type": "text_editor_code_execution_tool_result", "content": {
                "type": "text_editor_code_execution_view_result", "file_type": "image", "content": PIXELS}},
            {"type": "text_editor_code_execution_tool_result", "content": {
                "type": "text_editor_code_execution_view_result", "file_type": "image", "content": ""}},
        ),
        ({"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "content": TEXT_PAGE}}, None),
        ({"type": "web_search_tool_result", "content": [
            {"type": "web_search_result", "encrypted_content": PIXELS}]}, None),
        ({"type": "redacted_thinking", "data": PIXELS}, None),
        ({"type": "tool_use", "id": "t", "name": "f", "input": {"source": SOURCE, "type": "image"}}, None),
    ],
    ids=lambda block: str(block.get("type")) if block else "as it came",
)  # fmt: skip
def test_pictures_among_the_blocks_of_an_answer_pass_only_where_nothing_decides(block: Json, left: Json | None) -> None:
    """In results of tools that the vendor ran, too; words and what the vendor has sealed stay."""
    for policy in (REDACTING, OPEN):
        kept = block if left is None or policy is OPEN else left
        streamed = walk("anthropic", anthropic_block(block, []), policy)[0]
        assert [one["content_block"] for one in streamed if "content_block" in one] == [kept]
        whole: Json = {"type": "message", "role": "assistant", "content": [block]}
        assert walk_whole("anthropic", whole, policy)["content"] == [kept]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", WALKERS)
def test_why_an_answer_ended_is_kept_as_a_plain_name_that_rules_have_seen(dialect: str, whole: bool) -> None:
    def kept(reason: str) -> str:
        walker = WALKERS[dialect](Gates(REDACTING))
        choice = {"index": 0, "message": {"content": "Hi"}, "delta": {"content": "Hi"}, "finish_reason": reason}
        documents: dict[str, list[Json]] = {
            "openai": [{"choices": [choice, choice | {"index": 1, "finish_reason": "stop"}]}],
            "anthropic": [{"type": "message_delta", "delta": {"stop_reason": reason}}],
            "ollama": [{"message": {"content": "Hi"}, "done": True, "done_reason": reason}],
        }
        if whole:
            documents["anthropic"] = [{"type": "message", "content": [], "stop_reason": reason}]
        for one in documents[dialect]:
            (walker.whole if whole else walker.take)(one)
        return walker.stop_reason

    assert [kept("length"), kept("536-22-8145"), kept("cut off here")] == ["length", "other", "other"]
