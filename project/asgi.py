"""The ASGI application: HTTP to Django, WebSockets to the consumers.

Runs the system checks itself: an ASGI server that is started bare does not, and production must not come up with demo
secrets.
"""

from __future__ import annotations

import os

import django
from channels.routing import ProtocolTypeRouter, URLRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django.setup(set_prefix=False)

from project.bodies import Bounded, bound_daphne  # noqa: E402 - Django has to be set up first
from project.flow import paced_daphne  # noqa: E402
from project.handler import Handler  # noqa: E402
from project.sockets import light_daphne  # noqa: E402
from project.startup import refuse_misconfiguration, settle  # noqa: E402

django_application = Handler()
refuse_misconfiguration()
bound_daphne()
paced_daphne()
light_daphne()

from streaming.routing import CheckedOrigins, Visitors, keyed_socket, websocket_urlpatterns  # noqa: E402

sockets = URLRouter(websocket_urlpatterns)  # type: ignore[arg-type]  # the stubs want a class that only they have
application = ProtocolTypeRouter(
    {"http": Bounded(django_application), "websocket": CheckedOrigins(keyed=keyed_socket, ours=Visitors(sockets))}
)

settle()
