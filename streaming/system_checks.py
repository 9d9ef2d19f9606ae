"""System checks of the streaming app: what is wrong with a provider's settings is said before a request finds out.

Ids are stable: sluicegate.E020 a provider's setting is ill-formed, E021 a provider's base URL cannot be used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, register

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
