"""What a model provider is, how providers are found, and how they fail.

Adding a provider is adding one file to this package: a subclass of ``Provider`` with a ``name`` registers itself when
its module is imported, and ``available`` imports every module of the package. No list, enum or migration is edited.

Protects two rules. A provider only says what it heard, in the events of ``streaming.core.events``; what a reader may
see is the gate's business. And a failure says by its class whether trying again can help:

    ProviderError                 permanent = False
    ├── ProviderUnavailable       not reached, overloaded, closed early: another try may work
    │   ├── ProviderTimeout       one of the time limits passed
    │   ├── ProviderRateLimited   told to wait (``retry_after_s``)
    │   └── StreamCutOff          the answer ended without its terminator; what came before it stands
    ├── ProviderProtocolError     what it sent is not its dialect                   permanent = True
    └── ProviderRefused           it understood and will not: 4xx, in-stream error  permanent = True
        └── ProviderAuthError     key missing or wrong                              permanent = True
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import ClassVar

from streaming.core.events import ProviderEvent, TextDelta
from streaming.core.text import mend
from streaming.providers.sampling import NO_WISHES, Sampling


class ProviderError(Exception):
    """Base of all provider failures. ``str()`` is fit for a reader: it never carries a key or a body unread."""

    permanent: ClassVar[bool] = False
    code: ClassVar[str] = "provider_error"

    def __init__(self, message: str = "") -> None:
        super().__init__(mend(message))  # some of its words are the endpoint's, and they are told and stored


class ProviderUnavailable(ProviderError):
    """Not reached, overloaded, or gone in the middle."""

    code = "provider_unavailable"


class ProviderTimeout(ProviderUnavailable):
    """A time limit passed."""

    code = "provider_timeout"


class ProviderRateLimited(ProviderUnavailable):
    """The provider asks to wait. ``retry_after_s`` is None when it does not say how long."""

    code = "provider_rate_limited"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StreamCutOff(ProviderUnavailable):
    """The stream ended without saying that it is done."""

    code = "provider_cut_off"


class ProviderProtocolError(ProviderError):
    """What came is not the dialect."""

    permanent = True
    code = "provider_garbage"


class ProviderRefused(ProviderError):
    """The provider answered with an error that trying again will not change."""

    permanent = True
    code = "provider_refused"


class ProviderAuthError(ProviderRefused):
    """The key is missing, wrong, or may not do this."""

    code = "provider_auth"


class UnknownProvider(LookupError):
    """No provider of that name is offered here."""


class UnknownScenario(LookupError):
    """The scripted provider has no scenario of that name."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model is told of it. ``parameters``: a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ToolCallMade:
    """A call that the model made in an earlier round. ``arguments``: JSON text of an object, as it was run."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of the conversation. ``role``: system, user, assistant or tool.

    An assistant's message may carry ``tool_calls`` and the thinking that led to them, with the ``signature`` that
    some dialects want back. A tool's message answers the call ``tool_call_id``; ``failed`` says that ``text`` is an
    error.
    """

    role: str
    text: str
    tool_calls: tuple[ToolCallMade, ...] = ()
    tool_call_id: str = ""
    failed: bool = False
    thinking: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer is over whoever gives it: ``at`` on the running loop's clock, ``within_s`` after its beginning."""

    at: float
    within_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds)

    @property
    def left_s(self) -> float:
        """Seconds; not above 0 once it has passed."""
        return self.at - asyncio.get_running_loop().time()

    @property
    def words(self) -> str:
        """What is said then."""
        return f"the answer was not complete within {self.within_s:g} s"


def never_rest() -> float:
    """Somebody waits for every token."""
    return 0.0


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """What a provider is asked. ``model`` empty: the provider's default. ``scenario`` and ``text`` are scripted's.

    ``choices`` > 1 asks for that many answers (dialects without it refuse clearly, and so does an answer with tools).
    ``max_tokens`` None: the dialect's own default. ``rest_s`` is asked before each wait for more of a stream, and says
    for how many seconds nothing that comes would be told to anybody: so long the connection may be left alone
    (``Provider.stream``). ``deadline``: when the whole answer is over, tries, fallbacks and rounds of tools included;
    None: no more than the provider's own limits hold.
    """

    messages: tuple[ChatMessage, ...]
    model: str = ""
    scenario: str = ""
    text: str = ""
    tools: tuple[ToolSpec, ...] = ()
    choices: int = 1
    max_tokens: int | None = None
    sampling: Sampling = NO_WISHES
    rest_s: Callable[[], float] = field(default=never_rest, compare=False, repr=False)
    deadline: Deadline | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds: to connect, between two events of a stream, and for the whole answer."""

    connect_s: float = 30.0
    token_s: float = 180.0
    total_s: float = 900.0

    @classmethod
    def from_environment(cls, env: Mapping[str, str], provider: str) -> TimeLimits:
        """``SLUICEGATE_<PROVIDER>_CONNECT_S``, ``…_TOKEN_S``, ``…_TOTAL_S``. Raises ``ValueError`` with its name."""
        given: dict[str, float] = {}
        for limit in ("connect_s", "token_s", "total_s"):
            name = f"SLUICEGATE_{provider.upper()}_{limit.upper()}"
            if not (text := env.get(name, "").strip()):
                continue
            try:
                given[limit] = float(text)
            except ValueError:
                given[limit] = 0.0
            if not 0 < given[limit] <= 86_400:
                raise ValueError(f"{name} is a number of seconds above 0 and at most a day")
        return cls(**given)


class Provider(ABC):
    """Base class of all providers.

    ``from_environment`` answers None when the provider is not configured; it is then not offered. It raises
    ``ValueError``, which names the setting, when one is ill-formed. ``stream`` is an
    async generator that closes its response in ``finally``; cancelling it closes the response at once.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    scripted: ClassVar[bool] = False
    calls_in_text: ClassVar[bool] = False
    """Whether servers of this dialect may pass tool calls on as the model wrote them: they are read out of texts."""
    circuit: str = ""
    """Whose failures count together with this one's; empty: those of every provider of this name."""

    _registry: ClassVar[dict[str, type[Provider]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            known = Provider._registry.setdefault(cls.name, cls)
            if known.__module__ != cls.__module__:
                raise TypeError(f"two providers are named {cls.name!r}: {known.__module__} and {cls.__module__}")

    @classmethod
    @abstractmethod
    def from_environment(cls, env: Mapping[str, str]) -> Provider | None:
        """The provider as the environment configures it, or None."""

    @property
    @abstractmethod
    def default_model(self) -> str:
        """The model used when a request names none."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models to offer; at least the default one."""
        return (self.default_model,)

    @property
    def scenarios(self) -> Mapping[str, str]:
        """Ready-made scenarios, name -> label; empty for real providers."""
        return {}

    @property
    def called(self) -> str:
        """The name that tells it from others of its kind."""
        return self.circuit or self.name

    @property
    def answer_s(self) -> float:
        """Seconds that an answer which it is asked for may take in all."""
        return TimeLimits().total_s

    def validate(self, request: ProviderRequest) -> None:
        """Refuse what can be seen to be wrong before a session begins. Raises ``UnknownScenario``."""
        if request.scenario and request.scenario not in self.scenarios:
            raise UnknownScenario(f"provider {self.name!r} has no scenario {request.scenario!r}")

    def stand_ins(self, request: ProviderRequest) -> tuple[Provider, ...]:
        """Who is asked behind this one for such a request alone; what is configured stands behind every request."""
        return ()

    def problem(self) -> str:
        """What can be seen to be wrong with how it is configured; empty: nothing. Its requests will be refused."""
        return ""

    @abstractmethod
    def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The answer as events. Raises ``ProviderError``; events that came before it stand.

        Before it waits for more, a provider may leave its connection alone for ``request.rest_s()`` seconds: what
        comes meanwhile is then taken together. One that does not is woken for every token, and is right all the same.
        """

    def standard(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The same answer asked for without streaming: the same events, all at once. Raises ``ProviderError``.

        A provider that knows only one way answers with its stream.
        """
        return self.stream(request)

    async def complete(self, request: ProviderRequest) -> str:
        """The whole answer of choice 0 as text, not streamed. Raises ``ProviderError``."""
        async with aclosing(self.standard(request)) as events:
            parts = [event.text async for event in events if isinstance(event, TextDelta) and event.choice == 0]
        return "".join(parts)


@functools.cache
def _load() -> None:
    package = importlib.import_module("streaming.providers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"streaming.providers.{module.name}")


def configured(env: Mapping[str, str]) -> tuple[dict[str, Provider], dict[str, str]]:
    """Providers by name, and what is wrong with the settings of those that cannot be offered, by name."""
    _load()
    found: dict[str, Provider] = {}
    wrong: dict[str, str] = {}
    for name, cls in Provider._registry.items():
        try:
            provider = cls.from_environment(env)
        except ValueError as error:
            wrong[name] = str(error)
            continue
        if provider is not None:
            found[name] = provider
    return found, wrong


def available(env: Mapping[str, str] | None = None) -> dict[str, Provider]:
    """Every configured provider by name, scripted first. ``env`` None: the process's environment.

    One whose settings are ill-formed is not among them: the others do not suffer for it.
    """
    found, _ = configured(os.environ if env is None else env)
    return {p.name: p for p in sorted(found.values(), key=lambda p: (not p.scripted, p.name))}


def get_provider(name: str, env: Mapping[str, str] | None = None) -> Provider:
    """One configured provider. Raises ``UnknownProvider`` and says what is wrong, or names those that are offered."""
    environment = os.environ if env is None else env
    found, wrong = configured(environment)
    if name in wrong:
        raise UnknownProvider(f"provider {name!r} is not offered here, its settings are wrong: {wrong[name]}")
    if name not in found:
        raise UnknownProvider(f"provider {name!r} is not offered here; offered: {', '.join(available(environment))}")
    return found[name]
