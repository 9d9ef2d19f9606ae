"""Where masked values come back in an answer and where not: words for a reader, across blocks and turns."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from guardrails.findings import Verdict
from guardrails.policy import Policy, compile_policy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import guarded
from streaming.gateway.walker import Json, Walker
from tests.streaming.gateway.test_walkers import anthropic_block, ollama, openai, openai_text
from tests.streaming.gateway.walked import WALKERS, strings

MAIL, CARD = "desk.seven@example.com", "4111 1111 1111 1111"
PII: Json = {"name": "pii", "kind": "pii", "action": "mask"}
POLICY = compile_policy({"policy": "p", "guardrails": [PII]})
JUDGED = compile_policy({"policy": "j", "guardrails": [PII, {"name": "judge", "kind": "toxicity", "action": "block"}]})


async def asked(policy: Policy = POLICY) -> tuple[Masks, str]:
    """A request with a mail address, and its placeholder."""
    body: Json = {"model": "m", "messages": [{"role": "user", "content": f"write to {MAIL}"}]}
    masks = Masks(policy, body, caller="c")
    rules = widened(compile_policy({"policy": "p", "guardrails": [PII]}))
    sent = (await guarded(rules, body, media_allowed=False, mask=masks.mask, swept=masks.swept)).body
    (message,) = sent["messages"]  # type: ignore[misc]
    return masks, str(message["content"]).removeprefix("write to ")  # type: ignore[index]


def walker_of(dialect: str, masks: Masks, policy: Policy = POLICY) -> Walker:
    return WALKERS[dialect](Gates(policy, masks.restoring, masks.restore_arguments, masks.same_again))


def walked(dialect: str, chunks: list[Json], masks: Masks, policy: Policy = POLICY) -> list[Json]:
    walker = walker_of(dialect, masks, policy)
    out: list[Json] = []
    for chunk in chunks:
        walker.take(json.loads(json.dumps(chunk)))
        out += walker.drain()
    walker.finish()
    return out + walker.drain()


def said(sent: list[Json]) -> str:
    return " ".join(strings(sent))


def blocks(*texts: str, kind: str = "text") -> list[Json]:
    """A message of the Messages dialect with these blocks, each said in two pieces."""
    start, *_, delta, stop = anthropic_block({"type": kind, kind: ""}, [])
    out = [start]
    for index, text in enumerate(texts):
        out.append({"type": "content_block_start", "index": index, "content_block": {"type": kind, kind: ""}})
        for part in (text[:9], text[9:]):
            said: Json = {"type": f"{kind}_delta", kind: part}
            out.append({"type": "content_block_delta", "index": index, "delta": said})
        out.append({"type": "content_block_stop", "index": index})
    return [*out, delta, stop]


def parts(*texts: str) -> list[Json]:
    """The same in a list of parts of the chat-completions dialect."""
    return [*(openai({"content": [{"type": "text", "index": n, "text": text}]}) for n, text in enumerate(texts)),
            openai({}, "stop")]  # fmt: skip


NAMED: dict[str, Callable[[str], list[Json]]] = {
    "openai content": lambda said: openai_text([said]),
    "openai refusal": lambda said: openai_text([said], "refusal"),
    "openai thinking": lambda said: openai_text([said], "reasoning_content"),
    "openai parts": lambda said: parts(said),
    "anthropic text": lambda said: blocks(said),
    "anthropic thinking": lambda said: blocks(said, kind="thinking"),
    "ollama content": lambda said: [ollama({"content": said}), ollama({"content": ""}, done=True)],
    "ollama thinking": lambda said: [ollama({"content": "", "thinking": said}), ollama({"content": ""}, done=True)],
}
OTHER: dict[str, Callable[[str], list[Json]]] = {
    "openai field nobody knows": lambda said: openai_text([said], "brand_new"),
    "openai annotations": lambda said: [
        openai({"annotations": [{"type": "url_citation", "url_citation": {"title": said, "url": said}}]}, "stop")
    ],
    "openai parts nobody knows": lambda said: [openai({"content": [{"type": "new", "new": said}]}), openai({}, "stop")],
    "anthropic citations": lambda said: anthropic_block(
        {"type": "text", "text": ""}, [{"type": "citations_delta", "citation": {"type": "web", "cited_text": said}}]
    ),
    "anthropic delta nobody knows": lambda said: anthropic_block(
        {"type": "new", "said": ""}, [{"type": "new_delta", "said": said}]
    ),
    "ollama field nobody knows": lambda said: [
        ollama({"content": "", "new": said}),
        ollama({"content": ""}, done=True),
    ],
}


@pytest.mark.parametrize("shape", NAMED)
async def test_it_works(shape: str) -> None:
    masks, placeholder = await asked()
    shown = said(walked(shape.split()[0], NAMED[shape](f"I wrote to {placeholder} today"), masks))
    assert MAIL in shown.replace(" ", "") or MAIL in shown
    assert placeholder not in shown


@pytest.mark.parametrize("shape", OTHER)
async def test_fields_that_are_no_words_for_a_reader_keep_placeholders(shape: str) -> None:
    masks, placeholder = await asked()
    shown = said(walked(shape.split()[0], OTHER[shape](f"I wrote to {placeholder} today"), masks))
    assert MAIL not in shown
    assert placeholder in shown


SPLIT = [
    ("see http://evil.example/?q=", "~ now"), ("![x](", "http://evil.example/", "~)"), ("<img src=", "'x' alt=~"),
    ("<script>", "send(' ~ ')"), ("evil.example/", "", "~"),
]  # fmt: skip


@pytest.mark.parametrize("texts", SPLIT, ids=["address", "target", "tag", "script", "empty block between"])
async def test_an_address_begun_in_one_block_gets_nothing_in_the_next(texts: tuple[str, ...]) -> None:
    masks, placeholder = await asked()
    written = [text.replace("~", placeholder) for text in texts]
    for shown in (said(walked("anthropic", blocks(*written), masks)), said(walked("openai", parts(*written), masks))):
        assert MAIL not in shown
        assert placeholder in shown.replace(" ", "") or placeholder in shown
    for dialect, document in whole(written).items():
        walker = walker_of(dialect, masks)
        walker.whole(document)
        assert MAIL not in said(walker.drain()), dialect


async def test_blocks_in_running_text_get_their_values_and_one_that_goes_on_late_as_well() -> None:
    masks, placeholder = await asked()
    written = ["see http://a.example/?q= or ", f" {placeholder}"]
    assert said(walked("anthropic", blocks(*written), masks)).count("seven@example.com") == 1
    chunks = parts(*written)
    chunks.insert(2, openai({"content": [{"type": "text", "index": 0, "text": " And so on."}]}))
    parted = [c["delta"].get("content") for one in walked("openai", chunks, masks) for c in one["choices"]]  # type: ignore[attr-defined]
    first = "".join(part["text"] for some in parted for part in some or () if part["index"] == 0)
    assert first == "see http://a.example/?q= or  And so on."


def whole(texts: list[str]) -> dict[str, Json]:
    message = {"role": "assistant", "content": [{"type": "text", "text": text} for text in texts]}
    content = message["content"]
    return {
        "openai": {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]},
        "anthropic": {"type": "message", "role": "assistant", "content": content},
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "the later one first"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_verdicts_in_any_order_change_nothing_about_where_a_block_begins(
    dialect: str, order: tuple[int, int]
) -> None:
    masks, placeholder = await asked(JUDGED)
    for texts, back in (
        (["It stands at http://evil.example/q=", f"{placeholder} as I said."], 0),
        (["It stands at the very end.", f" {placeholder} is what I said."], 1),
    ):
        walker = walker_of(dialect, masks, JUDGED)
        walker.whole(whole(texts)[dialect])
        assert walker.drain() == []
        questions = list(walker.gates.questions)
        assert len(questions) == 2
        for at in order:
            assert walker.drain() == []
            walker.gates.verdict(questions[at], "judge", Verdict(hit=False, score=0.0))
        assert said(walker.drain()).count(MAIL) == back


def thought(text: str, signature: str = "c2lnbmVk") -> list[Json]:
    deltas: list[Json] = [{"type": "thinking_delta", "thinking": part} for part in (text[:7], text[7:]) if part]
    return anthropic_block(
        {"type": "thinking", "thinking": "", "signature": ""},
        [*deltas, *({"type": "signature_delta", "signature": part} for part in (signature[:3], signature[3:]))],
    )


ALTERED = {
    "redacted": f"the card is {CARD}, then",
    "lower case": "mail ~lower now",
    "in an address": "http://e.example/?~",
}
SAME = {"nothing hidden": "the card is there", "put back": "mail ~ now"}


@pytest.mark.parametrize("text", [*ALTERED.values(), *SAME.values()], ids=[*ALTERED, *SAME])
async def test_a_signature_stays_only_where_thoughts_come_back_as_they_were_signed(text: str) -> None:
    masks, placeholder = await asked()
    kept = text in SAME.values()
    text = text.replace("~lower", placeholder.lower()).replace("~", placeholder)
    sent = walked("anthropic", thought(text), masks)
    signatures = [d["signature"] for one in sent if (d := one.get("delta")) and "signature" in d]  # type: ignore[operator,index]
    assert signatures == (["c2lnbmVk"] if kept else [])
    kinds = [str(one["type"]) for one in sent]
    assert kinds.index("content_block_stop") == len(kinds) - 3, "the signature stands within its block"
    block = {"type": "thinking", "thinking": text, "signature": "c2lnbmVk"}
    walker = walker_of("anthropic", masks)
    walker.whole({"type": "message", "role": "assistant", "content": [block, {"type": "text", "text": "Hi"}]})
    (document,) = walker.drain()
    assert document["content"][0]["signature"] == ("c2lnbmVk" if kept else "")  # type: ignore[index]


@pytest.mark.parametrize("action", ["mask", "redact", "block"])
@pytest.mark.parametrize("text", ["ping 203.0.113.77 first", "ping\\n203.0.113.77 first", "mail ~ now", "nothing here"])
async def test_thoughts_that_rules_for_prompts_alone_would_alter_lose_their_signature(action: str, text: str) -> None:
    """The model's own value, which no rule for answers minds, and which the next request may not bring back."""
    own = text.startswith("ping")
    policy = widened(
        compile_policy({"policy": "p", "guardrails": [{**PII, "action": action, "applies_to": ["prompt"]}]})
    )
    asked_first: Json = {"role": "user", "content": f"write to {MAIL}" if action == "mask" else "write"}
    body: Json = {"model": "m", "messages": [asked_first]}
    masks = Masks(policy, body, caller="c")
    sent = (await guarded(policy, body, media_allowed=False, mask=masks.mask, swept=masks.swept)).body
    placeholder = str(sent["messages"][0]["content"]).removeprefix("write to ")  # type: ignore[index]
    text = text.replace("~", placeholder if action == "mask" else "the desk")
    walker = walker_of("anthropic", masks, policy)
    block = {"type": "thinking", "thinking": text, "signature": "c2lnbmVk"}
    walker.whole({"type": "message", "role": "assistant", "content": [block, {"type": "text", "text": "Hi"}]})
    (document,) = walker.drain()
    shown = document["content"][0]  # type: ignore[index]
    assert shown["signature"] == ("" if own else "c2lnbmVk")
    streamed = "".join(
        str(d.get("signature", ""))
        for one in walked("anthropic", thought(text), masks, policy)
        if isinstance(d := one.get("delta"), dict)
    )
    assert streamed == shown["signature"]
    answered = {"role": "assistant", "content": document["content"]}
    again: Json = {"model": "m", "messages": [asked_first, answered]}
    masks = Masks(policy, again, caller="c")
    back = await guarded(policy, again, media_allowed=False, mask=masks.mask, swept=masks.swept)
    parts = back.body["messages"][1]["content"]  # type: ignore[index,call-overload]
    assert back.blocked is None
    assert parts == ([] if own else [block]) + [{"type": "text", "text": "Hi"}]


@pytest.mark.parametrize(
    ("action", "length", "kept"), [("redact", 40_000, True), ("redact", 40_001, False), ("warn", 40_001, True)]
)
async def test_thoughts_too_long_to_be_looked_at_once_more_lose_their_signature(
    action: str, length: int, kept: bool
) -> None:
    """That look holds up everybody else; where rules for prompts hide nothing, it decides nothing."""
    guardrail = {**PII, "action": action, "applies_to": ["prompt"]}
    policy = widened(compile_policy({"policy": "p", "guardrails": [guardrail]}))
    masks = Masks(policy, {"messages": [{"role": "user", "content": "write"}]}, caller="c")
    walker = walker_of("anthropic", masks, policy)
    block = {"type": "thinking", "thinking": ("thus " * 8_001)[:length], "signature": "c2lnbmVk"}
    walker.whole({"type": "message", "role": "assistant", "content": [block, {"type": "text", "text": "Hi"}]})
    (document,) = walker.drain()
    assert document["content"][0] == {**block, "signature": "c2lnbmVk" if kept else ""}  # type: ignore[index]


async def test_thoughts_that_were_put_back_go_upstream_again_as_they_were_signed() -> None:
    masks, placeholder = await asked()
    text = f"mail {placeholder} now"
    shown = "".join(
        str(d.get("thinking", "")) for one in walked("anthropic", thought(text), masks) if (d := one.get("delta"))
    )  # type: ignore[attr-defined]
    assert shown == f"mail {MAIL} now"
    block = {"type": "thinking", "thinking": shown, "signature": "c2lnbmVk"}
    answered = {"role": "assistant", "content": [block, {"type": "text", "text": "Done"}]}
    body: Json = {"model": "m", "messages": [{"role": "user", "content": f"write to {MAIL}"}, answered]}
    again = Masks(POLICY, body, caller="c")
    sent = (await guarded(widened(POLICY), body, media_allowed=False, mask=again.mask, swept=again.swept)).body
    assert sent["messages"][1]["content"][0] == {**block, "thinking": text}  # type: ignore[index,call-overload]


async def test_thoughts_without_a_signature_stay_away_from_the_next_request() -> None:
    unsigned, text = {"type": "thinking", "thinking": "[CARD]", "signature": ""}, {"type": "text", "text": "Done"}
    messages = [{"role": "assistant", "content": [unsigned, text]}, {"role": "assistant", "content": [unsigned]}]
    sent = (await guarded(widened(POLICY), {"model": "m", "messages": messages}, media_allowed=False)).body
    assert [len(one["content"]) for one in sent["messages"]] == [1, 1]  # type: ignore[index,attr-defined]
    assert sent["messages"][0]["content"] == [text]  # type: ignore[index,call-overload]
    unguarded = widened(compile_policy({"policy": "o", "guardrails": []}))
    assert (await guarded(unguarded, {"model": "m", "messages": messages}, media_allowed=False)).body[
        "messages"
    ] == messages


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("toolu_01A09q90qw90lq917835lq9", True), ("claude-haiku-4-5-20251001", True), ("end_turn", True),
        ("Café 5", True),
        ("one two three four", False), ("You_are_a_worthless_idiot_and_everybody_who_knows_you_hates_you_too", False),
        ("你是一个毫无价值的白痴大家都讨厌你", False), ("คุณเป็นคนโง่ที่ไร้ค่า", False),
    ],
)  # fmt: skip
def test_what_a_judge_would_have_to_read_first_is_not_shown_where_nobody_is_asked(text: str, shown: bool) -> None:
    assert Gates(JUDGED).plain(text) == (text if shown else "")
    assert Gates(POLICY).plain(text) == text
