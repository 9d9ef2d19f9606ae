"""System checks of the streaming app: what is wrong with a provider's settings is said before a request finds out.

Ids are stable: sluicegate.E020 a provider's setting is ill-formed, E021 a provider's base URL cannot be used, E022 a
fallback is not offered, E023 a provider is its own fallback, E024 nobody can say how long texts are to be kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from streaming.audit import retention
from streaming.providers import base


@register
def check_providers(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Every provider that the environment configures can be asked."""
    found, wrong = base.configured(os.environ)
    messages: list[CheckMessage] = [
        Error(
            f"Provider {name!r} is not offered: {problem}.",
            hint="Correct the variable, or unset it to have its default (docs/providers.md).",
            id="sluicegate.E020",
        )
        for name, problem in wrong.items()
    ]
    messages += [
        Error(
            f"Provider {provider.name!r} cannot be asked: {problem}.",
            hint="Base URLs begin with http:// or https:// and end before the path of a call (docs/providers.md).",
            id="sluicegate.E021",
        )
        for provider in found.values()
        if (problem := provider.problem())
    ]
    return messages


@register
def check_fallbacks(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Every provider that ``SLUICEGATE_FALLBACKS`` names is there, and there for somebody other than itself."""
    named: list[str] = settings.SLUICEGATE_FALLBACKS
    found, wrong = base.configured(os.environ)
    messages: list[CheckMessage] = [
        Error(
            f"SLUICEGATE_FALLBACKS names {name!r}, which is not offered here.",
            hint=f"Offered: {', '.join(sorted(found))}. Set up the provider or correct the list (docs/providers.md).",
            id="sluicegate.E022",
        )
        for name in dict.fromkeys(named)
        if name not in found and name not in wrong  # what is wrong with those is E020
    ]
    askers = {provider.name for provider in found.values() if not provider.scripted}  # the scripted one stands alone
    messages += [
        Error(
            f"SLUICEGATE_FALLBACKS makes {name!r} its own fallback: {why}.",
            hint="Name each provider once, and one that stands behind another (docs/providers.md).",
            id="sluicegate.E023",
        )
        for name in dict.fromkeys(named)
        if (why := _own_fallback(name, named, askers))
    ]
    return messages


@register
def check_retention(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """``SLUICEGATE_RETENTION`` can be read: texts that nobody removes are found when it is too late."""
    try:
        retention.configured()
    except ValueError as error:
        return [
            Error(
                f"SLUICEGATE_RETENTION cannot be read: {error}.",
                hint="Write a number of days, and days by policy if you like: “90 medical=3650” (docs/audit.md).",
                id="sluicegate.E024",
            )
        ]
    return []


def _own_fallback(name: str, named: Sequence[str], askers: set[str]) -> str:
    if named.count(name) > 1:
        return "it is named twice"
    return "no other provider is offered that could fail" if askers == {name} else ""
