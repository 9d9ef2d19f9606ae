"""Sockets that are accepted and do nothing: what a WebSocket costs by itself under the same server."""

from __future__ import annotations

import os

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")


class Bare(AsyncWebsocketConsumer):
    """Takes frames and sends none."""

    channel_layer_alias = "none"

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Nothing follows from a frame."""


application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Bare.as_asgi()})
