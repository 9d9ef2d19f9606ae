"""Upstreams of the gateway that operators configure in the admin, beside those of the environment.

Exists so that an upstream is added, changed and taken away without a restart: the rows are read for every request, in
every process. Protects two rules. The key of an upstream is encrypted where it is stored and shown nowhere. And whoever
may edit rows must not make this server talk to what only this server can reach: every connection goes to an address
that ``streaming.outbound`` allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from guardrails.kinds.base import CheckFailed
from guardrails.unchanged import Unchanged
from streaming.database import in_database
from streaming.outbound import AddressRefused, address_of
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import Provider, ProviderRefused, ProviderUnavailable, TimeLimits, available
from streaming.providers.http import HttpProvider
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from streaming.texts import CANNOT_BE_OPENED, SealedTextField

DIALECTS: dict[str, type[HttpProvider]] = {
    "openai": OpenAIProvider, "anthropic": AnthropicProvider, "ollama": OllamaProvider,
}  # fmt: skip
DEFAULT = TimeLimits()
SECONDS = (MinValueValidator(0.1), MaxValueValidator(86_400))


class Upstream(models.Model):
    """One upstream. ``model_names``: one name a line, the first is the default."""

    class Dialect(models.TextChoices):
        """What it speaks."""

        OPENAI = "openai", "OpenAI"
        ANTHROPIC = "anthropic", "Anthropic"
        OLLAMA = "ollama", "Ollama"

    name = models.SlugField(
        max_length=40, unique=True, help_text="Clients name it before the model: name/model. It is in the audit log."
    )
    dialect = models.CharField(max_length=16, choices=Dialect.choices)
    base_url = models.CharField(
        "base URL", max_length=500, help_text="Where it is, as its vendor's library wants it (OpenAI: …/v1)."
    )
    key = SealedTextField(blank=True, editable=False)
    model_names = models.TextField("models", help_text="Models to offer, one a line; the first one is the default.")
    fallback = models.PositiveSmallIntegerField(
        default=0,
        help_text="Its place among those asked when another one fails, behind SLUICEGATE_FALLBACKS; 0: not among them.",
    )
    at_once = models.PositiveIntegerField(
        "answers at once", default=0, help_text="Answers that it may be asked for at once; 0: as many as clients want."
    )
    connect_s = models.FloatField(
        "seconds to connect", null=True, blank=True, validators=SECONDS,
        help_text=f"Empty: {DEFAULT.connect_s:g}.",
    )  # fmt: skip
    token_s = models.FloatField(
        "seconds without a token", null=True, blank=True, validators=SECONDS,
        help_text=f"How long it may be silent while it streams. Empty: {DEFAULT.token_s:g}.",
    )  # fmt: skip
    total_s = models.FloatField(
        "seconds for an answer", null=True, blank=True, validators=SECONDS,
        help_text=f"For all of it, whatever happens. Empty: {DEFAULT.total_s:g}.",
    )  # fmt: skip
    enabled = models.BooleanField(default=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        """In the order in which they are asked."""

        ordering = ("fallback", "name")

    def __str__(self) -> str:
        return self.name

    @property
    def listed(self) -> tuple[str, ...]:
        """Its models."""
        return tuple(dict.fromkeys(line.strip() for line in self.model_names.splitlines() if line.strip()))

    @property
    def limits(self) -> TimeLimits:
        """How long it is waited for; what is not said is as everywhere."""
        said = {name: getattr(self, name) for name in ("connect_s", "token_s", "total_s")}
        return TimeLimits(**{name: value for name, value in said.items() if value is not None})

    @property
    def has_key(self) -> bool:
        """Whether one is stored; it may be that none of the installation's keys opens it."""
        return bool(self.key)


@dataclass(frozen=True, slots=True)
class Offered:
    """Who can be asked, by the name that clients use. ``fallbacks``: names, in order.

    ``at_once``: how many answers of that one may be under way; of others as many as clients want.
    """

    providers: dict[str, Provider]
    models: dict[str, tuple[str, ...]]
    fallbacks: tuple[str, ...]
    at_once: Mapping[str, int] = field(default_factory=dict)

    def dialect_of(self, name: str) -> str:
        """What that one speaks; empty for the scripted provider, which speaks none."""
        provider = self.providers[name]
        return provider.name if isinstance(provider, HttpProvider) else ""


_enabled = Unchanged(lambda _: Upstream.objects.filter(enabled=True))


def offered_now() -> Offered:
    """The upstreams of the environment and those of the admin."""
    providers = available()
    models = {name: provider.models for name, provider in providers.items()}
    fallbacks = [name for name in settings.SLUICEGATE_FALLBACKS if name in providers]
    at_once = dict(settings.SLUICEGATE_UPSTREAMS_AT_ONCE)
    listed = list(settings.SLUICEGATE_FALLBACKS)
    for row in _enabled.rows():
        if row.name in providers or row.dialect not in DIALECTS or row.key == CANNOT_BE_OPENED or not row.listed:
            continue
        providers[row.name] = _provider(row)
        models[row.name] = row.listed
        if row.at_once:
            at_once[row.name] = row.at_once
        if row.name in listed or row.fallback:
            fallbacks.append(row.name)
    places = {name: place for place, name in enumerate(listed)}
    fallbacks.sort(key=lambda name: places.get(name, len(places)))  # stable: the rows' own order stays
    return Offered(providers, models, tuple(fallbacks), at_once)


offered = in_database(offered_now)
"""The same, in an event loop."""


def _provider(row: Upstream) -> HttpProvider:
    made = DIALECTS[row.dialect](
        base_url=row.base_url, api_key=row.key, model=",".join(row.listed), limits=row.limits
    )  # fmt: skip
    made.circuit = row.name
    made.resolves = allowed_address
    return made


async def allowed_address(host: str, port: int) -> str:
    """Where a connection to this host may go. Raises ``ProviderError``."""
    try:
        return await address_of(host, port)
    except CheckFailed as error:
        kind = ProviderRefused if isinstance(error, AddressRefused) else ProviderUnavailable
        raise kind(str(error)) from None
