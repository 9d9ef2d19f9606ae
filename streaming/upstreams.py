"""Upstreams of the gateway that operators configure in the admin, beside those of the environment.

Exists so that an upstream is added, changed and taken away without a restart: the rows are read for every request, in
every process. Protects two rules. The key of an upstream is encrypted where it is stored and shown nowhere. And whoever
may edit rows must not make this server talk to what only this server can reach: every connection goes to an address
that ``streaming.outbound`` allows.
"""

from __future__ import annotations

from dataclasses import dataclass

from channels.db import database_sync_to_async
from django.conf import settings
from django.db import models

from guardrails.kinds.base import CheckFailed
from streaming.outbound import AddressRefused, address_of
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import Provider, ProviderRefused, ProviderUnavailable, available
from streaming.providers.http import HttpProvider
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from streaming.texts import CANNOT_BE_OPENED, SealedTextField

DIALECTS: dict[str, type[HttpProvider]] = {
    "openai": OpenAIProvider, "anthropic": AnthropicProvider, "ollama": OllamaProvider,
}  # fmt: skip


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
    def has_key(self) -> bool:
        """Whether one is stored; it may be that none of the installation's keys opens it."""
        return bool(self.key)


@dataclass(frozen=True, slots=True)
class Offered:
    """Who can be asked, by the name that clients use. ``fallbacks``: names, in order."""

    providers: dict[str, Provider]
    models: dict[str, tuple[str, ...]]
    fallbacks: tuple[str, ...]

    def dialect_of(self, name: str) -> str:
        """What that one speaks; empty for the scripted provider, which speaks none."""
        provider = self.providers[name]
        return provider.name if isinstance(provider, HttpProvider) else ""


def offered_now() -> Offered:
    """The upstreams of the environment and those of the admin."""
    providers = available()
    models = {name: provider.models for name, provider in providers.items()}
    fallbacks = [name for name in settings.SLUICEGATE_FALLBACKS if name in providers]
    listed = list(settings.SLUICEGATE_FALLBACKS)
    for row in Upstream.objects.filter(enabled=True):
        if row.name in providers or row.dialect not in DIALECTS or row.key == CANNOT_BE_OPENED or not row.listed:
            continue
        providers[row.name] = _provider(row)
        models[row.name] = row.listed
        if row.name in listed or row.fallback:
            fallbacks.append(row.name)
    places = {name: place for place, name in enumerate(listed)}
    fallbacks.sort(key=lambda name: places.get(name, len(places)))  # stable: the rows' own order stays
    return Offered(providers, models, tuple(fallbacks))


offered = database_sync_to_async(offered_now)
"""The same, in an event loop."""


def _provider(row: Upstream) -> HttpProvider:
    made = DIALECTS[row.dialect](base_url=row.base_url, api_key=row.key, model=",".join(row.listed))
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
