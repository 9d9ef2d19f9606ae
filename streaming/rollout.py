"""Whether a request streams, and why not if it does not.

Exists so that streaming can be rolled out by request type, person and percentage, and switched off at once. Protects
two rules: a decision lives no longer than one request to a provider (nothing here remembers the flag), so that an
admin's "off" also holds for the next request of an answer that is under way; and every answer in one piece says why
it is one, in its metadata and its audit record.

The order of the reasons, first match:

    use_streaming_false   the caller asked for an answer in one piece
    flag_off              the flag is off for everyone, or there is none (in the demo: then it is on)
    not_in_rollout        neither a person, a group nor the percentage of the flag reaches this conversation
    request_type          the flag's stage does not cover such requests yet
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http.cookies import CookieError, SimpleCookie
from typing import Protocol

import structlog
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, QueryDict
from django.utils.functional import SimpleLazyObject

from streaming.conf import Conf, conf, demo_mode
from streaming.core.events import ProviderChosen, ProviderEvent, joined
from streaming.database import in_database
from streaming.flags import CONVERSATION, RolloutFlag, Stage
from streaming.providers.base import Provider, ProviderRequest
from streaming.resilience import Calls, Upstreams

logger = structlog.get_logger(__name__)

FLAG = "streaming"
USE_STREAMING_FALSE = "use_streaming_false"
FLAG_OFF = "flag_off"
NOT_IN_ROLLOUT = "not_in_rollout"
REQUEST_TYPE = "request_type"
REASONS = (USE_STREAMING_FALSE, FLAG_OFF, NOT_IN_ROLLOUT, REQUEST_TYPE)

CHARS_PER_TOKEN = 4
"""A rule of thumb for prose; estimates need no more."""


@dataclass(frozen=True, slots=True)
class Decision:
    """``fallback`` is one of ``REASONS`` when ``streaming`` is False, else empty."""

    streaming: bool
    fallback: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """What a call or socket says that the flag's ``testing`` looks at: headers (names in lower case) and query."""

    headers: Sequence[tuple[str, str]] = ()
    query: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose request is decided upon. ``use_streaming`` is the caller's own word; None leaves it to the flag.

    ``flagged`` False: the flag is not asked.
    """

    conversation_id: str
    user_id: int | None = None
    use_streaming: bool | None = None
    marks: Marks = field(default_factory=Marks)
    flagged: bool = True


class Asks(Protocol):
    """What the pump needs of whoever asks the providers; ``streaming.resilience.Upstreams`` is one."""

    @property
    def providers(self) -> tuple[Provider, ...]:
        """In the order in which they are asked."""

    @property
    def streaming(self) -> bool:
        """Whether answers are asked for as streams."""

    def ask(self, request: ProviderRequest, handed: Calls | None = None) -> AsyncGenerator[ProviderEvent, None]:
        """The answer's events. ``handed``: see ``Upstreams.ask``. Raises ``ProviderError``."""


def decide(subject: Subject, request: ProviderRequest, settings: Conf | None = None) -> Decision:
    """Whether this request streams. Reads the flag from the database."""
    if subject.use_streaming is False:
        return Decision(False, USE_STREAMING_FALSE)
    if not subject.flagged:
        return Decision(True)
    flag = RolloutFlag.get(FLAG)
    if flag.pk is None:
        return Decision(True) if demo_mode() else Decision(False, FLAG_OFF)
    if flag.everyone is False:
        return Decision(False, FLAG_OFF)
    if not flag.is_active(_as_waffle_sees_it(subject), read_only=True):
        return Decision(False, NOT_IN_ROLLOUT if _reaches_anybody(flag) else FLAG_OFF)
    if not supports_streaming(request, Stage(flag.stage), settings or conf()):
        return Decision(False, REQUEST_TYPE)
    return Decision(True)


def ensure_flag(*, everyone: bool) -> None:
    """Make the flag if there is none, so that its switch stands in the admin; one that is there stays as it is."""
    RolloutFlag.objects.get_or_create(name=FLAG, defaults={"everyone": everyone, "note": "docs/rollout.md"})


def supports_streaming(request: ProviderRequest, stage: Stage, settings: Conf) -> bool:
    """Whether requests of this type stream at this stage: with tools, then long tasks as well, then all."""
    if stage is Stage.ALL or request.tools:
        return True
    return stage is Stage.LONG and estimate_s(request, settings) > settings.long_task_s


def estimate_s(request: ProviderRequest, settings: Conf) -> float:
    """How long the answer will take, in seconds: a guess made of sizes only.

    Work over a text (translate, rewrite, continue) gives back about as much as the last message holds; other answers
    are of a usual size. ``max_tokens`` bounds both.
    """
    last = request.messages[-1].text if request.messages else ""
    tokens = settings.usual_answer_tokens + len(last) / CHARS_PER_TOKEN
    if request.max_tokens is not None:
        tokens = min(tokens, request.max_tokens)
    return tokens * request.choices / settings.tokens_per_s


def marks_of(request: HttpRequest) -> Marks:
    """The marks of an HTTP call."""
    headers = tuple((name.lower(), value) for name, value in request.headers.items())
    return Marks(headers, request.META.get("QUERY_STRING", ""))


def _reaches_anybody(flag: RolloutFlag) -> bool:
    """Is any part of the flag switched on? One with nothing set is off, not a rollout that missed somebody."""
    by_kind = flag.percent or flag.testing or flag.superusers or flag.staff or flag.authenticated or flag.languages
    return bool(by_kind) or flag.users.exists() or flag.groups.exists()


def _as_waffle_sees_it(subject: Subject) -> HttpRequest:
    """A request with what flags look at; the user is read from the database only if the flag asks for one."""
    request = HttpRequest()
    request.META[CONVERSATION] = subject.conversation_id
    request.GET = QueryDict(subject.marks.query[:2_000])
    for name, value in subject.marks.headers:
        request.META["HTTP_" + name.upper().replace("-", "_")] = value
        if name == "cookie":
            request.COOKIES = _cookies(value)
    request.user = SimpleLazyObject(lambda: _user(subject.user_id))  # type: ignore[assignment]
    return request


def _cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


def _user(user_id: int | None) -> object:
    user = get_user_model().objects.filter(pk=user_id).first() if user_id is not None else None
    return user or AnonymousUser()


class RolledOut:
    """Upstreams under the flag. The first request goes as was decided; before each later one the flag is asked again.

    A tool loop makes several requests for one answer, and so do retries and fallbacks: switching the flag off reaches
    the next one of them. The way back is not taken within an answer: one that fell to the standard path stays there.
    """

    __slots__ = ("_asked", "_decision", "_first", "_inner", "_settings", "_subject")

    def __init__(self, inner: Upstreams, first: Decision, subject: Subject, settings: Conf) -> None:
        self._inner = inner
        self._decision = self._first = first
        self._subject = subject
        self._settings = settings
        self._asked = False

    @property
    def providers(self) -> tuple[Provider, ...]:
        """In the order in which they are asked."""
        return self._inner.providers

    @property
    def streaming(self) -> bool:
        """As decided last."""
        return self._decision.streaming

    async def ask(self, request: ProviderRequest, handed: Calls | None = None) -> AsyncGenerator[ProviderEvent, None]:
        """The answer's events; whoever is chosen carries the reason for not streaming. Raises ``ProviderError``."""

        async def still() -> bool:
            """Whether the next request of this round streams, too."""
            self._decision = await self._again(request)
            return self._decision.streaming

        if self._asked and self._decision.streaming:
            await still()
        self._asked = True
        inner = replace(self._inner, streaming=self._decision.streaming, still=still)
        async with aclosing(inner.ask(request, handed)) as events:
            async for event in events:
                if isinstance(event, ProviderChosen) and self._decision.fallback:
                    event = replace(event, fallback=self._reasons(event.fallback))
                yield event

    def _reasons(self, others: str) -> str:
        """What was decided before anybody was asked comes first; a switch in between comes where it came about."""
        mine, first = self._decision.fallback, self._first.fallback
        return joined(first, others, mine)

    async def _again(self, request: ProviderRequest) -> Decision:
        try:
            decision: Decision = await in_database(decide)(self._subject, request, self._settings)
        except (DatabaseError, InterfaceError) as error:
            # The answer's end may yet be stored; that the flag cannot be read is no reason to break it off.
            logger.warning("flag_unread", error=type(error).__name__)
            return self._decision
        return decision
