"""Routes of the sockets."""

from __future__ import annotations

from django.urls import path

from streaming.consumers import ChatConsumer, StreamConsumer

# Channels routes ASGI applications with Django's path(); the stubs know only views there.
websocket_urlpatterns = [
    path("ws/chat/", ChatConsumer.as_asgi()),  # type: ignore[arg-type]
    path("ws/stream/", StreamConsumer.as_asgi()),  # type: ignore[arg-type]
]
