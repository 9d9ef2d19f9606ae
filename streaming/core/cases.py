"""The gate by itself on one recorded case: chunks in, what was released after each of them out.

Exists for tests, tuning and replay. Protects the rule that there is one gate: nothing here knows how to guard a text,
it only writes down what the gate said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from guardrails.findings import Action, AppliesTo, Finding, FindingDict, Mode
from guardrails.policy import Policy
from streaming.core.gate import BLOCKED, FOUND, REDACTED, RELEASE, Effect, Gate


class BadCase(ValueError):
    """A line that is not a case; says what is wrong with it. ``id`` is the case's own if it could be read."""

    permanent = True

    def __init__(self, message: str, case_id: object = None) -> None:
        self.id = case_id
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Case:
    """One text, cut into chunks."""

    id: object
    chunks: tuple[str, ...]
    applies_to: AppliesTo = AppliesTo.RESPONSE


class Result(TypedDict):
    """What the gate did. ``emissions`` has one text a chunk and one for the end; ``held`` characters, one a chunk."""

    id: object
    action: str | None
    visible: str | None
    emissions: list[str]
    held: list[int]
    findings: list[FindingDict]
    error: str | None


def parse_case(line: bytes) -> Case:
    """A line of JSON as a case. Raises ``BadCase``."""
    try:
        data = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadCase(f"not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise BadCase(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadCase("a case is a JSON object")
    case_id = data.get("id")
    if isinstance(case_id, dict | list) or case_id is None:
        raise BadCase("id: must be text or a number")
    chunks = data.get("chunks")
    if not isinstance(chunks, list):
        raise BadCase("chunks: must be a list of texts", case_id)
    for n, chunk in enumerate(chunks):
        if not isinstance(chunk, str):
            raise BadCase(f"chunks[{n}]: must be text", case_id)
        if not chunk.isascii() and any("\ud800" <= char <= "\udfff" for char in chunk):
            raise BadCase(f"chunks[{n}]: holds half of a surrogate pair, which is no character", case_id)
    try:
        applies_to = AppliesTo(data.get("applies_to", "response"))
    except ValueError:
        known = ", ".join(text.value for text in AppliesTo)
        raise BadCase(f"applies_to: must be one of {known}", case_id) from None
    return Case(case_id, tuple(chunks), applies_to)


def run_case(policy: Policy, case: Case) -> Result:
    """Feed the chunks to a fresh gate and write down what it lets out."""
    gate = Gate(policy, applies_to=case.applies_to)
    emissions: list[str] = []
    held: list[int] = []
    seen: list[Effect] = []
    for chunk in case.chunks:
        effects = gate.feed(chunk)
        seen += effects
        emissions.append(_shown(effects))
        held.append(gate.held)
    effects = gate.finish()
    seen += effects
    emissions.append(_shown(effects))
    findings = [effect[1] for effect in seen if effect[0] == FOUND]
    return Result(
        id=case.id,
        action=_action(seen, findings),
        visible="".join(emissions),
        emissions=emissions,
        held=held,
        findings=[replace(finding, n=n).as_dict() for n, finding in enumerate(findings, 1)],
        error=None,
    )


def error_result(error: BadCase, line_number: int) -> Result:
    """The result line of a line that is no case."""
    return Result(
        id=error.id,
        action=None,
        visible=None,
        emissions=[],
        held=[],
        findings=[],
        error=f"line {line_number}: {error}",
    )


def run_lines(policy: Policy, lines: Iterable[bytes]) -> Iterable[Result]:
    """A result for every line, in order."""
    for number, line in enumerate(lines, 1):
        try:
            yield run_case(policy, parse_case(line))
        except BadCase as error:
            yield error_result(error, number)


def _shown(effects: Sequence[Effect]) -> str:
    return "".join(effect[1] for effect in effects if effect[0] in (RELEASE, REDACTED) and isinstance(effect[1], str))


def _action(effects: Sequence[Effect], findings: Sequence[Finding]) -> str:
    """The strongest thing that happened; a MONITOR finding decides nothing."""
    if any(effect[0] == BLOCKED for effect in effects):
        return "block"
    if any(effect[0] == REDACTED for effect in effects):
        return "redact"
    if any(finding.mode is Mode.BLOCK and finding.action is Action.WARN for finding in findings):
        return "warn"
    return "allow"
