"""What a chunk costs: against other engines, with more rules, with a real rule pack, with longer answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

from guardrails.policy import Policy, compile_policy
from streaming.core.gate import Gate
from tests.bench import anchors
from tests.bench.clock import allocated, automata_bytes, automata_shape, best, feed_all, peak_growth, quiet
from tests.bench.registry import Row, at_least, at_most, bench, context
from tests.bench.rules import TWELVE, many, pack_document, policy_of
from tests.bench.texts import chunks, mixed, prose

SIZE = 1_000_000


def _session(policy: Policy, pieces: list[str]) -> Callable[[], object]:
    return lambda: feed_all(policy, pieces)


@bench("gate_cpu")
def gate_cpu() -> Iterable[Row]:
    """Twelve rules, 1 MB of prose, code and other languages in chunks of 1 to 6 characters."""
    text = mixed(SIZE)
    pieces = chunks(text)
    raw = [piece.encode() for piece in pieces]
    few = pieces[: len(pieces) // 8]
    policy = policy_of(TWELVE)
    database = anchors.hyperscan_stream(TWELVE)
    first = best({"first": _session(policy, pieces)}, rounds=1)["first"] / len(pieces)
    took = best(
        {
            "gate": _session(policy, pieces),
            "again": _session(policy, pieces),
            "wrapped": lambda: anchors.hyperscan_gate(policy, database, pieces),
            "bare": lambda: anchors.scan_all(database, raw),
            "re": lambda: anchors.re_once(TWELVE, text),
            "partial": lambda: anchors.partial_all(TWELVE, few),
        },
        rounds=7,
    )
    per = {name: seconds / (len(few) if name == "partial" else len(pieces)) * 1e6 for name, seconds in took.items()}
    ours = per["gate"]
    yield context(
        "gate_cpu", "gate, CPU per chunk", ours, "µs", f"first session, automaton empty: {first * 1e6:.2f} µs"
    )
    yield context("gate_cpu_itself", "… to itself (A/A: the noise of this run)", per["again"] / ours, "x")
    yield at_most("gate_cpu_hyperscan_gate", "… to Hyperscan streaming in the same wrapper", ours / per["wrapped"],
                  1, "x", f"{per['wrapped']:.2f} µs")  # fmt: skip
    yield at_most("gate_cpu_hyperscan_bare", "… to bare Hyperscan streaming (only detects)", ours / per["bare"], 3, "x",
                  f"{per['bare']:.2f} µs")  # fmt: skip
    yield at_most("gate_cpu_re_once", "… to stdlib re, once over the finished text", ours / per["re"], 3, "x",
                  f"{per['re']:.2f} µs")  # fmt: skip
    yield at_least("gate_cpu_regex_partial", "… regex partial matching, rule by rule, to ours", per["partial"] / ours,
                   5, "x", f"{per['partial']:.2f} µs")  # fmt: skip


@bench("rules_growth")
def rules_growth() -> Iterable[Row]:
    """The same text under 10 and under 1,000 rules."""
    pieces = chunks(mixed(SIZE // 2))
    policies = {count: policy_of(many(count)) for count in (10, 100, 1000)}
    for policy in policies.values():
        feed_all(policy, pieces)
    took = best({str(count): _session(policy, pieces) for count, policy in policies.items()})
    per = {name: seconds / len(pieces) * 1e6 for name, seconds in took.items()}
    note = ", ".join(f"{name} rules {micros:.2f} µs" for name, micros in per.items())
    yield at_most("rules_growth", "growth with rules, 10 to 1,000", per["1000"] / per["10"], 1.5, "x", note)


@bench("rule_pack")
def rule_pack() -> Iterable[Row]:
    """Every importable rule of the gitleaks pack and the PII kinds, on prose."""
    document = pack_document()
    started = time.process_time()
    policy = compile_policy(document)
    Gate(policy)
    compiled = time.process_time() - started
    pieces = chunks(prose(SIZE))
    cold = best({"cold": _session(policy, pieces)}, rounds=1)["cold"] / len(pieces) * 1e6
    warm = best({"warm": _session(policy, pieces)}, rounds=3)["warm"] / len(pieces) * 1e6
    held = mean_hold(policy, pieces)
    count = sum(len(guardrail.rules) for guardrail in policy.guardrails)

    size = peak_growth("tests.bench.gate_speed:pack_session")
    yield at_most("rule_pack_cpu", f"rule pack, {count} rules, CPU per chunk", warm, 10, "µs",
                  f"first session {cold:.2f} µs; {automata_shape(policy)}")  # fmt: skip
    yield at_most("rule_pack_hold", "rule pack, mean hold on prose", held, 6, "characters")
    yield at_most("rule_pack_memory", "rule pack, a process grows by (compiling included)", size / 1e6, 100, "MB",
                  f"automata by their own account {automata_bytes(policy) / 1e6:.1f} MB")  # fmt: skip
    yield at_most("rule_pack_compile", "rule pack, compile", compiled, 2, "s")


def pack_session() -> Callable[[], object]:
    """Everything the rule pack's memory row measures, its text made beforehand."""
    document, pieces = pack_document(), chunks(prose(SIZE))
    return lambda: feed_all(compile_policy(document), pieces)


def mean_hold(policy: Policy, pieces: list[str]) -> float:
    """Characters held after a chunk, on average."""
    gate = Gate(policy)
    total = 0
    for piece in pieces:
        gate.feed(piece)
        total += gate.held
    return total / len(pieces)


@bench("length_growth")
def length_growth() -> Iterable[Row]:
    """A thousand sessions of 1,000 characters against one of a million: cost of a chunk, and what stays behind."""
    policy = policy_of(TWELVE)
    pieces = chunks(mixed(SIZE))
    short: list[list[str]] = [[]]
    size = 0
    for piece in pieces:
        short[-1].append(piece)
        size += len(piece)
        if size >= 1000:
            short.append([])
            size = 0

    def sessions() -> None:
        for part in short:
            feed_all(policy, part)

    feed_all(policy, pieces)
    took = best({"short": sessions, "long": _session(policy, pieces)})
    note = f"1 k: {took['short'] / len(pieces) * 1e6:.2f} µs, 1 M: {took['long'] / len(pieces) * 1e6:.2f} µs"
    yield at_most(
        "length_growth", "growth with length, 1 k to 1 M characters", took["long"] / took["short"], 1.2, "x", note
    )
    early, late = state_size(policy, pieces[:300]), state_size(policy, pieces)
    grown, _ = allocated(lambda: _last(policy, pieces))
    yield at_most("length_memory", "memory of a session after 1 M characters", grown / 1e3, 64, "kB",
                  f"serialised state {early:,} bytes after 1 k, {late:,} after 1 M")  # fmt: skip


def _last(policy: Policy, pieces: list[str]) -> Gate:
    """A gate at the end of a long answer, not finished."""
    gate = Gate(policy)
    with quiet():
        for piece in pieces:
            gate.feed(piece)
    return gate


def state_size(policy: Policy, pieces: list[str]) -> int:
    """Bytes of a session's state in JSON."""
    return len(json.dumps(_last(policy, pieces).state()))
