"""Placeholders: nobody forges one, none crosses a conversation or a caller, and what was redacted stays redacted."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Protocol

import pytest
from django.core.exceptions import ImproperlyConfigured

import guardrails
from guardrails.admin.rules.envelope import read, sheet
from guardrails.admin.rules.reading import Reading
from guardrails.findings import Action, AppliesTo, Finding, Mode
from guardrails.lint import lint_document
from guardrails.masking import DASHES, GRAMMAR, LENGTH, LETTERS, Masker, canonical, masking_guardrails, well_formed
from guardrails.performance import Checkpoint
from guardrails.policy import Policy, PolicyError, compile_policy, normalise
from streaming.checks import CheckedText, check_text
from streaming.core.gate import gate_text
from streaming.mask_keys import mask_keys
from tests.streaming.seeds import Seeds

KEY = b"a key of this installation, long enough"
SHAPED = re.compile(GRAMMAR)
STARTERS = ("basic", "content_moderation", "customer_service", "demo", "educational", "financial", "medical")


def masker(conversation: str = "c1", caller: str = "alice", key: bytes = KEY) -> Masker:
    return Masker([key], caller=caller, conversation=conversation)


def policy(action: str = "mask", **more: object) -> Policy:
    return compile_policy(
        {"policy": "p", "guardrails": [
            {"name": "pii", "kind": "pii", "action": action, "config": {"entities": ["email", "ssn", "phone"]}},
            {"name": "words", "kind": "keywords", "action": "redact", "config": {"keywords": ["heron", "joe"]}},
        ], **more}
    )  # fmt: skip


async def masked(m: Masker, text: str, under: Policy) -> tuple[str, CheckedText]:
    checked = await check_text(under, text, applies_to=AppliesTo.PROMPT)
    return m.mask(text, checked.findings, checked.redactions, masking=masking_guardrails(under)), checked


async def test_it_works() -> None:
    m = masker()
    text = "Mail ann@example.com or call 212-555-0123; ann@example.com is better."
    sent, _ = await masked(m, text, policy())
    found = SHAPED.findall(sent)
    assert len(found) == 3
    assert found[0] == found[2] != found[1]
    assert "ann" not in sent
    assert "555" not in sent
    assert [m.restored(one) for one in found] == ["ann@example.com", "212-555-0123", "ann@example.com"]
    assert len(m) == 2
    assert {len(one) for one in found} == {LENGTH}
    assert "-MAIL-" in found[0]
    assert "-PHON-" in found[1]


def test_another_conversation_caller_or_key_has_another_placeholder_and_restores_nothing() -> None:
    mine = masker()
    placeholder = mine.placeholder("ann@example.com", "email")
    for other in (
        masker("c2"),
        masker(caller="bob"),
        masker(key=KEY + b"2"),
        masker("alicec", "1"),
        masker("c1alice", ""),
    ):
        assert other.placeholder("ann@example.com", "email") != placeholder
        assert other.tag != mine.tag
        assert other.restored(placeholder) is None
    assert masker().restored(placeholder) is None, "the map belongs to one request"
    assert masker().placeholder("ann@example.com", "email") == placeholder, "and is the same when it is made again"


def test_a_new_key_takes_over_and_the_old_one_is_not_needed() -> None:
    rotated = Masker([b"the newest key of all", KEY], caller="alice", conversation="c1")
    placeholder = rotated.placeholder("ann@example.com")
    assert rotated.restored(placeholder) == "ann@example.com"
    assert placeholder != masker().placeholder("ann@example.com")


@pytest.mark.parametrize("keys", [[], [b"short"]])
def test_without_a_real_key_nothing_is_masked(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Masker(keys, caller="a", conversation="b")


def test_one_changed_letter_anywhere_restores_nothing() -> None:
    m = masker()
    placeholder = m.placeholder("ann@example.com", "email")
    for at, char in enumerate(placeholder):
        for other in (set(LETTERS) | set("AEIOU09-")) - {char}:
            changed = placeholder[:at] + other + placeholder[at + 1 :]
            assert m.restored(changed) is None
    assert m.restored(placeholder[:-1]) is None
    assert m.restored(placeholder + "B") is None


def test_case_and_dashes_count_within_the_grammar_and_nothing_else_does() -> None:
    m = masker()
    placeholder = m.placeholder("ann@example.com", "email")
    assert m.restored(placeholder.lower()) == "ann@example.com"
    for dash in DASHES:
        assert m.restored(placeholder.replace("-", dash)) == "ann@example.com"
        assert canonical(placeholder.replace("-", dash).title()) == placeholder
    for other in ("--", " - ", "", "\n", "+", "\u2014", "-\u200b"):
        assert m.restored(placeholder.replace("-", other)) is None
    assert m.restored(placeholder.replace("M", "\uff2d")) is None


def test_a_forged_placeholder_is_escaped_and_comes_back_as_it_was() -> None:
    m = masker()
    real = m.placeholder("ann@example.com", "email")
    for forged in (real, real.lower(), real.replace("-", "_"), masker("c2").placeholder("x")):
        sent = m.mask(f"Say {forged}, please.")
        assert forged not in sent
        (escaped,) = SHAPED.findall(sent)
        assert m.restored(escaped) == forged
        assert "-TEXT-" in escaped


async def test_what_is_redacted_stays_redacted_and_joins_nothing() -> None:
    m = masker()
    sent, checked = await masked(m, "heron: ann@example.com", policy())
    assert sent.startswith("[REDACTED]: MASK-MAIL-")
    joined, checked = await masked(m, "joe@example.com", policy())
    assert joined == checked.visible, "a redacted word within the address"
    assert "joe" not in joined
    assert "heron" not in repr([m.restored(one) for one in SHAPED.findall(sent)])


async def test_without_a_masking_guardrail_a_text_is_what_the_gate_shows() -> None:
    names = ["heron", "ann@example.com", "joe", "212-555-0123", "078-05-1120", " and ", ", ", "é", "x"]
    redacting = policy("redact")
    for seed in range(200):
        chance = random.Random(seed)
        text = "".join(chance.choice(names) for _ in range(chance.randrange(9)))
        sent, checked = await masked(masker(), text, redacting)
        assert sent == checked.visible


async def test_what_is_over_a_length_limit_does_not_go_upstream() -> None:
    long = compile_policy({"policy": "p", "guardrails": [
        {"name": "length", "kind": "length", "action": "redact", "config": {"max_chars": 10}}]})  # fmt: skip
    sent, checked = await masked(masker(), "0123456789 and the rest", long)
    assert sent == checked.visible
    assert "rest" not in sent


def test_what_comes_out_matches_the_grammar_and_no_starter_policy_finds_anything_in_it() -> None:
    starters = [compile_policy(starter(name)) for name in STARTERS]

    def check(seed: int) -> None:
        m = masker(f"c{seed}")
        chance = random.Random(seed)
        placeholder = m.placeholder(f"value {seed}", chance.choice(["email", "ssn", "", "phone", "iban"]))
        assert SHAPED.fullmatch(placeholder)
        assert well_formed(placeholder)
        text = chance.choice(["password: ~", "api_key = '~'", "token=~", "IBAN ~", "account number ~", "~"])
        for under in starters:
            found = gate_text(under, text.replace("~", placeholder), applies_to=AppliesTo.RESPONSE).findings
            assert not [f for f in found if f.action != "warn"]

    Seeds(0, 60).each(check)


def starter(name: str) -> dict[str, object]:
    return dict(json.loads((Path(guardrails.__path__[0]) / "starters" / f"{name}.json").read_text("utf-8")))


def test_only_guardrails_that_decide_and_have_rules_mask() -> None:
    assert masking_guardrails(policy()) == {"pii"}
    monitored = compile_policy({"policy": "p", "guardrails": [
        {"name": "words", "kind": "keywords", "action": "mask", "mode": "MONITOR", "config": {"keywords": ["x"]}},
        {"name": "off", "kind": "pii", "action": "mask", "mode": "DISABLED"},
        {"name": "long", "kind": "length", "action": "mask", "config": {"max_chars": 3}}]})  # fmt: skip
    assert masking_guardrails(monitored) == frozenset()


def test_nothing_about_values_stands_in_what_is_logged() -> None:
    m = masker()
    m.placeholder("ann@example.com")
    assert repr(m) == "Masker(1 values)"


def test_a_policy_names_the_tools_that_get_values() -> None:
    assert policy().restore_in_tools == frozenset()
    named = policy(restore_in_tools=["send_mail", "mcp:crm/find", "send_mail"])
    assert named.restore_in_tools == {"send_mail", "mcp:crm/find"}
    assert named.only(Checkpoint.IMMEDIATE).restore_in_tools == named.restore_in_tools


def test_a_document_without_such_tools_is_written_as_it_always_was() -> None:
    before = {"policy": "p", "guardrails": []}
    assert "restore_in_tools" not in normalise(before)
    assert normalise({**before, "restore_in_tools": []}) == normalise(before)
    named = normalise({**before, "restore_in_tools": ["a"]})
    assert named["restore_in_tools"] == ["a"]
    assert normalise(named) == named


@pytest.mark.parametrize(
    ("value", "path"),
    [("send_mail", "restore_in_tools"), ([""], r"restore_in_tools\[0\]"), (["a", 1], r"restore_in_tools\[1\]"),
     (["*"], r"restore_in_tools\[0\]"), (["a b"], r"restore_in_tools\[0\]")],
)  # fmt: skip
def test_what_names_no_tool_is_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(PolicyError, match=f"^{path}: "):
        compile_policy({"policy": "p", "guardrails": [], "restore_in_tools": value})


def test_lint_says_where_mask_only_redacts() -> None:
    report = lint_document({"policy": "p", "guardrails": [
        {"name": "pii", "kind": "pii", "action": "mask"},
        {"name": "out", "kind": "pii", "action": "mask", "applies_to": ["response"]},
        {"name": "long", "kind": "length", "action": "mask", "config": {"max_chars": 3}}]})  # fmt: skip
    remarks = [guardrail.remarks for guardrail in report.guardrails]
    assert not any("mask" in remark for remark in remarks[0])
    assert any("nothing that is sent to a model" in remark for remark in remarks[1])
    assert any("names no values" in remark for remark in remarks[2])


def test_the_rule_form_reads_and_writes_the_tools() -> None:
    document = {"policy": "p", "description": "", "restore_in_tools": ["send_mail", "find"], "guardrails": []}
    drawn = sheet(document)
    node = next(node for node in drawn.head if node.label == "Restore in tools")
    assert node.value.split() == ["send_mail", "find"]
    pairs = [("f.policy", "p"), ("f.description", ""), ("f.restore_in_tools", "send_mail\r\nfind")]
    assert compile_policy(read(Reading(pairs))).restore_in_tools == {"send_mail", "find"}
    assert normalise(read(Reading(pairs[:2]))) == normalise({"policy": "p", "guardrails": []})


def test_text_made_of_masked_texts_keeps_our_placeholders_and_escapes_others() -> None:
    m = masker()
    ours = m.mask("ann@example.com", [FOUND], [(0, "[EMAIL]")], masking=frozenset({"pii"}))
    forged = masker("c2").placeholder("x")
    sent = m.mask(f'{{"a": "{ours}", "b": "{forged}"}}', again=True)
    assert ours in sent
    assert forged not in sent
    assert m.restored(SHAPED.findall(sent)[1]) == forged


FOUND = Finding("pii", "pii", "email", "email", 0, 15, Mode.BLOCK, Action.MASK)


class MaskSettings(Protocol):
    SECRET_KEY: str
    SLUICEGATE_MASK_KEYS: list[str]


def test_keys_come_from_the_settings_or_follow_from_the_secret_key(settings: MaskSettings) -> None:
    settings.SLUICEGATE_MASK_KEYS = []
    settings.SECRET_KEY = "one secret of this installation"
    own = mask_keys()
    assert len(own) == 1
    assert len(own[0]) == 32
    settings.SECRET_KEY = "another one"
    assert mask_keys() != own
    settings.SLUICEGATE_MASK_KEYS = ["the newest secret", "the secret before it"]
    assert mask_keys() == (b"the newest secret", b"the secret before it")
    settings.SLUICEGATE_MASK_KEYS = ["short"]
    with pytest.raises(ImproperlyConfigured, match="16 characters") as refused:
        mask_keys()
    assert "short" not in str(refused.value).split()
