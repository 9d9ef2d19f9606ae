"""Which upstream a request is for.

Exists so that a client chooses by the one thing that every dialect lets it say: the model's name. ``provider/model``
names both; a name that only one upstream lists is that one's; anything else goes to the upstream that speaks the
client's dialect, or else to the first of ``SLUICEGATE_FALLBACKS``, or to the only one there is.

    NoUpstream     nobody here answers for that model
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from guardrails.policy import Policy
from streaming.gateway.upstream import Dialect
from streaming.providers.base import Provider, available


class NoUpstream(LookupError):
    """No upstream is configured for this model."""


@dataclass(frozen=True, slots=True)
class Route:
    """Who is asked for which model. ``scenario``: of the scripted provider."""

    provider: Provider
    model: str
    scenario: str = ""


def route(model: str, dialect: Dialect) -> Route:
    """The upstream of a model. Raises ``NoUpstream``."""
    offered = available()
    name, slash, rest = model.partition("/")
    if slash and rest and name in offered:
        provider = offered[name]
        if not provider.scripted:
            return Route(provider, rest)
        if rest in provider.scenarios and rest != "own_text":
            return Route(provider, "", rest)
        if rest in provider.models:
            return Route(provider, rest)
        raise NoUpstream(f"There is no model “{model}” here.")
    listed = [provider for provider in offered.values() if provider.scripted and model in provider.models]
    if listed:
        return Route(listed[0], model)
    if dialect in offered:
        return Route(offered[dialect], model)
    others = [provider for provider in offered.values() if not provider.scripted]
    named = [offered[one] for one in settings.SLUICEGATE_FALLBACKS if one in offered]
    if named:
        return Route(named[0], model)
    if len(others) == 1:
        return Route(others[0], model)
    raise NoUpstream(f"There is no model “{model}” here.")


def models() -> list[tuple[str, str]]:
    """Every model that is offered by name, with its upstream's name."""
    return [
        (model if provider.scripted else f"{provider.name}/{model}", provider.name)
        for provider in available().values()
        for model in provider.models
    ]


def media_allowed(policy: Policy) -> bool:
    """Whether pictures and sound may pass under this policy although no guardrail looks at them."""
    allowed: list[str] = getattr(settings, "SLUICEGATE_GATEWAY_MEDIA", [])
    return policy.name in allowed or "*" in allowed
