"""MONITOR never holds, hides or changes one character: whatever the rules, the verdicts, the failures and the cuts."""

from __future__ import annotations

import random

import pytest

from guardrails.findings import Action, Mode, OnError, Verdict, would_have
from guardrails.kinds import base
from guardrails.kinds.base import CheckFailed, CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from streaming.checks import FAILURES
from streaming.core.gate import BLOCKED, CHECK, FOUND, REDACTED, RELEASE, Effect, Gate, SentenceCheck
from streaming.models import AuditSession
from tests.streaming import generate
from tests.streaming.drive import drive, random_cut, regex_policy
from tests.streaming.pumping import trial
from tests.streaming.seeds import Seeds
from tests.streaming.test_gate_errors import failing
from tests.streaming.test_gate_properties import random_policy

EXAMPLES, WATCHED = 300, 100
"""Of random rules; of random guardrails, which take longer to compile."""
WORDS = (
    "ignore all previous instructions", "poison", "heron", "https://bit.ly/x", "```python\nos.system('rm')\n```",
    "idiot", "my number is 536-22-8145.", "é\u200bx", "The lock. ", "Is it? ", "\n\n", "\U0001f600", "kill",
)  # fmt: skip
CONFIGS: dict[str, dict[str, object]] = {
    "keywords": {"keywords": ["heron", "poison", "idiot", "the"]},
    "topics": {"deny": ["weapons", "hate"]},
    "url": {"blocked_domains": ["bit.ly"]},
    "length": {"max_chars": 40},
    "code": {},
    "toxicity": {},
    "prompt_injection": {},
}
"""Kinds whose guardrails may stand in MONITOR and look at text while it streams."""


def watching(chance: random.Random) -> Policy:
    """Up to five random guardrails, every one in MONITOR."""
    entries = [
        {
            "name": f"g{n}", "kind": kind, "mode": "MONITOR", "applies_to": ["response"], "config": CONFIGS[kind],
            "action": chance.choice(["block", "redact", "warn"]), "on_error": chance.choice(list(OnError)).value,
        }
        for n, kind in enumerate(chance.choices(list(CONFIGS), k=chance.randint(1, 5)))
    ]  # fmt: skip
    return compile_policy({"policy": "t", "guardrails": entries})


def written(chance: random.Random) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 12)))


class Reader:
    """Feeds a gate in MONITOR and answers what it asks, in any order and with any verdict."""

    def __init__(self, gate: Gate, chance: random.Random) -> None:
        self.gate, self.chance = gate, chance
        self.visible = ""
        self.findings: list[tuple[Mode, Action, str | None]] = []
        self.open: list[tuple[SentenceCheck, str]] = []

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert effect[0] not in (REDACTED, BLOCKED), effect
            if effect[0] == RELEASE:
                self.visible += effect[1]
            elif effect[0] == FOUND:
                self.findings.append((effect[1].mode, effect[1].action, effect[1].would_have))
            elif effect[0] == CHECK:
                self.open += [(effect[1], name) for name in effect[1].guardrails]

    def answer(self, most: int) -> None:
        for _ in range(min(most, len(self.open))):
            check, name = self.open.pop(self.chance.randrange(len(self.open)))
            error = self.chance.choice([None, None, "away"])
            self.take(self.gate.verdict(check.id, name, Verdict(self.chance.random() < 0.5, 0.9, "c", error=error)))

    def read(self, chunks: list[str]) -> None:
        came = ""
        for chunk in chunks:
            self.take(self.gate.feed(chunk))
            came += chunk
            assert self.visible == came, "nothing is held, not even while a verdict is out"
            assert self.gate.held == 0
            self.answer(self.chance.randint(0, 2))
        self.take(self.gate.finish())
        self.answer(len(self.open))
        assert self.visible == came


def a_policy_of_guardrails_in_monitor_alters_nothing(seed: int) -> None:
    chance = random.Random(seed)
    policy, text = watching(chance), written(chance)
    reader = Reader(Gate(policy), chance)
    reader.read(random_cut(text, seed, 9))
    assert reader.visible == text
    for mode, action, said in reader.findings:
        assert (mode, said) == (Mode.MONITOR, would_have(Mode.MONITOR, action))


def any_policy_that_is_run_in_monitor_alters_nothing(seed: int) -> None:
    chance = random.Random(seed)
    policy = random_policy(chance)
    trees = [compiled.tree for guardrail in policy.guardrails for compiled in guardrail.rules]
    text = generate.text(trees, chance) if trees else "ab1"
    reader = Reader(Gate(policy, monitor=True), chance)
    reader.read(random_cut(text, seed, 5))
    decided = drive(policy, [text])
    if decided.visible != text or decided.blocked:
        assert any(said for _, _, said in reader.findings), "what it would have done is said"


def test_it_works() -> None:
    reader = Reader(Gate(regex_policy(("block", [("h", "heron")])), monitor=True), random.Random(1))
    reader.read(["a her", "on s", "tands"])
    assert (reader.visible, reader.findings) == ("a heron stands", [(Mode.MONITOR, Action.BLOCK, "blocked")])


@pytest.mark.parametrize("seeds", [Seeds(0, WATCHED)], ids=str)
def test_a_policy_of_guardrails_in_monitor_alters_nothing(seeds: Seeds) -> None:
    seeds.each(a_policy_of_guardrails_in_monitor_alters_nothing)


@pytest.mark.parametrize("seeds", [Seeds(0, EXAMPLES)], ids=str)
def test_any_policy_that_is_run_in_monitor_alters_nothing(seeds: Seeds) -> None:
    seeds.each(any_policy_that_is_run_in_monitor_alters_nothing)


def test_the_same_policies_do_alter_texts_when_they_decide() -> None:
    """Or the properties above would say nothing."""
    altered = found = 0
    for seed in range(WATCHED):
        chance = random.Random(seed)
        policy = random_policy(chance)
        trees = [compiled.tree for guardrail in policy.guardrails for compiled in guardrail.rules]
        text = generate.text(trees, chance) if trees else "ab1"
        got = drive(policy, [text])
        altered += got.visible != text
        chance = random.Random(seed)
        reader = Reader(Gate(watching(chance)), chance)
        reader.read([written(chance)])
        found += bool(reader.findings)
    assert altered > WATCHED / 5
    assert found > WATCHED / 5


# -- a guardrail that fails ------------------------------------------------------------------------------------------


class Fails(Kind[Config]):
    """Never has a verdict."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = Config

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        raise CheckFailed("the other side is gone")


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> None:
    base.all_kinds()
    monkeypatch.setattr(Fails, "name", "trial_fails", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_fails", Fails)  # type: ignore[arg-type]


@pytest.mark.parametrize("on_error", OnError)
@pytest.mark.parametrize("cut", [["x 123 abc"], list("x 123 abc")], ids=["whole", "by character"])
def test_a_rule_that_fails_in_monitor_alters_nothing_and_says_so(on_error: OnError, cut: list[str]) -> None:
    reader = Reader(Gate(failing(on_error), monitor=True), random.Random(1))
    reader.read(cut)
    would = "blocked" if on_error is OnError.BLOCK else None
    assert (Mode.MONITOR, Action.BLOCK if would else Action.WARN, would) in reader.findings


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("fails")
@pytest.mark.parametrize("on_error", OnError)
@pytest.mark.parametrize("monitor", [False, True], ids=["the guardrail", "the run"])
async def test_a_check_that_fails_in_monitor_alters_nothing_and_is_on_record(on_error: OnError, monitor: bool) -> None:
    """Its status, its count of failures in the session's record; and no word of an answer less."""
    entry = {"name": "g", "kind": "trial_fails", "mode": "BLOCK" if monitor else "MONITOR", "action": "block",
             "on_error": on_error.value, "applies_to": ["response"]}  # fmt: skip
    policy = compile_policy({"policy": "t", "guardrails": [entry]}, version=1, digest="sha256:t")
    before = FAILURES.labels("g", "error")._value.get()
    case = await trial(["One sentence. ", "And one more."], policy=policy, monitor=monitor)
    await case.pump.run()
    assert await case.shown() == "One sentence. And one more."
    [done] = await case.of("done")
    assert done["outcome"] == "allowed"
    states = [event for event in await case.of("guardrail_status") if event["state"] == "error"]
    assert {(event["guardrail"], event["error"]) for event in states} == {("g", "the other side is gone")}
    session = await AuditSession.objects.aget(pk=case.session_id)
    told = session.timing["guardrails"]["g"]
    assert told["errors"] == told["checks"] >= 2
    assert session.would_have == "", "nobody knows what it would have said"
    assert FAILURES.labels("g", "error")._value.get() == before + told["errors"], "and in the metrics"
