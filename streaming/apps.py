"""The app that moves text; its name for Django."""

from __future__ import annotations

from django.apps import AppConfig


class StreamingConfig(AppConfig):
    """Registers the models and the worker's signals."""

    name = "streaming"
    verbose_name = "Streaming"
    default_auto_field = "django.db.models.BigAutoField"
