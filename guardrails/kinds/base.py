"""What a guardrail kind is, and how kinds are found.

Adding a kind is adding one file to this package: a subclass of ``Kind`` with a ``name`` registers itself when its
module is imported, and ``all_kinds`` imports every module of the package. No list, enum or migration is edited.

A kind either yields ``rules`` (it then runs IMMEDIATE, inside the gate's automaton) or answers ``check`` (it then
runs BATCHED or DEFERRED; one that only computes answers ``judge`` instead). ``limits`` is for the one thing that is
neither: how long a text may become.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from abc import ABC
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Strict

from guardrails.findings import AppliesTo, Verdict
from guardrails.patterns.rule import Rule
from guardrails.performance import DECISION_TABLE, Decision, Family, PerformanceCharacteristics


class Config(BaseModel):
    """Base of every kind's parameters: unknown keys are refused, values are not coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Texts = Annotated[tuple[str, ...], Strict(False)]
"""A list of strings: written as a JSON list, kept as a tuple (strict models would refuse the list)."""

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier message of the conversation, as guardrails that ask for it see it."""

    role: str
    text: str


OMITTED = Turn("omitted", "")
"""At the head of a conversation: what was said still earlier is not there. No message has this role."""

Complete = Callable[[str, list[Turn], float], Awaitable[str]]
"""``complete(provider_name, turns, time_limit_s) -> text``: the model call that a judge needs, handed in."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a called endpoint answered."""

    status: int
    body: bytes


Post = Callable[[str, bytes, Mapping[str, str], float], Awaitable[Reply]]
"""``post(url, body, headers, time_limit_s)``: the HTTP call that an external check needs, handed in. It refuses
addresses that this installation does not allow."""

Secret = Callable[[str], str]
"""``secret(name)``: a secret of this installation by its name. Raises ``CheckFailed`` when it is not set."""

HOOK_SECRET = re.compile(r"SLUICEGATE_HOOK_[A-Z0-9_]{1,60}")
"""Names that a policy may use: whoever writes policies must not be able to send any other secret somewhere."""


class CheckFailed(ValueError):
    """An external check that gave no verdict. Its text is for a human and quotes nothing of the judged text."""


class NoVerdict(CheckFailed):
    """Whoever was asked answered, but with no verdict on this text: that says nothing about the next text."""


class TextRefused(NoVerdict):
    """Whoever was asked does not take this text: asking again would change nothing."""

    permanent = True


def refusal(who: str, status: int, why: str = "") -> CheckFailed:
    """The failure that a status other than 200 is. ``who`` and ``why`` are words for a human."""
    kind = TextRefused if status in (400, 413, 422) else CheckFailed  # those three speak of what was sent
    return kind(f"{who} answered {status}{why}")


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What a BATCHED or DEFERRED check is given: the raw text, where it comes from, earlier turns if wanted."""

    text: str
    applies_to: AppliesTo
    conversation: tuple[Turn, ...] = ()
    time_limit_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Example:
    """A parameter set with texts that must and must not be hit; run by the contract test and shown in the docs."""

    config: dict[str, object]
    hits: tuple[str, ...]
    passes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A text longer than ``max_chars`` code points is a hit that starts at the first character beyond."""

    max_chars: int
    rule: str = "max_chars"
    category: str = "length"


@dataclass(frozen=True, slots=True)
class Services:
    """What the caller lends to a check (guardrails never import providers)."""

    complete: Complete | None = None
    post: Post | None = None
    secret: Secret | None = None


class Kind(ABC, Generic[ConfigT]):
    """Base class of all kinds. Subclasses set the class attributes and override one of rules/check/limits.

    ``Config``: pydantic model of the parameters; drives validation, the admin form and the docs table. A parameter
    set that cannot be built raises ``ValueError`` (pydantic's included) from ``__init__`` and names the field.
    """

    name: ClassVar[str] = ""
    family: ClassVar[Family]
    description: ClassVar[str] = ""
    performance: ClassVar[PerformanceCharacteristics]
    applies_to: ClassVar[tuple[AppliesTo, ...]] = (AppliesTo.PROMPT, AppliesTo.RESPONSE)
    wants_conversation: ClassVar[bool] = False
    computes: ClassVar[bool] = False
    """The kind answers ``judge`` and waits for nobody: it runs in a thread, so that the event loop goes on."""
    examples: ClassVar[tuple[Example, ...]] = ()
    Config: ClassVar[type[Config]]

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            known = _REGISTRY.setdefault(cls.name, cast(type[Kind[Config]], cls))
            if known.__module__ != cls.__module__:
                raise TypeError(f"two kinds are named {cls.name!r}: {known.__module__} and {cls.__module__}")

    @classmethod
    def decision(cls) -> Decision:
        """The kind's row of the decision table."""
        return DECISION_TABLE[cls.family]

    @classmethod
    def get_performance_characteristics(cls) -> PerformanceCharacteristics:
        """Declared speed and needs."""
        return cls.performance

    def rules(self) -> Sequence[Rule]:
        """Pattern rules for the gate's automaton; empty for kinds that are not IMMEDIATE patterns."""
        return ()

    def limits(self) -> Sequence[Limit]:
        """Length limits enforced by the gate itself."""
        return ()

    def turns_wanted(self) -> int | Literal["all"]:
        """How many earlier messages of the conversation its checks want to know, the newest."""
        return "all" if self.wants_conversation else 0

    def remarks(self) -> Sequence[str]:
        """What whoever publishes this should read about its parameters; no failures."""
        return ()

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        """Judge a sentence (BATCHED) or a whole text (DEFERRED). May raise; the caller turns that into an error."""
        return self.judge(request)

    def judge(self, request: CheckRequest) -> Verdict:
        """The same, for kinds that only compute."""
        raise TypeError(f"kind {self.name!r} has rules, not checks")


_REGISTRY: dict[str, type[Kind[Config]]] = {}


@functools.cache
def _load() -> None:
    package = importlib.import_module("guardrails.kinds")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"guardrails.kinds.{module.name}")


def all_kinds() -> dict[str, type[Kind[Config]]]:
    """Every kind by name, in name order."""
    _load()
    return dict(sorted(_REGISTRY.items()))
