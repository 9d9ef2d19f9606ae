"""Arguments that no parser takes, or not every one alike: what stands in them is looked at all the same."""

from __future__ import annotations

import json

import pytest

from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.names import looked
from streaming.gateway.walker import MAX_ARGUMENTS, Json, objects
from tests.streaming.gateway.test_walkers import CARD, anthropic_block, cut, ollama, openai, openai_call
from tests.streaming.gateway.walked import BLOCKING, OPEN, REDACTING, WALKERS, walk

HIDDEN = CARD.replace("4", "\\u0034", 1)
ODD = {
    "cut short": f'{{"note": "pay with {HIDDEN} now", "to": ["x',
    "cut within an escape": f'{{"note": "pay with {HIDDEN} now", "to": "\\u00',
    "two in a row": f'{{"to": "x"}}{{"note": "pay with {HIDDEN} now"}}',
    "text behind": f'{{"note": "pay with {HIDDEN} now"}} That is all.',
    "one field twice": f'{{"note": "pay with {HIDDEN} now", "note": "x"}}',
    "one field twice, deep": f'{{"a": [{{"note": "x", "note": "pay with {HIDDEN} now", "note": "y"}}]}}',
    "a string alone": f'"pay with {HIDDEN} now"',
    "in the name of a field": f'{{"{HIDDEN}": 1, "{HIDDEN}": 2}}',
}


def sent_of(text: str, policy: object) -> str:
    """The arguments as a client is sent them."""
    sent, _ = walk("openai", openai_call(cut(text, len(text) // 2)), policy)  # type: ignore[arg-type]
    pieces = [
        call["function"].get("arguments", "")
        for one in sent
        for choice in one["choices"]  # type: ignore[attr-defined]
        for call in choice["delta"].get("tool_calls", ())
    ]
    return "".join(pieces)


def test_it_works() -> None:
    assert sent_of(ODD["text behind"], REDACTING) == '{"note": "pay with [CREDIT_CARD] now"} That is all.'


@pytest.mark.parametrize("how", ODD)
def test_an_escape_hides_nothing_in_what_no_parser_takes(how: str) -> None:
    for policy in (REDACTING, BLOCKING):
        said = sent_of(ODD[how], policy)
        assert "111111" not in said
    assert "CREDIT_CARD" in sent_of(ODD[how], REDACTING)
    assert sent_of(ODD[how], OPEN) == ODD[how]


@pytest.mark.parametrize("how", [how for how in ODD if how.startswith("one field twice")])
def test_what_was_json_is_json_again(how: str) -> None:
    json.loads(sent_of(ODD[how], REDACTING))


def test_arguments_of_ollama_that_are_text_are_looked_at_too() -> None:
    for text in ODD.values():
        call = {"function": {"name": "pay", "arguments": text}}
        sent, _ = walk("ollama", [ollama({"content": "", "tool_calls": [call]}), ollama({"content": ""}, done=True)])
        assert "111111" not in json.dumps(sent)


def test_who_is_asked_about_arguments_reads_them_decoded() -> None:
    judged = {"name": "judge", "kind": "toxicity", "action": "block"}

    walker = WALKERS["openai"](Gates(compile_policy({"policy": "j", "guardrails": [judged]})))
    for chunk in openai_call(['{"note": "\\u0049gnore the lock."}']):
        if not walker.busy:
            walker.take(chunk)
            walker.drain()
    assert any("Ignore the lock" in question.check.text for question in walker.gates.questions)


def given(note: object) -> list[Json]:
    return anthropic_block({"type": "tool_use", "id": "t", "name": "send_mail", "input": {"to": note}}, [])


def test_input_that_is_there_at_once_gets_values_back_for_the_tool_that_may_have_them() -> None:
    policy = compile_policy({"policy": "m", "restore_in_tools": ["send_mail"], "guardrails": [
        {"name": "p", "kind": "pii", "action": "mask", "applies_to": ["prompt"]}]})  # fmt: skip
    body: Json = {"messages": [{"role": "user", "content": "Hi"}]}
    masks = Masks(widened(policy), body, caller="c")
    name = masks.mask(CARD, looked(widened(policy), CARD, AppliesTo.PROMPT))
    walker = WALKERS["anthropic"](Gates(policy, masks.restoring, masks.restore_arguments))
    out: list[Json] = []
    for chunk in given(name):
        walker.take(chunk)
        out += walker.drain()
    assert out == given(CARD)


@pytest.mark.parametrize("text", ["mail {} now", '"mail {}"', '{{"to": "{}"}}', '{{"to": "{}", "cut'])
def test_a_tool_of_free_text_gets_values_back_too(text: str) -> None:
    policy = widened(compile_policy({"policy": "m", "restore_in_tools": ["pay"], "guardrails": [
        {"name": "p", "kind": "pii", "action": "mask", "applies_to": ["prompt"]}]}))  # fmt: skip
    masks = Masks(policy, {"messages": [{"role": "user", "content": "Hi"}]}, caller="c")
    name = masks.mask(CARD, looked(policy, CARD, AppliesTo.PROMPT))
    piece = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "pay", "input": text.format(name)}}
    walker = WALKERS["openai"](Gates(policy, masks.restoring, masks.restore_arguments))
    walker.take(openai({"tool_calls": [piece]}, "tool_calls"))
    (chunk, _) = walker.drain()
    made = chunk["choices"][0]["delta"]["tool_calls"][0]  # type: ignore[index]
    assert made["custom"] == {"name": "pay", "input": text.format(CARD)}


PROGRAMS = {
    r'[re.compile(r"\d+\w"), "{}"]': True,
    r'{ const s = "\q\u0041"; mail("{}") }': True,
    r'[re.compile(r"\d"), "http://evil.example/?q=a {}"]': False,
    r'[re.compile(r"\d"), "{}", "http://evil.example/?q=a {}"]': False,
}
"""Programs that begin as JSON does, and whether a value comes back into them."""


@pytest.mark.parametrize(("text", "back"), PROGRAMS.items())
def test_a_program_into_which_a_value_comes_back_is_otherwise_as_it_was_written(text: str, back: bool) -> None:
    policy = widened(compile_policy({"policy": "m", "restore_in_tools": ["run"], "guardrails": [
        {"name": "p", "kind": "pii", "action": "mask", "applies_to": ["prompt"]}]}))  # fmt: skip
    masks = Masks(policy, {"messages": [{"role": "user", "content": "Hi"}]}, caller="c")
    written = text.replace("{}", masks.mask(CARD, looked(policy, CARD, AppliesTo.PROMPT)))
    shown = masks.restore_arguments(written, "run")
    assert shown == (text.replace("{}", CARD) if back else written)
    assert masks.put_back == shown.count(CARD)


FREE = {
    "a pattern": 're.match("\\d+", s)',
    "lines": 'x = """\nl\n"""',
    "a line end within quotes": 'say "a\nb"',
    "a list of strings": '["a\nb", r"\\d", f"\\t"]',
    "a block": '{ const s = "\\q"; }',
    "a quote alone": "it is 5' 3\" tall\n\\",
    "JSON twice": '{"a": "\\u00e9"}\n{"a": "\\/"}',
}


@pytest.mark.parametrize("masked", [False, True], ids=["redact", "values may come back"])
@pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
@pytest.mark.parametrize("text", FREE.values(), ids=FREE)
def test_free_text_in_which_nothing_is_hidden_is_what_the_model_wrote(text: str, whole: bool, masked: bool) -> None:
    """Programs, patches and patterns: every sign counts."""
    policy = widened(compile_policy({"policy": "m", "restore_in_tools": ["run"], "guardrails": [
        {"name": "p", "kind": "pii", "action": "mask" if masked else "redact"}]}))  # fmt: skip
    masks = Masks(policy, {"messages": [{"role": "user", "content": "Hi"}]}, caller="c")
    if masked:
        masks.mask(CARD, looked(policy, CARD, AppliesTo.PROMPT))
    walker = WALKERS["openai"](Gates(policy, masks.restoring, masks.restore_arguments))
    call = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "run", "input": text}}
    if whole:
        walker.whole({"choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": [call]}}]})
    else:
        for piece in cut(text, 0):
            walker.take(openai({"tool_calls": [call | {"custom": {"input": piece}}]}))
        walker.take(openai({"tool_calls": [call | {"custom": {"name": "run"}}]}))
        walker.take(openai({}, "tool_calls"))
    choices = [choice for one in walker.drain() for choice in objects(one["choices"])]
    (said,) = (call for one in choices for call in one["message" if whole else "delta"].get("tool_calls", ()))  # type: ignore[attr-defined]
    assert said["custom"] == {"name": "run", "input": text}
    assert walker.gates.blocked is None


@pytest.mark.parametrize("policy", [REDACTING, BLOCKING], ids=["redact", "block"])
def test_of_a_program_nothing_is_altered_but_what_is_hidden(policy: Policy) -> None:
    text = 'if re.match("\\d+", s):\n    say("""\nto\n""", "{}")'
    sent = sent_of(text.format(CARD), policy)
    assert sent == (text.format("[CREDIT_CARD]") if policy is REDACTING else "")
    spelled = text.format(HIDDEN)
    assert "111111" not in sent_of(spelled, policy)
    both = f'say("{CARD}", "{HIDDEN}")'
    assert "111111" not in sent_of(both, policy)
    walker = walk("openai", openai_call([text.format(CARD)]), policy)[1]
    assert [finding.category for finding in walker.gates.findings] == ["credit_card"]


def test_input_that_is_there_at_once_is_not_longer_than_arguments_may_be() -> None:
    sent, walker = walk("anthropic", given("x" * MAX_ARGUMENTS))
    assert walker.gates.blocked is not None
    assert "xxx" not in json.dumps(sent)
    assert [one["type"] for one in sent] == ["message_start", "message_delta", "message_stop"]


def test_what_nobody_knows_of_an_event_passes_where_nothing_is_kept_back() -> None:
    chunks = [one | {"brand_new": {"kept": [1, "x"]}} for one in given("Ada")]
    assert walk("anthropic", chunks, OPEN)[0] == chunks
    assert walk("anthropic", [{"type": "message_start", "message": {}}, {"type": "new", "a": "b"}], OPEN)[0][1:] == [
        {"type": "new", "a": "b"}
    ]
