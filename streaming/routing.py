"""Routes of the sockets."""

from __future__ import annotations

from django.urls import path

from streaming.consumers import ChatConsumer, StreamConsumer

websocket_urlpatterns = [
    path("ws/chat/", ChatConsumer.as_asgi()),
    path("ws/stream/", StreamConsumer.as_asgi()),
]
