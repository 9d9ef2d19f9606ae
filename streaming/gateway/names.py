"""Names of fields, and numbers that are no more than numbers.

Exists because whatever a client or a model can write, a value can stand in: in the name of a field as well as in its
text. Protects the rules that a name is masked, redacted and stopped like any text, that two fields stay two when
something is hidden in both of their names, and that a number is left alone only where the dialects have one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable

from guardrails.findings import AppliesTo, Finding
from guardrails.policy import Policy
from streaming.checks import CheckedText
from streaming.core import gate as gates
from streaming.core.gate import Gate, strongest
from streaming.gateway.loose_json import laid_open

Path = tuple[str | int, ...]

_PARAMETERS = frozenset(
    {"seed", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "top_k", "top_p", "min_p", "temperature",
     "frequency_penalty", "presence_penalty", "repetition_penalty", "top_logprobs", "keep_alive"}
)  # fmt: skip
_OPTIONS = frozenset(
    {"seed", "num_predict", "num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "top_k", "top_p",
     "min_p", "typical_p", "temperature", "repeat_last_n", "repeat_penalty", "frequency_penalty", "presence_penalty",
     "mirostat", "mirostat_eta", "mirostat_tau", "tfs_z"}
)  # fmt: skip

HOLDERS = frozenset(
    {"source", "input_audio", "file", "video", "image", "audio", "image_url", "audio_url", "video_url", "document_url",
     "image_embeds", "audio_embeds", "video_embeds"}
)  # fmt: skip
"""Fields of a picture, a sound or a file that are objects with its bytes in them."""


def is_parameter(path: Path) -> bool:
    """Whether a number stands there that every vendor takes for one: a seed, a limit, a share."""
    match path:
        case (str(name),):
            return name in _PARAMETERS
        case ("options", str(name)):
            return name in _OPTIONS
    return path == ("thinking", "budget_tokens")


_COUNTS = frozenset({"created", "created_at", "expires_at", "index", "size", "n"})
_COUNT_ENDS = ("_tokens", "_count", "_duration", "_time", "_index", "_ms", "_requests")
_LARGEST_COUNT = 2 * 10**12
"""Milliseconds since 1970 until the year 2033, nanoseconds of half an hour; the rules look at what is more. The numbers
of Visa (13 digits or more, the first a 4), American Express and Mastercard are."""


def is_count(name: str | int, number: float) -> bool:
    """Whether a number is one of those that vendors count and measure: tokens, seconds since 1970, nanoseconds."""
    if not isinstance(name, str) or not (name in _COUNTS or name.endswith(_COUNT_ENDS)):
        return False
    return abs(number) < _LARGEST_COUNT


def spelled(number: int | float) -> str:
    """A number as a rule reads it: whole ones as digits alone, however they were written."""
    whole = isinstance(number, float) and number.is_integer() and abs(number) < 1e21
    return str(int(number)) if whole else json.dumps(number)


def looked(rules: Policy, text: str, applies_to: AppliesTo) -> CheckedText:
    """A short text after the rules of a policy; nobody is asked."""
    gate, out, parts = Gate(rules, applies_to, "names"), CheckedText(), list[str]()
    at = 0
    for effect in [*gate.feed(text), *gate.finish()]:
        if effect[0] == gates.FOUND:
            out.findings.append(effect[1])
        elif effect[0] == gates.BLOCKED:
            out.blocked = effect[1]
        elif effect[0] == gates.RELEASE or effect[0] == gates.REDACTED:
            if effect[0] == gates.REDACTED:
                out.redactions.append((at, effect[1]))
            parts.append(effect[1])
            at += len(effect[1])
    out.visible = "".join(parts)
    out.counters = gate.counters
    out.findings.sort(key=lambda finding: (finding.start, finding.end))
    out.action = strongest(out.findings)
    return out


class Names:
    """The names of fields of one request as they may go upstream. ``mask``: what hides a value in a text."""

    def __init__(self, rules: Policy, mask: Callable[[str, CheckedText], str]) -> None:
        self._rules = rules
        self._mask = mask
        self._known: dict[tuple[AppliesTo, str], str] = {}
        self.findings: list[Finding] = []
        self.blocked: Finding | None = None
        self.withheld = 0
        """Characters of names that were blocked."""

    def __len__(self) -> int:
        """How many different ones have been looked at."""
        return len(self._known)

    def shown(self, name: str, applies_to: AppliesTo, taken: Iterable[Container[str]], numbers: dict[str, int]) -> str:
        """A name, and not one of those that are ``taken`` if anything of it is hidden.

        ``numbers``: of the same object, how often each of them has been told apart from others.
        """
        found = self._known.get((applies_to, name))
        if found is None:
            said = laid_open(name, lambda text: looked(self._rules, text, applies_to).findings)
            checked = looked(self._rules, said, applies_to)
            self.findings += checked.findings
            self.blocked = self.blocked or checked.blocked
            self.withheld += 0 if checked.blocked is None else len(said) - checked.counters.released
            found = self._known[(applies_to, name)] = self._mask(said, checked)
        if found == name:
            return name
        number = numbers.get(found, 1)
        made = found if number == 1 else f"{found}_{number}"
        while any(made in names for names in taken):
            number += 1
            made = f"{found}_{number}"
        numbers[found] = number
        return made
