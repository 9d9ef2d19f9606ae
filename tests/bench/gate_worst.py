"""Text that was written to hurt: what the slowest chunks cost, whether memory stays within the automata's budget."""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Callable, Iterable

from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from streaming.core.gate import Gate, gate_text
from tests.bench.clock import allocated, automata_bytes, automata_shape, each_chunk, feed_all, percentile
from tests.bench.registry import Row, at_most, bench
from tests.bench.rules import TWELVE, many, policy_of
from tests.bench.texts import chunks, prose

SIZE = 200_000
_LETTERS = string.ascii_letters + string.digits


def _runs(chance: random.Random) -> str:
    return "".join(chance.choice(_LETTERS) for _ in range(SIZE))


def _one_letter(_: random.Random) -> str:
    return "a" * SIZE


def _digits(chance: random.Random) -> str:
    """Digits and what stands between them in numbers, some to a line, nothing to be found."""
    return _lines(lambda: "".join(chance.choice("0123456789 -.") for _ in range(chance.randint(5, 60))))


def _near_misses(chance: random.Random) -> str:
    """Heads of values of every sort, each cut short or spoilt in its last part, some to a line, nothing to be found.

    Two heads can make a value ("joe.bloggs@mail." and "GB"): such lines are left out.
    """
    whole = [
        "219-09-99x", "4111 1111 1111 111", "joe.bloggs@mail.", "(212) 555-01", "sk-aB3dE5fG7hI9jK1lM3n", "10.20.30.",
        "ghp_aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW", "AKIAQ4XYZ7LMNOP", "DE89 3704 00", "https://x", "project blue hero",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOi", "219-", "4111-1111-", "a@b-", "sk-", "AKIA", "gh", "1.2.3", "GB", "http:",
    ]  # fmt: skip

    def line() -> str:
        out = ""
        for _ in range(chance.randint(1, 6)):
            value = chance.choice(whole)
            out += value[: chance.randint(1, len(value))] + chance.choice(["", " ", "-", ".", "@", "x"])
        return out

    return _lines(line)


def _lines(make: Callable[[], str]) -> str:
    """Lines of that sort without a hit, or the row would measure what is found and not what is looked for."""
    out: list[str] = []
    size = 0
    while size < SIZE:
        line = make() + "\n"
        if not _finds(line):
            out.append(line)
            size += len(line)
    text = "".join(out)
    assert not _finds(text), "the lines make a hit together"
    return text


@functools.cache
def _judges() -> tuple[Policy, ...]:
    return tuple(make() for make in POLICIES.values())


def _finds(text: str) -> bool:
    """Does any of the policies find anything here? (On automata of their own: those measured stay cold.)"""
    return any(gate_text(policy, text, applies_to=AppliesTo.RESPONSE).findings for policy in _judges())


def _never_idle(_: random.Random) -> str:
    return "xy" * (SIZE // 2)


def _code_points(_: random.Random) -> str:
    """100,000 different ones, twice (half as many as the text is long)."""
    points = [chr(code) for code in range(0x20, 0x1D800) if not 0xD800 <= code < 0xE000][: SIZE // 2]
    return "".join(points) * 2


def _ignorables(chance: random.Random) -> str:
    return "".join(chance.choice(["4", "1", " ", "\u200b" * 9, "\u0301", "\u200b" * 40]) for _ in range(SIZE // 10))


WORKLOADS = {
    "long runs without spaces": _runs,
    "one letter, over and over": _one_letter,
    "digits and separators": _digits,
    "near-misses of every rule": _near_misses,
    "rule pairs that are never idle": _never_idle,
    "100 k distinct code points": _code_points,
    "zero-width characters": _ignorables,
}


_KINDS = {"policy": "kinds", "guardrails": [{"name": "pii", "kind": "pii"}, {"name": "secrets", "kind": "secrets"}]}
POLICIES: dict[str, Callable[[], Policy]] = {
    "12": lambda: policy_of({**TWELVE, "xy": "xy0", "yx": "yx0"}),
    "kinds": lambda: compile_policy(_KINDS),
    "300": lambda: policy_of(many(300)),
}
"""The twelve rules with a pair that is never idle, the shipped kinds, and 300 rules of a pack's sorts."""


TURNS = 5


def undisturbed(turns: Iterable[list[int]]) -> list[int]:
    """Nanoseconds of every chunk in its best turn: its own work never changes, and the machine can only add to it."""
    return [min(times) for times in zip(*turns, strict=True)]


def worst(make_policy: Callable[[], Policy], workload: str, plain: list[str]) -> tuple[float, float, float]:
    """p99 of a chunk in µs, and the lowest and highest p99 of a single turn.

    Each turn has automata that know prose and nothing else: what only an attacker needs is paid for every time.
    """
    pieces = chunks(WORKLOADS[workload](random.Random(1)), 1)
    turns: list[list[int]] = []
    for _ in range(TURNS):
        policy = make_policy()
        feed_all(policy, plain)
        turns.append(each_chunk(Gate(policy), pieces))
    alone = [percentile(turn, 0.99) / 1e3 for turn in turns]
    return percentile(undisturbed(turns), 0.99) / 1e3, min(alone), max(alone)


@bench("adversarial")
def adversarial() -> Iterable[Row]:
    """p99 of a chunk of each hostile text against the median chunk of prose, and the memory it leaves behind.

    Both are taken over each chunk's best of five turns: without that, the p99 is the machine's and not the gate's.
    """
    plain = chunks(prose(SIZE))
    for label, make_policy in POLICIES.items():
        policy = make_policy()
        feed_all(policy, plain)
        median = percentile(undisturbed(each_chunk(Gate(policy), plain) for _ in range(TURNS)), 0.5) / 1e3
        for number, (workload, make) in enumerate(WORKLOADS.items()):
            p99, least, most = worst(make_policy, workload, plain)
            yield at_most(f"adversarial_{label}_{number}", f"{workload} ({label}), p99 of a chunk", p99 / median, 15,
                          "x", f"{p99:.1f} µs (one turn {least:.1f}-{most:.1f}) to prose {median:.2f}")  # fmt: skip
            feed_all(policy, chunks(make(random.Random(number))))
        budget = sum(lane.scanner.budget for lane in policy.plan(AppliesTo.RESPONSE).lanes) / 1e6
        used = automata_bytes(policy) / 1e6
        yield at_most(f"adversarial_{label}_account", f"automata after all of it ({label})", used, budget, "MB",
                      automata_shape(policy))  # fmt: skip
    yield _real_memory()


def _real_memory() -> Row:
    """The budget against what Python has really allocated."""
    policy = POLICIES["kinds"]()
    pieces = [piece for make in WORKLOADS.values() for piece in chunks(make(random.Random(9)))]
    size, _ = allocated(lambda: feed_all(policy, pieces))
    account = automata_bytes(policy)
    return at_most("adversarial_memory", "allocated against the automata's own account (kinds)",
                   size / max(account, 1), 1, "x", f"{size / 1e6:.1f} MB against {account / 1e6:.1f} MB")  # fmt: skip
