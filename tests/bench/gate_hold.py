"""How much text is held on prose, against the least that any correct gate could hold."""

from __future__ import annotations

from collections.abc import Iterable

from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from streaming.core.gate import Gate
from tests.bench import anchors
from tests.bench.clock import percentile
from tests.bench.registry import Row, at_most, bench, context
from tests.bench.rules import TWELVE, policy_of
from tests.bench.texts import chunks, prose

SIZE = 200_000


class Least:
    """Brute force: every start of every rule followed on its own; what may still become a match has to be held."""

    def __init__(self, policy: Policy) -> None:
        self.matchers = [
            compiled.matcher
            for guardrail in policy.running(AppliesTo.RESPONSE)
            if guardrail.decides
            for compiled in guardrail.rules
        ]
        self.live: list[list[tuple[int, object]]] = [[] for _ in self.matchers]
        self.before = ""
        self.n = 0

    def feed(self, text: str) -> None:
        """More text (ASCII, so that it folds to itself)."""
        for char in text:
            for index, matcher in enumerate(self.matchers):
                threads = [*self.live[index], (self.n, matcher.start(self.before))]
                moved = [(start, state[char]) for start, state in threads]  # type: ignore[index]
                self.live[index] = [(start, state) for start, state in moved if not (state.dead or state.only_sure)]
            self.before = char
            self.n += 1

    @property
    def held(self) -> int:
        """Characters behind the oldest start that is still undecided."""
        return self.n - min((threads[0][0] for threads in self.live if threads), default=self.n)


@bench("hold")
def hold() -> Iterable[Row]:
    """Characters held after each chunk of prose, under the twelve rules and under the shipped kinds."""
    kinds = compile_policy({"policy": "k", "guardrails": [{"kind": "pii"}, {"kind": "secrets"}]})
    for label, policy, size in (("12 rules", policy_of(TWELVE), SIZE), ("kinds", kinds, SIZE // 5)):
        yield from _hold(label, policy, chunks(prose(size).encode("ascii", "ignore").decode()))


def _hold(label: str, policy: Policy, pieces: list[str]) -> Iterable[Row]:
    gate, least = Gate(policy), Least(policy)
    held: list[int] = []
    needed: list[int] = []
    for piece in pieces:
        gate.feed(piece)
        least.feed(piece)
        held.append(gate.held)
        needed.append(least.held)
    mean, brute = sum(held) / len(held), sum(needed) / len(needed)
    name = label.split()[-1]
    chunk = sum(map(len, pieces)) / len(pieces)
    yield at_most(
        f"hold_mean_{name}", f"hold on prose, mean ({label})", mean, 4, "characters", f"a chunk has {chunk:.2f}"
    )
    yield at_most(f"hold_chunks_{name}", f"hold on prose, in chunks ({label})", mean / chunk, 1, "chunks")
    yield at_most(f"hold_p99_{name}", f"hold on prose, p99 ({label})", percentile(held, 0.99), 32, "characters",
                  f"most {max(held)}")  # fmt: skip
    yield at_most(f"hold_least_{name}", f"hold on prose to the least possible ({label})", mean / brute, 1.25, "x",
                  f"brute force {brute:.2f} characters")  # fmt: skip
    if label == "12 rules":
        partial = anchors.PartialGate(TWELVE)
        total = 0
        for piece in pieces:
            partial.feed(piece)
            total += partial.held
        yield context("hold_partial", "… regex partial matching holds", total / len(pieces), "characters")
