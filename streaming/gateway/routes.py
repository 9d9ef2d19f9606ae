"""Which upstream a request is for.

Exists so that a client chooses by the one thing that every dialect lets it say: the model's name. ``provider/model``
names both; a name that an upstream of the admin lists is that one's; anything else goes to the upstream that speaks the
client's dialect, or else to the first of the fallbacks, or to the only one there is.

    NoUpstream     nobody here answers for that model
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from django.conf import settings

from guardrails.policy import Policy
from streaming.gateway.upstream import Dialect
from streaming.providers.base import Provider
from streaming.upstreams import Offered


class NoUpstream(LookupError):
    """No upstream is configured for this model."""


@dataclass(frozen=True, slots=True)
class Route:
    """Who is asked for which model. ``scenario``: of the scripted provider."""

    provider: Provider
    model: str
    scenario: str = ""


def route(model: str, dialect: Dialect, offered: Offered) -> Route:
    """The upstream of a model. Raises ``NoUpstream``."""
    providers = offered.providers
    name, slash, rest = model.partition("/")
    if slash and rest and name in providers:
        provider = providers[name]
        if not provider.scripted:
            return Route(provider, rest)
        if rest in provider.scenarios and rest != "own_text":
            return Route(provider, "", rest)
        if rest in provider.models:
            return Route(provider, rest)
        raise NoUpstream(f"There is no model “{model}” here.")
    for name, provider in providers.items():
        if model in offered.models[name] and (provider.scripted or name != provider.name):
            return Route(provider, model)
    if dialect in providers:
        return Route(providers[dialect], model)
    if same := [provider for name, provider in providers.items() if offered.dialect_of(name) == dialect]:
        return Route(same[0], model)
    if offered.fallbacks:
        return Route(providers[offered.fallbacks[0]], model)
    others = [provider for provider in providers.values() if not provider.scripted]
    if len(others) == 1:
        return Route(others[0], model)
    raise NoUpstream(f"There is no model “{model}” here.")


def models(offered: Offered, without: Container[str] = ()) -> list[tuple[str, str]]:
    """Every model that is configured by name, with its upstream's name; ``without``: upstreams that list their own."""
    return [
        (model if offered.providers[name].scripted else f"{name}/{model}", name)
        for name, listed in offered.models.items()
        if name not in without
        for model in listed
    ]


def media_allowed(policy: Policy) -> bool:
    """Whether pictures and sound may pass under this policy although no guardrail looks at them."""
    allowed: list[str] = getattr(settings, "SLUICEGATE_GATEWAY_MEDIA", [])
    return policy.name in allowed or "*" in allowed
