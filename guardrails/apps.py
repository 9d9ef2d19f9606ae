"""The app that decides what is checked; its name for Django."""

from __future__ import annotations

from django.apps import AppConfig


class GuardrailsConfig(AppConfig):
    """Registers models and system checks."""

    name = "guardrails"
    verbose_name = "Guardrails"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Load the system checks."""
        from guardrails import checks  # noqa: F401 - registers on import
