"""How the web server and the worker are started: their command lines and environment."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping

import httpx
from django.conf import settings

from project.demo import ports
from project.demo.child import Service
from streaming.conf import conf

_SOCKET_BYTES = 8 * 1024 * 1024
"""A frame that is too large is answered with a message: the server's own limit, which closes the socket, is higher."""
_ROOT_WARNING = "ignore:You're running the worker with superuser privileges"


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What every child gets: the environment given, in demo mode and never with DEBUG."""
    return {
        **inherited,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "SLUICEGATE_DATA_DIR": str(settings.SLUICEGATE_DATA_DIR),
        "SLUICEGATE_DEMO": "1",
        "DEBUG": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(settings.BASE_DIR),
        "PYTHONWARNINGS": ",".join(filter(None, (inherited.get("PYTHONWARNINGS"), _ROOT_WARNING))),
    }


def web(env: Mapping[str, str], port: int) -> Service:
    """Daphne on ``port``; without its access log, which would write the tokens in query strings."""
    argv = (sys.executable, "-m", "daphne", "-b", ports.HOST, "-p", str(port), "-v", "0")
    most = str(max(_SOCKET_BYTES, 2 * conf().max_frame_bytes))
    limits = ("--websocket-max-message-size", most, "--websocket-max-frame-size", most)

    async def ready() -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            try:
                return (await client.get(f"http://{ports.HOST}:{port}/health")).status_code == httpx.codes.OK
            except httpx.HTTPError:
                return False

    return Service("web", (*argv, *limits, "project.asgi:application"), env, essential=True, ready=ready)


def _yielding() -> tuple[str, ...]:
    """What begins a command line that shall have the processor only while nobody else wants it."""
    nice = shutil.which("nice")
    return (nice, "-n", "5") if nice else ()


def worker(env: Mapping[str, str]) -> Service:
    """A Celery worker with beat. Processes, not threads: time limits and the loss of a worker work only with those.

    It yields to the web process, which it shares the machine with: readers wait for that one and for no check.
    """
    argv = (
        *_yielding(),
        sys.executable,
        "-m",
        "celery",
        "--quiet",
        "--app",
        "project",
        "worker",
        "--beat",
        "--pool",
        "prefork",
    )
    options = ("--concurrency", "2", "--loglevel", "INFO", "--without-gossip", "--without-mingle")
    return Service("worker", (*argv, *options), env)
