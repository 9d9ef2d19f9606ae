"""Stops a process that is misconfigured before it serves anything."""

from __future__ import annotations

from django.core.checks import ERROR, run_checks
from django.core.exceptions import ImproperlyConfigured


def refuse_misconfiguration() -> None:
    """Raise ``ImproperlyConfigured`` naming every system check of level ERROR, with its hint."""
    errors = [message for message in run_checks() if message.level >= ERROR and not message.is_silenced()]
    if errors:
        raise ImproperlyConfigured("\n".join(str(message) for message in errors))
