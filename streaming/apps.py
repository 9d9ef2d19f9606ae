"""The app that moves text; its name for Django."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class StreamingConfig(AppConfig):
    """Registers the models, the worker's signals and the system checks."""

    name = "streaming"
    verbose_name = "Streaming"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Load the system checks; make the ready-made groups after every ``migrate``."""
        from streaming import system_checks  # noqa: F401 - registers on import
        from streaming.roles import make_groups

        post_migrate.connect(make_groups, sender=self)
