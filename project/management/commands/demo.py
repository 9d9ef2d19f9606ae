"""``manage.py demo``: web server, worker and Valkey for a visitor, started and ended together (``project.demo``).

Exit status: 0 after Ctrl-C or SIGTERM, 1 when something failed, 2 when it could not begin (port taken, already running,
production).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from typing import NoReturn

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from project.demo import ports, services
from project.demo.access import Access
from project.demo.bootstrap import prepare
from project.demo.child import Service
from project.demo.console import Console
from project.demo.lock import AlreadyRunning, only_one
from project.demo.supervisor import StartError, Supervisor
from project.demo.valkey import choose_port, embedded

DEFAULT_PORT = 8000


class Command(BaseCommand):
    help = "Runs web server, worker and Valkey together, with starter policies, a login and an API key."
    requires_system_checks = ()  # the children make them; here they would only complain of the missing broker

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, help=f"port on 127.0.0.1 (default: $PORT, else {DEFAULT_PORT})")

    def handle(self, *args: object, port: int | None = None, **options: object) -> None:
        if settings.SLUICEGATE_PRODUCTION:
            _refuse("the demo does not run in production (SLUICEGATE_ENV)")
        chosen = _web_port(port)
        os.umask(0o077)  # database, schedule and secrets are the owner's, also in a directory that others may enter
        signal.signal(signal.SIGTERM, _as_interrupt)  # while preparing; the supervisor takes over afterwards
        try:
            with only_one(settings.SLUICEGATE_DATA_DIR):
                status = self._run(chosen)
        except AlreadyRunning as error:
            _refuse(str(error))
        except StartError as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            status = 0
        if status:
            sys.exit(status)

    def _run(self, port: int) -> int:
        data_dir = settings.SLUICEGATE_DATA_DIR
        console = Console(sys.stdout)
        logging.disable(logging.INFO)  # every line of this log has a prefix, also those about publishing the starters
        console.line("demo", "preparing database, policies and access")
        access = prepare(data_dir, url=f"http://{ports.HOST}:{port}")
        env = services.environment(os.environ)
        stages: list[list[Service]] = []
        if not settings.REDIS_URL:
            valkey, env["REDIS_URL"] = embedded(data_dir, choose_port(data_dir), env)
            stages.append([valkey])
        stages.append([services.worker(env), services.web(env, port)])
        return asyncio.run(_supervise(stages, console, access))


async def _supervise(stages: list[list[Service]], console: Console, access: Access) -> int:
    """Run the services until a signal or the end of the web server."""
    supervisor = Supervisor(console.line)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: it is meant to outlive its terminal
        loop.add_signal_handler(signal.SIGHUP, supervisor.stop)

    def on_ready() -> None:
        access.store(settings.SLUICEGATE_DATA_DIR)
        for line in access.lines():
            console.line("demo", line)

    status = await supervisor.run(stages, on_ready=on_ready)
    console.line("demo", "everything has stopped")
    return status


def _web_port(given: int | None) -> int:
    """The port asked for, if it can be had."""
    text = os.environ.get("PORT", "").strip() or str(DEFAULT_PORT)
    try:
        port = int(text) if given is None else given
    except ValueError:
        _refuse(f"PORT={text} is not a port number")
    if not 1 <= port <= 65_535:
        _refuse(f"{port} is not a port number (1 to 65535)")
    if not ports.is_free(port):
        _refuse(f"port {port} on {ports.HOST} is in use or not allowed; choose another one with --port or PORT")
    return port


def _refuse(why: str) -> NoReturn:
    raise CommandError(why, returncode=2)


def _as_interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
