"""Routes for programs: ``/v1/…``, ``/health``, ``/ready``, ``/metrics``, ``/.well-known/jwks.json``."""

from __future__ import annotations

from django.urls import path, re_path

from streaming import health
from streaming.api import root, rules
from streaming.api.gateway import ollama

urlpatterns = [
    path("health", health.health, name="health"),
    path("ready", health.ready, name="ready"),
    path("metrics", health.metrics, name="metrics"),
    path(".well-known/jwks.json", rules.jwks, name="jwks"),
    path("v1/", root.nothing_here),  # before the framework's own, which asks a program for a form's token
    path("api/", root.nothing_here),
    path("v1/docs", root.docs, name="api-docs"),
    path("v1/", root.api.urls),
    path("api/", ollama.api.urls),
    re_path(r"^v1/", root.nothing_here),
]
